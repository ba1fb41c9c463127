"""Parts of a remote Parquet file as a file object: the footer, and the columns and row groups that are wanted."""

import io
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO

from epistream.errors import EpistreamError, FormatError
from epistream.sharding.files.foreign import stand_in
from epistream.sharding.files.storage import Options, read_range
from epistream.sharding.lerobot_meta.arrow import NOT_WHOLE
from epistream.sharding.lerobot_meta.meta_files import at_once

_TAIL_BYTES = 1 << 20
# Ranges with less between them are fetched as one.
_GAP_BYTES = 1 << 18
# What goes to a file comes in pieces of this size, so that few of them are in memory.
_PIECE_BYTES = 4 << 20


class SpoolError(EpistreamError, OSError):
    """A file that fetched bytes go to cannot be written."""


def ranges_of(
    metadata: Any, wanted: Collection[str] | None, groups: Iterable[int] | None = None
) -> list[tuple[int, int]]:
    """Where the bytes of some columns of some row groups are, half-open; of all where None is given."""
    ranges = []
    for group in range(metadata.num_row_groups) if groups is None else groups:
        row_group = metadata.row_group(group)
        for number in range(row_group.num_columns):
            column = row_group.column(number)
            path = column.path_in_schema
            if wanted is None or any(path == one or path.startswith(f"{one}.") for one in wanted):
                start = min(
                    offset
                    for offset in (column.data_page_offset, column.dictionary_page_offset or column.data_page_offset)
                )
                ranges.append((start, start + column.total_compressed_size))
    return ranges


class RangesOfFile(io.RawIOBase):
    """A remote file for pyarrow that brings its end first, then what `fetch` is told, in as few requests as that takes.

    Args:
        url: Of the file.
        num_bytes: Its size.
        options: For fsspec.
        footer: `footer` of the same file, where it is known.
        tail_bytes: Brought of its end at first.
        version: That of the file, where it is known; others are refused.
        parts: Bytes of it that are at hand, by where they begin.

    Attributes:
        head: Its first bytes; none where `footer` was given.
        footer: The end of the file that holds the metadata.

    Raises:
        SourceError, FetchError, SourceChangedError: If it cannot be read.
        FormatError: If its end is not that of a Parquet file.
    """

    def __init__(
        self,
        url: str,
        num_bytes: int,
        options: Options,
        *,
        footer: bytes | None = None,
        tail_bytes: int | None = None,
        version: str = "",
        parts: Iterable[tuple[int, bytes]] = (),
    ) -> None:
        super().__init__()
        self._url, self._options, self._version = url, options, version
        self._size, self._position = num_bytes, 0
        self._parts: dict[int, bytes] = dict(parts)
        self._spool: BinaryIO | None = None
        self._spooled: list[tuple[int, int]] = []
        self.head = b""
        self.footer = self._read_footer(tail_bytes or _TAIL_BYTES) if footer is None else footer
        self._parts[self._size - len(self.footer)] = self.footer

    def _read_footer(self, tail_bytes: int) -> bytes:
        start = max(0, self._size - tail_bytes)
        start = start if start > 512 else 0
        wanted = [(0, 512), (start, self._size)] if start else [(0, self._size)]
        self._bring([one for one in wanted if not self._has(*one)])
        self.head = self._taken(0, min(512, self._size))
        tail = self._taken(start, self._size)
        footer = int.from_bytes(tail[-8:-4], "little") + 8
        if tail[-4:] != b"PAR1" or footer > self._size:
            foreign = stand_in(self.head)
            if foreign:
                raise FormatError(f"{self._url}: {foreign.what}, wanted a Parquet file. {foreign.advice}")
            raise FormatError(f"{self._url}: no footer of Parquet at its end, wanted one. {NOT_WHOLE}")
        if footer > len(tail):
            start = self._size - footer
            self._bring([] if self._has(start, self._size) else [(start, self._size)])
            tail = self._taken(start, self._size)
        return tail

    def fetch(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Bring some ranges, together where they are close."""
        self._bring(self._joined(ranges))

    @contextmanager
    def spooled(self, ranges: Sequence[tuple[int, int]], spool: BinaryIO) -> Iterator[None]:
        """Have some ranges at hand in a file, and next to nothing of them in memory.

        Raises:
            SpoolError: If it cannot be written.
        """
        joined = self._joined(ranges)
        cuts = [(at, min(stop, at + _PIECE_BYTES)) for start, stop in joined for at in range(start, stop, _PIECE_BYTES)]

        def bring(piece: tuple[int, int]) -> None:
            data = memoryview(self._read_range(*piece))
            at = piece[0]
            try:
                while data:
                    done = os.pwrite(spool.fileno(), data, at)
                    data, at = data[done:], at + done
            except OSError as error:
                raise SpoolError(error.errno, error.strerror) from error

        at_once(bring, cuts)
        self._spool, self._spooled = spool, joined
        try:
            yield
        finally:
            self._spool, self._spooled = None, []

    def _joined(self, ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Those that are not there yet, as few as can be."""
        joined: list[tuple[int, int]] = []
        for start, stop in sorted(one for one in ranges if not self._has(*one)):
            if not 0 <= start <= stop <= self._size:
                raise FormatError(
                    f"{self._url}: a column at {start} to {stop}, wanted it in {self._size} bytes. {NOT_WHOLE}"
                )
            if joined and start - joined[-1][1] <= _GAP_BYTES:
                joined[-1] = joined[-1][0], max(stop, joined[-1][1])
            else:
                joined.append((start, stop))
        return joined

    def _has(self, start: int, stop: int) -> bool:
        return any(at <= start and stop <= at + len(part) for at, part in self._parts.items())

    def _taken(self, start: int, stop: int) -> bytes:
        """Bytes that are there."""
        at, part = next((at, part) for at, part in self._parts.items() if at <= start and stop <= at + len(part))
        return part[start - at : stop - at]

    def _bring(self, ranges: Sequence[tuple[int, int]]) -> None:
        parts = at_once(lambda one: self._read_range(*one), ranges)
        self._parts |= {start: part for (start, _), part in zip(ranges, parts, strict=True)}

    def readable(self) -> bool:
        """As of a file."""
        return True

    def seekable(self) -> bool:
        """As of a file."""
        return True

    def tell(self) -> int:
        """As of a file."""
        return self._position

    def seek(self, offset: int, whence: int = 0) -> int:
        """As of a file."""
        self._position = offset + (0, self._position, self._size)[whence]
        return self._position

    def size(self) -> int:
        """In bytes."""
        return self._size

    def read(self, size: int = -1) -> bytes:
        """As of a file; what was not fetched is brought now."""
        start = self._position
        stop = self._size if size < 0 else min(self._size, start + size)
        self._position = max(start, stop)
        if self._has(start, stop):
            return self._taken(start, stop)
        if self._spool is not None and any(at <= start and stop <= end for at, end in self._spooled):
            return os.pread(self._spool.fileno(), stop - start, start)
        return self._read_range(start, stop) if stop > start else b""

    def _read_range(self, start: int, stop: int) -> bytes:
        return read_range(self._url, start, stop - start, self._options, self._version)
