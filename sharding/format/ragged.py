"""Lists of different lengths one after the other in one array: some of them chosen."""

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]
T = TypeVar("T", bound=np.generic)


def offsets_of(counts: Int64) -> Int64:
    """(N + 1,) where lists of so many values begin and end."""
    offsets = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets


def positions_of(offsets: Int64, rows: Int64) -> Int64:
    """Where the values of the lists `rows` lie, in that order, among those of all lists."""
    counts = np.diff(offsets)[rows]
    starts = offsets[:-1][rows]
    new = offsets_of(counts)
    return np.repeat(starts - new[:-1], counts) + np.arange(new[-1])


def row_numbers(rows: "NDArray[Any] | list[int] | slice", num_rows: int) -> Int64:
    """The numbers (n,) of chosen rows, from 0, given as numbers, as a mask, or as a slice.

    Raises:
        IndexError: If there is no such row.
    """
    return np.arange(num_rows)[rows]
