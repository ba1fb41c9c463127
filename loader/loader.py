"""StreamingLoader: the fast way to run a stream, with workers that fill recycled memory ahead of the training loop."""

import os
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from functools import partial
from typing import Annotated, Any, Protocol, TextIO, TypeVar

import torch

from epistream.errors import OptionError, StateError
from epistream.loader.agreement import check_agreement
from epistream.loader.crew import Crew
from epistream.loader.device import Hook, check_device, move_ahead
from epistream.loader.epoch_sampler import EpochSampler, make_sampler
from epistream.loader.iteration import ENDED, Iteration
from epistream.loader.map_style import BatchNumbers, NumberedBatches, as_it_is
from epistream.loader.monitoring.diagnosis import find_limit, find_remarks
from epistream.loader.monitoring.memory_use import measure_memory
from epistream.loader.monitoring.monitor import Monitor, MonitorOptions
from epistream.loader.monitoring.report import PerformanceReport
from epistream.loader.monitoring.stats import LoaderStats, StatsRecorder
from epistream.loader.order.world import World
from epistream.loader.order_log import log_break, log_order
from epistream.loader.pickled import check_pickled
from epistream.loader.reading.job import ReadJob
from epistream.loader.samples.failures import Finishing
from epistream.loader.state import Place, make_state
from epistream.loader.stream import EpisodeStream, Source, StreamConfig
from epistream.loader.stream_base import Stream
from epistream.loader.workers.pool import StartMethod
from epistream.options import Count, Range, Seconds, check_values

T = TypeVar("T")
Number = Annotated[int, Range(ge=0, le=1024)]


class LoaderConfig(StreamConfig, Protocol):
    """What `StreamingLoader.from_config` asks of a configuration."""

    def loader_arguments(self, world: World | None = None) -> dict[str, Any]:
        """Keyword arguments of `StreamingLoader` for a rank of this world."""


