"""Boxes of an MP4: its index (moov) found with few reads, boxes and tables of numbers taken apart with bounds."""

import contextlib
import struct
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epistream.errors import FormatError
from epistream.units import size_text

Read = Callable[[int, int], bytes]
AGAIN = "Encode it again, for example with: ffmpeg -i IN -c:v libx264 -pix_fmt yuv420p -bf 0 -g 30 OUT.mp4."
_COPY = "ffmpeg -i IN -c copy -movflags +faststart OUT.mp4."

# Most indexes that lie in front are whole within the first read, most that lie behind within the next one: 50,000
# frames take about 0.3 MB, twice that if they are decoded in another order.
_FIRST_BYTES, _NEXT_BYTES = 1 << 12, 1 << 20
_MOST_BYTES = 1 << 28
# Of boxes side by side, and of reads before the index is found; FFmpeg writes less than ten, and needs two.
_MOST_BOXES, _MOST_READS = 256, 16
_HEADER, _LONG_HEADER = 8, 16
# What an MP4 begins with, also one of QuickTime.
_FIRST = frozenset((b"ftyp", b"styp", b"free", b"skip", b"wide", b"pnot", b"uuid", b"mdat", b"moov", b"moof", b"sidx"))


def read_moov(read: Read, file_bytes: int, where: str) -> memoryview:
    """What is inside the index of an MP4, wherever it lies.

    Args:
        read: Bytes of the file from an offset on, as many as a size says; asked for parts that are in the file.
        file_bytes: Of the whole file.
        where: Names it in messages.

    Raises:
        FormatError: If there is none, or it is in pieces.
    """
    window = _Window(read, file_bytes, where)
    at = 0
    for _ in range(_MOST_BOXES):
        if at + _HEADER > file_bytes:
            break
        size, kind = struct.unpack(">I4s", window.take(at, _HEADER))
        if kind in (b"moof", b"sidx"):
            raise _fragmented(where)
        if at == 0 and kind not in _FIRST:
            raise FormatError(f"{where}: no MP4 (it begins with {_shown(kind)}), wanted a whole one.")
        header = _HEADER
        if size == 1 and at + _LONG_HEADER <= file_bytes:
            header, size = _LONG_HEADER, struct.unpack(">Q", window.take(at + _HEADER, 8))[0]
        elif size == 0:
            size = file_bytes - at  # the last one
        if size < header or at + size > file_bytes:
            raise FormatError(
                f"{where}: {file_bytes:,} bytes, wanted {at + max(size, header):,} or more as its box {_shown(kind)} "
                "says. The file is cut off: copy or record it again."
            )
        if kind == b"moov":
            if size > _MOST_BYTES:
                raise FormatError(
                    f"{where}: an index (moov) of {size_text(size)}, wanted at most {size_text(_MOST_BYTES)}. "
                    "Split the video."
                )
            return memoryview(window.take(at + header, size - header, more=False))
        at += size
    raise FormatError(f"{where}: no index (moov), wanted a whole MP4. Its recording did not end: record it again.")


def next_part(first: bytes, file_bytes: int) -> tuple[int, int] | None:
    """The half-open range that `read_moov` reads once it has the first bytes of a file; None if it reads no more.

    Args:
        first: 4 KiB of them, or all of a shorter file.
        file_bytes: Of the whole file.
    """
    lacking: list[tuple[int, int]] = []

    def read(offset: int, size: int) -> bytes:
        if offset + size > len(first):
            lacking.append((offset, offset + size))
            raise FormatError("bytes that are not at hand")
        return first[offset : offset + size]

    with contextlib.suppress(FormatError):  # what else is wrong is told by whoever reads it
        read_moov(read, file_bytes, "")
    return lacking[0] if lacking else None


