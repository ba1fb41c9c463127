"""Runs the tasks of a job in this process or in several, with counters that the job can watch while they run."""

import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from queue import SimpleQueue
from typing import Any, TypeVar

import numpy as np

from epistream.errors import DeadlineError
from epistream.sharding.tasks.pool_process import PoolProcess, Words
from epistream.sharding.tasks.pulse import Counters, Pulse
from epistream.working_folder import standing_somewhere

Task = TypeVar("Task")
Result = TypeVar("Result")

_TICK_S = 0.2
# No episode takes this long without a single frame; a network file system that hangs does.
_STALL_TIMEOUT_S = 900.0
# Tasks that were told to stop end at their next frame; a process that has not by then is killed.
_STOP_S = 60.0


class TaskPool:
    """Some processes of this machine for the tasks of one job: the local `Engine`.

    Args:
        workers: Processes; with 1 everything runs in the calling process.
        what: Names the job in messages.
        kept: What `Pulse.kept` of each process has from the beginning: pickled once a process, not once a task.
        words: How messages speak of the job.
    """

    def __init__(
        self, workers: int, what: str, kept: Mapping[str, Any] | None = None, words: Words | None = None
    ) -> None:
        self._workers, self._what, self._kept = workers, what, dict(kept or {})
        self._words = words or Words()
        # Spawned, not forked: HDF5 and threads of the caller do not survive a fork.
        self._context = multiprocessing.get_context("spawn")
        self._counters = Counters(1)
        # A thread for each process, which waits for its answers: `concurrent.futures` has queues with named semaphores
        # between processes, and these stay in /dev/shm when all processes of a job are killed at once.
        self._threads: ThreadPoolExecutor | None = None
        self._processes: list[PoolProcess] = []
        self._idle: SimpleQueue[PoolProcess] = SimpleQueue()
        self._futures: set[Future[Any]] = set()

    def __enter__(self) -> "TaskPool":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Make every running task end at its next frame, and wait for that; kill the process of one that does not."""
        if self._threads is None:
            return
        self._counters.stop()
        self._threads.shutdown(wait=False, cancel_futures=True)
        wait(list(self._futures), _STOP_S)
        PoolProcess.end_all(self._processes)
        self._threads.shutdown()
        for process in self._processes:
            process.close()
        # Last: who is interrupted in here a second time comes back.
        self._threads, self._processes = None, []

    def map(
        self,
        function: Callable[[Task, Pulse], Result],
        tasks: Sequence[Task],
        on_tick: Callable[[int, int], None] = lambda num_episodes, num_bytes: None,
        min_parallel: int = 2,
    ) -> Iterator[Result]:
        """Run `function` on every task; results come in the order of the tasks.

        Args:
            function: Of a module, so that other processes can import it.
            tasks: Picklable.
            on_tick: Called now and then with the episodes and bytes that all tasks have reported.
            min_parallel: With fewer tasks than this, starting processes is not worth it.

        Raises:
            WorkerError: If a process died.
            DeadlineError: If nothing moved for 15 minutes.
        """
        if self._workers == 1 or len(tasks) < min_parallel:
            return map_in_this_process(function, tasks, on_tick, self._kept)
        return self._map_in_processes(function, tasks, on_tick)

    def _map_in_processes(
        self, function: Callable[[Task, Pulse], Result], tasks: Sequence[Task], on_tick: Callable[[int, int], None]
    ) -> Iterator[Result]:
        # Every running task has a row of its own in the counters; few wait, so that a job of 100,000 shards does
        # not queue them all.
        free = list(range(1, 1 + 2 * self._workers))
        if self._threads is None:
            self._counters, self._idle = Counters(1 + len(free)), SimpleQueue()
            self._threads = ThreadPoolExecutor(self._workers, "epistream-pack")
        rows = self._counters.rows[1:]
        before = rows.sum(axis=0)
        pending: dict[Future[Result], tuple[int, int]] = {}
        # Results that wait for those of earlier tasks.
        early: dict[int, Result] = {}
        position = 0
        todo = iter(enumerate(tasks))
        last, since = None, time.monotonic()
        while True:
            while free and (item := next(todo, None)):
                row = free.pop()
                pending[self._submit(function, item[1], row, num_before=len(pending))] = item[0], row
            if not pending:
                return
            done, _ = wait(pending, _TICK_S, FIRST_COMPLETED)
            totals = (rows.sum(axis=0) - before).tolist()
            if done or totals != last:
                last, since = totals, time.monotonic()
            elif time.monotonic() - since > _STALL_TIMEOUT_S:
                raise DeadlineError(
                    f"{self._what}: no progress for {_STALL_TIMEOUT_S:.0f} s while waiting for {self._words.process}. "
                    "Check the file system that holds the sources."
                )
            on_tick(*totals[:2])
            for future in done:
                number, row = pending.pop(future)
                early[number] = future.result()
                free.append(row)
            while position in early:
                yield early.pop(position)
                position += 1

    def _submit(
        self, function: Callable[[Task, Pulse], Result], task: Task, row: int, num_before: int
    ) -> Future[Result]:
        """Have a task run by the next process that is idle; start one more while there are fewer than tasks."""
        assert self._threads is not None
        if len(self._processes) <= min(num_before, self._workers - 1):
            with standing_somewhere():
                process = PoolProcess(self._context, self._counters, self._what, self._kept, self._words)
            self._processes.append(process)
            self._idle.put(process)
        future = self._threads.submit(self._run, function, task, row)
        self._futures.add(future)
        future.add_done_callback(self._futures.discard)
        return future

    def _run(self, function: Callable[[Task, Pulse], Result], task: Task, row: int) -> Result:
        process = self._idle.get()  # there are no more threads than processes and those about to be started
        try:
            result: Result = process.run(function, task, row)
        finally:
            self._idle.put(process)
        return result


def map_in_this_process(
    function: Callable[[Task, Pulse], Result],
    tasks: Sequence[Task],
    on_tick: Callable[[int, int], None],
    kept: Mapping[str, Any],
) -> Iterator[Result]:
    """Run the tasks one after the other, where nothing else has to be started."""
    counters = np.zeros((2, Counters.NUM_COLUMNS), np.int64)
    last = time.monotonic()
    kept_here = dict(kept)

    def tick() -> None:
        nonlocal last
        if time.monotonic() - last > _TICK_S:
            last = time.monotonic()
            on_tick(*counters[1, :2].tolist())

    for task in tasks:
        yield function(task, Pulse(counters, 1, kept_here, tick))
    on_tick(*counters[1, :2].tolist())
