"""What a stream keeps in memory that it shares with the workers of a stock DataLoader.

Workers that stay alive over epochs have copies of everything else.
"""

import mmap
import os
from collections.abc import Callable
from enum import IntEnum
from multiprocessing import reduction
from typing import Any

import numpy as np
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


class _Block:
    """Rows of cells in one memory file: it has no name that could leak, and takes no room in /dev/shm.

    torch's own shared memory lies in /dev/shm, which may be full, read-only or missing where nothing else needs it.

    Args:
        fd: the file, which the block closes when it is gone; a new one unless given.
    """

    NUM_ROWS = 256  # a block has two descriptors: its own, and that of its mapping

    def __init__(self, fd: int | None = None) -> None:
        num_bytes = self.NUM_ROWS * len(Cell) * 8
        self.fd = os.memfd_create("epistream-cells") if fd is None else fd
        try:
            os.truncate(self.fd, num_bytes)
            memory = mmap.mmap(self.fd, num_bytes)
        except BaseException:
            os.close(self.fd)
            raise
        self.rows = torch.from_numpy(np.frombuffer(memory, np.int64).reshape(self.NUM_ROWS, len(Cell)))

    def __del__(self) -> None:
        if hasattr(self, "rows"):
            os.close(self.fd)


class Cells:
    """A row of integers, int64, one for each `Cell`. Forked and spawned children have the same; other copies their own.

    Args:
        block: where it lies.
        number: which of its rows.
    """

    def __init__(self, block: _Block, number: int) -> None:
        self.block, self.number = block, number
        self._row = block.rows[number]

    def __getitem__(self, cells: int | slice) -> torch.Tensor:
        return self._row[cells]

    def __setitem__(self, cells: int | slice, values: int | torch.Tensor) -> None:
        self._row[cells] = values

    def tolist(self) -> list[int]:
        """All of them."""
        values: list[int] = self._row.tolist()
        return values

    def copy_(self, other: "Cells") -> None:
        """Take the integers of another row."""
        self._row.copy_(other[:])

    def __reduce__(self) -> tuple[Callable[..., "Cells"], tuple[Any, ...]]:
        return _copied, (self.tolist(),)


def _copied(values: list[int]) -> Cells:
    cells = take_cells()
    cells[:] = torch.tensor(values, dtype=torch.int64)
    return cells


def _reduce_for_child(cells: Cells) -> tuple[type[Cells], tuple[_Block, int]]:
    return Cells, (cells.block, cells.number)


def _reduce_block_for_child(block: _Block) -> tuple[Callable[[Any], _Block], tuple[Any]]:
    return _block_of_parent, (reduction.DupFd(block.fd),)


def _block_of_parent(duplicate: Any) -> _Block:
    return _Block(duplicate.detach())


# Only what `multiprocessing` hands to a child may share memory: whoever keeps a pickled stream on a disk has no parent.
# A block is pickled once for all of its rows: a spawned child must not be given one descriptor twice.
reduction.register(Cells, _reduce_for_child)
reduction.register(_Block, _reduce_block_for_child)


class _Free:
    """Rows that no stream has, one descriptor for many: a mixture of fifty datasets is made of fifty streams."""

    def __init__(self) -> None:
        self._free: list[Cells] = []
        self._pid = os.getpid()

    def take(self) -> Cells:
        """A row of zeros that no other stream has."""
        if self._pid != os.getpid():  # the rows that a parent had left are its own to give
            self._free, self._pid = [], os.getpid()
        try:
            return self._free.pop()
        except IndexError:
            block = _Block()
            self._free += [Cells(block, number) for number in range(block.NUM_ROWS)]
            return self._free.pop()


_FREE = _Free()


def take_cells() -> Cells:
    """A row of zeros that no other stream of this process has."""
    return _FREE.take()
