"""How fast loaders on this machine go through a stream, as processes or threads."""

import time
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Literal

import numpy as np
import psutil

from epistream.loader.loader import StreamingLoader
from epistream.loader.monitoring.stats import LoaderStats
from epistream.loader.reading.job import ReadJob
from epistream.loader.stream import EpisodeStream

Kind = Literal["processes", "threads"]

# Batches of each worker before the clock starts: every slot of its ring is touched, and every shard opened.
WARM_UP = 8
# A correction for a busy machine that is larger than this says nothing any more.
_MOST_CROWDED = 0.75
# Batches whose frames are counted.
_LOOKED_AT = 8


@dataclass(frozen=True)
class LoadRate:
    """Of a loader with `number` workers.

    Attributes:
        number: workers.
        windows_per_s: windows that it hands out per second, time in which workers waited for a core not counted.
        worker_bytes: memory of one worker process that is its own; 0 for threads.
    """

    number: int
    windows_per_s: float
    worker_bytes: int = 0


@dataclass(frozen=True)
class SteadyRun:
    """What a loader did while a loop that does nothing took its batches.

    Attributes:
        first_batch_s: from the start of its workers to the first batch.
        elapsed_s: of the measurement, which begins after the warm-up.
        cpu_s: CPU time of this process and its children meanwhile.
        stats: the loader's counters, of the measurement alone.
    """

    first_batch_s: float
    elapsed_s: float
    cpu_s: float
    stats: LoaderStats

    @property
    def windows_per_s(self) -> float:
        """Windows handed out per second."""
        return self.stats.num_windows / self.elapsed_s


def keep_decoded(loader: StreamingLoader, seconds: float) -> None:
    """Read epochs until all decoded frames that there is room for are kept, or for so many seconds.

    Found or decoded: what an earlier run left is there already. Keeping takes a share of the time only, so this takes
    some epochs.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        num_kept = loader.stats().decoded.num_kept
        for _ in range(2):
            for batch in loader:
                del batch
        if loader.stats().decoded.num_kept == num_kept:
            return


def run_steadily(loader: StreamingLoader, warm_up: int, seconds: float, least: int = 1) -> SteadyRun:
    """Take batches of a loader that has not begun, epoch after epoch.

    Args:
        loader: with its workers, or without.
        warm_up: batches before the clock starts: a ring's pages are touched for the first time while it fills.
        seconds: length of the measurement.
        least: batches that it has, whatever time that takes: as many as there are workers let each hand one out.
    """
    began = time.perf_counter()
    batches = chain.from_iterable(repeat(loader))
    next(batches)
    first_batch_s = time.perf_counter() - began
    for _ in range(warm_up - 1):
        next(batches)
    before, cpu_before, began, count = loader.stats(), _cpu_s(), time.perf_counter(), 0
    while (elapsed := time.perf_counter() - began) < seconds or count < least:
        next(batches)
        count += 1
    return SteadyRun(first_batch_s, elapsed, _cpu_s() - cpu_before, loader.stats().since(before))


def measure_loading(stream: EpisodeStream, number: int, kind: Kind, seconds: float, warm_up: int = WARM_UP) -> LoadRate:
    """How fast a loader with so many workers hands out batches, time that others took from them not counted.

    Args:
        stream: what to read.
        number: of workers.
        kind: of workers.
        seconds: how long to measure.
        warm_up: batches of each worker that are not counted.

    Raises:
        EpistreamError: as a loader.
    """
    processes = kind == "processes"
    with StreamingLoader(
        stream, num_workers=number if processes else 0, num_threads=None if processes else number
    ) as loader:
        run = run_steadily(loader, number * warm_up, seconds, least=number)
        own_bytes = max((_own_bytes(pid) for pid in loader.worker_pids), default=0)
    # What others do on this machine is not the loader's: its workers' time in the run queue is left out.
    crowded = run.stats.effort.queue_s / max(1e-9, run.stats.worker_s)
    return LoadRate(number, run.windows_per_s / (1 - min(crowded, _MOST_CROWDED)), own_bytes)


def _cpu_s() -> float:
    me = psutil.Process()
    times = [process.cpu_times() for process in (me, *me.children(recursive=True))]
    return sum(each.user + each.system for each in times)


def _own_bytes(pid: int) -> int:
    """Memory that a worker alone has, but for its slots of the ring: these are reckoned with all others."""
    with suppress(psutil.Error):
        maps = psutil.Process(pid).memory_maps(grouped=True)
        return sum(each.private_clean + each.private_dirty for each in maps if not each.path.startswith("/memfd:"))
    return 0


def unique_share(job: ReadJob) -> float:
    """Share of a batch's frames that are different ones: windows that overlap share frames. 1 without cameras.

    Arithmetic alone, on the first batches: nothing is read.
    """
    cameras = [name for name, feature in job.features.items() if feature.kind == "frames"]
    schedule, order = job.schedule(0, 0), job.part.plan.epoch(0)
    wanted = unique = 0
    for batch_index in range(min(_LOOKED_AT, schedule.num_batches)):
        windows = job.part.windows(order, schedule, batch_index)
        length = job.dataset.episode_length[windows.episode_index]
        for name in cameras:
            steps, _ = job.part.window.steps(name, windows.step, length)
            frames = windows.episode_index[:, None] * (int(length.max()) + 1) + steps
            wanted += frames.size
            unique += len(np.unique(frames))
    return unique / wanted if wanted else 1.0
