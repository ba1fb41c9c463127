"""The bytes of parts on this machine: mapped from the cache, or read from a file where it lies."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from epistream.cache.source.blob import Blob
from epistream.cache.source.page_cache import advise, is_at_hand
from epistream.cache.source.rows import as_bytes, check_range, check_starts, gather_runs, rows
from epistream.errors import SourceChangedError, SourceError
from epistream.plain_files import pointer_in_place_of, refuse_other_than_plain
from epistream.working_folder import absolute


class MappedBlob(Blob):
    """A part that is mapped from the cache.

    Args:
        view: Read-only bytes, owned by the lease.
        url: For messages.
    """

    is_mapped = True

    def __init__(self, view: memoryview, url: str) -> None:
        self._view = view
        self.url = url
        self.size = len(view)

    def read(self, offset: int, size: int) -> memoryview:
        """Bytes of the mapping itself, no copy."""
        check_range(self.url, self.size, offset, size)
        return self._view[offset : offset + size]

    def read_into(self, offset: int, out: memoryview | NDArray[np.uint8]) -> None:
        """Fill `out` from `offset`."""
        target = as_bytes(out)
        check_range(self.url, self.size, offset, len(target))
        # By numpy, which lets other threads run meanwhile; a memoryview copies under the interpreter's lock.
        np.copyto(np.frombuffer(target, np.uint8), np.frombuffer(self._view, np.uint8, len(target), offset))

    def gather(self, starts: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """Row i of `out` becomes bytes [starts[i], starts[i] + width)."""
        if out.size == 0:
            return
        check_starts(self.url, self.size, starts, out.shape[1])
        rows(out, out.shape[1], out.shape[1])[...] = rows(self._view, out.shape[1], 1)[starts]


class FileBlob(Blob):
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
        # It is looked at after each read, wherever the process has gone meanwhile.
        self._path = absolute(path)
        self.url = str(self._path)
        self._fd = -1  # also for `close`, should it not open
        self._fd, status = open_source(path, size)
        self._identity = _identity(status)
        # Windows are drawn from all over it, and soon. Not where it is there: the advice walks all pages, 0.2 ms for
        # a shard.
        first, stop = ahead or (0, size)
        if stop > first and not (is_at_hand(self._fd, first) and is_at_hand(self._fd, stop - 1)):
            advise(self._fd, first, stop - first)

    @property
    def status(self) -> os.stat_result:
        """Of the file that is open, as it is now."""
        return os.fstat(self._fd)

    def read_into(self, offset: int, out: memoryview | NDArray[np.uint8]) -> None:
        """Fill `out` from `offset`."""
        target = as_bytes(out)
        check_range(self.url, self.size, offset, len(target))
        self._fill(offset, target)
        self.check_unchanged()

    def read_each(self, offsets: Sequence[int], targets: Sequence[memoryview]) -> None:
        """As `read_into` for several places, looking only once whether the file changed."""
        for offset, target in zip(offsets, targets, strict=True):
            self._read_at(offset, target)
        self.check_unchanged()

    def read_in_turn(self, offsets: Sequence[int], sizes: Sequence[int]) -> Iterator[memoryview]:
        """As `read` for several places, each copied only when it is asked for and valid until the next one is.

        What is small is still in the CPU's cache then. Whether the file changed is looked at after the last.
        """
        buffer = memoryview(bytearray(max(sizes, default=0)))
        for offset, size in zip(offsets, sizes, strict=True):
            target = buffer[:size]
            self._read_at(offset, target)
            yield target
        self.check_unchanged()

    def gather(self, starts: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """Row i of `out` becomes bytes [starts[i], starts[i] + width); near rows are read together."""
        if out.size == 0:
            return
        check_starts(self.url, self.size, starts, out.shape[1])
        gather_runs(self._fill, starts, out)
        self.check_unchanged()

    def close(self) -> None:
        """Close the file."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        # A reader may be dropped with files open, which unlike leases nobody else waits for.
        self.close()

    def _read_at(self, offset: int, target: memoryview) -> None:
        size = len(target)
        if not 0 <= offset <= self.size - size:
            check_range(self.url, self.size, offset, size)
        # Mostly there is nothing left to do after this one call.
        got = os.preadv(self._fd, [target], offset)
        if got < size:
            self._fill(offset + got, target[got:])

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

    def check_unchanged(self) -> None:
        """Compare the file at the path with the one that is open."""
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
                "written to while in use. Start again, of tars after 'epistream index URL --overwrite' if it is meant."
            )


def open_source(path: Path, size: int) -> tuple[int, os.stat_result]:
    """Open a file that must have a size, and tell what it was then; the caller closes the descriptor.

    Raises:
        SourceError: It cannot be opened.
        SourceChangedError: It has another size.
    """
    try:
        refuse_other_than_plain(path)
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise SourceError(
            f"{path}: {error.strerror}, wanted to read it. Check the path and its permissions."
        ) from error
    status = os.fstat(fd)
    if status.st_size != size:
        os.close(fd)
        raise SourceChangedError(
            f"{path}: {status.st_size} bytes, wanted {size}."
            + (
                pointer_in_place_of(path)
                or " Re-create the index with 'epistream index URL --overwrite' if it was changed on purpose."
            )
        )
    return fd, status


def _identity(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
