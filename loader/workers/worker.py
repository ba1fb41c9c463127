"""What runs in a worker, be it a process or a thread: fill slots of the ring with the batches that are its share."""

import gc
import os
import time
import traceback
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler

from epistream.cache.stats import CacheStats
from epistream.errors import EpistreamError, WorkerError
from epistream.loader.frames.keeping import DecodedStats
from epistream.loader.reading.bad_shards import Replaced
from epistream.loader.reading.feed import Feed
from epistream.loader.reading.job import ReadJob
from epistream.loader.shards.open_files import raise_limit
from epistream.loader.workers.pipe import Record, RecordKind, RecordPipe
from epistream.loader.workers.ring import Ring
from epistream.loader.workers.slots import Slots
from epistream.loader.workers.thread_time import ThreadTime, ThreadTimer
from epistream.processes import end_with_parent

# How long files and mappings are held while waiting, leased or not.
_REST_S = 5.0
# How often a worker that waits for longer looks at the memory.
_LOOK_S = 2.0
# How long shards are held while waiting: short against the time that a process waits for room in the cache.
_HOLD_S = 0.02
# An orphan gives back leases and memory in a fraction of this, unless it is stuck.
_ORPHAN_GRACE_S = 10.0


# The serial of messages that belong to no epoch; those of epochs are above it.
NO_EPOCH = 0


@dataclass(frozen=True)
class Message:
    """From a worker to the loader: a filled slot, or the error that ended this worker's epoch.

    `first_batch` is the first of those in the slot. `busy_s` is the time spent reading them, `effort` what of it the
    thread did itself, `slot_wait_s` the time spent waiting for a free slot before it. `replaced` tells of bad shards
    whose windows were replaced, `decoded` of what became of the frames of this process so far.
    """

    serial: int
    first_batch: int
    slot: int = -1
    num_windows: int = 0
    error: BaseException | None = None
    busy_s: float = 0.0
    slot_wait_s: float = 0.0
    cache: CacheStats | None = None
    effort: ThreadTime = field(default_factory=ThreadTime)
    replaced: tuple[Replaced, ...] = ()
    decoded: DecodedStats = field(default_factory=DecodedStats)


