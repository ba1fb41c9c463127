"""StreamingLoader: the fast way to run a stream, with workers that fill recycled memory ahead of the training loop."""

import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Protocol, TextIO, TypeVar

import numpy as np
import torch

from epistream.errors import OptionError
from epistream.loader.device import Hook, check_device, move_ahead
from epistream.loader.iteration import Iteration, Views
from epistream.loader.monitoring.diagnosis import Situation, find_limit, find_remarks
from epistream.loader.monitoring.memory_use import measure_memory
from epistream.loader.monitoring.monitor import Monitor, MonitorOptions
from epistream.loader.monitoring.report import PerformanceReport
from epistream.loader.monitoring.stats import LoaderStats, StatsRecorder
from epistream.loader.order.working_set import budget_advice
from epistream.loader.order.world import World
from epistream.loader.order_log import log_order
from epistream.loader.state import check_agreement, make_state
from epistream.loader.stream import EpisodeStream, Source, StreamConfig
from epistream.loader.stream_base import Stream
from epistream.loader.workers.cores import num_usable_cores
from epistream.loader.workers.pool import StartMethod, WorkerPool
from epistream.loader.workers.slots import Slots
from epistream.options import Count, Range, Seconds, check_values

T = TypeVar("T")
Number = Annotated[int, Range(ge=0, le=1024)]


class LoaderConfig(StreamConfig, Protocol):
    """What `StreamingLoader.from_config` asks of a configuration."""

    def loader_arguments(self, world: World | None = None) -> dict[str, Any]:
        """Keyword arguments of `StreamingLoader` for a rank of this world."""


