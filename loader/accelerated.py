"""What Accelerate is about to do with a stream that it iterates: made harmless, done right, or refused.

A stream has dealt its windows to ranks. Accelerate deals the elements of an iterable data set once more, in one of two
ways. Both are of the loader that `Accelerator.prepare` returns, which the Hugging Face Trainer makes of a
``train_dataset``:

* `IterableDatasetShard`: every rank iterates, and keeps a part. It is told that there is but one rank.
* `DataLoaderDispatcher`, the default: rank 0 iterates, and sends one element after the other to one rank after the
  other. There the stream gives the batches of all ranks in turn.

Before it iterates, such a loader enters itself in `GradientState` and calls ``set_epoch`` of its data set: that is when
a stream asks here. Accelerate is looked up among what is imported, never imported.
"""

import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from itertools import cycle
from math import gcd
from typing import Any

import torch

from epistream.errors import OptionError, StateError
from epistream.loader.order.world import World
from epistream.loader.reading.job import ReadJob
from epistream.loader.state import Place

logger = logging.getLogger(__name__)

# For whose batches a process is asked, where that is no number of ranks.
ITS_OWN, NOBODYS = 0, -1
_INSTEAD = "give it to epistream.StreamingLoader, or train with epistream.integrations.hugging_face.StreamTrainerMixin"


def active_loader(stream: object) -> Any | None:
    """The loader that `Accelerator.prepare` made and that iterates `stream` at present; None if none does."""
    loader, dataset = _active()
    return loader if dataset is stream and not _is(loader, "SkipDataLoader") else None


def check_iteration(stream: object, job: ReadJob, epoch: int) -> None:
    """Refuse what no ``set_epoch`` tells: more to skip than there is, and data sets of the user's around a stream.

    Raises:
        OptionError: Accelerate would deal once more what a data set has from the stream.
        StateError: it would go on in a wrong epoch after a resume.
    """
    loader, dataset = _active()
    if loader is None:
        return
    if dataset is stream:
        _check_skipping(loader, job, epoch)
        return
    is_dealt = _is(loader, "DataLoaderDispatcher") or loader.dataset is not dataset
    if is_dealt and job.world.size > 1 and any(part is stream for part in getattr(dataset, "__dict__", {}).values()):
        raise OptionError(
            f"{job.url}: Accelerate deals the elements of {type(dataset).__name__} to ranks, which has them from a "
            f"stream that gives rank {job.world.rank} of {job.world.size} its own already. Do not prepare its "
            f"DataLoader; or make the batches ready by sample_format or transform of the stream, and {_INSTEAD}."
        )


def _active() -> tuple[Any, Any]:
    """The loader of Accelerate's that iterates at present, and what it has elements from; None where there is none."""
    states = sys.modules.get("accelerate.state")
    if states is None or "accelerate.data_loader" not in sys.modules or not states.GradientState._shared_state:
        return None, None
    loader = states.GradientState().active_dataloader
    if not _is(loader, "DataLoaderShard", "DataLoaderDispatcher", "SkipDataLoader"):
        return None, None
    dataset = loader.dataset
    return loader, dataset.dataset if _is(dataset, "IterableDatasetShard") else dataset


def _is(found: Any, *names: str) -> bool:
    """Whether it is of one of these classes of Accelerate's, which give themselves out for the class that they wrap."""
    module = sys.modules["accelerate.data_loader"]
    return issubclass(type(found), tuple(getattr(module, name) for name in names))


def check_epoch(epoch: int, loaded: Place | None) -> None:
    """Refuse that a loader of Accelerate's, which counts epochs from 0, begins another one than a state was loaded of.

    Raises:
        StateError: it would.
    """
    if loaded is not None and loaded.epoch != epoch:
        raise StateError(
            f"state: of epoch {loaded.epoch}, but the loader that Accelerate prepared begins epoch {epoch}. Call its "
            f"set_epoch({loaded.epoch}) before the loop."
        )


