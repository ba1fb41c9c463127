"""Runs the tasks of a job in this process or in several, with counters that the job can watch while they run."""

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from epistream.errors import DeadlineError, PackError, WorkerError
from epistream.processes import end_with_parent, how_it_ended

Task = TypeVar("Task")
Result = TypeVar("Result")

_TICK_S = 0.2
# No episode takes this long without a single frame; a network file system that hangs does.
STALL_TIMEOUT_S = 900.0
_NUM_COUNTERS = 3


class Pulse:
    """Counters of one task, and the word to stop. In shared memory when tasks run in other processes.

    Each running task writes a slot of its own, so that no lock is needed that a killed process could keep.
    """

    def __init__(self, cells: Any, slot: int, on_change: Callable[[], None] | None = None) -> None:
        self._cells, self._row = cells, 1 + slot * _NUM_COUNTERS
        self._on_change = on_change

    def add(self, episodes: int = 0, num_bytes: int = 0) -> None:
        """Report progress; also the place where a task learns that the job is over.

        Raises:
            PackError: If the job was stopped.
        """
        if self._cells[0]:
            raise PackError("packing: stopped because another part of the job failed.")
        for column, amount in enumerate((episodes, num_bytes, 1)):
            self._cells[self._row + column] += amount
        if self._on_change:
            self._on_change()


class TaskPool:
    """Some processes for the tasks of one job, started when they are first needed.

    A context manager: leaving it stops whatever still runs and waits for it, so that afterwards nothing writes.

    Args:
        workers: Processes; with 1 everything runs in the calling process.
        what: Names the job in messages.
        stall_timeout_s: Without any progress for so long, the job fails.
    """

    def __init__(self, workers: int, what: str, stall_timeout_s: float = STALL_TIMEOUT_S) -> None:
        self._workers, self._what, self._stall_timeout_s = workers, what, stall_timeout_s
        # Spawned, not forked: HDF5 and threads of the caller do not survive a fork.
        self._context = multiprocessing.get_context("spawn")
        self._num_slots = 2 * workers
        self._cells: Any = None
        self._executor: ProcessPoolExecutor | None = None
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
        on_tick: Callable[[int, int], None] | None = None,
        min_parallel: int = 2,
    ) -> Iterator[tuple[int, Result]]:
        """Run `function` on every task; results come with their position, in any order.

        Args:
            function: Of a module, so that other processes can import it.
            tasks: Picklable.
            on_tick: Called now and then with the episodes and bytes that all tasks have reported.
            min_parallel: With fewer tasks than this, starting processes is not worth it.

        Raises:
            WorkerError: If a process died.
            DeadlineError: If nothing moved for `stall_timeout_s`.
        """
        if self._workers == 1 or len(tasks) < min_parallel:
            return self._map_in_this_process(function, tasks, on_tick)
        return self._map_in_processes(function, tasks, on_tick)

    def _map_in_this_process(
        self,
        function: Callable[[Task, Pulse], Result],
        tasks: Sequence[Task],
        on_tick: Callable[[int, int], None] | None,
    ) -> Iterator[tuple[int, Result]]:
        cells = [0] * (1 + _NUM_COUNTERS)
        last = time.monotonic()

        def tick() -> None:
            nonlocal last
            if on_tick and time.monotonic() - last > _TICK_S:
                last = time.monotonic()
                on_tick(*_totals(cells)[:2])

        for position, task in enumerate(tasks):
            yield position, function(task, Pulse(cells, 0, tick))
        if on_tick:
            on_tick(*_totals(cells)[:2])

    def _map_in_processes(
        self,
        function: Callable[[Task, Pulse], Result],
        tasks: Sequence[Task],
        on_tick: Callable[[int, int], None] | None,
    ) -> Iterator[tuple[int, Result]]:
        executor = self._start()
        # Every running task has a slot of its own in the counters; few wait, so that a job of 100,000 shards does
        # not queue them all.
        free = list(range(self._num_slots))
        pending: dict[Future[Result], tuple[int, int]] = {}
        finished = [0] * _NUM_COUNTERS
        todo = iter(enumerate(tasks))
        watch = _Watch(self._what, self._stall_timeout_s)
        try:
            while True:
                while free and (item := next(todo, None)):
                    slot = free.pop()
                    pending[executor.submit(_run_task, function, item[1], slot)] = item[0], slot
                    # The pool starts its processes one by one as tasks come in.
                    self._children |= set(multiprocessing.active_children())
                if not pending:
                    return
                done, _ = wait(pending, _TICK_S, FIRST_COMPLETED)
                totals = tuple(sum(pair) for pair in zip(finished, _totals(self._cells), strict=True))
                watch.look(totals, bool(done))
                if on_tick:
                    on_tick(*totals[:2])
                for future in done:
                    position, slot = pending.pop(future)
                    result = future.result()
                    start = 1 + slot * _NUM_COUNTERS
                    for column in range(_NUM_COUNTERS):
                        finished[column] += self._cells[start + column]
                        self._cells[start + column] = 0
                    free.append(slot)
                    yield position, result
        except BrokenProcessPool as error:
            executor.shutdown()
            raise WorkerError(_explain_death(self._what, self._children)) from error

    def _start(self) -> ProcessPoolExecutor:
        if self._executor is None:
            self._cells = self._context.RawArray("q", 1 + self._num_slots * _NUM_COUNTERS)
            self._executor = ProcessPoolExecutor(self._workers, self._context, _set_up_process, (self._cells,))
        return self._executor


class _Watch:
    """Notices that nothing moves."""

    def __init__(self, what: str, timeout_s: float) -> None:
        self._what, self._timeout_s = what, timeout_s
        self._last: tuple[int, ...] = ()
        self._since = time.monotonic()

    def look(self, totals: tuple[int, ...], is_done: bool) -> None:
        if is_done or totals != self._last:
            self._last, self._since = totals, time.monotonic()
        elif time.monotonic() - self._since > self._timeout_s:
            raise DeadlineError(
                f"{self._what}: no progress for {self._timeout_s:.0f} s while waiting for packing processes. "
                "Check the file system that holds the sources."
            )


# What this process was given when it was started as a worker. Shared memory can only be handed over at that moment.
_cells: Any = None


def _set_up_process(cells: Any) -> None:
    """Prepare a worker process."""
    global _cells
    _cells = cells
    end_with_parent()


def _run_task(function: Callable[[Task, Pulse], Result], task: Task, slot: int) -> Result:
    return function(task, Pulse(_cells, slot))


def _totals(cells: Any) -> tuple[int, ...]:
    return tuple(sum(cells[1 + column :: _NUM_COUNTERS]) for column in range(_NUM_COUNTERS))


def _explain_death(what: str, children: set[Any]) -> str:
    """The message about a dead process. The pool ends the others itself, by SIGTERM: those are not the cause.

    `children` may hold processes that the calling program started; as long as they live they have no exit code.
    """
    codes = [child.exitcode for child in children if child.exitcode not in (None, 0, -15, 128 + 15)]
    how = how_it_ended(codes[0] if codes else None, "was ended")
    remedy = "If memory ran out, use fewer --workers; 'pack --resume' keeps the complete shards."
    if 1 in codes:
        remedy = 'A script that packs with several workers must do it under: if __name__ == "__main__":'
    return f"{what}: a packing process {how}. {remedy}"