class StreamingLoader:
    """Iterates an `EpisodeStream` or a `Mixture`, one epoch per ``for`` loop, with batches prepared ahead.

    Every ``for`` is a full pass, as over PyTorch's loaders: a ``break`` leaves the rest of the epoch, and the next
    ``for`` begins the epoch after it. A state that is saved at the break goes on there, and so does the next ``for``
    after `resume`.

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

    # What training code looks for in a loader before it makes another one of its parts.
    collate_fn = staticmethod(as_it_is)
    prefetch_factor = None

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
        self._given: dict[str, Any] = {**given, "start_method": start_method, "monitor": monitor, "device": device}
        self._given["on_device"] = on_device
        self._device, self._on_device = check_device(device), on_device
        self._timeout_s = timeout_s
        self._iteration: Iteration | None = None  # that the loop is in, or was last
        self._stopped: Place | None = None  # where a loop broke off that another one was asked for behind
        self._has_told_of_break = False
        self._recorder = StatsRecorder()
        self._crew = Crew(
            stream, num_workers or num_threads, prefetch, start_method if num_workers else None, self._recorder
        )
        # Also when the loader is dropped or the interpreter ends.
        weakref.finalize(self, self._crew.stop)
        self._agreed_job: ReadJob | None = None  # that ranks have compared
        self._num_closed = 0
        # It must not keep the loader alive: a loader that is dropped ends its workers at once.
        self._monitor = Monitor(monitor or MonitorOptions(), _weakly(self.stats), _weakly(self.report))
        weakref.finalize(self, self._monitor.stop).atexit = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.stream!r}, {self._crew})"

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
        # A launcher that does not tell the rank before the training begins does not tell the ranks of a node either.
        return cls(stream, **config.loader_arguments(World() if stream.awaits_world else stream.job.world))

    @property
    def dataset(self) -> NumberedBatches:
        """This rank's batches by number, for training code that takes loaders apart; else as `stream`."""
        return NumberedBatches(self)

    @property
    def batch_sampler(self) -> BatchNumbers:
        """The numbers of this rank's batches in an epoch, which `dataset` has."""
        return BatchNumbers(self)

    @property
    def sampler(self) -> EpochSampler:
        """Where trainers look for ``set_epoch``."""
        return make_sampler(self.stream, self.set_epoch, lambda: self._iteration)

    def __len__(self) -> int:
        """Batches of this rank in a whole epoch, the one that the loop is in or that comes next.

        A resume in the middle of an epoch does not change it, as trainers count on from where they were: what is left
        then is `num_batches`.
        """
        place = self._iteration.place if self._iteration else None
        return self.stream.job.schedule((place or self.stream.next_place).epoch, 0).num_batches

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
        return self._crew.pool.pids if self._crew.pool is not None else []

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration be of `epoch`. Not needed in ordinary loops: the loader counts epochs by itself.

        After `load_state_dict` the position stays, see `Stream.set_epoch`. An iteration that runs goes on in its own
        epoch, and `state_dict` with it.
        """
        self.stream.set_epoch(epoch)
        self._forget_place()

    def set_place(self, place: Place) -> None:
        """Let the next iteration begin there. Unlike after `load_state_dict`, `set_epoch` does not keep the place."""
        self.stream.set_place(place)
        self._forget_place()

    def state_dict(self) -> dict[str, Any]:
        """Where the training loop is: a few numbers and names, under 1 kB.

        It counts windows that the loop has been given, not those that workers have prepared. Any number of ranks,
        workers and any batch size may load it.
        """
        return make_state(self.stream.job, self._where())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next iteration go on where `state` was taken.

        Raises:
            StateError: the state belongs to another dataset, window, seed or plan; both values are named.
        """
        self.stream.load_state_dict(state)
        self._forget_place()

    def resume(self) -> None:
        """Let the next ``for`` go on where the last one stopped: in the same epoch, with the batch after its last one.

        As ``loader.load_state_dict(loader.state_dict())`` right behind the loop, with the same workers. Where a loop
        ran to its end, and before the first one, there is nothing to go on with: the next ``for`` is the next epoch,
        as without it. A `set_epoch` or `load_state_dict` behind the loop says where to begin, and wins. A
        `set_epoch` of the same epoch after it keeps the place.
        """
        self.stream.go_on_at(self._where_stopped() or self.stream.next_place)
        self._forget_place()

    def stats(self) -> LoaderStats:
        """Counts and times of this rank so far."""
        return self._recorder.snapshot(shared_cache=self._crew.are_threads)

    def report(self) -> PerformanceReport:
        """What limits this run and what to change, with figures; takes some milliseconds for every worker."""
        job, pool = self.stream.job, self._crew.pool
        title = f"{job.url}: rank {job.world.rank} of {job.world.size}, {self._crew}"
        memory = measure_memory(self.worker_pids, pool.ring.num_bytes if pool else 0, job.cache.options)
        stats = self.stats()
        limit = find_limit(stats, self._crew.situation(evicts=stats.cache.evictions > 0))
        also = tuple(find_remarks(stats, limit.limit))
        return PerformanceReport(title, stats, limit, also, memory, job.left_out)

    def print_performance_report(self, file: TextIO | None = None) -> None:
        """Write `report` as text, to standard output by default."""
        (file or sys.stdout).write(f"{self.report()}\n")

    def __iter__(self) -> Iterator[Any]:
        """An iterator over the next epoch, or over the rest of one after `load_state_dict`.

        Making it spends nothing: the epoch is taken at the first ``next``, and that ends the iteration before. Workers
        begin to prepare batches at once where no iteration is under way.
        """
        self._agree()
        if self._iteration is None or self._iteration.is_over:
            stopped = self._where_stopped()
            self._forget_place()  # a loop that broke off is not gone on with: the next batch is of the next epoch
            self._stopped = stopped
            self._crew.prepare()
        return self._hand_out(self._num_closed, os.getpid())

    def close(self) -> None:
        """Stop the workers and leave the cache. Batches in use stay valid; iterating again starts new workers."""
        self._num_closed += 1
        self._monitor.stop()
        self._crew.stop()
        self._recorder.restart(shared_cache=self._crew.are_threads)
        self.stream.job.cache.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """A loader that goes on at the same place, in its next iteration; workers are not pickled.

        Raises:
            OptionError: a function of the user can not be found by its name, which is all that is pickled of it.
        """
        check_pickled("StreamingLoader", {"on_device": self._given["on_device"], **self.stream.hooks})
        return _made_again, (type(self), self.stream, self._given, self._where())

    def __deepcopy__(self, memo: dict[int, Any]) -> "StreamingLoader":
        """As pickling, with the same functions."""
        return _made_again(type(self), deepcopy(self.stream, memo), self._given, self._where())

    def __copy__(self) -> "StreamingLoader":
        """As a deep copy: two loaders of one stream would move one another."""
        return deepcopy(self)

    def __enter__(self) -> "StreamingLoader":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _agree(self) -> None:
        """Compare what is read with the other ranks: the first time, and in another world than before."""
        if self.stream.job is not self._agreed_job:
            self.stream.warn_if_untold()
            check_agreement(self.stream.job)
            log_order(self.stream.job)
            self._agreed_job = self.stream.job

    def _where(self) -> Place:
        place = None if self._iteration is None else self._iteration.place
        return place or self.stream.next_place

    def _where_stopped(self) -> Place | None:
        """Where the last loop stands, or stood when an iterator was made behind it; None if it ended, or none began."""
        place = None if self._iteration is None else self._iteration.place
        return place or self._stopped

    def _forget_place(self) -> None:
        """Let the next iteration begin where the stream says; one that runs counts on from its own next batch."""
        self._stopped = None
        if self._iteration is not None:
            self._iteration.place = None

    def _tell_of_break(self) -> None:
        """Say, the first time, that a loop which broke off is not gone on with."""
        stopped = self._where_stopped()
        if stopped is not None and not self._has_told_of_break:
            self._has_told_of_break = True
            log_break(self.stream.job, stopped, self.stream.next_place, "loader")

    def _hand_out(self, num_closed: int, pid: int) -> Iterator[Any]:
        """Begin the next iteration at the first ``next``, finish its batches and hand them out, counting them."""
        if (num_closed, pid) != (self._num_closed, os.getpid()):
            raise StateError(ENDED)
        self._agree()
        iteration = self._crew.prepare()
        job, pool = self.stream.job, self._crew.pool
        self._monitor.start(job.world.rank, job.world.all_processes.local_rank)  # the workers are forked by now
        self._tell_of_break()
        self._iteration, self._stopped = iteration, None
        iteration.begin(self.stream.loaded_place is not None)
        # A loop that breaks off has spent this epoch; the next loop is the next epoch.
        self.stream.set_epoch(iteration.cursor[0] + 1, 0)
        batches = iteration.read_here(job) if pool is None else iteration.collect(pool, self._timeout_s, self.close)
        try:
            finishing = Finishing(self.stream.finish, self._on_device, partial(iteration.origin, job))
            finished, ring = map(finishing.finish, batches), pool.ring if pool else None
            with move_ahead(finished, self._device, finishing.hook, ring) as moved:
                for batch in moved:
                    if self._iteration is not iteration:  # also where no workers tell
                        raise StateError(ENDED)
                    self._monitor.tick()
                    iteration.count()
                    yield batch
        finally:
            iteration.is_over = True


def _made_again(cls: type[StreamingLoader], stream: Stream, given: dict[str, Any], place: Place) -> StreamingLoader:
    stream.go_on_at(place)
    return cls(stream, **given)


def _weakly(method: Callable[[], T]) -> Callable[[], T]:
    """A bound method that does not keep its object alive."""
    reference = weakref.WeakMethod(method)

    def call() -> T:
        found = reference()
        if found is None:
            raise ReferenceError("StreamingLoader: dropped")
        return found()

    return call
