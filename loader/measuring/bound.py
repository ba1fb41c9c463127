"""The bound: how fast this machine could go if the loader itself cost nothing.

``decode``: processes that only decode the run's own frames, in place, into memory they reuse; of videos the groups that
the run's own batches need, each as far as they need it. ``in_order``: the same processes decode whole groups of videos,
which is what keeping all decoded frames costs in its first epoch. ``copy``: threads that only copy batches from memory
(more of it than the CPU's caches hold) into warm slots. What a loader reaches is quoted as a share of the smaller of
``decode`` and ``copy``, or of ``copy`` where frames were decoded before.
"""

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection

import numpy as np
from numpy.typing import NDArray

from epistream.cache.source.blob import Blob
from epistream.errors import DeadlineError
from epistream.loader.reading.job import ReadJob
from epistream.loader.reading.reader import BatchWindows
from epistream.loader.shards.shard_entry import shard_entry
from epistream.sharding.format.features import Feature, codec_of
from epistream.sharding.format.index import ShardIndex
from epistream.sharding.pictures.codecs import CODECS
from epistream.sharding.pictures.video import VideoDecoder, VideoStream

# Compressed frames are read into memory first; a few hundred MB stand for the run well enough.
_SAMPLE_BYTES = 256 << 20
_START_S = 120.0
# More than the CPU's caches hold: batches come from all over the memory.
_COPY_BYTES = 128 << 20


@dataclass(frozen=True)
class Piece:
    """What is decoded at a time: a frame, or some of a group of a video.

    Attributes:
        feature: its camera.
        packets: each with its number, in the order of decoding.
        wanted: numbers of the frames that are made; all unless given.
        stream: of a video.
    """

    feature: Feature
    packets: tuple[tuple[int, bytes], ...]
    wanted: frozenset[int] = frozenset((0,))
    stream: VideoStream | None = None

    @property
    def num_bytes(self) -> int:
        """Of all packets."""
        return sum(len(data) for _, data in self.packets)


@dataclass(frozen=True)
class Sample:
    """Pieces, and the windows that they are for, of which there may be a part."""

    pieces: Sequence[Piece]
    num_windows: float


@dataclass(frozen=True)
class Bound:
    """Windows per second of each term; infinite where the run does nothing of the kind.

    `decode_cpu_s`, `copy_cpu_s` and `in_order_cpu_s` are the CPU time that a thousand windows take. `in_order` is None
    without videos, where the order in which frames are decoded makes no difference.
    """

    decode: float
    copy: float
    decode_cpu_s: float
    copy_cpu_s: float
    in_order: float | None = None
    in_order_cpu_s: float = 0.0

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
    sample = _sample(job)
    copy, copy_cpu_s = _measure_copy(job, num_processes, seconds)
    if not sample.pieces:
        return Bound(float("inf"), copy, 0.0, copy_cpu_s)
    decode, decode_cpu_s = _measure_decode(job, sample, num_processes, seconds)
    if all(piece.stream is None for piece in sample.pieces):
        return Bound(decode, copy, decode_cpu_s, copy_cpu_s)
    in_order = _measure_decode(job, _sample_in_order(job), num_processes, seconds)
    return Bound(decode, copy, decode_cpu_s, copy_cpu_s, *in_order)


def _sample(job: ReadJob) -> Sample:
    """What the job's first batches decode."""
    pieces: list[Piece] = []
    num_windows = num_bytes = 0
    schedule, order = job.schedule(0, 0), job.part.plan.epoch(0)
    for batch_index in range(schedule.num_batches):
        windows = job.part.windows(order, schedule, batch_index)
        for piece in _batch_pieces(job, windows):
            pieces.append(piece)
            num_bytes += piece.num_bytes
        num_windows += len(windows.step)
        if num_bytes > _SAMPLE_BYTES:
            break
    return Sample(pieces, num_windows)


def _sample_in_order(job: ReadJob) -> Sample:
    """The episodes that the job's first windows are of, whole, and the windows that they have on average."""
    schedule, order = job.schedule(0, 0), job.part.plan.epoch(0)
    windows = job.part.windows(order, schedule, 0)
    pieces: list[Piece] = []
    num_steps = num_bytes = 0
    for episode, shard in dict(zip(windows.episode_index.tolist(), windows.shard.tolist(), strict=True)).items():
        steps = np.arange(int(job.dataset.episode_length[episode]))
        with _opened(job, shard) as (tar, index):
            rows = steps + index.first_row[int(job.dataset.episode_in_shard[episode])]
            for camera in _compressed(job):
                of_camera = list(_pieces(tar, index, camera, rows))
                pieces += of_camera
                num_bytes += sum(piece.num_bytes for piece in of_camera)
        num_steps += len(steps)
        if num_bytes > _SAMPLE_BYTES:
            break
    # As the epoch goes through cameras, and not one after the other: they may differ in size.
    pieces = [pieces[number] for number in np.random.default_rng(0).permutation(len(pieces))]
    has_windows = job.part.anchors.per_shard[job.dataset.episode_shard] > 0
    return Sample(pieces, num_steps * job.num_windows / max(1, int(job.dataset.episode_length[has_windows].sum())))


