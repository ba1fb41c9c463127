"""Bytes of files of this machine, copied as they are: nothing of them is looked at but that they are the right ones."""

import os
from collections.abc import Iterable, Iterator

from epistream.errors import SourceChangedError, SourceError
from epistream.plain_files import refuse_other_than_plain, version_of_file
from epistream.sharding.lerobot_out.model import FileRange

# What is read at once stays in the CPU's cache until it is written: as fast as copy_file_range and sendfile, which not
# all file systems have.
_PIECE_BYTES = 1 << 20


class RangeReader:
    """Reads ranges of files, of which the last one stays open for the next range, until it is closed."""

    def __init__(self) -> None:
        self._path, self._fd, self._version = "", -1, ""
        self._buffer = memoryview(b"")

    def read(self, ranges: Iterable[FileRange], where: str) -> Iterator[memoryview]:
        """The bytes of some ranges, one behind the other, in pieces; each is valid until the next one.

        Args:
            ranges: Which.
            where: Names what they are of, for messages.

        Raises:
            SourceError: If a file cannot be read.
            SourceChangedError: If it is not of its version, or becomes another while it is read.
        """
        for one in ranges:
            try:
                self._open(one)
                yield from self._pieces(one)
                version = version_of_file(os.stat(one.path))  # noqa: PTH116, thousands of them
            except OSError as error:
                raise SourceError(
                    f"{where}: {one.path}: {error.strerror or error}, wanted to read it. Check the path and its "
                    "permissions."
                ) from error
            if not one.version == self._version == version:
                self.close()
                raise _changed(one, where)

    def _pieces(self, one: FileRange) -> Iterator[memoryview]:
        if not self._buffer:
            self._buffer = memoryview(bytearray(_PIECE_BYTES))
        place, left = one.offset, one.size
        if left > _PIECE_BYTES:
            os.posix_fadvise(self._fd, place, left, os.POSIX_FADV_WILLNEED)
        while left:
            size = os.preadv(self._fd, [self._buffer[:left]], place)
            if not size:
                return  # its version is another then
            yield self._buffer[:size]
            place, left = place + size, left - size

    def _open(self, one: FileRange) -> None:
        if self._path != one.path:
            self.close()
            refuse_other_than_plain(one.path)
            self._fd = os.open(one.path, os.O_RDONLY | os.O_CLOEXEC)
            self._path, self._version = one.path, version_of_file(os.fstat(self._fd))

    def close(self) -> None:
        """Close what is open."""
        fd, self._path, self._fd = self._fd, "", -1
        if fd >= 0:
            os.close(fd)


def _changed(one: FileRange, where: str) -> SourceChangedError:
    return SourceChangedError(
        f"{where}: {one.path}: replaced or written to since the export began, wanted it as it was: its statistics are "
        "of that. Begin the export again, in an empty folder."
    )
