"""How fast processes or threads on this machine read the batches of a job, with nothing else around them."""

import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Literal

import numpy as np
import psutil
from numpy.typing import NDArray

from epistream.errors import DeadlineError, WorkerError
from epistream.loader.effort import thread_effort
from epistream.loader.job import ReadJob

Kind = Literal["processes", "threads"]

_START_S = 300.0
# Batch buffers that each worker goes round, as in a loader with two batches prepared ahead.
NUM_BUFFERS = 4


@dataclass(frozen=True)
class ReadRate:
    """Of `number` workers together.

    Attributes:
        number: workers.
        windows_per_s: windows read by all of them per second, time spent waiting for a core not counted.
        worker_bytes: memory of one worker process beside its batches; 0 for threads.
    """

    number: int
    windows_per_s: float
    worker_bytes: int = 0


def measure_reading(job: ReadJob, number: int, kind: Kind, seconds: float, warm_up: int = 2 * NUM_BUFFERS) -> ReadRate:
    """Let `number` workers read batches into memory of their own, which they use again and again.

    Args:
        job: what to read; its shards are warm after the first pass, which is not counted.
        number: of workers, which take batches in turn.
        kind: of workers.
        seconds: how long to measure.
        warm_up: batches that each worker reads before.

    Raises:
        WorkerError, DeadlineError: a worker failed, or said nothing.
    """
    if kind == "threads":
        return _in_threads(job, number, seconds, warm_up)
    context = multiprocessing.get_context("fork")  # as the loader does it, so that memory is shared likewise
    pipes = [context.Pipe() for _ in range(number)]
    processes = [
        context.Process(target=_in_process, args=(job, index, number, seconds, warm_up, pipes[index][1]), daemon=True)
        for index in range(number)
    ]
    try:
        for process in processes:
            process.start()
        for _, theirs in pipes:
            theirs.close()
        for ours, _ in pipes:
            _answer(ours)
        for ours, _ in pipes:
            ours.send("go")
        answers = [_answer(ours) for ours, _ in pipes]
    finally:
        for process in processes:
            with suppress(ValueError, AttributeError):
                process.kill()
                process.join()
    return ReadRate(number, sum(rate for rate, _ in answers), max(size for _, size in answers))


def _answer(pipe: Connection) -> tuple[float, int]:
    if not pipe.poll(_START_S):
        raise DeadlineError(f"tune: a reading process said nothing for {_START_S:g} s. Is the machine overloaded?")
    try:
        answer: tuple[float, int] | str = pipe.recv()
    except EOFError:
        raise WorkerError("tune: a reading process died. Look into 'dmesg': was it out of memory?") from None
    if isinstance(answer, str):
        raise WorkerError(f"tune: reading failed: {answer}")
    return answer


def _in_process(job: ReadJob, index: int, number: int, seconds: float, warm_up: int, pipe: Connection) -> None:
    try:
        step = _stepper(job, index, number)
        _repeat(step, warm_up)
        pipe.send((0.0, 0))
        pipe.recv()
        rate = _rate(step, seconds)
        own_bytes = psutil.Process().memory_full_info().uss - NUM_BUFFERS * job.layout.num_bytes
        pipe.send((rate, max(0, own_bytes)))
    except Exception as error:  # foreign errors may not survive pickling
        pipe.send(f"{type(error).__name__}: {error}")
    finally:
        job.cache.close()


def _in_threads(job: ReadJob, number: int, seconds: float, warm_up: int) -> ReadRate:
    barrier = threading.Barrier(number)
    results: list[float | Exception] = []

    def run(index: int) -> None:
        try:
            step = _stepper(job, index, number)
            _repeat(step, warm_up)
            barrier.wait(_START_S)
            results.append(_rate(step, seconds))
        except Exception as error:  # handed to the caller below
            barrier.abort()
            results.append(error)

    threads = [threading.Thread(target=run, args=(index,), daemon=True) for index in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    failed = [result for result in results if isinstance(result, Exception)]
    if failed:
        raise next((error for error in failed if not isinstance(error, threading.BrokenBarrierError)), failed[0])
    return ReadRate(number, sum(result for result in results if isinstance(result, float)))


def _stepper(job: ReadJob, index: int, number: int) -> Callable[[], int]:
    """A function that reads the next batch of this worker and returns its windows."""
    reader = job.reader()
    buffers: list[dict[str, NDArray[Any]]] = [job.layout.allocate() for _ in range(NUM_BUFFERS)]
    batches = _batches(job, index, number)
    count = 0

    def step() -> int:
        nonlocal count
        windows = next(batches)
        reader.read(windows, buffers[count % NUM_BUFFERS])
        count += 1
        return len(windows.step)

    return step


def _batches(job: ReadJob, index: int, number: int) -> Iterator[Any]:
    epoch = 0
    while True:
        schedule, order = job.schedule(epoch, 0), job.plan.epoch(epoch)
        for batch_index in range(index % max(1, schedule.num_batches), schedule.num_batches, number):
            yield job.windows(order, schedule, batch_index)
        epoch += 1


def _repeat(step: Callable[[], int], count: int) -> None:
    # Every buffer's pages are touched, and every shard of the sample is opened once or nearly so.
    for _ in range(count):
        step()


def _rate(step: Callable[[], int], seconds: float) -> float:
    """Windows per second of this thread, as if nobody had kept it from a core: what others do is not the loader's."""
    num_windows, began, before = 0, time.perf_counter(), thread_effort()
    while (elapsed := time.perf_counter() - began) < seconds or num_windows == 0:
        num_windows += step()
    queue_s = (thread_effort() - before).queue_s
    return num_windows / max(elapsed - queue_s, 0.05 * elapsed)


def unique_share(job: ReadJob, num_batches: int = 8) -> float:
    """Share of a batch's frames that are different ones: windows that overlap share frames. 1 without cameras.

    Arithmetic alone: nothing is read.
    """
    cameras = [name for name, feature in job.features.items() if feature.kind == "frames"]
    schedule, order = job.schedule(0, 0), job.plan.epoch(0)
    wanted = unique = 0
    for batch_index in range(min(num_batches, schedule.num_batches)):
        windows = job.windows(order, schedule, batch_index)
        length = job.dataset.episode_length[windows.episode_index]
        for name in cameras:
            steps, _ = job.window.steps(name, windows.step, length)
            frames = windows.episode_index[:, None] * (int(length.max()) + 1) + steps
            wanted += frames.size
            unique += len(np.unique(frames))
    return unique / wanted if wanted else 1.0
