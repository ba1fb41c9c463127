"""What every stream is: an iterable dataset of whole batches with an epoch, a position and a state."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch.utils.data import IterableDataset, get_worker_info

from epistream.errors import OptionError
from epistream.loader.reading.job import Job
from epistream.loader.state import check_state, make_state
from epistream.loader.stream_iterator import StreamIterator

Batch = dict[str, Any]


class Stream(IterableDataset[Batch], ABC):
    """Base of `EpisodeStream` and `Mixture`.

    It has no ``__len__``, because training code takes whatever has one for a map-style dataset: see `num_batches`
    and `num_windows`.
    """

    def __init__(self) -> None:
        # Epoch and start position, in memory shared with the workers of a stock DataLoader: workers that
        # stay alive over epochs have copies of everything else.
        self._cursor = torch.zeros(2, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]

    @property
    @abstractmethod
    def job(self) -> Job:
        """What is read, in which order, for which rank."""

    @abstractmethod
    def finish(self, views: Mapping[str, NDArray[Any]]) -> Any:
        """Turn the arrays of a batch into what a training loop gets. Tensors share the arrays' memory."""

    @property
    def num_windows(self) -> int:
        """Windows of an epoch, over all ranks, before the remainder is dropped or padded."""
        return self.job.num_windows

    @property
    def num_batches(self) -> int:
        """Batches that this rank gets from the next iteration."""
        return self.job.schedule(*self.cursor).num_batches

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
        return make_state(self.job, *self.cursor)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next iteration begin where `state` was taken. Raises StateError if it belongs to another stream."""
        self.set_epoch(*check_state(self.job, state))

    def __iter__(self) -> StreamIterator:
        """This rank's batches of the epoch last set, or this DataLoader worker's share of them."""
        worker = get_worker_info()
        worker_index, num_workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        return StreamIterator(self.job, self.finish, self.cursor, worker_index, num_workers)