class Worker:
    """One worker, made by the training process for a process or a thread to `run`. Picklable while spawning.

    Args:
        index: this worker, in [0, num_workers).
        num_workers: workers that share the batches.
        own_slots: the numbers of its slots.
        outbox: where its messages go; records come in through `inbox`.
        job: what to read.
        slots: how batches lie in a slot.
        ring: the slots of all workers.
    """

    def __init__(
        self,
        index: int,
        num_workers: int,
        own_slots: range,
        outbox: Connection,
        job: ReadJob,
        slots: Slots,
        ring: Ring,
    ) -> None:
        self.index, self.num_workers, self.own_slots = index, num_workers, own_slots
        self.inbox, self.outbox = RecordPipe(), outbox
        self._job, self._slots, self._ring = job, slots, ring
        self._free = deque(own_slots)
        self._command: Record | None = None

    def run_in_process(self) -> None:
        """Run in a process of its own; leave in good order when told to, or when the parent dies."""
        end_with_parent(_ORPHAN_GRACE_S)
        gc.freeze()  # what the parent made stays: to look through it takes 0.1 s with torch, and copies its pages
        self._job.cache.is_quiet = self.index > 0
        raise_limit()
        try:
            self.run()
        finally:
            self._job.cache.close()

    def run(self) -> None:
        """Serve epochs until told to stop. An error that no epoch answers for is told under `NO_EPOCH`."""
        try:
            self._serve()
        except Exception as error:  # else the training loop would wait for batches that never come
            with suppress(OSError):
                self.outbox.send(Message(NO_EPOCH, -1, error=_sendable(error, self.index)))

    def _serve(self) -> None:
        # Made here, because they belong to the process and the thread that work with them.
        self._feed = Feed(self._job, prefetch=True)
        self._views = {slot: self._slots.layout.views(self._ring.slot(slot)) for slot in self.own_slots}
        self._timer = ThreadTimer()
        done_ahead: Record | None = None
        try:
            while True:
                self._wait_until(lambda: self._command is not None)
                command, self._command = self._command, None
                if command is None or command.kind == RecordKind.STOP:
                    return
                finished = command == done_ahead or self._run_epoch(command)
                done_ahead = None
                if finished and self._command is None:
                    # Go on into the epoch that a training loop asks for next, so that it need not wait for its first
                    # batches. If it asks for another one, what was filled is thrown away.
                    ahead = Record(RecordKind.RUN, command.first + 1, command.second + 1, 0)
                    done_ahead = ahead if self._run_epoch(ahead) else None
        finally:
            self._feed.close()

    def _run_epoch(self, command: Record) -> bool:
        """Fill this worker's share of an epoch; False if it failed or another command came in between."""
        serial, epoch, start = command.first, command.second, command.third
        batches = range(-1, 0)
        try:
            num_batches = self._feed.begin(epoch, start)
            groups = self._slots.groups(num_batches, self.num_workers)
            for batches in islice(groups, self.index, None, self.num_workers):
                waited_s = self._wait_until(lambda: bool(self._free) or self._is_superseded(command))
                if self._is_superseded(command):
                    return False
                started = time.perf_counter()
                num_windows, replaced = self._feed.read(batches, self._views[self._free[0]])
                busy_s, effort = time.perf_counter() - started, self._timer.lap()
                slot, cache, decoded = self._free.popleft(), self._job.cache.stats(), self._job.decoded_stats()
                told = (busy_s, waited_s, cache, effort, replaced, decoded)
                self._send(Message(serial, batches[0], slot, num_windows, None, *told))
        except Exception as error:  # whatever it is, the training process must hear of it
            self._feed.release()
            number = f"batch {batches[0]}" if len(batches) == 1 else f"batches {batches[0]} to {batches[-1]}"
            reached = f", {number} from window {start} of epoch {epoch} on" if batches[0] >= 0 else ""
            self._send(Message(serial, batches[0], error=_sendable(error, self.index, reached)))
            return False
        return True

    def _is_superseded(self, command: Record) -> bool:
        # The command for an epoch that was begun ahead of time arrives while it runs, and is no new one.
        return self._command is not None and self._command != command

    def _wait_until(self, ready: Callable[[], bool]) -> float:
        """Read the inbox until `ready`; returns the seconds waited. Gives up all shards before it really waits."""
        self._read_inbox()
        if ready():
            return 0.0
        started = time.perf_counter()
        # A loop that takes batches as fast as they come returns slots within this; mapping dozens of entries afresh
        # for every batch would cost more than copying small frames out of them.
        self.inbox.wait(timeout_s=_HOLD_S)
        self._read_inbox()
        if not ready():
            self._feed.release()
            self.inbox.wait(timeout_s=_REST_S)
            self._read_inbox()
        if not ready():
            self._feed.rest()
        while not ready():
            # No deadline here: an idle worker waits as long as its loader lives, and dies with it. There may be nobody
            # else to give memory back when others take it.
            self._job.cache.is_short()
            self.inbox.wait(timeout_s=_LOOK_S)
            self._read_inbox()
        return time.perf_counter() - started

    def _read_inbox(self) -> None:
        for record in self.inbox.receive():
            if record.kind == RecordKind.SLOT:
                self._free.append(record.first)
            elif self._command is None or self._command.kind != RecordKind.STOP:
                self._command = record

    def _send(self, message: Message) -> None:
        try:
            self.outbox.send(message)
        except (BrokenPipeError, OSError):
            # The loader closed its end: it is gone or closing, and a STOP or our own end follows.
            self._command = Record(RecordKind.STOP)


def _sendable(error: Exception, worker_index: int, reached: str = "") -> EpistreamError:
    """Our own errors as they are, if they survive the way to another process; all others in words."""
    where = f"worker {worker_index} (pid {os.getpid()}){reached}"
    if isinstance(error, EpistreamError):
        with suppress(Exception):
            ForkingPickler.loads(ForkingPickler.dumps(error))
            if hasattr(error, "add_note"):  # from Python 3.11 on
                error.add_note(f"epistream: this was in {where}")
            return error
    return WorkerError(f"{where}: {type(error).__name__}: {error}\n{traceback.format_exc()}")
