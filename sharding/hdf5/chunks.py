"""Where HDF5 keeps the rows of a dataset: byte offsets in its file, where the bytes there are the values themselves."""

from dataclasses import dataclass
from math import prod
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]

# In place of an offset: a chunk that was never written, which reads as the fill value.
UNWRITTEN = -1
# A table of more is larger than what it saves: 128 MiB.
_MAX_CHUNKS = 1 << 24


@dataclass(frozen=True, eq=False)
class Stored:
    """The chunks of an unfiltered dataset; a contiguous one is a single chunk. Row t is all of ``dataset[t]``.

    A dataset of shape (T, 4, 6) in chunks of (2, 4, 3) has a table of ceil(T / 2) rows and 1 x 2 columns, and row t
    is put together from the columns of table row t // 2.

    Args:
        dtype: numpy's name with byte order, ``<f4``.
        shape: Of one row.
        chunk: Of one chunk, steps first; may reach beyond the dataset.
        table: (chunks along the steps, chunks of one row) byte at which each begins, `UNWRITTEN` where there is none.
        fill: Bytes of one element that was never written.
    """

    dtype: str
    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    table: Int64
    fill: bytes

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return prod(self.shape) * np.dtype(self.dtype).itemsize

    def places(self, first_row: int, num_rows: int) -> Int64 | None:
        """(num_rows,) where rows begin, if each lies in one piece and byte for byte as numpy wants it.

        `UNWRITTEN` for rows of zeros that are not in the file.
        """
        little = np.dtype(self.dtype).newbyteorder("<").str
        if self.table.shape[1] != 1 or self.chunk[1:] != self.shape or little != self.dtype:
            return None
        number, inside = np.divmod(np.arange(first_row, first_row + num_rows), self.chunk[0])
        start = self.table[number, 0]
        if any(self.fill) and (start == UNWRITTEN).any():
            return None
        places: Int64 = np.where(start == UNWRITTEN, UNWRITTEN, start + inside * self.row_bytes)
        return places


def find_stored(dataset: h5py.Dataset) -> Stored | None:
    """The chunks of `dataset`; None if only h5py can read it: filtered, variable-length, virtual, external, compact."""
    plist = dataset.id.get_create_plist()
    layout = plist.get_layout()
    if plist.get_nfilters() or layout not in (h5py.h5d.CONTIGUOUS, h5py.h5d.CHUNKED) or not dataset.size:
        return None
    # Versions of HDF5 do not agree whether offsets count the user block before the first byte of HDF5.
    if dataset.file.userblock_size or (layout == h5py.h5d.CONTIGUOUS and plist.get_external_count()):
        return None
    dtype = dataset.dtype
    if dtype.kind not in "biufS" or not _is_plain(dataset, dtype):
        return None
    if layout == h5py.h5d.CONTIGUOUS:
        chunk, offset = dataset.shape, dataset.id.get_offset()
        table = np.full((1, 1), UNWRITTEN if offset is None else offset, np.int64)
    else:
        if prod(-(-size // step) for size, step in zip(dataset.shape, dataset.chunks, strict=True)) > _MAX_CHUNKS:
            return None
        chunk, table = dataset.chunks, _chunk_table(dataset)
    # h5py names single bytes '|u1'; here every name has an order, so that names can be compared.
    name = ("<" if dtype.byteorder == "=" else dtype.byteorder) + dtype.str[1:]
    name = dtype.newbyteorder("<").str if dtype.itemsize == 1 or dtype.kind == "S" else name
    fill = np.array(dataset.fillvalue, dtype).tobytes()
    return Stored(name, tuple(dataset.shape[1:]), tuple(chunk), table, fill)


def _is_plain(dataset: h5py.Dataset, dtype: np.dtype[Any]) -> bool:
    """Whether numpy's type is the file's, bit for bit; HDF5 also has integers of 24 bits somewhere within 32."""
    if dataset.id.get_type().get_size() != dtype.itemsize:
        return False
    # Fixed strings differ in how they end, which is a matter of reading.
    return dtype.kind == "S" or bool(dataset.id.get_type() == h5py.h5t.py_create(dtype, logical=True))


def _chunk_table(dataset: h5py.Dataset) -> Int64:
    """One walk over the chunks: asking for each by its coordinates walks as often as there are chunks."""
    grid = tuple(-(-size // step) for size, step in zip(dataset.shape, dataset.chunks, strict=True))
    table = np.full(grid, UNWRITTEN, np.int64)

    def note(info: Any) -> None:
        where = tuple(at // step for at, step in zip(info.chunk_offset, dataset.chunks, strict=True))
        if info.byte_offset is not None and all(at < size for at, size in zip(where, grid, strict=True)):
            table[where] = info.byte_offset

    if hasattr(dataset.id, "chunk_iter"):
        dataset.id.chunk_iter(note)
    else:  # HDF5 before 1.12.3
        for number in range(dataset.id.get_num_chunks()):
            note(dataset.id.get_chunk_info(number))
    return table.reshape(grid[0], -1)
