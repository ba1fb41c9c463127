"""What a stream keeps in memory that it shares with the workers of a stock DataLoader.

Workers that stay alive over epochs have copies of everything else.
"""

import os
from enum import IntEnum

import torch


class Cell(IntEnum):
    """What each of the integers is."""

    EPOCH = 0
    POSITION = 1
    NUM_GIVEN = 2  # batches of the epoch before the position; -1 if nobody knows
    IS_TOLD = 3  # the order was told of in the log
    NUM_READERS = 4  # that read ahead of the loop since the epoch was set: workers of a DataLoader, or Accelerate
    NUM_RANKS = 5  # whose batches this process gives: 0 for its own, -1 for nobody's
    IS_SET = 6  # the training process said where iterations begin
    RANK = 7  # from here on the fields of the world that the training process has found; SIZE is 0 before
    SIZE = 8
    LOCAL_RANK = 9
    LOCAL_SIZE = 10
    NODE = 11
    NUM_NODES = 12
    UNEVEN = 13


ACCELERATE = -1  # instead of a number of readers: it reads one batch ahead in the process of the loop


class _Cells:
    """Rows of a few integers in memory shared with forked and spawned children: one descriptor for many streams.

    A mixture of fifty datasets is made of fifty streams.
    """

    def __init__(self) -> None:
        self._free: list[torch.Tensor] = []
        self._pid = os.getpid()

    def take(self) -> torch.Tensor:
        """A row of zeros, int64, one for each `Cell`, that no other stream has."""
        if self._pid != os.getpid():  # the rows that a parent had left are its own to give
            self._free, self._pid = [], os.getpid()
        try:
            return self._free.pop()
        except IndexError:
            rows = torch.zeros(64, len(Cell), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
            self._free += list(rows)
            return self._free.pop()


_CELLS = _Cells()


def take_cells() -> torch.Tensor:
    """A row of zeros, (len(Cell),) int64, that no other stream of this process has."""
    return _CELLS.take()