def ranks_to_read(loader: Any, job: ReadJob, epoch: int) -> int:
    """For whose batches a loader of Accelerate's asks this process in the epoch that it begins.

    Args:
        loader: what `active_loader` found. One that deals what is dealt already is told not to.
        job: what is read, and which rank this is.
        epoch: the epoch.

    Returns:
        A number of ranks, those of all ranks; or `ITS_OWN`, or `NOBODYS`.

    Raises:
        OptionError: Accelerate would give windows twice, or lose some.
        StateError: it would go on in a wrong epoch after a resume.
    """
    num_batches = _check_skipping(loader, job, epoch)
    if loader.use_stateful_dataloader:
        raise OptionError(
            "Accelerate with use_stateful_dataloader=True saves no epoch, and on several ranks a place that is off by "
            "batches. Leave it out; to save where a stream is, give it to epistream.StreamingLoader and that to "
            "accelerator.register_for_checkpointing, or train with "
            "epistream.integrations.hugging_face.StreamTrainerMixin."
        )
    if _is(loader, "DataLoaderDispatcher"):
        return _read_for_dispatcher(loader, job, num_batches)
    if _is(loader.dataset, "IterableDatasetShard"):
        _let_pass(loader.dataset, job, num_batches)
    else:
        _check_elements(loader.base_dataloader.batch_size, split_batches=False)
    return ITS_OWN


def _check_skipping(loader: Any, job: ReadJob, epoch: int) -> int:
    """The batches of an epoch, if no more of them are to be skipped."""
    num_batches = job.schedule(epoch, 0).num_batches
    if loader.skip_batches > num_batches:
        raise StateError(
            f"{job.url}: {loader.skip_batches} batches to skip, but an epoch has {num_batches}: nobody told the "
            f"Trainer how long an epoch of this stream is, and it would go on in a wrong one. To resume, {_INSTEAD}."
        )
    return num_batches


def _let_pass(shard: Any, job: ReadJob, num_batches: int) -> None:
    """Have an `IterableDatasetShard` pass on what the stream dealt to this rank."""
    if shard.num_processes == 1:
        return
    if (shard.process_index, shard.num_processes) != (job.world.rank, job.world.size):
        _check_dealing(job.world, shard.num_processes, num_batches, shard)
        return
    _check_elements(shard.batch_size, shard.split_batches)
    shard.process_index, shard.num_processes = 0, 1
    shard.batch_size = 1  # None is no number to count to


def _read_for_dispatcher(loader: Any, job: ReadJob, num_batches: int) -> int:
    num_ranks, batch_size = loader.state.num_processes, loader.base_dataloader.batch_size
    if num_ranks == 1:
        _check_elements(batch_size, split_batches=False)
        return ITS_OWN
    if job.world.size != num_ranks or loader.submesh_tp is not None:
        _check_dealing(job.world, num_ranks, num_batches, loader, batch_size)
        return ITS_OWN
    _check_elements(batch_size, loader.split_batches)
    if job.remainder == "uneven":
        raise OptionError(
            'Accelerate lets rank 0 read for all ranks and cuts that into equal parts, which remainder="uneven" has '
            f'not. Use remainder="drop" or "pad", or {_INSTEAD}.'
        )
    if job.world.rank:
        return NOBODYS
    _tell_once(job.url, num_ranks)
    reader = loader.base_dataloader
    if not isinstance(reader.collate_fn, _TensorsOnly):
        reader.collate_fn = _TensorsOnly(reader.collate_fn, job.url)
    return int(num_ranks)


class _TensorsOnly:
    """What a loader makes of the stream's batches, refused if Accelerate could not send it to other ranks."""

    def __init__(self, collate: Callable[[Any], Any], url: str) -> None:
        self._collate, self._url = collate, url

    def __call__(self, elements: Any) -> Any:
        batch = self._collate(elements)
        found = _no_tensor(batch, "")
        if found:
            raise OptionError(
                f"{self._url}: Accelerate lets rank 0 read for all ranks and send them tensors, but {found}. Leave it "
                "out by sample_format or in the collator; or let every rank read its own: "
                f'accelerator_config={{"dispatch_batches": False}} of the TrainingArguments, '
                f"DataLoaderConfiguration(dispatch_batches=False) of an Accelerator, or {_INSTEAD}."
            )
        return batch


