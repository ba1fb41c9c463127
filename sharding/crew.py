"""Runs the tasks of a job in this process or in several, with counters that the job can watch while they run."""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from types import FrameType
from typing import Any, TypeVar

from epistream.errors import DeadlineError, PackError, WorkerError

Task = TypeVar("Task")
Result = TypeVar("Result")

_TICK_S = 0.2
# No episode takes this long without a single frame; a network file system that hangs does.
STALL_TIMEOUT_S = 900.0
_COLUMNS = 3


class Pulse:
    """Counters of one task, and the word to stop. In shared memory when tasks run in other processes.

    Each task writes its own row, so that no lock is needed that a killed process could keep.
    """

    def __init__(self, cells: Any, row: int, on_change: Callable[[], None] | None = None) -> None:
        self._cells, self._row = cells, 1 + row * _COLUMNS
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


class Crew:
    """Some processes for the tasks of one job. A context manager: leaving it stops whatever still runs.

    Args:
        workers: Processes; with 1 everything runs in the calling process.
        what: Names the job in messages.
        stall_timeout_s: Without any progress for so long, the job fails.
    """

    def __init__(self, workers: int, what: str, stall_timeout_s: float = STALL_TIMEOUT_S) -> None:
        self._workers, self._what, self._stall_timeout_s = workers, what, stall_timeout_s

    def map(
        self,
        function: Callable[[Task, Pulse], Result],
        tasks: Sequence[Task],
        on_tick: Callable[[int, int], None] | None = None,
    ) -> Iterator[tuple[int, Result]]:
        """Run `function` on every task; results come with their position, in any order.

        Args:
            function: Of a module, so that other processes can import it.
            tasks: Picklable.
            on_tick: Called now and then with the episodes and bytes that all tasks have reported.

        Raises:
            WorkerError: If a process died.
            DeadlineError: If nothing moved for `stall_timeout_s`.
        """
        workers = min(self._workers, len(tasks))
        if workers <= 1:
            return self._map_here(function, tasks, on_tick)
        return self._map_there(function, tasks, on_tick, workers)

    def _map_here(
        self,
        function: Callable[[Task, Pulse], Result],
        tasks: Sequence[Task],
        on_tick: Callable[[int, int], None] | None,
    ) -> Iterator[tuple[int, Result]]:
        cells = [0] * (1 + len(tasks) * _COLUMNS)
        last = 0.0

        def tick() -> None:
            nonlocal last
            if on_tick and time.monotonic() - last > _TICK_S:
                last = time.monotonic()
                on_tick(*_totals(cells)[:2])

        for row, task in enumerate(tasks):
            yield row, function(task, Pulse(cells, row, tick))
            if on_tick:
                on_tick(*_totals(cells)[:2])

    def _map_there(
        self,
        function: Callable[[Task, Pulse], Result],
        tasks: Sequence[Task],
        on_tick: Callable[[int, int], None] | None,
        workers: int,
    ) -> Iterator[tuple[int, Result]]:
        # Spawned, not forked: HDF5 and threads of the caller do not survive a fork.
        context = multiprocessing.get_context("spawn")
        cells = context.RawArray("q", 1 + len(tasks) * _COLUMNS)
        before = set(multiprocessing.active_children())
        executor = ProcessPoolExecutor(workers, context, _begin, (cells,))
        pending: dict[Future[Result], int] = {}
        children: set[Any] = set()
        todo = iter(enumerate(tasks))
        watch = _Watch(self._what, self._stall_timeout_s)
        try:
            while True:
                # Few at a time, so that a job of 100,000 shards does not queue them all.
                while len(pending) < 2 * workers and (item := next(todo, None)):
                    pending[executor.submit(_call, function, item[1], item[0])] = item[0]
                children |= set(multiprocessing.active_children()) - before
                if not pending:
                    return
                done, _ = wait(pending, _TICK_S, FIRST_COMPLETED)
                totals = _totals(cells)
                watch.look(totals, bool(done))
                if on_tick:
                    on_tick(*totals[:2])
                for future in done:
                    yield pending.pop(future), future.result()
        except BrokenProcessPool as error:
            executor.shutdown()
            raise WorkerError(_died(self._what, children)) from error
        finally:
            cells[0] = 1
            executor.shutdown(wait=True, cancel_futures=True)


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


def _begin(cells: Any) -> None:
    """Prepare a worker process."""
    global _cells
    _cells = cells
    # Ctrl-C reaches every process of the terminal; the job decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    """Leave as soon as the parent is gone, however it went."""
    multiprocessing.connection.wait([sentinel])
    os._exit(1)


def _leave(signum: int, frame: FrameType | None) -> None:
    os._exit(128 + signum)


def _call(function: Callable[[Task, Pulse], Result], task: Task, row: int) -> Result:
    return function(task, Pulse(_cells, row))


def _totals(cells: Any) -> tuple[int, ...]:
    return tuple(sum(cells[1 + column :: _COLUMNS]) for column in range(_COLUMNS))


def _died(what: str, children: set[Any]) -> str:
    """The message about a dead process. The pool ends the others itself, by SIGTERM: those are not the cause."""
    codes = [child.exitcode for child in children if child.exitcode not in (None, 0, -15, 128 + 15)]
    how = "a packing process ended unexpectedly"
    for code in codes[:1]:
        name = str(code)
        if code < 0:
            with contextlib.suppress(ValueError):
                name = signal.Signals(-code).name
        how = f"a packing process was ended by {name}" if code < 0 else f"a packing process ended with code {name}"
    remedy = "If memory ran out, use fewer --workers; 'pack --resume' keeps the complete shards."
    if 1 in codes:
        remedy = 'A script that packs with several workers must do it under: if __name__ == "__main__":'
    return f"{what}: {how}, wanted every one to finish. {remedy}"
