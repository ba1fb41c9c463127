"""How fast loaders on this machine go through a stream, as processes or threads."""

import time
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Literal

import numpy as np
import psutil

from epistream.loader.loader import StreamingLoader
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


def measure_loading(stream: EpisodeStream, number: int, kind: Kind, seconds: float, warm_up: int = WARM_UP) -> LoadRate:
    """Let a loader hand out batches to a loop that does nothing.

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
        batches = chain.from_iterable(repeat(loader))
        for _ in range(number * warm_up):
            next(batches)
        before, began, count = loader.stats(), time.perf_counter(), 0
        while (elapsed := time.perf_counter() - began) < seconds or count < number:
            next(batches)
            count += 1
        stats = loader.stats().since(before)
        own_bytes = max((_own_bytes(pid) for pid in loader.worker_pids), default=0)
    # What others do on this machine is not the loader's: its workers' time in the run queue is left out.
    crowded = stats.effort.queue_s / max(1e-9, stats.worker_busy_s + stats.worker_idle_s)
    return LoadRate(number, stats.num_windows / elapsed / (1 - min(crowded, _MOST_CROWDED)), own_bytes)


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
    schedule, order = job.schedule(0, 0), job.plan.epoch(0)
    wanted = unique = 0
    for batch_index in range(min(_LOOKED_AT, schedule.num_batches)):
        windows = job.windows(order, schedule, batch_index)
        length = job.dataset.episode_length[windows.episode_index]
        for name in cameras:
            steps, _ = job.window.steps(name, windows.step, length)
            frames = windows.episode_index[:, None] * (int(length.max()) + 1) + steps
            wanted += frames.size
            unique += len(np.unique(frames))
    return unique / wanted if wanted else 1.0