def _no_tensor(found: Any, place: str) -> str:
    """What in a batch is no tensor, and where; empty if all is."""
    if isinstance(found, torch.Tensor):
        return ""
    if isinstance(found, Mapping):
        return next(filter(None, (_no_tensor(value, f"{place}[{key!r}]") for key, value in found.items())), "")
    if isinstance(found, list | tuple):
        return next(filter(None, (_no_tensor(value, f"{place}[{index}]") for index, value in enumerate(found))), "")
    return f"batch{place} is {type(found).__name__}"


@cache
def _tell_once(url: str, num_ranks: int) -> None:
    logger.warning(
        "%s: Accelerate lets rank 0 read for all %d ranks and send them their batches, which may hold tensors only. "
        "For each rank to read its own, %s.",
        url,
        num_ranks,
        _INSTEAD,
    )


def _check_elements(batch_size: int | None, split_batches: bool) -> None:
    """Whether a loader takes the whole batches of a stream one by one."""
    if split_batches:
        raise OptionError(
            "Accelerate with split_batches=True cuts batches, and those of a stream are for one rank already. Leave it "
            "out; a stream's batch_size is that of a rank."
        )
    if batch_size not in (None, 1):
        raise OptionError(
            f"Accelerate takes {batch_size} elements of the stream at a time, and each is a whole batch. Set the batch "
            "size on the stream, and per_device_train_batch_size=1, per_device_eval_batch_size=1 and "
            f"data_collator=lambda batches: batches[0] (of a DataLoader: batch_size=None), or better {_INSTEAD}."
        )


def _check_dealing(world: World, num_ranks: int, num_batches: int, dealer: Any, batch_size: int | None = None) -> None:
    """Whether Accelerate may deal the batches of a stream of another world: of one rank, if they go round."""
    if world.size != 1:
        raise OptionError(
            f"Accelerate deals to {num_ranks} ranks what the stream gives to rank {world.rank} of {world.size}. Give "
            f"the stream world=World.of(rank, size) of the ranks that take data of their own, and {_INSTEAD}."
        )
    _check_elements(None, dealer.split_batches)
    if num_batches % (num_ranks * (batch_size or dealer.batch_size or 1)):
        raise OptionError(
            f"Accelerate deals {num_batches} batches of a stream with world=World() to {num_ranks} ranks; they do not "
            f"go round, and it would fill up with others. Leave world out, and {_INSTEAD}."
        )


def in_turn(
    job: ReadJob,
    num_ranks: int,
    worker: tuple[int, int],
    read: Callable[[ReadJob, int, int], Iterator[Any]],
) -> Iterator[Any]:
    """One batch of each rank, then the next of each: or every so manieth of these, for a worker of a DataLoader.

    Args:
        job: what is read.
        num_ranks: of ranks 0 to `num_ranks` - 1; none if that is `NOBODYS`.
        worker: its index and the number of workers.
        read: makes an iterator over the batches of a job, from a first one on and a step between two.
    """
    if num_ranks == NOBODYS:
        return iter(())
    index, num_workers = worker
    # Which ranks come to this worker repeats after so many batches.
    common = gcd(num_ranks, num_workers)
    places = [divmod(index + turn * num_workers, num_ranks) for turn in range(num_ranks // common)]
    batches = [read(_job_of(job, rank), first, num_workers // common) for first, rank in places]
    return _take(batches)


def _take(iterators: list[Iterator[Any]]) -> Iterator[Any]:
    """One of each, round and round, until the first has no more."""
    for iterator in cycle(iterators):
        try:
            yield next(iterator)
        except StopIteration:
            return


def _job_of(job: ReadJob, rank: int) -> ReadJob:
    """The job of another rank."""
    world = job.world
    if world.uneven:  # then the rank alone decides what is whose
        return replace(job, world=replace(world, rank=rank))
    return replace(job, world=World.of(rank, world.size, world.local_size))
