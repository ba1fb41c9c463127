"""What every stream is: an iterable dataset of whole batches with an epoch, a position and a state."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch.utils.data import IterableDataset, get_worker_info

from epistream.errors import OptionError, StateError
from epistream.loader.order_log import log_order
from epistream.loader.reading.bad_shards import Replaced
from epistream.loader.reading.feed import Feed
from epistream.loader.reading.job import ReadJob
from epistream.loader.state import check_state, make_state

Batch = dict[str, Any]


class Stream(IterableDataset[Batch], ABC):
    """Base of `EpisodeStream` and `Mixture`.

    It has no ``__len__``, because training code takes whatever has one for a map-style dataset: see `num_batches`
    and `num_windows`.
    """

    _job: ReadJob

    def __init__(self) -> None:
        # Epoch, start position, and whether the order was told of in the log, in memory shared with the workers of a
        # stock DataLoader: workers that stay alive over epochs have copies of everything else.
        self._cursor = _CURSORS.take()

    @property
    def job(self) -> ReadJob:
        """What is read, in which order, for which rank."""
        return self._job

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
        epoch, position, _ = self._cursor.tolist()
        return epoch, position

    def set_epoch(self, epoch: int, position: int = 0) -> None:
        """Let the next iteration begin at `position` (windows over all ranks) of `epoch`."""
        if epoch < 0 or position < 0:
            raise OptionError(f"set_epoch: epoch {epoch}, position {position}, wanted 0 or more.")
        self._cursor[:2] = torch.tensor([epoch, position], dtype=torch.int64)

    def state_dict(self) -> dict[str, Any]:
        """The state from which the next iteration begins, under 1 kB. See `StreamingLoader.state_dict`."""
        return make_state(self.job, *self.cursor)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next iteration begin where `state` was taken. Raises StateError if it belongs to another stream."""
        self.set_epoch(*check_state(self.job, state))

    def __iter__(self) -> "StreamIterator":
        """This rank's batches of the epoch last set, or this DataLoader worker's share of them."""
        worker = get_worker_info()
        worker_index, num_workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        if worker_index == 0 and not self._cursor[2]:
            self._cursor[2] = 1
            log_order(self.job)
        return StreamIterator(self.job, self.finish, self.cursor, worker_index, num_workers)


class _Cursors:
    """Rows of three integers in memory shared with forked and spawned children: one descriptor for many streams.

    A mixture of fifty datasets is made of fifty streams.
    """

    def __init__(self) -> None:
        self._free: list[torch.Tensor] = []
        self._pid = os.getpid()

    def take(self) -> torch.Tensor:
        """A row of zeros, (3,) int64, that no other stream has."""
        if self._pid != os.getpid():  # the rows that a parent had left are its own to give
            self._free, self._pid = [], os.getpid()
        try:
            return self._free.pop()
        except IndexError:
            rows = torch.zeros(64, 3, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
            self._free += list(rows)
            return self._free.pop()


_CURSORS = _Cursors()


class StreamIterator(Iterator[Any]):
    """Reads one worker's share of an epoch, batch by batch, each in fresh memory: what a stock DataLoader drives.

    It is stateful in the sense of torchdata's StatefulDataLoader, which keeps one such state per worker and
    restores it in as many workers as there were.

    Args:
        job: what to read.
        finish: makes of a batch's arrays what is yielded.
        cursor: epoch and position at which the epoch is begun or gone on with.
        worker_index: this worker, in [0, num_workers).
        num_workers: workers that share the epoch.

    Attributes:
        replaced: windows of bad shards that were replaced in the last batch.
    """

    def __init__(
        self,
        job: ReadJob,
        finish: Callable[[Mapping[str, NDArray[Any]]], Any],
        cursor: tuple[int, int],
        worker_index: int,
        num_workers: int,
    ) -> None:
        self._job = job
        self._finish = finish
        self._worker = worker_index, num_workers
        self._num_done = 0
        self.replaced: tuple[Replaced, ...] = ()
        self._feed = Feed(job)
        self._begin(*cursor)

    def _begin(self, epoch: int, start: int) -> None:
        self._cursor = epoch, start
        self._num_batches = self._feed.begin(epoch, start)

    def __next__(self) -> Any:
        worker_index, num_workers = self._worker
        batch_index = worker_index + self._num_done * num_workers
        if batch_index >= self._num_batches:
            self._feed.close()  # whoever keeps the iterator need not keep files and memory
            raise StopIteration
        views = self._job.layout.allocate()
        try:
            num_windows, self.replaced = self._feed.read(range(batch_index, batch_index + 1), views)
        finally:
            # What the consumer does with a batch may take long, and nobody waits with shards in hand.
            self._feed.release()
        self._num_done += 1
        # Fewer than the batch size in the last batch under ``remainder="uneven"``.
        return self._finish({name: view[:num_windows] for name, view in views.items()})

    def state_dict(self) -> dict[str, int]:
        """Three numbers and the number of workers: where this worker is."""
        epoch, start = self._cursor
        return {"epoch": epoch, "start": start, "num_batches_done": self._num_done, "num_workers": self._worker[1]}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on where this worker was.

        Raises:
            StateError: the state is of another number of workers, of which each had another share.
        """
        if state["num_workers"] != self._worker[1]:
            raise StateError(
                f"state: of {state['num_workers']} workers, this loader has {self._worker[1]}. Use as many, or "
                "StreamingLoader, whose state fits any number."
            )
        self._begin(state["epoch"], state["start"])
        self._num_done = state["num_batches_done"]
