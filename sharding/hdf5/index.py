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

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epistream.errors import FormatError
from epistream.sharding.format.index import KIND, ShardIndex, build_index, check
from epistream.sharding.format.tables import Tables, parse_tables, write_tables
from epistream.sharding.hdf5.chunks import UNWRITTEN, Int64, Stored
from epistream.sharding.opening.other_files import OtherFile

# Raised when the same file would give another index.
RECIPE = 2
ZEROS = UNWRITTEN
FIRST_MADE = -2

_ATTRIBUTES = "hdf5:attributes"

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
        axes: Those of a stored row that are the axes of one as it is wanted; empty if they are the same.
    """

    path: str
    first_row: int
    first: int
    num_rows: int
    dtype: str
    stored: Stored | None
    axes: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Extents:
    """Where packed bytes lie in one version of a file: all that reading them takes. X extents.

    Args:
        version: Of the file, see `file.version_and_bytes`.
        file_bytes: Its size.
        packed_bytes: How many there are.
        start: (X,) uint64 packed byte at which an extent begins; it ends where the next one begins.
        place: (X,) int64, see above.
        made: By number.
        others: Files that it reads from.
    """

    version: str
    file_bytes: int
    packed_bytes: int
    start: NDArray[np.uint64]
    place: Int64
    made: tuple[MadeRows, ...]
    others: tuple[OtherFile, ...] = ()

    @classmethod
    def parse(cls, buffer: memoryview | bytes, where: str) -> "Extents":
        """The extents in the file of an `Hdf5Index`; nothing else of it is looked at.

        Raises:
            FormatError: If `buffer` is torn, or says anything that cannot be.
        """
        return cls._of(parse_tables(buffer, KIND, where, _REMEDY), where)

    @classmethod
    def _of(cls, tables: Tables, where: str) -> "Extents":
        arrays = tables.arrays
        with _nothing_lacking(where):
            said = tables.meta["hdf5"]
            extents = cls(
                version=str(said["version"]),
                file_bytes=int(said["file_bytes"]),
                packed_bytes=int(tables.meta["shard"]["bytes"]),
                start=arrays["hdf5:start"],
                place=arrays["hdf5:place"],
                made=_made(json.loads(arrays["hdf5:made"].tobytes()), arrays["hdf5:chunks"]),
                others=tuple(_other(*one) for one in said.get("others", ())),
            )
            extents.check(where)
        return extents

    def check(self, where: str) -> None:
        """See that extents cover the packed bytes, and that places are in the file or among the made rows.

        Raises:
            FormatError: If not.
        """
        start, place = self.start.astype(np.int64), self.place
        num_made = sum(rows.num_rows for rows in self.made)
        problem = None
        if not len(start) or len(start) != len(place) or start[0] != 0 or start[-1] >= self.packed_bytes:
            problem = f"{len(start)} extents and {len(place)} places, wanted as many, from byte 0 on"
        elif (start[1:] <= start[:-1]).any():
            problem = "extents that do not ascend"
        else:
            size = np.diff(start, append=self.packed_bytes)
            outside = (place >= 0) & (place + size > self.file_bytes) | (place < FIRST_MADE + 1 - num_made)
            if outside.any():
                problem = f"extent {int(np.argmax(outside))} outside of the file's {self.file_bytes} bytes"
        if problem:
            raise FormatError(f"{where}: {problem}. {_REMEDY}")


@dataclass(frozen=True, eq=False)
class Hdf5Index:
    """Some episodes of one HDF5 file, as many as make a shard.

    Args:
        rows: Addresses in packed bytes. Its `shard_bytes` are packed bytes.
        extents: Where these are.
        num_shards: Indexes that the file has.
        left_out: What of these episodes could have been a feature and is none, by path, each with the reason.
        knows_others: Whether its other files were looked for: not by earlier releases, nor in a remote file.
        excluded: Groups that the layout file does not want, each with the reason.
        made_by: The package whose layout described the file, with its version; empty for ours.
        attributes: What each episode says of itself, as selections know it; empty by earlier releases.
    """

    rows: ShardIndex
    extents: Extents
    num_shards: int
    left_out: tuple[str, ...] = ()
    knows_others: bool = False
    excluded: tuple[str, ...] = ()
    made_by: str = ""
    attributes: Sequence[Mapping[str, Any]] = ()

    @property
    def needs_h5py(self) -> list[str]:
        """Datasets that only h5py can read."""
        return [rows.path for rows in self.extents.made if rows.stored is None]

    def to_bytes(self) -> bytes:
        """The index as a file: a shard index with tables that only readers of HDF5 look at.

        Raises:
            FormatError: If anything in it cannot be.
        """
        extents = self.extents
        check(self.rows, self.rows.shard_name)
        extents.check(self.rows.shard_name)
        meta, arrays = self.rows.to_tables()
        meta["hdf5"] = {
            "recipe": RECIPE,
            "version": extents.version,
            "file_bytes": extents.file_bytes,
            "num_shards": self.num_shards,
            **({"left_out": list(self.left_out)} if self.left_out else {}),
        }
        more = {"excluded": list(self.excluded), "made_by": self.made_by}
        meta["hdf5"] |= {name: value for name, value in more.items() if value}
        if self.needs_h5py and self.knows_others:  # all that is in other files is read so
            meta["hdf5"]["others"] = [list(vars(other).values()) for other in extents.others]
        if self.attributes:
            said = json.dumps([dict(one) for one in self.attributes])
            arrays[_ATTRIBUTES] = np.frombuffer(said.encode(), np.uint8)
        described = json.dumps([_describe(rows) for rows in extents.made])
        tables = [rows.stored.table.reshape(-1) for rows in extents.made if rows.stored]
        arrays |= {
            "hdf5:start": extents.start.astype("<u8"),
            "hdf5:place": extents.place.astype("<i8"),
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
        extents = Extents._of(tables, where)
        with _nothing_lacking(where):
            rows, said = build_index(tables, where), tables.meta["hdf5"]
            num_shards, left_out = int(said["num_shards"]), tuple(map(str, said.get("left_out", ())))
            excluded, made_by = tuple(map(str, said.get("excluded", ()))), str(said.get("made_by", ""))
            attributes = _attributes(tables) or ()
        check(rows, where)
        return cls(rows, extents, num_shards, left_out, "others" in said, excluded, made_by, attributes)


def attributes_in(buffer: bytes, where: str) -> list[Mapping[str, Any]] | None:
    """What the episodes of an index say of themselves; None of an index of earlier releases, which does not have it.

    Args:
        buffer: The whole file, whose checksum is known to be right.
        where: Its name, for messages.

    Raises:
        FormatError: If `buffer` is torn, or says anything that cannot be.
    """
    tables = parse_tables(buffer, KIND, where, _REMEDY, verify_body=False)
    with _nothing_lacking(where):
        return _attributes(tables)


def _attributes(tables: Tables) -> list[Mapping[str, Any]] | None:
    found = tables.arrays.get(_ATTRIBUTES)
    return None if found is None else [dict(one) for one in json.loads(found.tobytes())]


@contextlib.contextmanager
def _nothing_lacking(where: str) -> Iterator[None]:
    try:
        yield
    except FormatError:
        raise
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise FormatError(f"{where}: lacks {error}, wanted the index of an HDF5 file. {_REMEDY}") from error


def _other(path: str, version: str, is_outside: bool, kind: str, name: str, holder: str) -> OtherFile:
    return OtherFile(path, version, is_outside, kind, name, holder)


def _describe(rows: MadeRows) -> dict[str, Any]:
    described = dict(vars(rows))
    stored, axes = described.pop("stored"), described.pop("axes")
    if axes:  # which earlier releases do not know
        described["axes"] = axes
    described["chunks"] = stored and {**vars(stored), "table": stored.table.shape, "fill": stored.fill.hex()}
    return described


def _made(described: Sequence[dict[str, Any]], flat: Int64) -> tuple[MadeRows, ...]:
    result, position = [], 0
    for one in described:
        chunks, axes, stored = one.pop("chunks"), tuple(one.pop("axes", ())), None
        if chunks:
            height, width = chunks["table"]
            table = flat[position : position + height * width].reshape(height, width)
            position += height * width
            fill = bytes.fromhex(chunks["fill"])
            stored = Stored(chunks["dtype"], tuple(chunks["shape"]), tuple(chunks["chunk"]), table, fill)
        rows = MadeRows(**one, stored=stored, axes=axes)
        if not all(
            type(number) is int and 0 <= number < 1 << 63 for number in (rows.first, rows.first_row, rows.num_rows)
        ):
            raise ValueError(f"rows of {rows.path!r:.80} as counts")
        result.append(rows)
    return tuple(result)
