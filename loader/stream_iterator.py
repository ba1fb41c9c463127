"""One worker's share of an epoch, as an iterator with a state."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from numpy.typing import NDArray
from torch.utils.data import get_worker_info

from epistream.errors import StateError
from epistream.loader.reading.bad_shards import Replaced
from epistream.loader.reading.feed import Feed
from epistream.loader.reading.job import ReadJob
from epistream.loader.samples.failures import Origin, batch_text, portable, reader_text, told
from epistream.loader.state import MOST_EPOCHS, Place, check_keys, read_number


class StreamIterator(Iterator[Any]):
    """Reads one worker's share of an epoch, batch by batch, each in fresh memory: what a stock DataLoader drives.

    It is stateful in the sense of torchdata's StatefulDataLoader, which keeps one such state per worker and
    restores it in as many workers as there were.

    Args:
        job: what to read.
        finish: makes of a batch's arrays what is yielded.
        place: where the epoch is begun or gone on with.
        worker_index: this worker, in [0, num_workers).
        num_workers: workers that share the epoch.
        follow: is told after each batch where a loop over this iterator alone stands.
        resumed: is told when a state is loaded, by one worker of all, where iterations begin after this one.

    Attributes:
        replaced: windows of bad shards that were replaced in the last batch.
    """

    def __init__(
        self,
        job: ReadJob,
        finish: Callable[[Mapping[str, NDArray[Any]]], Any],
        place: Place,
        worker_index: int,
        num_workers: int,
        follow: Callable[[Place], None] | None = None,
        resumed: Callable[[Place], None] | None = None,
    ) -> None:
        self._job = job
        self._finish = finish
        self._worker = worker_index, num_workers
        self._follow, self._resumed = follow, resumed
        self._num_done = 0
        self.replaced: tuple[Replaced, ...] = ()
        if worker_index > 0:
            job.cache.is_quiet = True
        self._feed = Feed(job)
        self._begin(place)

    def _begin(self, place: Place) -> None:
        self._start = place
        self._num_batches = self._feed.begin(place.epoch, place.position)

    def __next__(self) -> Any:
        worker_index, num_workers = self._worker
        batch_index = worker_index + self._num_done * num_workers
        if batch_index >= self._num_batches:
            self._feed.close()  # whoever keeps the iterator need not keep files and memory
            if self._follow is not None and self._num_batches == 0:
                self._follow(self._place())
            raise StopIteration
        try:
            batch = self._read(batch_index)
        except Exception as error:
            known = error if get_worker_info() is None else portable(error)
            if known is error:
                raise
            raise known from error
        if self._follow is not None:  # a batch that failed was not given
            self._follow(self._place())
        return batch

    def _read(self, batch_index: int) -> Any:
        views = self._job.layout.allocate()
        try:
            num_windows, self.replaced = self._feed.read(range(batch_index, batch_index + 1), views)
        finally:
            # What the consumer does with a batch may take long, and nobody waits with shards in hand.
            self._feed.release()
        self._num_done += 1
        # Fewer than the batch size in the last batch under ``remainder="uneven"``.
        views = {name: view[:num_windows] for name, view in views.items()}
        job, place = self._job, self._start

        def origin() -> Origin:
            return Origin(job.parts, views, f"{batch_text(job.world, place, batch_index)}, read by {reader_text()}")

        return told(self._finish, views, origin, "transform or sample_format")

    def _place(self) -> Place:
        begun, start, num_given = self._start
        epoch, position = self._job.schedule(begun, start).after(self._num_done)
        if epoch > begun:
            return Place(epoch, position)
        return Place(epoch, position, None if num_given is None else num_given + self._num_done)

    @property
    def _sharing(self) -> dict[str, int]:
        """What decides which batches are this worker's, beside the order."""
        job = self._job
        return {"num_workers": self._worker[1], "batch_size": job.batch_size, "num_ranks": job.world.size}

    def state_dict(self) -> dict[str, int]:
        """Where this worker is, and among how many it shares the epoch, in batches of which size."""
        epoch, start, _ = self._start
        return {"epoch": epoch, "start": start, "num_batches_done": self._num_done, **self._sharing}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on where this worker was. Batch size and number of ranks may be others if no DataLoader worker reads.

        Raises:
            StateError: not such a state, or one whose worker had another share; names both values.
        """
        check_keys(state, ("epoch", "start", "num_batches_done", "num_workers"), "state_dict() of an iterator")
        num_windows = self._job.num_windows
        epoch, start = (
            read_number(state, name, most) for name, most in (("epoch", MOST_EPOCHS), ("start", num_windows))
        )
        num_done, ours = read_number(state, "num_batches_done", num_windows), self._sharing
        # Earlier releases do not say all.
        saved = {name: read_number(state, name, MOST_EPOCHS, 1) if name in state else ours[name] for name in ours}
        if saved == ours:
            worker_index, num_workers = self._worker
            own = len(range(worker_index, self._job.schedule(epoch, start).num_batches, num_workers))
            read_number(state, "num_batches_done", own)
            self._begin(Place(epoch, start, None if start else 0))
            self._num_done = num_done
        elif saved["num_workers"] == ours["num_workers"] and get_worker_info() is None:
            position = self._position_of(start, num_done, saved["batch_size"] * saved["num_ranks"])
            self._begin(Place(epoch, position, None if position else 0))
            self._num_done = 0
        else:
            different = [name for name in ours if saved[name] != ours[name]]
            told = "; ".join(f"{name} {saved[name]}, this loader has {ours[name]}" for name in different)
            raise StateError(
                f"state: {told}. Each worker goes on in its own share. Use the saved values, or a StreamingLoader, "
                "whose state fits any."
            )
        if self._follow is not None:
            self._follow(self._place())
        worker_index, num_workers = self._worker
        if self._resumed is not None and worker_index == (self._num_batches - 1) % num_workers:
            # The one that gives the last batch: when it has, the epoch is over, and all of them say so or none.
            is_over = worker_index + self._num_done * num_workers >= self._num_batches
            self._resumed(Place(self._start.epoch + is_over, 0))

    def _position_of(self, start: int, num_done: int, global_batch: int) -> int:
        """Windows of the epoch that were consumed, over all ranks, where one iterator on each read all its batches."""
        num_windows = self._job.num_windows
        position = min(start + num_done * global_batch, num_windows)
        # Too few were left for a batch: they were dropped, and the epoch was over.
        is_over = self._job.remainder == "drop" and num_windows - position < global_batch
        return num_windows if is_over else position
