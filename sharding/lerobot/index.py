"""The index of one episode of a LeRobot data set: its rows, and where the packed bytes of its pictures lie.

Packed bytes are those of the pictures of one camera after those of another: packets of a video in the order of its
file, or the pictures of a Parquet column. A table of pieces says where they are: `file` 0 and more is a file of the
data set, whose bytes from `place` on they are; -1 and less is number ``-1 - file`` of the columns of pictures, of
whose bytes `place` counts.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from epistream.errors import FormatError
from epistream.sharding.format.index import KIND, ShardIndex, build_index, check
from epistream.sharding.format.tables import parse_tables, write_tables

Int64 = NDArray[np.int64]
# Raised when the same files would give another index.
RECIPE = 2
_REMEDY = "Remove this file; it is made again when the data set is opened."


class FileOfSet(NamedTuple):
    """A file that packed bytes lie in.

    Attributes:
        name: Its path in the data set.
        version: See `SourceFile`.
        num_bytes: Its size.
    """

    name: str
    version: str
    num_bytes: int


class PictureColumn(NamedTuple):
    """Pictures of the episode in a column of a Parquet file.

    Attributes:
        file: Number of the file.
        column: Its name.
        groups: Row groups that hold them.
        first: Row of the first of these at which they begin.
        rows: How many there are.
    """

    file: int
    column: str
    groups: tuple[int, ...]
    first: int
    rows: int


@dataclass(frozen=True, eq=False)
class Places:
    """Where packed bytes lie. X pieces.

    Args:
        files: Those that the episode is read from, whether or not packed bytes lie in them.
        columns: Of pictures.
        start: (X,) packed byte at which a piece begins, ascending from 0; it ends where the next one begins.
        file: (X,) see above.
        place: (X,) see above.
        num_bytes: Packed bytes.
    """

    files: tuple[FileOfSet, ...]
    columns: tuple[PictureColumn, ...]
    start: Int64
    file: Int64
    place: Int64
    num_bytes: int

    def check(self, where: str) -> None:
        """See that pieces cover the packed bytes, and lie in files or columns that there are.

        Raises:
            FormatError: If not.
        """
        start, file, place = self.start, self.file, self.place
        problem = None
        if len({len(start), len(file), len(place)}) != 1 or (len(start) == 0) != (self.num_bytes == 0):
            problem = f"{len(start)} pieces of {len(file)} files at {len(place)} places"
        elif len(start):
            size = np.diff(start, append=self.num_bytes)
            known = np.array([one.num_bytes for one in self.files], np.int64)
            if start[0] != 0 or (size <= 0).any():
                problem = "pieces that do not ascend from byte 0"
            elif int(file.max()) >= len(known) or int(file.min()) < -len(self.columns) or (place < 0).any():
                problem = f"pieces of files {file.min()} to {file.max()}"
            elif (place > np.where(file >= 0, known[np.maximum(file, 0)], 1 << 62) - size).any():
                problem = "a piece that goes on after its file"
        if any(not 0 <= one.file < len(self.files) or min(one.first, one.rows) < 0 for one in self.columns):
            problem = "columns of files that are not told"
        if problem:
            raise FormatError(f"{where}: {problem}, wanted {self.num_bytes} packed bytes. {_REMEDY}")


@dataclass(frozen=True, eq=False)
class EpisodeIndex:
    """One episode: addresses in packed bytes, and where these are.

    Args:
        rows: With the values of array features.
        places: Of the packed bytes.
    """

    rows: ShardIndex
    places: Places = field(repr=False)

    def to_bytes(self) -> bytes:
        """The index as a file: a shard index with tables that only readers of LeRobot's data sets look at.

        Raises:
            FormatError: If anything in it cannot be.
        """
        check(self.rows, self.rows.shard_name)
        self.places.check(self.rows.shard_name)
        meta, arrays = self.rows.to_tables()
        meta["lerobot"] = {
            "recipe": RECIPE,
            "files": [list(one) for one in self.places.files],
            "columns": [[*one[:2], list(one.groups), *one[3:]] for one in self.places.columns],
        }
        arrays |= {f"lerobot:{name}": getattr(self.places, name).astype("<i8") for name in ("start", "file", "place")}
        return write_tables(KIND, meta, arrays)

    @classmethod
    def parse(cls, buffer: memoryview | bytes, where: str) -> "EpisodeIndex":
        """The inverse of `to_bytes`; its arrays are views.

        Raises:
            FormatError: If `buffer` is torn, or says anything that cannot be.
        """
        tables = parse_tables(buffer, KIND, where, _REMEDY)
        try:
            rows = build_index(tables, where)
            places = _places(tables.meta["lerobot"], tables.arrays, rows.shard_bytes)
        except FormatError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(f"{where}: lacks {error}, wanted the index of an episode. {_REMEDY}") from error
        places.check(where)
        return cls(rows, places)


def _places(said: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], num_bytes: int) -> Places:
    files = tuple(FileOfSet(str(name), str(version), int(size)) for name, version, size in said["files"])
    columns = tuple(
        PictureColumn(int(file), str(column), tuple(map(int, groups)), int(first), int(rows))
        for file, column, groups, first, rows in said["columns"]
    )
    start, file, place = (arrays[f"lerobot:{name}"].astype(np.int64) for name in ("start", "file", "place"))
    return Places(files, columns, start, file, place, num_bytes)
