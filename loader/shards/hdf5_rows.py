"""Rows of HDF5 datasets that lie in the file otherwise than wanted: put together from chunks, or unpacked by h5py."""

import os
from collections.abc import Mapping
from contextlib import ExitStack
from math import prod
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from epistream.cache.source.blob import Blob
from epistream.errors import EpistreamError, SourceChangedError, SourceError
from epistream.file_systems import local_path
from epistream.sharding.files.versioned_files import open_remote
from epistream.sharding.hdf5.chunks import UNWRITTEN, Stored
from epistream.sharding.hdf5.index import Extents, MadeRows
from epistream.sharding.layouts.jpeg_rows import row_bytes
from epistream.sharding.opening.file_objects import open_through
from epistream.sharding.opening.other_files import check_unchanged

Int64 = NDArray[np.int64]
Row = bytes | memoryview


class RowMaker:
    """Makes rows of one file by their numbers: those that do not lie in it as they are wanted, see `MadeRows`.

    h5py opens the file when it is first needed, in the process that needs it: its handles do not survive a fork.

    Args:
        url: The HDF5 file.
        extents: Its made rows, in the order of their numbers, and the files that it reads from.
        file: The file's bytes.
        storage_options: For fsspec, if it is remote.
    """

    def __init__(
        self, url: str, extents: Extents, file: Blob, storage_options: Mapping[str, Any] | None = None
    ) -> None:
        self._url = url
        self._made = extents.made
        self._others = extents.others
        self._first = np.array([rows.first for rows in extents.made], np.int64)
        self._bytes = file
        self._storage_options = storage_options
        self._opened: tuple[int, h5py.File, ExitStack] | None = None

    def rows(self, numbers: Int64) -> dict[int, Row]:
        """Rows by number, each as the bytes that a shard would hold.

        Args:
            numbers: Ascending, each once. Neighbours are made together.

        Raises:
            SourceError: If h5py cannot read one.
        """
        result: dict[int, Row] = {}
        owner = np.searchsorted(self._first, numbers, side="right") - 1
        apart = np.flatnonzero((np.diff(owner) != 0) | (np.diff(numbers) != 1)) + 1
        for run in np.split(np.arange(len(numbers)), apart):
            if not len(run):
                continue
            rows = self._made[int(owner[run[0]])]
            first = rows.first_row + int(numbers[run[0]]) - rows.first
            result.update(zip(numbers[run].tolist(), self._read(rows, first, len(run)), strict=True))
        return result

    def close(self) -> None:
        """Close the file if h5py has it open."""
        opened, self._opened = self._opened, None
        if opened is not None and opened[0] == os.getpid():
            opened[2].close()

    def _read(self, rows: MadeRows, first_row: int, num_rows: int) -> list[Row]:
        if rows.stored is not None:
            values: Any = read_chunks(rows.stored, first_row, num_rows, self._bytes)
        else:
            values = self._unpack(rows, first_row, num_rows)
        if not rows.dtype:  # pictures: the bytes as they are, of which the reader takes as many as the picture has
            return [row_bytes(row) for row in values]
        if rows.axes:
            values = values.transpose(0, *(1 + axis for axis in rows.axes))
        flat = np.ascontiguousarray(values, rows.dtype).reshape(num_rows, -1)
        return [row.data for row in flat.view(np.uint8)]

    def _unpack(self, rows: MadeRows, first_row: int, num_rows: int) -> Any:
        """By h5py, which would read another file's bytes without noticing."""

        def check() -> None:
            self._bytes.check_unchanged()
            check_unchanged(self._others, self._url)

        try:
            values = self._file()[rows.path][first_row : first_row + num_rows]
        except EpistreamError:
            raise
        except (OSError, RuntimeError, KeyError) as error:
            check()
            raise SourceError(
                f"{self._url}: {rows.path}, rows {first_row} to {first_row + num_rows - 1}: h5py cannot read them "
                f"({error}). Copy or record the file again."
            ) from error
        check()
        return values

    def _file(self) -> h5py.File:
        if self._opened is None or self._opened[0] != os.getpid():
            # What it opens of its own accord is what was judged when it was indexed.
            if not all(other.is_current() for other in self._others):
                raise SourceChangedError(
                    f"{self._url}: reads from other files than when it was indexed. Open the dataset again."
                )
            stack = ExitStack()
            path = local_path(self._url)
            if path is None:
                remote = stack.enter_context(open_remote(self._url, self._storage_options))
                file = stack.enter_context(open_through(remote, repr(remote)))
            else:
                file = stack.enter_context(h5py.File(path, "r"))
            self._opened = os.getpid(), file, stack
        return self._opened[1]


def read_chunks(stored: Stored, first_row: int, num_rows: int, file: Blob) -> NDArray[Any]:
    """Rows that are cut by chunks, or in another byte order: (num_rows, *shape) of the stored dtype.

    In a chunk, the piece of a row is contiguous: one read a row and chunk, of what is needed and no more.
    """
    number, inside = np.divmod(np.arange(first_row, first_row + num_rows), stored.chunk[0])
    tail = stored.chunk[1:]
    dtype = np.dtype(stored.dtype)
    piece_bytes = prod(tail) * dtype.itemsize
    starts = stored.table[number]
    pieces = np.empty((starts.size, piece_bytes), np.uint8)
    known = (starts != UNWRITTEN).reshape(-1)
    gathered = np.empty((int(known.sum()), piece_bytes), np.uint8)
    file.gather((starts + (inside * piece_bytes)[:, None]).reshape(-1)[known], gathered)
    pieces[known] = gathered
    pieces[~known] = np.tile(np.frombuffer(stored.fill, np.uint8), piece_bytes // dtype.itemsize)
    grid = tuple(-(-size // step) for size, step in zip(stored.shape, tail, strict=True))
    # (rows, chunks along each axis, within a chunk along each axis) -> axes of the row, each chunks x within.
    values = pieces.view(dtype).reshape(num_rows, *grid, *tail)
    axes = [axis for i in range(len(grid)) for axis in (1 + i, 1 + len(grid) + i)]
    whole: NDArray[Any] = values.transpose(0, *axes).reshape(
        num_rows, *(g * t for g, t in zip(grid, tail, strict=True))
    )
    crop = (slice(None), *(slice(size) for size in stored.shape))
    return whole[crop]
