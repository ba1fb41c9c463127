"""A StreamingLoader's batches under their numbers: what training code finds where it takes a loader apart.

`accelerate.skip_first_batches`, by which the Hugging Face Trainer resumes, makes of ``loader.dataset`` and
``loader.batch_sampler`` a loader that begins later. As batches have numbers here, nothing is read for those that it
skips, and the loader itself gives the others: its workers run, and its state follows.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from torch.utils.data import Dataset, Sampler, get_worker_info

from epistream.errors import OptionError
from epistream.loader.state import Place
from epistream.loader.stream_base import Stream


class Loader(Protocol):
    """What is asked of the loader."""

    stream: Stream

    def __len__(self) -> int:
        """This rank's batches of an epoch."""

    def __iter__(self) -> Iterator[Any]:
        """Those of the next epoch, or the rest of one."""

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration be of `epoch`."""

    def set_place(self, place: Place) -> None:
        """Let the next iteration begin there."""

    def resume(self) -> None:
        """Let the next iteration go on where the last one stopped."""

    def state_dict(self) -> dict[str, Any]:
        """Where the training loop is."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next iteration go on where `state` was taken."""


class NumberedBatches(Dataset[Any]):
    """This rank's batches by number, of the epoch that comes next; one after the other is one pass of the loader.

    Its length is the windows of an epoch over all ranks, which training code prints. It is no iterable data set: the
    elements of those are dealt to ranks by trainers. What it does not have itself is the stream's.
    """

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        self._batches: Iterator[Any] = iter(())
        self._next = -1  # the number of the batch that `_batches` gives next

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # copies and pickles ask before there is a loader
            raise AttributeError(name)
        return getattr(self._loader.stream, name)

    def set_epoch(self, epoch: int) -> None:
        """As `StreamingLoader.set_epoch`."""
        self._loader.set_epoch(epoch)

    def resume(self) -> None:
        """As `StreamingLoader.resume`."""
        self._loader.resume()

    def state_dict(self) -> dict[str, Any]:
        """As `StreamingLoader.state_dict`."""
        return self._loader.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """As `StreamingLoader.load_state_dict`."""
        self._loader.load_state_dict(state)

    def __len__(self) -> int:
        return self._loader.stream.num_windows

    def __getitem__(self, batch_index: int) -> Any:
        """The batch of that number, counted from the begin of the epoch. Raises IndexError behind the last one.

        Raises:
            OptionError: a worker of a DataLoader asks, or batches are left out.
        """
        if get_worker_info() is not None:  # each would go through epochs of its own
            raise OptionError(
                "loader.dataset: read by a worker of a DataLoader, wanted the process of the loader, which has workers "
                "itself. Give the DataLoader num_workers=0, or the loader's stream with batch_size=None."
            )
        if batch_index != self._next:
            stream = self._loader.stream
            if not 0 <= batch_index < _num_batches(stream):
                raise IndexError(f"batch {batch_index}: this rank has {_num_batches(stream)} in an epoch.")
            if 0 < self._next < batch_index:  # whoever deals these batches to ranks would deal them twice
                raise OptionError(
                    f"loader.dataset: batch {batch_index} after batch {self._next - 1}, wanted one after the other, as "
                    "all of them are this rank's. Iterate the loader itself; nobody need deal batches to ranks."
                )
            self._loader.set_place(_place_of(stream, batch_index))
            self._batches = iter(self._loader)
        self._next = batch_index + 1
        try:
            return next(self._batches)
        except StopIteration:
            raise IndexError(f"batch {batch_index}: this rank has no more in this epoch.") from None

    def __getitems__(self, batch_indices: Sequence[int]) -> Any:
        """The batch that a `BatchNumbers` names, which a DataLoader then gives to its collate function."""
        [batch_index] = batch_indices
        return self[batch_index]


class BatchNumbers(Sampler[list[int]]):
    """A batch sampler: the numbers of this rank's batches of an epoch, each for itself."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def set_epoch(self, epoch: int) -> None:
        """As `StreamingLoader.set_epoch`."""
        self._loader.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[list[int]]:
        return ([batch_index] for batch_index in range(_num_batches(self._loader.stream)))


def as_it_is(batch: Any) -> Any:
    """A collate function for batches that are whole already."""
    return batch


def _num_given(stream: Stream) -> int:
    """Batches of the epoch that comes next that were given before a resume, which may have been of another size."""
    epoch, position, num_given = stream.next_place
    return position // stream.job.schedule(epoch, position).global_batch if num_given is None else num_given


def _num_batches(stream: Stream) -> int:
    """Batches of the epoch that comes next: those that were given, and those to come."""
    return _num_given(stream) + stream.num_batches


def _place_of(stream: Stream, batch_index: int) -> Place:
    """Where this rank's batch of that number begins, in the epoch that comes next."""
    epoch, position, _ = stream.next_place
    num_given = _num_given(stream)
    if batch_index < num_given:
        position = num_given = 0
    if batch_index > num_given:
        position = stream.job.schedule(epoch, position).position_after(batch_index - num_given - 1)
    return Place(epoch, position, batch_index)
