"""What one process of a node tells the others of the files that it reads ahead, by locks alone.

The locks lie on bytes far behind the end of a file that all of them read anyway, so nothing is written, no directory is
needed, and the kernel takes them back from whoever dies.
"""

import contextlib
import fcntl
import os
import struct
from pathlib import Path

from epistream.cache.source.entry import Entry
from epistream.cache.store.descriptors import DESCRIPTORS
from epistream.cache.store.locks import try_flock

# struct flock of fcntl(2): type, whence, start, length, pid.
_FLOCK = struct.Struct("@hhqqi4x")
# The first byte for the numbers of what is expected, and that for the leader's count.
_EXPECTED = 1 << 60
_COUNT = 1 << 61
# Held by those who read the first batch of a rank.
_FIRST = 1 << 59
# Of the count: the low bits are the patience.
_PATIENCE = 1 << 8


def number_of(entry: Entry) -> int:
    """The number of an entry on all boards."""
    return int(entry.key[-10:], 16)


class AheadBoard:
    """One open description of the file, and this process's locks on it. Not shared between threads.

    The leader holds the file's flock(2); what it tells are read locks of byte ranges (F_OFD_SETLK), which a file that
    is open for reading may have. Others only ask. Where there are no such locks everybody leads, and nobody is told.

    Args:
        path: the file, the same one in all processes; nobody writes to it.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._pid = os.getpid()
        self._fd = DESCRIPTORS.open(os.path.realpath(path), os.O_RDONLY)
        self._told: int | None = None

    def try_lead(self) -> bool:
        """Become the one who reads ahead, if nobody is; until `close`, or until this process ends."""
        try:
            return try_flock(self._fd, fcntl.LOCK_EX)
        except OSError:  # the file system has none
            return True

    def expect(self, number: int) -> None:
        """Tell that something will be there soon. Numbers are below 2**40."""
        self._set(fcntl.F_RDLCK, _EXPECTED + number)

    def arrive(self, number: int) -> None:
        """Tell that it is there, or will not be."""
        self._set(fcntl.F_UNLCK, _EXPECTED + number)

    def tell(self, count: int, patience: int) -> None:
        """Tell that work goes on, by a count that grows, and how patient readers are to be (0 to 255)."""
        before, self._told = self._told, _COUNT + count % (1 << 40) * _PATIENCE + min(patience, _PATIENCE - 1)
        if before != self._told:
            self._set(fcntl.F_RDLCK, self._told)
            if before is not None:
                self._set(fcntl.F_UNLCK, before)

    def begin_first(self) -> None:
        """Tell that a first batch is being read, which the leader leaves the disk to."""
        self._set(fcntl.F_RDLCK, _FIRST)

    def end_first(self) -> None:
        """Tell that it was read."""
        self._set(fcntl.F_UNLCK, _FIRST)

    def is_first(self) -> bool:
        """Whether somebody else reads a first batch."""
        return self._first(_FIRST, 1) is not None

    def forget(self) -> None:
        """Expect nothing, and tell nothing, any more."""
        self._set(fcntl.F_UNLCK, _EXPECTED, 0)
        self._told = None

    def told(self) -> tuple[int, int] | None:
        """Count and patience that the leader tells; None if nobody does."""
        found = self._first(_COUNT, 1 << 60)
        return None if found is None else divmod(found - _COUNT, _PATIENCE)

    def is_expected(self, number: int) -> bool:
        """Whether the leader is going to bring it."""
        return self._first(_EXPECTED + number, 1) is not None

    def close(self) -> None:
        """Give up all locks. Harmless when called twice, and without effect in a forked child."""
        if self._fd >= 0 and self._pid == os.getpid():
            # Explicit: a child between fork and exec may hold a duplicate.
            with contextlib.suppress(OSError):
                fcntl.flock(self._fd, fcntl.LOCK_UN)
            self.end_first()
            self.forget()
            DESCRIPTORS.close(self._fd)
        self._fd = -1

    def _set(self, kind: int, start: int, length: int = 1) -> None:
        # Without such locks (another system, a file system that refuses) nobody waits for anybody.
        with contextlib.suppress(OSError, AttributeError):
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, start, length, 0))

    def _first(self, start: int, length: int) -> int | None:
        """The first byte of a range that another open description has locked."""
        try:
            asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)
            kind, _, found, _, _ = _FLOCK.unpack(fcntl.fcntl(self._fd, fcntl.F_OFD_GETLK, asked))
        except (OSError, AttributeError):
            return None
        return None if kind == fcntl.F_UNLCK else max(found, start)