class StreamingLoader:
    """Iterates an `EpisodeStream` or a `Mixture`, one epoch per ``for`` loop, with batches prepared ahead.

    Three ways to run, the same batches: worker processes (the default), threads in this process
    (``num_workers=0``, best for a few cores or where processes are unwelcome), or nothing at all
    (``num_workers=0, num_threads=0``, for a debugger).

    Batches are views of recycled memory: no copy is made. A batch stays as it is for as long as anything refers
    to it; a loop that keeps more batches than there are slots gets copies from then on
    (`LoaderStats.num_copied_batches` counts them).

    Args:
        stream: what to read.
        num_workers: worker processes.
        num_threads: threads, when num_workers is 0; 2 if None.
        prefetch: batches that each worker prepares ahead. Times as many where batches are small and share slots.
        start_method: how processes are started. ``"fork"`` is fast and shares memory; take ``"spawn"`` or
            ``"forkserver"`` where threads of other libraries do not survive a fork.
        device: where batches are moved ahead of the loop; the host if None.
        on_device: called on every batch after the move: where augmentation belongs.
        timeout_s: seconds to wait for a batch before giving up.
        monitor: log lines and a metrics endpoint while it runs. None by default.

    Raises:
        OptionError: numbers that cannot work.
    """

    def __init__(  # noqa: PLR0913 - one keyword for each decision of the user
        self,
        stream: Stream,
        *,
        num_workers: Number = 2,
        num_threads: Number | None = None,
        prefetch: Annotated[Count, Range(le=1024)] = 2,
        start_method: StartMethod = "fork",
        timeout_s: Seconds = 600.0,
        monitor: MonitorOptions | None = None,
        device: str | torch.device | None = None,
        on_device: Hook | None = None,
    ) -> None:
        given = {"num_workers": num_workers, "num_threads": num_threads, "prefetch": prefetch, "timeout_s": timeout_s}
        checked = check_values(StreamingLoader, {**given, "start_method": start_method}, "StreamingLoader ")
        num_workers, num_threads, prefetch, timeout_s = (checked[name] for name in given)
        if num_threads is None:
            num_threads = 0 if num_workers else 2
        if num_workers and num_threads:
            raise OptionError(
                f"StreamingLoader: num_workers={num_workers} and num_threads={num_threads}, wanted one of them above 0 "
                "or both 0. Leave num_threads out when there are worker processes."
            )
        self.stream = stream
        self._device, self._on_device = check_device(device), on_device
        self._num_workers = num_workers or num_threads
        self._start_method: StartMethod | None = start_method if num_workers else None
        self._slots_per_worker = prefetch + 2
        self._slots = Slots.plan(stream.job, max(1, self._num_workers), self._slots_per_worker)
        self._timeout_s = timeout_s
        self._pool: WorkerPool | None = None
        self._finalizer: weakref.finalize[..., Any] | None = None
        self._iteration: Iteration | None = None  # begun last
        self._recorder = StatsRecorder()
        world = stream.job.world
        # It must not keep the loader alive: a loader that is dropped ends its workers at once.
        stats, report = _weakly(self.stats), _weakly(self.report)
        self._monitor = Monitor(monitor or MonitorOptions(), world.rank, world.local_rank, stats, report)
        weakref.finalize(self, self._monitor.stop).atexit = False

    @classmethod
    def from_config(
        cls, config: LoaderConfig, source: Source | None = None, world: World | None = None
    ) -> "StreamingLoader":
        """The stream that a configuration describes, in a loader as it describes it.

        Args:
            config: for example one of `epistream.load_config`.
            source: what to stream instead of the configuration's source.
            world: which rank this is; detected by default.
        """
        stream = EpisodeStream.from_config(config, source, world=world)
        return cls(stream, **config.loader_arguments(stream.job.world))

    @property
    def num_batches(self) -> int:
        """Batches that this rank gets from the next iteration."""
        return self.stream.num_batches

    @property
    def num_windows(self) -> int:
        """Windows of an epoch, over all ranks."""
        return self.stream.num_windows

    @property
    def worker_pids(self) -> list[int]:
        """Process ids of the worker processes that run now, by worker."""
        return self._pool.pids if self._pool is not None else []

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration be `epoch`. Not needed in ordinary loops: the loader counts epochs by itself.

        An iteration that runs goes on in its own epoch, and `state_dict` with it.
        """
        self.stream.set_epoch(epoch)
        self._forget_place()

    def state_dict(self) -> dict[str, Any]:
        """Where the training loop is: a few numbers and names, under 1 kB.

        It counts windows that the loop has been given, not those that workers have prepared. Any number of ranks,
        workers and any batch size may load it.
        """
        place = None if self._iteration is None else self._iteration.place
        return make_state(self.stream.job, *(place or self.stream.cursor))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next iteration go on where `state` was taken.

        Raises:
            StateError: the state belongs to another dataset, window, seed or plan; both values are named.
        """
        self.stream.load_state_dict(state)
        self._forget_place()

    def stats(self) -> LoaderStats:
        """Counts and times of this rank so far."""
        return self._recorder.snapshot(shared_cache=self._start_method is None)

    def report(self) -> PerformanceReport:
        """What limits this run and what to change, with figures; takes some milliseconds for every worker."""
        job, pool = self.stream.job, self._pool
        title = f"{job.url}: rank {job.world.rank} of {job.world.size}, {self._kind_of_workers()}"
        memory = measure_memory(self.worker_pids, pool.ring.num_bytes if pool else 0, job.cache.options)
        stats = self.stats()
        limit = find_limit(stats, self._situation(stats))
        also = tuple(find_remarks(stats, limit.limit))
        return PerformanceReport(title, stats, limit, also, memory, job.left_out)

    def print_performance_report(self, file: TextIO | None = None) -> None:
        """Write `report` as text, to standard output by default."""
        (file or sys.stdout).write(f"{self.report()}\n")

    def __iter__(self) -> Iterator[Any]:
        """Start the next epoch (or go on after `load_state_dict`); filling begins now, not at the first ``next``."""
        job = self.stream.job
        if self._iteration is None:
            check_agreement(job)
            log_order(job)
        epoch, start = self.stream.cursor
        schedule = job.schedule(epoch, start)
        # A loop that breaks off has spent this epoch; the next loop is the next epoch.
        self.stream.set_epoch(epoch + 1)
        self._iteration = iteration = Iteration(schedule, self._recorder, self._iteration)
        self._recorder.begin()
        if self._num_workers == 0:
            return self._hand_out(iteration, iteration.read_here(job))
        pool = self._ensure_pool()
        pool.run(iteration.serial, epoch, start)
        return self._hand_out(iteration, iteration.collect(pool, self._timeout_s, self.close))

    def close(self) -> None:
        """Stop the workers and leave the cache. Batches in use stay valid; iterating again starts new workers."""
        self._monitor.stop()
        if self._finalizer is not None:
            self._finalizer()
            self._finalizer = self._pool = None
        self._recorder.restart(shared_cache=self._start_method is None)
        self.stream.job.cache.close()

    def __enter__(self) -> "StreamingLoader":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _forget_place(self) -> None:
        """Let the next iteration begin where the stream says; one that runs counts on from its own next batch."""
        if self._iteration is not None:
            self._iteration.place = None

    def _kind_of_workers(self) -> str:
        if self._num_workers == 0:
            return "no workers"
        kind = "thread" if self._start_method is None else "worker process"
        plural = ("" if kind == "thread" else "e") + "s" if self._num_workers > 1 else ""
        return f"{self._num_workers} {kind}{plural}"

    def _situation(self, stats: LoaderStats) -> Situation:
        job, prefetch = self.stream.job, self._slots_per_worker - 2
        in_flight = max(1, self._num_workers * self._slots_per_worker * self._slots.batches_per_slot)
        # Looking at the budget enters the cache's directory, so only when shards had to leave it.
        budget = job.cache.budget() if stats.cache.evictions else None
        return Situation(
            num_workers=self._num_workers,
            are_threads=self._start_method is None,
            prefetch=prefetch,
            num_cores=num_usable_cores(),
            local_ranks=job.world.local_size,
            num_shards=sum(int(np.count_nonzero(plan.per_shard)) for plan in job.plans),
            budget_advice=budget_advice(job.plans[0], budget.bytes, in_flight * job.batch_size * job.world.size)
            if budget and len(job.plans) == 1
            else None,
        )

    def _ensure_pool(self) -> WorkerPool:
        if self._pool is None or not self._pool.is_ours:
            job, num_slots = self.stream.job, self._num_workers * self._slots_per_worker
            # The rings of all ranks of this node come first; the cache's budget is what they leave.
            job.cache.reserve(num_slots * self._slots.layout.num_bytes * job.world.local_size)
            self._pool = WorkerPool(job, self._slots, self._num_workers, self._slots_per_worker, self._start_method)
            # Also when the loader is dropped or the interpreter ends.
            self._finalizer = weakref.finalize(self, self._pool.stop)
        return self._pool

    def _hand_out(self, iteration: Iteration, batches: Iterator[Views]) -> Iterator[Any]:
        """Finish batches and hand them out, counting them. It begins at the first ``next``."""
        self._monitor.start()  # the workers are forked by now
        ring = None if self._pool is None else self._pool.ring
        with move_ahead(map(self.stream.finish, batches), self._device, self._on_device, ring) as moved:
            for batch in moved:
                self._monitor.tick()
                iteration.count()
                yield batch


def _weakly(method: Callable[[], T]) -> Callable[[], T]:
    """A bound method that does not keep its object alive."""
    reference = weakref.WeakMethod(method)

    def call() -> T:
        found = reference()
        if found is None:
            raise ReferenceError("StreamingLoader: dropped")
        return found()

    return call
