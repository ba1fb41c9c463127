"""Packed bytes of an episode with pictures in columns of Parquet files, which are unpacked a row group at a time."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epistream.cache.source.blob import Blob
from epistream.cache.source.rows import as_bytes, check_range, check_starts
from epistream.errors import SourceChangedError
from epistream.file_systems import is_same_version, local_path
from epistream.lru import SharedLru
from epistream.sharding.lerobot.files import SourceFile
from epistream.sharding.lerobot.index import Places
from epistream.sharding.lerobot.picture_groups import GroupPictures, group_pictures

Int64 = NDArray[np.int64]
# Columns of row groups that stay at hand: of LeRobot's files a group is an episode, or a hundred steps.
_MOST_GROUPS = 2
Group = tuple[GroupPictures, Int64]  # and (n + 1,) where each begins


class ColumnsBlob(Blob):
    """Reads packed bytes: pictures out of Parquet files, packets from videos beside them.

    Args:
        root: Of the data set.
        places: Of the packed bytes.
        storage_options: For fsspec.
        folder: Where row groups are kept unpacked.

    Raises:
        SourceError, SourceChangedError, FormatError: Of every read: a file is missing, not that which was indexed, or
            torn.
    """

    def __init__(self, root: str, places: Places, storage_options: Mapping[str, Any], folder: Path) -> None:
        self.size = places.num_bytes
        self.url = root
        self._root, self._places, self._options, self._folder = root, places, storage_options, folder
        self._stop = np.append(places.start[1:], places.num_bytes)
        self._groups: SharedLru[tuple[int, int], Group] = SharedLru(_MOST_GROUPS)
        self._files: dict[int, SourceFile] = {}
        # By column and row group: rows of the episode, and where their bytes are among those of the group.
        self._extents: dict[tuple[int, int], tuple[int, int, int]] = {}

    def read_into(self, offset: int, out: memoryview | NDArray[np.uint8]) -> None:
        """Fill `out` (contiguous bytes) from `offset`."""
        target = as_bytes(out)
        check_range(self.url, self.size, offset, len(target))
        stop = offset + len(target)
        piece = max(0, int(np.searchsorted(self._places.start, offset, side="right")) - 1)
        while offset < stop:
            end = min(stop, int(self._stop[piece]))
            part = target[len(target) - (stop - offset) : len(target) - (stop - end)]
            self._read_piece(piece, offset, part)
            offset, piece = end, piece + 1

    def gather(self, starts: Int64, out: NDArray[np.uint8]) -> None:
        """Row i of `out` (n, width), C-contiguous, becomes bytes [starts[i], starts[i] + width)."""
        if out.size:
            check_starts(self.url, self.size, starts, out.shape[1])
        for start, row in zip(starts.tolist(), out, strict=True):
            self.read_into(start, row)

    def check_unchanged(self) -> None:
        """Look whether a file changed."""
        for number in self._files.copy():
            self._look_at(number)

    def close(self) -> None:
        """Give up what is unpacked. Harmless when called twice."""
        self._groups = SharedLru(_MOST_GROUPS)

    def _read_piece(self, piece: int, offset: int, out: memoryview) -> None:
        inside = offset - int(self._places.start[piece])
        number = int(self._places.file[piece])
        place = int(self._places.place[piece]) + inside
        if number < 0:
            self._read_column(-1 - number, place, out)
        else:
            out[:] = self._file(number).read(place, len(out))
            self._refuse_changed(number)

    def _read_column(self, number: int, offset: int, out: memoryview) -> None:
        """Bytes of the pictures of a column of the episode, from a byte of the first on."""
        column = self._places.columns[number]
        done, before, row = 0, 0, column.first
        left = column.rows
        for group in column.groups:
            if done == len(out):
                break
            if (number, group) not in self._extents:  # else those before are not unpacked again to skip them
                _, cuts = self._groups.get((number, group), partial(self._unpack, number, group))
                rows = min(left, len(cuts) - 1 - row)
                self._extents[number, group] = rows, int(cuts[row]), int(cuts[row + rows] - cuts[row])
            rows, first, size = self._extents[number, group]
            begin = max(0, offset + done - before)
            if begin < size:
                pictures, _ = self._groups.get((number, group), partial(self._unpack, number, group))
                count = min(size - begin, len(out) - done)
                pictures.read_into(first + begin, out[done : done + count])
                done += count
            before, left, row = before + size, left - rows, 0
        if done < len(out):
            raise SourceChangedError(
                f"{self._file(column.file).url}: pictures of {before:,} bytes, wanted at least {offset + len(out):,}: "
                "it is not as it was indexed. Open the dataset again."
            )

    def _unpack(self, number: int, group: int) -> Group:
        column = self._places.columns[number]
        pictures = group_pictures(self._file(column.file), column.column, group, self._folder)
        self._refuse_changed(column.file)
        return pictures, np.append(0, np.cumsum(np.maximum(pictures.size, 0)))

    def _file(self, number: int) -> SourceFile:
        """A file of the data set, looked at when it is first needed."""
        if number not in self._files:
            self._files[number] = self._look_at(number)
        return self._files[number]

    def _refuse_changed(self, number: int) -> None:
        """See that a local file still is the one that was indexed, after a read; of others each answer tells."""
        if local_path(self._root) is not None:
            self._look_at(number)

    def _look_at(self, number: int) -> SourceFile:
        """A file of the data set, once it is sure that it is the one that was indexed."""
        told = self._places.files[number]
        file = SourceFile.at(self._root, told.name, self._options, "a file of a LeRobot data set")
        if not is_same_version(file.version, told.version):
            raise SourceChangedError(
                f"{file.url}: {file.version}, wanted {told.version}: it was replaced or written to since it was "
                "indexed. Open the dataset again to index it as it is now."
            )
        return file