def _compressed(job: ReadJob) -> list[Feature]:
    """Cameras whose frames are decoded."""
    cameras = [feature for feature in job.features.values() if feature.kind == "frames"]
    return [camera for camera in cameras if CODECS[camera.codec].storage != "array"]


@contextmanager
def _opened(job: ReadJob, shard: int) -> Iterator[tuple[Blob, ShardIndex]]:
    with job.cache.open(shard_entry(job.dataset, shard)) as entry:
        blob, dataset = entry.blobs[1], job.dataset
        index = ShardIndex.parse(bytes(blob.read(0, blob.size)), dataset.index_url[shard])
        yield entry.blobs[0], index.called(dataset.names_in(shard))


def _batch_pieces(job: ReadJob, windows: BatchWindows) -> Iterator[Piece]:
    compressed = _compressed(job)
    length = job.dataset.episode_length[windows.episode_index]
    for shard in np.unique(windows.shard) if compressed else ():
        rows = np.flatnonzero(windows.shard == shard)
        with _opened(job, int(shard)) as (tar, index):
            first_row = index.first_row[windows.episode_in_shard[rows]][:, None]
            for feature in compressed:
                steps, _ = job.part.window.steps(feature.name, windows.step[rows], length[rows])
                yield from _pieces(tar, index, feature, np.unique(steps + first_row))


def _pieces(tar: Blob, index: ShardIndex, feature: Feature, rows: NDArray[np.int64]) -> Iterator[Piece]:
    """What is decoded for some rows (n,) of a camera, ascending."""

    def packets(numbers: NDArray[np.int64]) -> tuple[tuple[int, bytes], ...]:
        return tuple((row, bytes(tar.read(*index.frame_range(feature.name, row)))) for row in numbers.tolist())

    if feature.name not in index.videos:
        for row in rows:
            [(_, data)] = packets(row[None])
            yield Piece(feature, ((0, data),))
        return
    for run in index.runs(feature.name, rows):
        yield Piece(feature, packets(run.rows), frozenset(run.wanted.tolist()), run.stream)


def _measure_decode(job: ReadJob, sample: Sample, num_processes: int, seconds: float) -> tuple[float, float]:
    """Windows per second of all processes, and CPU seconds per thousand windows."""
    # Fork, so that the sample is shared and not sent.
    context = multiprocessing.get_context("fork")
    pipes = [context.Pipe() for _ in range(num_processes)]
    processes = [
        context.Process(target=_decode_process, args=(sample.pieces, job.batch_size, seconds, theirs), daemon=True)
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
    windows_per_piece = sample.num_windows / len(sample.pieces)
    cpu_s = sum(cpu_s for _, cpu_s in answers) / num_processes / windows_per_piece * 1000
    return sum(rate for rate, _ in answers) * windows_per_piece, cpu_s


def _answer(pipe: Connection) -> tuple[float, float]:
    if not pipe.poll(_START_S):
        raise DeadlineError(f"bound: a decoding process said nothing for {_START_S:g} s. Is the machine overloaded?")
    answer: tuple[float, float] = pipe.recv()
    return answer


def _decode_process(sample: Sequence[Piece], batch_size: int, seconds: float, pipe: Connection) -> None:
    """Decode pieces round and round; answers with pieces per second and CPU seconds per piece."""
    cameras = {piece.feature.name: piece.feature for piece in sample}
    videos = {piece.feature.name for piece in sample if piece.stream is not None}
    codecs = {name: codec_of(feature) for name, feature in cameras.items() if name not in videos}
    decoders = {name: VideoDecoder(cameras[name].shape) for name in videos}
    buffers = {name: np.zeros((batch_size, *codec.shape), codec.dtype) for name, codec in codecs.items()}

    def step(number: int) -> None:
        piece = sample[number % len(sample)]
        name = piece.feature.name
        if piece.stream is None:
            codecs[name].decode_into(piece.packets[0][1], buffers[name][number % batch_size], name)
            return
        for _ in decoders[name].pictures(piece.stream, piece.packets, piece.wanted, name):
            pass

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
