"""The bytes of one part of an entry, whatever is behind them: a mapping, a local file, or a URL."""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import xxhash
from numpy.typing import NDArray

from epistream.cache.entry import Part
from epistream.cache.remote import Remote, WholeBodyError
from epistream.errors import ChecksumError, FetchError, FormatError, SourceChangedError, SourceError

# Rows nearer to each other than this are read in one go: a gap costs less than another system call.
_GAP_BYTES = 32 << 10
# Longest read of a gather, which bounds its buffer.
_SPAN_BYTES = 4 << 20
# Blocks of a remote part that are kept: the frames of a batch lie near each other.
_KEPT_BLOCKS = 16


class Blob(Protocol):
    """Random access to the bytes of one part. Safe to use from several threads."""

    size: int

    def read(self, offset: int, size: int) -> memoryview | bytes:
        """Bytes [offset, offset + size); from a mapping without copying, valid until its entry is closed."""

    def read_into(self, offset: int, out: memoryview | NDArray[np.uint8]) -> None:
        """Fill `out` (contiguous bytes) from `offset`."""

    def gather(self, starts: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """Row i of `out` (n, width), C-contiguous, becomes bytes [starts[i], starts[i] + width)."""


class MappedBlob:
    """A part that is mapped from the cache.

    Args:
        view: Read-only bytes, owned by the lease.
        url: For messages.
    """

    def __init__(self, view: memoryview, url: str) -> None:
        self._view = view
        self._url = url
        self.size = len(view)

    def read(self, offset: int, size: int) -> memoryview:
        """Bytes of the mapping itself, no copy."""
        check_range(self._url, self.size, offset, size)
        return self._view[offset : offset + size]

    def read_into(self, offset: int, out: memoryview | NDArray[np.uint8]) -> None:
        """Fill `out` from `offset`."""
        target = as_bytes(out)
        check_range(self._url, self.size, offset, len(target))
        target[:] = self._view[offset : offset + len(target)]

    def gather(self, starts: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """Row i of `out` becomes bytes [starts[i], starts[i] + width)."""
        if out.size == 0:
            return
        check_starts(self._url, self.size, starts, out.shape[1])
        rows(out, out.shape[1], out.shape[1])[...] = rows(self._view, out.shape[1], 1)[starts]


class FileBlob:
    """A part that is a local file, read with pread through the page cache.

    It is never mapped: a file that is not ours may be truncated, which under a mapping is SIGBUS.

    Args:
        path: The file.
        size: Bytes that it must have.
        ahead: Bytes [first, stop) that are wanted soon; all unless given.

    Raises:
        SourceError: It cannot be opened.
        SourceChangedError: It has not the size that was promised; also raised by every read once the file was
            replaced, truncated or written to.
    """

    def __init__(self, path: Path, size: int, ahead: tuple[int, int] | None = None) -> None:
        self.size = size
        self._path = path
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise SourceError(
                f"{path}: {error.strerror}, wanted to read it. Check the path and its permissions."
            ) from error
        self._identity = _identity(os.fstat(self._fd))
        if self._identity[2] != size:
            self.close()
            raise SourceChangedError(
                f"{path}: {self._identity[2]} bytes, wanted {size}. Re-create the index with 'epistream index URL' "
                "if it was changed on purpose."
            )
        # The whole shard: windows are drawn from all over it, and soon.
        first, stop = ahead or (0, size)
        os.posix_fadvise(self._fd, first, stop - first, os.POSIX_FADV_WILLNEED)

    @property
    def status(self) -> os.stat_result:
        """Of the file that is open, as it is now."""
        return os.fstat(self._fd)

    def read(self, offset: int, size: int) -> memoryview:
        """A copy of the bytes."""
        check_range(str(self._path), self.size, offset, size)
        buffer = memoryview(bytearray(size))
        self.read_into(offset, buffer)
        return buffer

    def read_into(self, offset: int, out: memoryview | NDArray[np.uint8]) -> None:
        """Fill `out` from `offset`."""
        target = as_bytes(out)
        check_range(str(self._path), self.size, offset, len(target))
        self._fill(offset, target)
        self._check_unchanged()

    def gather(self, starts: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """Row i of `out` becomes bytes [starts[i], starts[i] + width); near rows are read together."""
        if out.size == 0:
            return
        width = out.shape[1]
        check_starts(str(self._path), self.size, starts, width)
        targets = rows(out, width, width)
        for chosen, first, span in runs(starts, width):
            buffer = bytearray(span)
            self._fill(first, memoryview(buffer))
            targets[chosen] = rows(buffer, width, 1)[starts[chosen] - first]
        self._check_unchanged()

    def close(self) -> None:
        """Close the file."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _fill(self, offset: int, target: memoryview) -> None:
        done = 0
        while done < len(target):
            got = os.preadv(self._fd, [target[done:]], offset + done)
            if got == 0:
                raise SourceChangedError(
                    f"{self._path}: ends at byte {offset + done}, wanted {offset + len(target)}. It was truncated; "
                    "restore it and start again."
                )
            done += got

    def _check_unchanged(self) -> None:
        # After the read: bytes that were read before a change are good.
        try:
            now = _identity(self._path.stat())
        except OSError as error:
            raise SourceChangedError(
                f"{self._path}: {error.strerror}, wanted the file that was open. Restore it."
            ) from error
        if now != self._identity:
            raise SourceChangedError(
                f"{self._path}: (device, size, inode, mtime) {now}, wanted {self._identity}: it was replaced or "
                "written to while in use. Start again, after 'epistream index URL' if the change is meant."
            )


class RangeBlob:
    """A part that is read over the network, block by block, without the cache.

    Every block is checked where the index gave its checksum. A few blocks are kept, because the frames of a
    window lie side by side.

    Args:
        part: What to read.
        remote: Reads ranges, with retries.
        count: Told the bytes of every request.
    """

    def __init__(self, part: Part, remote: Remote, count: Callable[[int], None]) -> None:
        self.size = part.size
        self._count = count
        self._part = part
        self._remote = remote
        self._mutex = threading.Lock()
        self._blocks: OrderedDict[int, bytes] = OrderedDict()

    def read(self, offset: int, size: int) -> memoryview:
        """A copy of the bytes."""
        check_range(self._part.url, self.size, offset, size)
        buffer = memoryview(bytearray(size))
        self.read_into(offset, buffer)
        return buffer

    def read_into(self, offset: int, out: memoryview | NDArray[np.uint8]) -> None:
        """Fill `out` from `offset`."""
        target = as_bytes(out)
        check_range(self._part.url, self.size, offset, len(target))
        block_bytes = self._part.block_bytes
        done = 0
        while done < len(target):
            first = (offset + done) // block_bytes
            last = min((offset + len(target) - 1) // block_bytes, first + _KEPT_BLOCKS - 1)
            for index, block in zip(range(first, last + 1), self._load(first, last), strict=True):
                inside = offset + done - index * block_bytes
                piece = memoryview(block)[inside : inside + len(target) - done]
                target[done : done + len(piece)] = piece
                done += len(piece)

    def gather(self, starts: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """Row i of `out` becomes bytes [starts[i], starts[i] + width); near rows are read together."""
        if out.size == 0:
            return
        width = out.shape[1]
        check_starts(self._part.url, self.size, starts, width)
        targets = rows(out, width, width)
        for chosen, first, span in runs(starts, width):
            buffer = bytearray(span)
            self.read_into(first, memoryview(buffer))
            targets[chosen] = rows(buffer, width, 1)[starts[chosen] - first]

    def _load(self, first: int, last: int) -> Sequence[bytes]:
        """Blocks first..last, from those kept and in as few requests as the rest needs."""
        with self._mutex:
            found = {index: self._blocks[index] for index in range(first, last + 1) if index in self._blocks}
        missing = [index for index in range(first, last + 1) if index not in found]
        while missing:
            length = 1
            while length < len(missing) and missing[length] == missing[0] + length:
                length += 1
            found.update(self._fetch_blocks(missing[0], length))
            missing = missing[length:]
        with self._mutex:
            for index, block in found.items():
                self._blocks[index] = block
                self._blocks.move_to_end(index)
            while len(self._blocks) > _KEPT_BLOCKS:
                self._blocks.popitem(last=False)
        return [found[index] for index in range(first, last + 1)]

    def _fetch_blocks(self, first: int, num_blocks: int) -> dict[int, bytes]:
        """Blocks in one request; once more if a checksum is wrong."""
        block_bytes = self._part.block_bytes
        start, stop = first * block_bytes, min(self.size, (first + num_blocks) * block_bytes)
        for attempt in range(2):
            try:
                data = memoryview(self._remote.read_range(self._part.url, start, stop))
            except WholeBodyError:
                raise FetchError(
                    f"{self._part.url}: the server ignores ranges, wanted bytes {start}-{stop}. Let the cache fetch "
                    "whole shards (cache='auto'), with a budget that holds them."
                ) from None
            self._count(len(data))
            blocks = {first + i: bytes(data[i * block_bytes : (i + 1) * block_bytes]) for i in range(num_blocks)}
            bad = [index for index, block in blocks.items() if not self._is_good(index, block)]
            if not bad:
                return blocks
            if attempt == 1:
                raise ChecksumError(
                    f"{self._part.url}: block {bad[0]} (bytes from {bad[0] * block_bytes}) has the wrong checksum "
                    "twice, wanted the index's. Upload the file again, or re-create its index."
                )
        raise AssertionError("unreachable")

    def _is_good(self, index: int, block: bytes) -> bool:
        sums = self._part.block_checksums
        return sums is None or xxhash.xxh3_64_intdigest(block) == int(sums[index])


def rows(buffer: memoryview | bytearray | NDArray[np.uint8], width: int, stride: int) -> NDArray[np.void]:
    """The rows of `width` bytes that begin at every multiple of `stride`, overlapping or not, as single elements.

    Fancy indexing then moves a row as one element, instead of byte by byte.
    """
    flat = buffer.reshape(-1) if isinstance(buffer, np.ndarray) else np.frombuffer(buffer, np.uint8)
    num_rows = max(0, (len(flat) - width) // stride + 1)
    elements: NDArray[np.void] = np.ndarray((num_rows,), f"V{width}", flat, 0, (stride,))
    return elements


def as_bytes(buffer: memoryview | NDArray[np.uint8]) -> memoryview:
    """A contiguous buffer as a flat view of its bytes, no copy."""
    if isinstance(buffer, np.ndarray):
        if not buffer.flags.c_contiguous:
            raise ValueError(f"read_into: an array with strides {buffer.strides}, wanted a C-contiguous one.")
        return buffer.reshape(-1).data
    return buffer if buffer.ndim == 1 and buffer.format == "B" else buffer.cast("B")


def runs(starts: NDArray[np.int64], width: int) -> Iterator[tuple[NDArray[np.int64], int, int]]:
    """Group rows that lie near each other.

    Yields:
        (positions in `starts`, first byte, bytes to read), so that each group is one read of bounded length.
    """
    order = np.argsort(starts, kind="stable")
    ordered = starts[order]
    apart = np.flatnonzero(np.diff(ordered) > width + _GAP_BYTES) + 1
    for group in np.split(np.arange(len(ordered)), apart):
        # Cut what is longer than a buffer may be.
        offsets = (ordered[group] - ordered[group[0]]) // _SPAN_BYTES
        for piece in np.split(group, np.flatnonzero(np.diff(offsets)) + 1):
            first = int(ordered[piece[0]])
            yield order[piece], first, int(ordered[piece[-1]]) + width - first


def check_range(where: str, total: int, offset: int, size: int) -> None:
    """Refuse bytes outside of a part, of which slicing would silently give fewer.

    Raises:
        FormatError: An index points there: it is torn or belongs to another shard.
    """
    if offset < 0 or size < 0 or offset + size > total:
        raise FormatError(
            f"{where}: bytes [{offset}, {offset + size}) asked for, it has {total}. Re-create the index with "
            "'epistream index URL'."
        )


def check_starts(where: str, total: int, starts: NDArray[np.int64], width: int) -> None:
    """Refuse rows outside of a part."""
    low, high = int(starts.min()), int(starts.max())
    check_range(where, total, low, width)
    check_range(where, total, high, width)


def _identity(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
