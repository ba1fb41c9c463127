"""How far the tasks of a job are, and the word to stop: integers that its processes share."""

import mmap
import os
from collections.abc import Callable
from multiprocessing import reduction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epistream.errors import PackError


class Counters:
    """Rows of integers in a memory file, which has no name that a killed job could leave behind.

    Picklable while a process is being spawned: the descriptor is handed to it.

    Args:
        num_rows: One for the word to stop, and one for each task that runs.
        fd: The file, which this closes when it is gone; a new one unless given.

    Attributes:
        rows: (num_rows, 3) int64. The first number is not 0 when the job is over; the other rows are those of `Pulse`.
    """

    # Episodes, bytes, and reports of either.
    NUM_COLUMNS = 3

    def __init__(self, num_rows: int, fd: int | None = None) -> None:
        self._num_rows = num_rows
        self._fd = os.memfd_create("epistream-pack") if fd is None else fd
        num_bytes = num_rows * self.NUM_COLUMNS * 8
        os.truncate(self._fd, num_bytes)
        memory = mmap.mmap(self._fd, num_bytes)
        self.rows: NDArray[np.int64] = np.frombuffer(memory, np.int64).reshape(num_rows, self.NUM_COLUMNS)

    def stop(self) -> None:
        """Let every task end at its next report."""
        self.rows[0, 0] = 1

    def __del__(self) -> None:
        if hasattr(self, "_fd"):
            os.close(self._fd)

    def __reduce__(self) -> tuple[Callable[..., "Counters"], tuple[Any, ...]]:
        return _of_parent, (self._num_rows, reduction.DupFd(self._fd))


def _of_parent(num_rows: int, duplicate: Any) -> Counters:
    return Counters(num_rows, duplicate.detach())


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
            raise PackError("stopped because another part of the job failed.")
        row = self._row  # three numbers take a sixth of the time that adding an array of them does
        row[0] += episodes
        row[1] += num_bytes
        row[2] += 1
        self.num_bytes += num_bytes
        self._on_change()
