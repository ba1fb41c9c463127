"""One pass over a stream without a StreamingLoader: the iterator that a stock DataLoader drives."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from numpy.typing import NDArray

from epistream.errors import StateError
from epistream.loader.reading.bad_shards import Replaced
from epistream.loader.reading.job import Job

Finish = Callable[[Mapping[str, NDArray[Any]]], Any]


class StreamIterator(Iterator[Any]):
    """Reads one worker's share of an epoch, batch by batch, each in fresh memory.

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

    def __init__(self, job: Job, finish: Finish, cursor: tuple[int, int], worker_index: int, num_workers: int) -> None:
        self._job = job
        self._finish = finish
        self._worker = worker_index, num_workers
        self._num_done = 0
        self.replaced: tuple[Replaced, ...] = ()
        self._feed = job.feed()
        self._begin(*cursor)

    def _begin(self, epoch: int, start: int) -> None:
        self._cursor = epoch, start
        self._num_batches = self._feed.begin(epoch, start)

    def __next__(self) -> Any:
        worker_index, num_workers = self._worker
        batch_index = worker_index + self._num_done * num_workers
        if batch_index >= self._num_batches:
            raise StopIteration
        num_windows = self._feed.num_windows(batch_index)
        views = {name: view[:num_windows] for name, view in self._job.layout.allocate().items()}
        try:
            _, self.replaced = self._feed.read(range(batch_index, batch_index + 1), views)
        finally:
            # What the consumer does with a batch may take long, and nobody waits with shards in hand.
            self._feed.release()
        self._num_done += 1
        return self._finish(views)

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
