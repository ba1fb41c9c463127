"""Rows of bytes at any offsets, moved by numpy as single elements; and checks of offsets from an index."""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from epistream.errors import FormatError

# Rows nearer to each other than this are read in one go: a gap costs less than another system call.
_GAP_BYTES = 32 << 10
# Longest read of a gather, which bounds its buffer.
_SPAN_BYTES = 4 << 20


def rows(buffer: memoryview | bytearray | NDArray[np.uint8], width: int, stride: int) -> NDArray[np.void]:
    """The rows of `width` bytes that begin at every multiple of `stride`, overlapping or not, as single elements.

    Fancy indexing then moves a row as one element, instead of byte by byte.
    """
    if isinstance(buffer, np.ndarray) and not buffer.flags.c_contiguous:
        # Flattening it would make a copy, and what is written would be lost.
        raise ValueError(f"gather: an array with strides {buffer.strides}, wanted a C-contiguous one.")
    flat = buffer.reshape(-1) if isinstance(buffer, np.ndarray) else np.frombuffer(buffer, np.uint8)
    num_rows = max(0, (len(flat) - width) // stride + 1)
    elements: NDArray[np.void] = np.ndarray((num_rows,), f"V{width}", flat, 0, (stride,))
    return elements


def as_bytes(buffer: memoryview | NDArray[np.uint8]) -> memoryview:
    """A contiguous buffer as a flat view of its bytes, no copy."""
    if isinstance(buffer, np.ndarray):
        if not buffer.flags.c_contiguous:
            raise ValueError(f"read_into: an array with strides {buffer.strides}, wanted a C-contiguous one.")
        return buffer.reshape(-1).data
    return buffer if buffer.ndim == 1 and buffer.format == "B" else buffer.cast("B")


def runs(starts: NDArray[np.int64], width: int) -> Iterator[tuple[NDArray[np.int64], int, int]]:
    """Group rows that lie near each other.

    Yields:
        (positions in `starts`, first byte, bytes to read), so that each group is one read of bounded length.
    """
    order = np.argsort(starts, kind="stable")
    ordered = starts[order]
    apart = np.flatnonzero(np.diff(ordered) > width + _GAP_BYTES) + 1
    for group in np.split(np.arange(len(ordered)), apart):
        # Cut what is longer than a buffer may be.
        offsets = (ordered[group] - ordered[group[0]]) // _SPAN_BYTES
        for piece in np.split(group, np.flatnonzero(np.diff(offsets)) + 1):
            first = int(ordered[piece[0]])
            yield order[piece], first, int(ordered[piece[-1]]) + width - first


def gather_runs(read: Callable[[int, memoryview], None], starts: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
    """Row i of `out` becomes the bytes from starts[i] on; `read` fills a buffer from an offset, once for near rows."""
    width = out.shape[1]
    targets = rows(out, width, width)
    for chosen, first, span in runs(starts, width):
        buffer = bytearray(span)
        read(first, memoryview(buffer))
        targets[chosen] = rows(buffer, width, 1)[starts[chosen] - first]


def check_range(where: str, total: int, offset: int, size: int) -> None:
    """Refuse bytes outside of a part, of which slicing would silently give fewer.

    Raises:
        FormatError: An index points there: it is torn or belongs to another shard.
    """
    if offset < 0 or size < 0 or offset + size > total:
        raise FormatError(
            f"{where}: bytes [{offset}, {offset + size}) asked for, it has {total}. Re-create the index with "
            "'epistream index URL --overwrite'."
        )


def check_starts(where: str, total: int, starts: NDArray[np.int64], width: int) -> None:
    """Refuse rows outside of a part."""
    low, high = int(starts.min()), int(starts.max())
    check_range(where, total, low, width)
    check_range(where, total, high, width)
