"""Where packed bytes are that lie in pieces of several files, as they are."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from epistream.errors import FormatError
from epistream.file_systems import local_path
from epistream.lazy import lazy

Int64 = NDArray[np.int64]

# Pieces of a file nearer to each other than this are read ahead together: the gap costs less than another request.
_GAP_BYTES = 128 << 10


class PieceFile(NamedTuple):
    """A file that holds pieces.

    Args:
        url: Any URL of fsspec's, or a local path.
        num_bytes: Its size.
        version: What tells its content from another; of a local file `epistream.plain_files.version_of_file`.
    """

    url: str
    num_bytes: int
    version: str


class Span(NamedTuple):
    """Packed bytes of one piece, or some of them.

    Args:
        first: Where they begin among those that were asked for.
        size: How many, at least 1.
        file: Position of their file.
        place: Byte of that file where they begin.
    """

    first: int
    size: int
    file: int
    place: int


@dataclass(frozen=True, eq=False)
class Pieces:
    """Where packed bytes lie. X pieces; each ends where the next one begins, and may be empty.

    ::

        packed bytes   0        70       100            160
                       |  file 1, 500  |  file 0, 8  |  file 1, 570  |
        start = [0, 70, 100], file = [1, 0, 1], place = [500, 8, 570], num_bytes = 160

    Args:
        files: What they lie in.
        num_bytes: Of the packed bytes; may be 0.
        start: (X,) int64 packed byte at which a piece begins, ascending from 0.
        file: (X,) int64 position in `files`.
        place: (X,) int64 byte of that file.

    Raises:
        FormatError: A piece does not lie in its file, or the pieces are not all of the packed bytes.
    """

    files: tuple[PieceFile, ...]
    num_bytes: int
    start: Int64
    file: Int64
    place: Int64

    def __post_init__(self) -> None:
        problem = self._problem()
        if problem:
            where = self.files[0].url if self.files else "no file"
            raise FormatError(f"pieces of {where}: {problem}. Open the dataset again: its index is made anew.")

    def _problem(self) -> str:
        """What is wrong with it, and what was wanted; "" if nothing is."""
        count = len(self.start)
        if not count == len(self.file) == len(self.place):
            return f"{count} starts, {len(self.file)} files and {len(self.place)} places, wanted as many of each"
        if not count:
            return f"none, wanted {self.num_bytes} bytes" if self.num_bytes else ""
        if self.start[0] != 0 or (self.start[1:] < self.start[:-1]).any() or self.start[-1] > self.num_bytes:
            return f"starts that do not ascend from 0 to at most {self.num_bytes}, wanted that"
        if self.file.min() < 0 or self.file.max() >= len(self.files):
            return f"file {int(self.file.max())} or {int(self.file.min())}, wanted one of {len(self.files)}"
        room = np.array([file.num_bytes for file in self.files], np.int64)[self.file] - self.sizes
        outside = np.flatnonzero((self.place < 0) | (self.place > room))
        if not len(outside):
            return ""
        first = int(outside[0])
        url, num_bytes, _ = self.files[int(self.file[first])]
        return (
            f"piece {first} is {int(self.sizes[first])} bytes from byte {int(self.place[first])} of {url} on, wanted "
            f"them within its {num_bytes} bytes"
        )

    @lazy
    def stop(self) -> Int64:
        """(X,) packed byte at which a piece ends."""
        return np.append(self.start[1:], self.num_bytes)[: len(self.start)]

    @lazy
    def sizes(self) -> Int64:
        """(X,) bytes of each piece."""
        return self.stop - self.start

    @lazy
    def joined(self) -> "Pieces":
        """The same with as few pieces as can be: without empty ones, and one where the next goes on in its file."""
        full = np.flatnonzero(self.sizes)
        start, file, place = self.start[full], self.file[full], self.place[full]
        goes_on = (file[1:] == file[:-1]) & (np.diff(place) == np.diff(start))
        begins = np.flatnonzero(np.append(True, ~goes_on)[: len(full)])
        return Pieces(self.files, self.num_bytes, start[begins], file[begins], place[begins])

    def within(self, start: int, stop: int) -> Iterator[Span]:
        """The spans of the packed bytes [start, stop), in their order."""
        first = int(np.searchsorted(self.start, start, side="right")) - 1
        last = int(np.searchsorted(self.start, stop, side="left"))
        for number in range(max(0, first), last):
            begin, end = max(start, int(self.start[number])), min(stop, int(self.stop[number]))
            if begin < end:
                inside = begin - int(self.start[number])
                yield Span(begin - start, end - begin, int(self.file[number]), int(self.place[number]) + inside)


def ranges_of(pieces: Pieces) -> Iterator[tuple[Path, int, int]]:
    """The bytes [first, stop) of local files that pieces lie in, file by file and ascending; near ones in one."""
    order = np.lexsort((pieces.place, pieces.file))
    order = order[pieces.sizes[order] > 0]
    for file, group in groupby(order.tolist(), pieces.file.tolist().__getitem__):
        path = local_path(pieces.files[file].url)
        if path is None:
            continue
        first = stop = -1
        for number in group:
            place = int(pieces.place[number])
            if first >= 0 and place > stop + _GAP_BYTES:
                yield path, first, stop
                first = -1
            first = place if first < 0 else first
            stop = max(stop, place + int(pieces.sizes[number]))
        yield path, first, stop