class _Window:
    """The part of the file that was read last."""

    def __init__(self, read: Read, file_bytes: int, where: str) -> None:
        self._read, self._file_bytes, self._where = read, file_bytes, where
        self._start, self._data = 0, b""
        self._num_reads = 0

    def take(self, start: int, size: int, *, more: bool = True) -> bytes:
        """Bytes that must lie in the file; `more` than these are read, for what comes behind."""
        stop = start + size
        if not self._start <= start <= stop <= self._start + len(self._data):
            self._num_reads += 1
            if self._num_reads > _MOST_READS:
                raise FormatError(f"{self._where}: more than {_MOST_READS} parts in front of its index. {AGAIN}")
            kept = (
                b"" if not self._start <= start < self._start + len(self._data) else self._data[start - self._start :]
            )
            ahead = (_NEXT_BYTES if self._num_reads > 1 else _FIRST_BYTES) if more else 0
            missing = min(max(size, ahead), self._file_bytes - start) - len(kept)
            found = self._read(start + len(kept), missing)
            if len(found) != missing:
                raise FormatError(
                    f"{self._where}: {len(found):,} bytes at byte {start + len(kept):,}, wanted {missing:,}. The file "
                    "changed while it was read."
                )
            self._start, self._data = start, kept + bytes(found)
        return self._data[start - self._start : stop - self._start]


def boxes(inside: memoryview, where: str) -> Iterator[tuple[bytes, memoryview]]:
    """Name and inside of each box; up to 7 bytes behind the last one are let alone, as QuickTime ends lists so.

    Raises:
        FormatError: If a box goes beyond what holds it, or there are very many.
    """
    at = num_boxes = 0
    while at + _HEADER <= len(inside):
        num_boxes += 1
        if num_boxes > _MOST_BOXES:
            raise FormatError(f"{where}: an index of more than {_MOST_BOXES} boxes side by side. {AGAIN}")
        size, kind = struct.unpack_from(">I4s", inside, at)
        header = _HEADER
        if size == 1 and at + _LONG_HEADER <= len(inside):
            header, size = _LONG_HEADER, struct.unpack_from(">Q", inside, at + _HEADER)[0]
        elif size == 0:
            size = len(inside) - at
        if size < header or at + size > len(inside):
            raise FormatError(f"{where}: a box {_shown(kind)} of {size:,} bytes, wanted at most {len(inside) - at:,}.")
        yield kind, inside[at + header : at + size]
        at += size


def box_of(inside: memoryview, path: bytes, where: str) -> memoryview | None:
    """The first box at a path of names, as in ``b"mdia/minf"``; None if there is none."""
    found: memoryview | None = inside
    for name in path.split(b"/"):
        if found is None:
            return None
        found = next((box for kind, box in boxes(found, where) if kind == name), None)
    return found


def needed_box(inside: memoryview, path: bytes, where: str) -> memoryview:
    """As `box_of`.

    Raises:
        FormatError: If there is none.
    """
    found = box_of(inside, path, where)
    if found is None:
        raise FormatError(f"{where}: an index without {path.decode()}, wanted a whole MP4. {AGAIN}")
    return found


def numbers(box: memoryview, layout: str, offset: int, where: str) -> tuple[int, ...]:
    """Numbers of a layout of `struct` in a box, big-endian.

    Raises:
        FormatError: If the box is too short.
    """
    if offset + struct.calcsize(">" + layout) > len(box):
        raise FormatError(f"{where}: a box of {len(box)} bytes in its index, wanted more. The file is damaged.")
    return struct.unpack_from(">" + layout, box, offset)


def table(box: memoryview, dtype: str, offset: int, where: str) -> NDArray[Any]:
    """The rows that a box announces by the number at `offset`, which they stand behind; a view of the box.

    Args:
        box: With version and flags.
        dtype: Of a row: numpy's list of big-endian types with commas.
        offset: Of the number of rows in the box.
        where: For messages.

    Raises:
        FormatError: If the box is too short for so many.
    """
    (count,) = numbers(box, "I", offset, where)
    row = np.dtype(dtype)
    if count * row.itemsize > len(box) - offset - 4:
        raise FormatError(
            f"{where}: a table of {count:,} rows in {len(box) - offset - 4:,} bytes, wanted {row.itemsize} bytes each. "
            "The file is damaged."
        )
    return np.frombuffer(box, row, count, offset + 4)


def _fragmented(where: str) -> FormatError:
    return FormatError(f"{where}: an MP4 in fragments, wanted one index of all frames. Write it anew: {_COPY}")


def refuse_fragments(moov: memoryview, where: str) -> None:
    """Raise FormatError if an index says that there are more frames than it holds."""
    if box_of(moov, b"mvex", where) is not None:
        raise _fragmented(where)
    if box_of(moov, b"cmov", where) is not None:
        raise FormatError(
            f"{where}: a compressed index, wanted a plain one. Write it anew: ffmpeg -i IN -c copy OUT.mp4."
        )


def _shown(kind: bytes) -> str:
    return repr(kind.decode("latin-1"))
