"""EpisodeStream: a torch IterableDataset of whole batches."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from typing import Any

import torch
from numpy.typing import NDArray
from torch.utils.data import IterableDataset, get_worker_info

from epistream.cache.node import NodeCache
from epistream.cache.options import CacheOptions, Mode
from epistream.errors import OptionError
from epistream.loader.anchors import Anchors
from epistream.loader.batch import choose_features
from epistream.loader.iteration import StreamIterator
from epistream.loader.job import ReadJob
from epistream.loader.plan import OrderOptions, Plan
from epistream.loader.schedule import Remainder
from epistream.loader.state import check_state, make_state
from epistream.loader.window import Window
from epistream.loader.world import World
from epistream.sharding.dataset import open_dataset

Batch = dict[str, Any]
Source = str | PathLike[str] | Sequence[str | PathLike[str]]


class EpisodeStream(IterableDataset[Batch]):
    """Windows of recorded episodes, as whole batches, each window once per epoch over all ranks.

    Give it to `StreamingLoader`, or to ``torch.utils.data.DataLoader(stream, batch_size=None, num_workers=4)``
    (then call `set_epoch` before every epoch, as with a DistributedSampler). The order is the same for any number
    of nodes, ranks and workers.

    A batch is a dict; B is `batch_size`, n the number of offsets that the window gives to the feature:

    | key                            | type                                                            |
    | ------------------------------ | --------------------------------------------------------------- |
    | ``observation.images.<cam>``   | uint8 (B, n, H, W, C), in the channel order of who recorded it  |
    | ``observation.<name>``         | (B, n, ...) as stored; float64 becomes float32                  |
    | ``action``                     | (B, n, A), likewise                                             |
    | ``<key>_is_pad``               | bool (B, n), True where the episode does not reach              |
    | ``episode_index, step_index``  | int64 (B,): position of the episode in the dataset, anchor step |
    | ``task``                       | list of B str, the episode's first instruction or ""            |
    | ``is_repeat``                  | bool (B,), only with ``remainder="pad"``                        |

    It has no ``__len__``, because training code takes whatever has one for a map-style dataset: see `num_batches`
    and `num_windows`.
    """

    def __init__(  # noqa: PLR0913 - one keyword for each decision of the user; all but the source have a default
        self,
        source: Source,
        *,
        batch_size: int = 1,
        window: Window | None = None,
        features: Sequence[str] | None = None,
        split: str | None = "auto",
        shuffle: bool = True,
        seed: int = 0,
        remainder: Remainder = "drop",
        order: OrderOptions | None = None,
        world: World | None = None,
        cache: Mode | CacheOptions = "auto",
        squeeze: bool = False,
        sample_format: Callable[[Batch], Any] | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        """Open the dataset's manifest and decide the order; no episode is read.

        Args:
            source: a dataset folder or URL, a brace pattern of tars, or a list of these.
            batch_size: windows per batch and rank.
            window: step offsets to read; the anchor step alone by default.
            features: names to stream, in this order; all by default.
            split: a split of the dataset, None for all of it; ``"auto"`` is ``"train"`` where there is one, else all.
            shuffle: False streams in storage order.
            seed: of the order. Must be the same on all ranks.
            remainder: what happens to the last windows that do not fill a global batch: ``"drop"`` leaves them
                out, ``"pad"`` fills up with repeats, ``"uneven"`` lets the last batches differ (not under DDP).
            order: the finer points of the order; its `shuffle` and `seed` are replaced by the arguments above.
            world: which rank this is; detected from torch.distributed or the launcher by default.
            cache: where shards are kept on this node.
            squeeze: drop the step axis of features (and their masks) that have a single offset.
            sample_format: called on every batch in the training process; what it returns is yielded.
            storage_options: for fsspec, as in ``fsspec.open(url, **storage_options)``.

        Raises:
            OptionError: options that cannot work, alone or with this dataset.
            SourceError, FormatError: a dataset that is missing or torn.
        """
        if batch_size < 1:
            raise OptionError(f"batch_size: {batch_size}, wanted at least 1.")
        dataset = open_dataset(source, storage_options)
        window = window or Window()
        chosen = choose_features(dataset.features, features)
        unknown = sorted(set(window.overrides) - set(chosen))
        if unknown:
            raise OptionError(f"Window.overrides: {unknown} not among the streamed features {sorted(chosen)}.")
        if split == "auto":
            split = "train" if "train" in dataset.splits else None
        anchors = Anchors(dataset, split, window.reach(chosen), window.drop_incomplete)
        plan = Plan.of(anchors, dataset, replace(order or OrderOptions(), shuffle=shuffle, seed=seed))
        self._job = ReadJob(
            dataset=dataset,
            features=chosen,
            window=window,
            anchors=anchors,
            plan=plan,
            world=world or World.detect(),
            batch_size=batch_size,
            remainder=remainder,
            cache=NodeCache(_cache_options(cache), dataset.storage_options),
        )
        self._squeezed = [name for name in chosen if squeeze and len(window.offsets(name)) == 1]
        self._sample_format = sample_format
        # Epoch and start position, in memory shared with the workers of a stock DataLoader: workers that
        # stay alive over epochs have copies of everything else.
        self._cursor = torch.zeros(2, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        self._job.schedule(0, 0)  # impossible batch sizes and worlds are told now, not at the first batch

    @property
    def job(self) -> ReadJob:
        """What is read, in which order, for which rank."""
        return self._job

    @property
    def num_windows(self) -> int:
        """Windows of an epoch, over all ranks, before the remainder is dropped or padded."""
        return self._job.anchors.num_windows

    @property
    def num_batches(self) -> int:
        """Batches that this rank gets from the next iteration."""
        return self._job.schedule(*self.cursor).num_batches

    @property
    def cursor(self) -> tuple[int, int]:
        """Epoch and position at which the next iteration begins."""
        epoch, position = self._cursor.tolist()
        return epoch, position

    def set_epoch(self, epoch: int, position: int = 0) -> None:
        """Let the next iteration begin at `position` (windows over all ranks) of `epoch`."""
        if epoch < 0 or position < 0:
            raise OptionError(f"set_epoch: epoch {epoch}, position {position}, wanted 0 or more.")
        self._cursor.copy_(torch.tensor([epoch, position], dtype=torch.int64))

    def state_dict(self) -> dict[str, Any]:
        """The state from which the next iteration begins, under 1 kB. See `StreamingLoader.state_dict`."""
        return make_state(self._job, *self.cursor)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next iteration begin where `state` was taken. Raises StateError if it belongs to another stream."""
        self.set_epoch(*check_state(self._job, state))

    def finish(self, views: Mapping[str, NDArray[Any]]) -> Any:
        """Turn the arrays of a batch into what a training loop gets. Tensors share the arrays' memory."""
        batch: Batch = {}
        for name in self._job.features:
            for key in (name, f"{name}_is_pad"):
                tensor = torch.from_numpy(views[key])
                batch[key] = tensor.squeeze(1) if name in self._squeezed else tensor
        for key in ("episode_index", "step_index"):
            batch[key] = torch.from_numpy(views[key])
        tasks = self._job.dataset.tasks
        batch["task"] = [tasks[task] if task >= 0 else "" for task in views["task_index"].tolist()]
        if self._job.remainder == "pad":
            batch["is_repeat"] = torch.from_numpy(views["is_repeat"])
        return batch if self._sample_format is None else self._sample_format(batch)

    def __iter__(self) -> StreamIterator:
        """This rank's batches of the epoch last set, or this DataLoader worker's share of them."""
        worker = get_worker_info()
        worker_index, num_workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        return StreamIterator(self._job, self.finish, self.cursor, worker_index, num_workers)


def _cache_options(cache: Mode | CacheOptions) -> CacheOptions:
    return cache if isinstance(cache, CacheOptions) else CacheOptions(mode=cache)
