"""Parts of a remote Parquet file as a file object: the footer, and the columns and row groups that are wanted."""

import io
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from epistream.errors import FormatError
from epistream.sharding.files.foreign import stand_in
from epistream.sharding.files.storage import Options, read_range
from epistream.sharding.lerobot_meta.arrow import NOT_WHOLE
from epistream.sharding.lerobot_meta.meta_files import at_once

_TAIL_BYTES = 1 << 20
# Ranges with less between them are fetched as one.
_GAP_BYTES = 1 << 18


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
    ) -> None:
        super().__init__()
        self._url, self._options, self._version = url, options, version
        self._size, self._position = num_bytes, 0
        self._parts: dict[int, bytes] = {}
        self.head = b""
        self.footer = self._read_footer(tail_bytes or _TAIL_BYTES) if footer is None else footer
        self._parts[self._size - len(self.footer)] = self.footer

    def _read_footer(self, tail_bytes: int) -> bytes:
        start = max(0, self._size - tail_bytes)
        self._bring([(0, 512), (start, self._size)] if start > 512 else [(0, self._size)])
        start = start if start > 512 else 0
        self.head = self._parts[0][:512]
        tail = self._parts[start]
        footer = int.from_bytes(tail[-8:-4], "little") + 8
        if tail[-4:] != b"PAR1" or footer > self._size:
            foreign = stand_in(self.head)
            if foreign:
                raise FormatError(f"{self._url}: {foreign.what}, wanted a Parquet file. {foreign.advice}")
            raise FormatError(f"{self._url}: no footer of Parquet at its end, wanted one. {NOT_WHOLE}")
        if footer > len(tail):
            self._bring([(self._size - footer, self._size)])
            tail = self._parts[self._size - footer]
        return tail

    def fetch(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Bring some ranges, together where they are close."""
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
        self._bring(joined)

    def _has(self, start: int, stop: int) -> bool:
        return any(at <= start and stop <= at + len(part) for at, part in self._parts.items())

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
        for at, part in self._parts.items():
            if at <= start and stop <= at + len(part):
                return part[start - at : stop - at]
        return self._read_range(start, stop) if stop > start else b""

    def _read_range(self, start: int, stop: int) -> bytes:
        return read_range(self._url, start, stop - start, self._options, self._version)
