"""The bound: how fast this machine could go if the loader itself cost nothing.

``decode``: processes that only decode the run's own frames, in place, into memory they reuse. ``copy``: threads that
only copy batches from memory (more of it than the CPU's caches hold) into warm slots. What a loader reaches is quoted
as a share of the smaller of the two, or of ``copy`` where frames were decoded before.
"""

import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection

import numpy as np
from numpy.typing import NDArray

from epistream.errors import DeadlineError
from epistream.loader.reading.job import ReadJob
from epistream.loader.reading.reader import BatchWindows
from epistream.loader.reading.shard_entry import shard_entry
from epistream.sharding.format.features import Feature, codec_of
from epistream.sharding.format.index import ShardIndex
from epistream.sharding.pictures.codecs import CODECS

# Compressed frames are read into memory first; a few hundred MB stand for the run well enough.
_SAMPLE_BYTES = 256 << 20
_START_S = 120.0
# More than the CPU's caches hold: batches come from all over the memory.
_COPY_BYTES = 128 << 20

Frames = list[tuple[Feature, bytes]]


@dataclass(frozen=True)
class Bound:
    """Windows per second of each term; infinite where the run does nothing of the kind.

    `decode_cpu_s` and `copy_cpu_s` are the CPU time that a thousand windows take.
    """

    decode: float
    copy: float
    decode_cpu_s: float
    copy_cpu_s: float

    @property
    def windows_per_s(self) -> float:
        """The smaller term."""
        return min(self.decode, self.copy)

    @property
    def binding(self) -> str:
        """The name of the smaller term."""
        return "decode" if self.decode <= self.copy else "copy"


def measure_bound(job: ReadJob, num_processes: int, seconds: float) -> Bound:
    """Measure both terms on the first batches of the job's current data.

    Args:
        job: the run whose frames are decoded.
        num_processes: processes that decode, and threads that copy, at the same time.
        seconds: how long each term is measured.

    Raises:
        DeadlineError: a measuring process did not answer.
    """
    sample, num_windows = _sample(job)
    copy, copy_cpu_s = _measure_copy(job, num_processes, seconds)
    if not sample:
        return Bound(float("inf"), copy, 0.0, copy_cpu_s)
    frames_per_window = len(sample) / num_windows
    rates, cpu_s = _measure_decode(job, sample, num_processes, seconds)
    decode_cpu_s = sum(cpu_s) / num_processes * frames_per_window * 1000
    return Bound(sum(rates) / frames_per_window, copy, decode_cpu_s, copy_cpu_s)


def _sample(job: ReadJob) -> tuple[Frames, int]:
    """The frames that the job's first batches decode, each with its bytes, and how many windows these batches have."""
    frames: Frames = []
    num_windows = num_bytes = 0
    schedule, order = job.schedule(0, 0), job.part.plan.epoch(0)
    for batch_index in range(schedule.num_batches):
        windows = job.part.windows(order, schedule, batch_index)
        for feature, data in _batch_frames(job, windows):
            frames.append((feature, data))
            num_bytes += len(data)
        num_windows += len(windows.step)
        if num_bytes > _SAMPLE_BYTES:
            break
    return frames, num_windows


def _batch_frames(job: ReadJob, windows: BatchWindows) -> Iterator[tuple[Feature, bytes]]:
    cameras = [feature for feature in job.features.values() if feature.kind == "frames"]
    compressed = [camera for camera in cameras if CODECS[camera.codec].storage == "members"]
    length = job.dataset.episode_length[windows.episode_index]
    for shard in np.unique(windows.shard) if compressed else ():
        rows = np.flatnonzero(windows.shard == shard)
        with job.cache.open(shard_entry(job.dataset, int(shard))) as entry:
            blob = entry.blobs[1]
            index = ShardIndex.parse(bytes(blob.read(0, blob.size)), job.dataset.index_url[int(shard)])
            first_row = index.first_row[windows.episode_in_shard[rows]][:, None]
            for feature in compressed:
                steps, _ = job.part.window.steps(feature.name, windows.step[rows], length[rows])
                for frame in np.unique(steps + first_row).tolist():
                    yield feature, bytes(entry.blobs[0].read(*index.frame_range(feature.name, frame)))


def _measure_decode(
    job: ReadJob, sample: Frames, num_processes: int, seconds: float
) -> tuple[list[float], list[float]]:
    """Frames per second, and CPU seconds per frame, of each process."""
    # Fork, so that the sample is shared and not sent.
    context = multiprocessing.get_context("fork")
    pipes = [context.Pipe() for _ in range(num_processes)]
    processes = [
        context.Process(target=_decode_process, args=(sample, job.batch_size, seconds, theirs), daemon=True)
        for _, theirs in pipes
    ]
    for process in processes:
        process.start()
    try:
        answers = [_answer(ours) for ours, _ in pipes]  # ready
        for ours, _ in pipes:
            ours.send("go")
        answers = [_answer(ours) for ours, _ in pipes]
    finally:
        for process in processes:
            process.kill()
            process.join()
    return [rate for rate, _ in answers], [cpu_s for _, cpu_s in answers]


def _answer(pipe: Connection) -> tuple[float, float]:
    if not pipe.poll(_START_S):
        raise DeadlineError(f"bound: a decoding process said nothing for {_START_S:g} s. Is the machine overloaded?")
    answer: tuple[float, float] = pipe.recv()
    return answer


def _decode_process(sample: Frames, batch_size: int, seconds: float, pipe: Connection) -> None:
    """Decode frames round and round; answers with frames per second and CPU seconds per frame."""
    codecs = {name: codec_of(feature) for name, feature in {f.name: f for f, _ in sample}.items()}
    buffers = {name: np.zeros((batch_size, *codec.shape), codec.dtype) for name, codec in codecs.items()}

    def step(number: int) -> None:
        feature, data = sample[number % len(sample)]
        codecs[feature.name].decode_into(data, buffers[feature.name][number % batch_size], feature.name)

    pipe.send((0.0, 0.0))
    pipe.recv()
    before_s = time.process_time()
    rate, count = _rate(step, seconds)
    pipe.send((rate, (time.process_time() - before_s) / count))


def _measure_copy(job: ReadJob, num_threads: int, seconds: float) -> tuple[float, float]:
    """Windows per second of all threads, and CPU seconds per thousand windows."""
    num_bytes = job.layout.num_bytes
    num_sources = max(1, _COPY_BYTES // num_bytes)
    source: NDArray[np.uint8] = np.ones((num_sources, num_bytes), np.uint8)

    def run(thread: int) -> tuple[float, int]:
        slots: NDArray[np.uint8] = np.ones((4, num_bytes), np.uint8)

        def step(number: int) -> None:
            slots[number % 4] = source[(number + thread) % num_sources]

        return _rate(step, seconds)

    before_s = time.process_time()
    with ThreadPoolExecutor(num_threads) as pool:
        results = list(pool.map(run, range(num_threads)))
    num_windows = sum(count for _, count in results) * job.batch_size
    return sum(rate for rate, _ in results) * job.batch_size, (time.process_time() - before_s) / num_windows * 1000


def _rate(step: Callable[[int], None], seconds: float) -> tuple[float, int]:
    """Calls of `step`, which counts them, per second over at least `seconds`, after one to warm up; and all calls."""
    step(0)
    count, began = 1, time.perf_counter()
    while (elapsed := time.perf_counter() - began) < seconds or count == 1:
        step(count)
        count += 1
    return (count - 1) / max(elapsed, 1e-9), count
