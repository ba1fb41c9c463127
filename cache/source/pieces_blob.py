"""The packed bytes that lie in pieces of several local files, read where they lie."""

import contextlib
import threading
from collections.abc import Iterable, Sequence
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from epistream.cache.source.blob import Blob
from epistream.cache.source.local import FileBlob
from epistream.cache.source.pieces import Int64, PieceFile, Pieces
from epistream.cache.source.rows import as_bytes, check_range, check_starts
from epistream.errors import SourceChangedError, SourceError
from epistream.file_systems import local_path
from epistream.lru import Lru
from epistream.plain_files import version_of_file

# Files that a blob keeps open: a shard may lie in dozens of them, and a reader holds dozens of shards.
_MOST_OPEN = 4


class PiecesBlob(Blob):
    """Reads pieces of local files where they lie.

    A file is opened when it is first needed, and looked at then: whether it is the one that was indexed.

    Args:
        url: For messages.
        pieces: Where the bytes are.

    Raises:
        SourceChangedError: By every read: a file was replaced, truncated or written to since it was indexed.
        SourceError: By every read: a file cannot be opened.
    """

    def __init__(self, url: str, pieces: Pieces) -> None:
        self.url = url
        self.size = pieces.num_bytes
        self._pieces = pieces.joined
        self._mutex = threading.Lock()
        # None of them is closed here: it is by the last who reads it, which may be another thread.
        self._files: Lru[int, FileBlob] = Lru(_MOST_OPEN)

    def read_into(self, offset: int, out: memoryview | NDArray[np.uint8]) -> None:
        """Fill `out` (contiguous bytes) from `offset`."""
        target = as_bytes(out)
        check_range(self.url, self.size, offset, len(target))
        for first, size, file, place in self._pieces.within(offset, offset + len(target)):
            self._opened(file).read_into(place, target[first : first + size])

    def read_each(self, offsets: Sequence[int], targets: Sequence[memoryview]) -> None:
        """As `read_into` for several places, looking only once at each file whether it changed."""
        files, places = self._whole(np.asarray(offsets, np.int64), np.array([len(one) for one in targets], np.int64))
        for file in np.unique(files).tolist():
            chosen = np.flatnonzero(files == file).tolist()
            if file >= 0:
                self._opened(file).read_each(places[chosen].tolist(), [targets[number] for number in chosen])
                continue
            for number in chosen:
                self.read_into(offsets[number], targets[number])

    def read_in_turn(self, offsets: Sequence[int], sizes: Sequence[int]) -> Iterable[memoryview]:
        """As `read` for several places, each only when it is asked for and valid until the next one is."""
        files, places = self._whole(np.asarray(offsets, np.int64), np.asarray(sizes, np.int64))
        for file, group in groupby(range(len(offsets)), files.tolist().__getitem__):
            chosen = list(group)
            wanted = [sizes[number] for number in chosen]
            if file >= 0:
                yield from self._opened(file).read_in_turn(places[chosen].tolist(), wanted)
            else:
                yield from map(self.read, [offsets[number] for number in chosen], wanted)

    def gather(self, starts: Int64, out: NDArray[np.uint8]) -> None:
        """Row i of `out` (n, width), C-contiguous, becomes bytes [starts[i], starts[i] + width)."""
        target = as_bytes(out)
        if not len(target):
            return
        width = out.shape[1]
        check_starts(self.url, self.size, starts, width)
        files, places = self._whole(starts, np.full(len(starts), width, np.int64))
        if files[0] >= 0 and (files == files[0]).all():
            self._opened(int(files[0])).gather(places, out)
            return
        for file in np.unique(files[files >= 0]).tolist():
            chosen = np.flatnonzero(files == file)
            found = np.empty((len(chosen), width), np.uint8)
            self._opened(file).gather(places[chosen], found)
            out[chosen] = found
        for row in np.flatnonzero(files < 0).tolist():
            self.read_into(int(starts[row]), out[row])

    def check_unchanged(self) -> None:
        """Look whether a file that is open changed; the others were looked at after each read."""
        with self._mutex:
            files = list(self._files.values())
        for file in files:
            file.check_unchanged()

    def close(self) -> None:
        """Close the files. Harmless when called twice."""
        with self._mutex:
            self._files.clear()

    def _whole(self, starts: Int64, sizes: Int64) -> tuple[Int64, Int64]:
        """File and place of each range that lies in a single piece; file -1 where it does not, or is empty or wrong."""
        pieces = self._pieces
        if not len(pieces.start):
            return np.full(len(starts), -1), np.zeros(len(starts), np.int64)
        piece = np.searchsorted(pieces.start, starts, side="right") - 1
        lies_whole = (starts >= 0) & (sizes > 0) & (starts + sizes <= pieces.stop[piece])
        return np.where(lies_whole, pieces.file[piece], -1), pieces.place[piece] + starts - pieces.start[piece]

    def _opened(self, number: int) -> FileBlob:
        with self._mutex:
            file = self._files.get(number)
            if file is None:
                self._files.make_room()
                file = self._open(number)
                self._files.put(number, file)
            return file

    def _open(self, number: int) -> FileBlob:
        """A file, once it is sure that it is the one that was indexed."""
        said = self._pieces.files[number]
        path = local_path(said.url)
        if path is None:
            raise SourceError(f"{said.url}: not on this machine, wanted a local file. Copy it here.")
        status = None
        with contextlib.suppress(OSError):  # told when it is opened
            status = path.stat()
        if status is not None:
            _check_version(said, version_of_file(status))
        mine = self._pieces.file == number
        places, sizes = self._pieces.place[mine], self._pieces.sizes[mine]
        file = FileBlob(path, said.num_bytes, (int(places.min()), int((places + sizes).max())))
        # It may have been replaced since it was looked at.
        _check_version(said, version_of_file(file.status))
        return file


def _check_version(file: PieceFile, version: str) -> None:
    if version != file.version:
        raise SourceChangedError(
            f"{file.url}: {version}, wanted {file.version}: it was replaced or written to since it was indexed. Open "
            "the dataset again to index it as it is now."
        )
