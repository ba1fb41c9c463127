"""The workers of a loader, and the iteration that they are at."""

from dataclasses import replace

import numpy as np

from epistream.loader.frames.decode_advice import decoded_again
from epistream.loader.iteration import Iteration
from epistream.loader.monitoring.diagnosis import Situation
from epistream.loader.monitoring.stats import StatsRecorder
from epistream.loader.order.working_set import budget_advice
from epistream.loader.reading.job import ReadJob
from epistream.loader.stream_base import Stream
from epistream.loader.workers.cores import num_usable_cores
from epistream.loader.workers.pool import StartMethod, WorkerPool
from epistream.loader.workers.slots import Slots


class Crew:
    """Workers that are started when there is something to prepare, and told which iteration comes next.

    Args:
        stream: what to read.
        num_workers: processes or threads; 0 if the training loop reads for itself.
        prefetch: batches that each prepares ahead.
        start_method: of processes; None for threads.
        recorder: is told what happens.

    Attributes:
        pool: the workers, while there are any.
        slots: how batches lie in their memory.
    """

    def __init__(
        self,
        stream: Stream,
        num_workers: int,
        prefetch: int,
        start_method: StartMethod | None,
        recorder: StatsRecorder,
    ) -> None:
        self._stream, self._recorder = stream, recorder
        self._num_workers, self._prefetch, self._start_method = num_workers, prefetch, start_method
        self._slots_per_worker = prefetch + 2
        self._job: ReadJob | None = None
        if not stream.awaits_world:
            self._use(stream.job)
        self.pool: WorkerPool | None = None
        self._last: Iteration | None = None  # that was made

    def __str__(self) -> str:
        """For titles, for example "2 worker processes"."""
        if self._num_workers == 0:
            return "no workers"
        kind = "thread" if self._start_method is None else "worker process"
        plural = ("" if kind == "thread" else "e") + "s" if self._num_workers > 1 else ""
        return f"{self._num_workers} {kind}{plural}"

    @property
    def are_threads(self) -> bool:
        """Whether they are not processes, or nobody at all."""
        return self._start_method is None

    def prepare(self) -> Iteration:
        """The next iteration, which workers are at from now on.

        It is the one that was made last, if that has not begun and still is the next.
        """
        job, place, last = self._stream.job, self._stream.next_place, self._last
        if job is not self._job:  # the stream has found itself in another world
            self.stop()
            self._use(job)
        if last is not None and not last.has_begun and last.cursor == place[:2]:
            is_at_work = self._num_workers == 0 if self.pool is None else self.pool.is_running(last.serial)
            if is_at_work:
                return last
        schedule = job.schedule(place.epoch, place.position)
        self._last = Iteration(schedule, place.num_given, self._recorder, last)
        if self._num_workers:
            if self.pool is None or not self.pool.is_ours:
                self.pool = self._start(job)
            self.pool.run(self._last.serial, place.epoch, place.position)
        return self._last

    def stop(self) -> None:
        """Stop the workers. Batches in use stay valid; the next iteration starts new ones."""
        pool, self.pool = self.pool, None
        if pool is not None:
            pool.stop()
            if pool.is_ours and self._job is not None and not self.are_threads:
                self._job.cache.end_deserted()  # those that had to be killed could not

    def situation(self, evicts: bool) -> Situation:
        """What decides where time goes.

        Args:
            evicts: shards had to leave the cache; only then its budget is looked at, which enters its directory.
        """
        job = self._stream.job
        if self._job is None:
            self._use(job)
        in_flight = max(1, self._num_workers * self._slots_per_worker * self.slots.batches_per_slot)
        budget = job.cache.budget() if evicts else None
        return Situation(
            num_workers=self._num_workers,
            are_threads=self.are_threads,
            prefetch=self._prefetch,
            num_cores=num_usable_cores(),
            local_ranks=job.world.all_processes.local_size,
            num_shards=sum(int(np.count_nonzero(plan.per_shard)) for plan in job.plans),
            budget_advice=budget_advice(job.plans[0], budget.bytes, in_flight * job.batch_size * job.world.size)
            if budget and len(job.plans) == 1
            else None,
            decoded_again=next(
                (
                    again
                    for part in job.parts
                    if (again := decoded_again(part.features, part.window, part.frames, part.plan)) is not None
                ),
                None,
            ),
        )

    def _use(self, job: ReadJob) -> None:
        self._job = job
        self.slots = Slots.plan(job, max(1, self._num_workers), self._slots_per_worker)

    def _start(self, job: ReadJob) -> WorkerPool:
        num_slots = self._num_workers * self._slots_per_worker
        # The rings of all ranks of this node come first; the cache's budget is what they leave.
        job.cache.reserve(num_slots * self.slots.layout.num_bytes * job.world.all_processes.local_size)
        at_once = max(1, self._num_workers) * self.slots.batches_per_slot
        job = replace(job, batches_at_once=at_once)  # for the pool of blocks, if there is one
        return WorkerPool(job, self.slots, self._num_workers, self._slots_per_worker, self._start_method)
