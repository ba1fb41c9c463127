"""One run of a StreamingLoader through an epoch: batches from the pool, or read here."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from numpy.typing import NDArray

from epistream.errors import DeadlineError, StateError, WorkerError
from epistream.loader.monitoring.stats import StatsRecorder
from epistream.loader.order.schedule import Schedule
from epistream.loader.reading.job import ReadJob
from epistream.loader.samples.failures import Origin, batch_text, reader_text
from epistream.loader.state import Place
from epistream.loader.stream_iterator import StreamIterator
from epistream.loader.workers.pool import WorkerPool
from epistream.loader.workers.thread_time import read_thread_time
from epistream.loader.workers.worker import NO_EPOCH, Message

Views = dict[str, NDArray[Any]]

ENDED = (
    "StreamingLoader: this iteration was ended by a later iter(loader) or by close(), or belongs to the process that "
    "this one was forked from. Iterate one at a time, or make a second loader."
)


class Iteration:
    """One run of a StreamingLoader through an epoch, or through the rest of one.

    Args:
        schedule: this rank's batches.
        num_given: batches of the epoch that were given before it, if that is known.
        recorder: is told what happens.
        before: the iteration that this one replaces.

    Attributes:
        serial: tells its messages from those of other iterations. The number after it belongs to the next epoch,
            which workers begin by themselves; every other continuation skips it.
        place: where the training loop is; None where that is where the next iteration begins, as at the end.
        has_begun: the training loop asked for a batch: the epoch is taken.
        is_resumed: it begins where a state was loaded.
        is_over: it ran out, failed, or was dropped by the training loop.
        at: the batch that was handed on last, counted from 0, and who read it.
    """

    def __init__(
        self, schedule: Schedule, num_given: int | None, recorder: StatsRecorder, before: "Iteration | None"
    ) -> None:
        self._schedule, self._recorder = schedule, recorder
        self._num_given, self._num_taken = num_given, 0
        self.place: Place | None = None
        self.has_begun = self.is_over = self.is_resumed = self._has_run_out = False
        self.at: tuple[int, Callable[[], str]] = -1, reader_text
        self.serial: int = NO_EPOCH + 2
        if before is not None:
            follows = before._has_run_out and (schedule.epoch, schedule.start) == (before._schedule.epoch + 1, 0)
            self.serial = before.serial + (1 if follows else 2)

    @property
    def cursor(self) -> tuple[int, int]:
        """Epoch and position at which it begins."""
        return self._schedule.epoch, self._schedule.start

    @property
    def gave_one_of(self) -> int | None:
        """How many batches it has, if it gave the first of several and no more."""
        num_batches = self._schedule.num_batches
        return num_batches if self._num_taken == 1 < num_batches else None

    def begin(self, is_resumed: bool) -> None:
        """The training loop asks for its first batch, for the first time after a state was loaded or not."""
        self.has_begun, self.is_resumed = True, is_resumed
        self._recorder.begin()
        if self._schedule.num_batches:
            self.place = Place(*self.cursor, self._num_given)

    def count(self) -> None:
        """The training loop takes another batch."""
        self._num_taken += 1
        schedule = self._schedule
        if self._num_taken == schedule.num_batches:
            self.place = None
            return
        num_given = None if self._num_given is None else self._num_given + self._num_taken
        self.place = Place(schedule.epoch, schedule.position_after(self._num_taken - 1), num_given)

    def collect(self, pool: WorkerPool, timeout_s: float, on_failure: Callable[[], None]) -> Iterator[Views]:
        """The batches that workers prepare, as views of their memory or as copies.

        Args:
            pool: has been told to run this iteration.
            timeout_s: how long to wait for a batch.
            on_failure: called before an error is raised that leaves the pool of no use.

        Raises:
            StateError: the pool runs another iteration by now, was stopped, or belongs to another process.
            WorkerError: a worker died; the message says which and of what.
            DeadlineError: no batch came within `timeout_s`; who was to send it is killed.
            EpistreamError: what a worker could not read.
        """
        recorder = self._recorder
        for number, batches in enumerate(pool.slots.groups(self._schedule.num_batches, pool.num_workers)):
            worker_index = number % pool.num_workers
            started = time.perf_counter()
            message = self._receive(pool, worker_index, timeout_s, on_failure)
            if message.first_batch != batches[0]:
                raise WorkerError(
                    f"worker {worker_index}: sent batch {message.first_batch}, wanted {batches[0]}. This is a defect "
                    "of epistream; please report it."
                )
            recorder.receive(worker_index, message, time.perf_counter() - started)
            arrays, copied = pool.take(worker_index, message)
            for batch_index, views in zip(batches, arrays, strict=True):
                self._check_current(pool)
                recorder.hand_out(len(views["step_index"]), copied)
                self._has_run_out = batch_index + 1 == self._schedule.num_batches
                self.at = batch_index, partial(pool.name_of, worker_index)
                yield views

    def read_here(self, job: ReadJob) -> Iterator[Views]:
        """The same batches without workers, each in fresh memory."""
        batches = StreamIterator(job, lambda views: views, Place(*self.cursor), 0, 1)
        while True:
            began, before = time.perf_counter(), read_thread_time()
            views = next(batches, None)
            if views is None:
                return
            busy_s, effort = time.perf_counter() - began, read_thread_time() - before
            cache, replaced, decoded = job.cache.stats(), batches.replaced, job.decoded_stats()
            message = Message(
                self.serial, 0, busy_s=busy_s, cache=cache, effort=effort, replaced=replaced, decoded=decoded
            )
            self._recorder.receive(0, message, busy_s)
            self._recorder.hand_out(len(views["step_index"]), copied=False)
            self.at = self.at[0] + 1, reader_text
            yield views

    def origin(self, job: ReadJob, views: Views) -> Origin:
        """Where the batch comes from that was handed on last."""
        batch_index, reader = self.at
        batch = batch_text(job.world, (*self.cursor, self._num_given), batch_index)
        return Origin(job.parts, views, f"{batch}, read by {reader()}")

    def _receive(
        self, pool: WorkerPool, worker_index: int, timeout_s: float, on_failure: Callable[[], None]
    ) -> Message:
        # One deadline for the batch: what is left over from earlier iterations does not put it off.
        deadline = time.monotonic() + timeout_s
        while True:
            self._check_current(pool)
            hung = None
            try:
                message = pool.receive(worker_index, deadline - time.monotonic())
                if message is None:
                    hung = worker_index
                    raise DeadlineError(
                        f"worker {worker_index}: no batch within {timeout_s:g} s. Look at the fetch errors in the log, "
                        "or raise StreamingLoader(timeout_s=...)."
                    )
                if message.error is not None and message.serial == NO_EPOCH:
                    raise message.error
            except BaseException as error:
                if isinstance(error, Exception):  # at Ctrl-C nothing has failed
                    pool.give_up(hung)
                on_failure()
                raise
            if message.serial == self.serial:
                if message.error is not None:
                    raise message.error
                return message
            if message.slot >= 0:  # left over from an iteration that was broken off
                pool.give_back(worker_index, message.slot)

    def _check_current(self, pool: WorkerPool) -> None:
        if not pool.is_running(self.serial):
            raise StateError(ENDED)
