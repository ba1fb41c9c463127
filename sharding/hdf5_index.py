"""The index of episodes in an HDF5 file: where the bytes that they would be as a shard lie in it.

Nothing is packed by making one. The addresses of the shard index count *packed bytes*: row after row of feature after
feature of episode after episode, without padding or gaps, little endian. An extent says where a piece of them is:

    ============  ==========================================================================
    place         the piece is
    ============  ==========================================================================
    0 and more    in the file, from this byte on
    -1            zeros that the file does not hold
    -2 and less   row number ``-2 - place`` of those that must be put together or decompressed
    ============  ==========================================================================
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epistream.errors import FormatError
from epistream.sharding.hdf5_stored import UNWRITTEN, Int64, Stored
from epistream.sharding.index import KIND, ShardIndex, build_index, check
from epistream.sharding.tables import parse_tables, write_tables

# Raised when the same file would give another index.
RECIPE = 1
ZEROS = UNWRITTEN
FIRST_MADE = -2

_REMEDY = "Remove this file; it is made again when the HDF5 file is opened."


@dataclass(frozen=True, eq=False)
class MadeRows:
    """Neighbouring rows of one dataset that do not lie in the file as they are wanted.

    Args:
        path: Of the dataset in its file.
        first_row: Row of the dataset that is number `first`.
        first: Number of the first of these rows among all made rows of the index.
        num_rows: How many.
        dtype: Little-endian type of their values; empty for rows that are pictures.
        stored: Where their pieces lie; None if h5py must read them.
    """

    path: str
    first_row: int
    first: int
    num_rows: int
    dtype: str
    stored: Stored | None


@dataclass(frozen=True, eq=False)
class Hdf5Index:
    """Some episodes of one HDF5 file, as many as make a shard. X extents.

    Args:
        rows: Addresses in packed bytes. Its `shard_bytes` are packed bytes.
        version: Of the file that was indexed, see `hdf5_file.FileVersion`.
        file_bytes: Size of that file.
        num_shards: Indexes that the file has.
        start: (X,) uint64 packed byte at which an extent begins; it ends where the next one begins.
        place: (X,) int64, see above.
        made: By number.
    """

    rows: ShardIndex
    version: str
    file_bytes: int
    num_shards: int
    start: NDArray[np.uint64]
    place: Int64
    made: tuple[MadeRows, ...]

    @property
    def needs_h5py(self) -> list[str]:
        """Datasets that only h5py can read."""
        return [rows.path for rows in self.made if rows.stored is None]

    def to_bytes(self) -> bytes:
        """The index as a file: a shard index with tables that only readers of HDF5 look at.

        Raises:
            FormatError: If anything in it cannot be.
        """
        check(self.rows, self.rows.shard_name)
        _check_extents(self, self.rows.shard_name)
        meta, arrays = self.rows.to_tables()
        meta["hdf5"] = {"recipe": RECIPE, "version": self.version, "file_bytes": self.file_bytes}
        meta["hdf5"]["num_shards"] = self.num_shards
        described = json.dumps([_describe(rows) for rows in self.made])
        tables = [rows.stored.table.reshape(-1) for rows in self.made if rows.stored]
        arrays |= {
            "hdf5:start": self.start.astype("<u8"),
            "hdf5:place": self.place.astype("<i8"),
            "hdf5:made": np.frombuffer(described.encode(), np.uint8),
            "hdf5:chunks": np.concatenate([np.empty(0, np.int64), *tables]).astype("<i8"),
        }
        return write_tables(KIND, meta, arrays)

    @classmethod
    def parse(cls, buffer: memoryview | bytes, where: str) -> "Hdf5Index":
        """The inverse of `to_bytes`.

        Raises:
            FormatError: If `buffer` is torn, or says anything that cannot be.
        """
        tables = parse_tables(buffer, KIND, where, _REMEDY)
        try:
            rows, arrays = build_index(tables, where), tables.arrays
            said = tables.meta["hdf5"]
            made = _made(json.loads(arrays["hdf5:made"].tobytes()), arrays["hdf5:chunks"])
            index = cls(
                rows=rows,
                version=str(said["version"]),
                file_bytes=int(said["file_bytes"]),
                num_shards=int(said["num_shards"]),
                start=arrays["hdf5:start"],
                place=arrays["hdf5:place"],
                made=made,
            )
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, FormatError):
                raise
            raise FormatError(f"{where}: lacks {error}, wanted the index of an HDF5 file. {_REMEDY}") from error
        check(index.rows, where)
        _check_extents(index, where)
        return index


def _describe(rows: MadeRows) -> dict[str, Any]:
    stored = rows.stored
    chunks = None
    if stored:
        chunks = {
            "dtype": stored.dtype,
            "shape": stored.shape,
            "chunk": stored.chunk,
            "table": stored.table.shape,
            "fill": stored.fill.hex(),
        }
    names = ("path", "first_row", "first", "num_rows", "dtype")
    return {**{name: getattr(rows, name) for name in names}, "chunks": chunks}


def _made(described: Sequence[dict[str, Any]], flat: Int64) -> tuple[MadeRows, ...]:
    result, position = [], 0
    for one in described:
        chunks, stored = one.pop("chunks"), None
        if chunks:
            height, width = chunks["table"]
            table = flat[position : position + height * width].reshape(height, width)
            position += height * width
            fill = bytes.fromhex(chunks["fill"])
            stored = Stored(chunks["dtype"], tuple(chunks["shape"]), tuple(chunks["chunk"]), table, fill)
        result.append(MadeRows(**one, stored=stored))
    return tuple(result)


def _check_extents(index: Hdf5Index, where: str) -> None:
    """Extents that cover the packed bytes without gaps, and places that are in the file or among the made rows."""
    start, place = index.start.astype(np.int64), index.place
    num_made = sum(rows.num_rows for rows in index.made)
    problem = None
    if not len(start) or len(start) != len(place) or start[0] != 0 or start[-1] >= index.rows.shard_bytes:
        problem = f"{len(start)} extents and {len(place)} places, wanted as many, from byte 0 on"
    elif (np.diff(start) <= 0).any():
        problem = "extents that do not ascend"
    else:
        size = np.diff(start, append=index.rows.shard_bytes)
        outside = (place >= 0) & (place + size > index.file_bytes) | (place < FIRST_MADE + 1 - num_made)
        if outside.any():
            problem = f"extent {int(np.argmax(outside))} outside of the file's {index.file_bytes} bytes"
    if problem:
        raise FormatError(f"{where}: {problem}. {_REMEDY}")
