"""Runs the tasks of a job in this process or in several, with counters that the job can watch while they run."""

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from epistream.errors import DeadlineError, PackError, WorkerError
from epistream.processes import end_with_parent, how_it_ended
from epistream.working_folder import standing_somewhere

Task = TypeVar("Task")
Result = TypeVar("Result")

_TICK_S = 0.2
# No episode takes this long without a single frame; a network file system that hangs does.
_STALL_TIMEOUT_S = 900.0
# Episodes, bytes, and reports of either.
_NUM_COUNTERS = 3


class Pulse:
    """The counters of one task, and the word to stop. In shared memory when tasks run in other processes.

    Each running task writes a row of its own, so that no lock is needed that a killed process could keep.
    `kept` is what the tasks that one process runs leave for each other, by name.
    """

    def __init__(
        self,
        counters: NDArray[np.int64],
        row: int,
        kept: dict[str, Any],
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._stopped, self._row, self._on_change = counters[0], counters[row], on_change
        self.num_bytes = 0  # that this task has reported
        self.kept = kept

    def add(self, episodes: int = 0, num_bytes: int = 0) -> None:
        """Report progress; also the place where a task learns that the job is over.

        Raises:
            PackError: If the job was stopped.
        """
        if self._stopped[0]:
            raise PackError("packing: stopped because another part of the job failed.")
        self._row += (episodes, num_bytes, 1)
        self.num_bytes += num_bytes
        self._on_change()


class TaskPool:
    """Some processes for the tasks of one job, started when they are first needed.

    A context manager: leaving it stops whatever still runs and waits for it, so that afterwards nothing writes.

    Args:
        workers: Processes; with 1 everything runs in the calling process.
        what: Names the job in messages.
    """

    def __init__(self, workers: int, what: str) -> None:
        self._workers, self._what = workers, what
        # Spawned, not forked: HDF5 and threads of the caller do not survive a fork.
        self._context = multiprocessing.get_context("spawn")
        self._cells: Any = None
        self._executor: ProcessPoolExecutor | None = None
        self._others: set[Any] = set()
        self._children: set[Any] = set()

    def __enter__(self) -> "TaskPool":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Make every running task end at its next frame, and wait for that."""
        if self._executor is not None:
            self._cells[0] = 1
            self._executor.shutdown(wait=True, cancel_futures=True)
            self._executor = None

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
            return self._map_in_this_process(function, tasks, on_tick)
        return self._map_in_processes(function, tasks, on_tick)

    def _map_in_this_process(
        self, function: Callable[[Task, Pulse], Result], tasks: Sequence[Task], on_tick: Callable[[int, int], None]
    ) -> Iterator[Result]:
        counters = np.zeros((2, _NUM_COUNTERS), np.int64)
        last = time.monotonic()
        kept: dict[str, Any] = {}

        def tick() -> None:
            nonlocal last
            if time.monotonic() - last > _TICK_S:
                last = time.monotonic()
                on_tick(*counters[1, :2].tolist())

        for task in tasks:
            yield function(task, Pulse(counters, 1, kept, tick))
        on_tick(*counters[1, :2].tolist())

    def _map_in_processes(
        self, function: Callable[[Task, Pulse], Result], tasks: Sequence[Task], on_tick: Callable[[int, int], None]
    ) -> Iterator[Result]:
        # Every running task has a row of its own in the counters; few wait, so that a job of 100,000 shards does
        # not queue them all.
        free = list(range(1, 1 + 2 * self._workers))
        if self._executor is None:
            self._cells = self._context.RawArray("q", (1 + len(free)) * _NUM_COUNTERS)
            self._others = set(multiprocessing.active_children())
            self._executor = ProcessPoolExecutor(self._workers, self._context, _set_up_process, (self._cells,))
        executor, rows = self._executor, _counters(self._cells)[1:]
        before = rows.sum(axis=0)
        pending: dict[Future[Result], tuple[int, int]] = {}
        # Results that wait for those of earlier tasks.
        early: dict[int, Result] = {}
        position = 0
        todo = iter(enumerate(tasks))
        last, since = None, time.monotonic()
        try:
            while True:
                while free and (item := next(todo, None)):
                    row = free.pop()
                    with standing_somewhere():  # it may start a process
                        pending[executor.submit(_run_task, function, item[1], row)] = item[0], row
                    # The pool starts its processes one by one as tasks come in. Asking for all costs a system call
                    # each, which with many processes is more than a small file takes.
                    if len(self._children) < self._workers:
                        self._children |= set(multiprocessing.active_children()) - self._others
                if not pending:
                    return
                done, _ = wait(pending, _TICK_S, FIRST_COMPLETED)
                totals = (rows.sum(axis=0) - before).tolist()
                if done or totals != last:
                    last, since = totals, time.monotonic()
                elif time.monotonic() - since > _STALL_TIMEOUT_S:
                    raise DeadlineError(
                        f"{self._what}: no progress for {_STALL_TIMEOUT_S:.0f} s while waiting for packing processes. "
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
        except BrokenProcessPool as error:
            executor.shutdown()
            raise WorkerError(_explain_death(self._what, self._children)) from error


# What this process was given when it was started as a worker. Shared memory can only be handed over at that moment.
_cells: Any = None
_kept: dict[str, Any] = {}


def _set_up_process(cells: Any) -> None:
    """Prepare a worker process."""
    global _cells
    _cells = cells
    end_with_parent()


def _run_task(function: Callable[[Task, Pulse], Result], task: Task, row: int) -> Result:
    return function(task, Pulse(_counters(_cells), row, _kept))


def _counters(cells: Any) -> NDArray[np.int64]:
    """(tasks + 1, counters): the first number is not 0 when the job is over, the other rows are those of `Pulse`."""
    return np.frombuffer(cells, np.int64).reshape(-1, _NUM_COUNTERS)


def _explain_death(what: str, children: set[Any]) -> str:
    """The message about a dead process. The pool ends the others itself, by SIGTERM: those are not the cause.

    `children` may hold processes that the calling program started meanwhile; as long as they live they have no exit
    code.
    """
    codes = [child.exitcode for child in children if child.exitcode not in (None, 0, -15, 128 + 15)]
    how = how_it_ended(codes[0] if codes else None, "was ended")
    remedy = "If memory ran out, use fewer --workers; 'pack --resume' keeps the complete shards."
    if 1 in codes:
        remedy = 'A script that packs with several workers must do it under: if __name__ == "__main__":'
    return f"{what}: a packing process {how}. {remedy}"
