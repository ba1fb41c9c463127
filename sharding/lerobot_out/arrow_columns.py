"""Arrow arrays of numbers, texts and pictures, made without an object of Python's for each value."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epistream.errors import FormatError
from epistream.sharding.files.arrow import arrow_module as pyarrow
from epistream.sharding.lerobot_out.model import OutFeature
from epistream.units import size_text

# Arrow's offsets in a column have 32 bits.
_MOST_COLUMN_BYTES = (1 << 31) - 1


def numbers_column(values: NDArray[Any]) -> Any:
    """(N,) numbers as an Arrow array.

    Not by `pyarrow.array`, which imports pandas (0.2 s), but for bits.
    """
    pa = pyarrow()
    if values.dtype == np.bool_:
        bits = np.packbits(values, bitorder="little")
        return pa.Array.from_buffers(pa.bool_(), len(values), [None, pa.py_buffer(bits)])
    little = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(little)])


def column_of(feature: OutFeature, values: NDArray[Any]) -> Any:
    """Values that were checked, as an Arrow array."""
    pa = pyarrow()
    column = numbers_column(values.reshape(-1))
    if feature.shape == (1,):
        return column
    if len(feature.shape) == 1:
        return pa.FixedSizeListArray.from_arrays(column, feature.shape[0])
    return nested(column, feature.shape)


def nested(column: Any, shape: Sequence[int]) -> Any:
    """A flat Arrow array as lists of lists of that shape."""
    pa = pyarrow()
    for axis in reversed(shape):
        offsets = np.arange(0, len(column) + 1, axis, dtype=np.int32)
        column = pa.ListArray.from_arrays(numbers_column(offsets), column)
    return column


def picture_column(data: Iterable[bytes | memoryview], size: NDArray[np.int64], where: str) -> Any:
    """PNGs as the library ``datasets`` holds pictures.

    Args:
        data: Of all of them, one behind the other, in pieces; each is valid until the next one.
        size: (T,) bytes of each.
        where: Names them in messages.

    Raises:
        FormatError: If they are more than a column can hold, or `data` is other than they are.
    """
    pa = pyarrow()
    total, place = int(size.sum()), 0
    if total >= _MOST_COLUMN_BYTES:
        raise FormatError(
            f"{where}: {size_text(total)} of PNG in one episode, wanted less than {size_text(_MOST_COLUMN_BYTES)}, "
            "which Parquet's readers take at once. Export videos, or cut the episode."
        )
    whole = memoryview(bytearray(total))
    for piece in data:
        if place + len(piece) <= total:
            whole[place : place + len(piece)] = piece
        place += len(piece)
    if place != total:
        raise FormatError(f"{where}: {place:,} bytes of PNG, wanted {total:,}. Begin the export again.")
    names = texts_column([f"frame-{step:06d}.png" for step in range(len(size))])
    buffers = [None, pa.py_buffer(offsets_of(size)), pa.py_buffer(whole)]
    pictures = pa.Array.from_buffers(pa.binary(), len(size), buffers)
    return pa.StructArray.from_arrays([pictures, names], names=["bytes", "path"])


def texts_column(texts: Sequence[str]) -> Any:
    """(N,) texts as an Arrow array; likewise."""
    pa = pyarrow()
    data = [text.encode() for text in texts]
    size = np.array([len(one) for one in data], np.int64)
    buffers = [None, pa.py_buffer(offsets_of(size)), pa.py_buffer(b"".join(data))]
    return pa.Array.from_buffers(pa.string(), len(data), buffers)


def offsets_of(size: NDArray[np.int64]) -> NDArray[np.int32]:
    """(N + 1,) where each of N values begins that lie one behind the other, and where the last one ends."""
    return np.append(0, np.cumsum(size)).astype("<i4")
