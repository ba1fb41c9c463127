"""Advisory file locks that are never waited for without a deadline."""

import contextlib
import errno
import fcntl
import os
import random
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from epistream.cache.store.descriptors import DESCRIPTORS, inode_of
from epistream.errors import DeadlineError

T = TypeVar("T")

# A poll begins after half a millisecond (a lock is mostly held for microseconds) and slows down to 20 ms.
_FIRST_PAUSE_S = 0.0005
_LAST_PAUSE_S = 0.02


def pauses(deadline: float) -> Iterator[None]:
    """Yield at once, then after growing, jittered pauses, until ``time.monotonic()`` passes `deadline`.

    Jitter, because processes that wait for the same thing would otherwise poll in step for ever.
    """
    pause_s = _FIRST_PAUSE_S
    while True:
        yield
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            return
        time.sleep(min(left_s, pause_s * random.uniform(0.5, 1.5)))
        pause_s = min(_LAST_PAUSE_S, pause_s * 1.5)


def poll(attempt: Callable[[], T | None], deadline: float, what: Callable[[], str]) -> T:
    """Call `attempt` until it gives something other than None.

    Args:
        attempt: Tries once, without waiting.
        deadline: On ``time.monotonic()``.
        what: Says what was waited for, as "where: found, wanted. Next step".

    Raises:
        DeadlineError: Nothing until the deadline.
    """
    for _ in pauses(deadline):
        result = attempt()
        if result is not None:
            return result
    raise DeadlineError(what())


class LockFile:
    """One open description of a file, and the lock on it.

    The lock lasts until `close`, or until this process dies in whatever way. Only the process that opened it
    can use it: elsewhere (after fork) every method does nothing.
    """

    def __init__(self, name: str, dir_fd: int, *, create: bool = True) -> None:
        """Open it.

        Raises:
            FileNotFoundError: It is not there, and `create` is False or its directory is gone.
        """
        self.name = name
        self._dir_fd = dir_fd
        self._pid = os.getpid()
        self.fd = DESCRIPTORS.open(name, os.O_RDWR | (os.O_CREAT if create else 0), dir_fd=dir_fd)

    def try_exclusive(self) -> bool:
        """Take it for this holder alone, if that needs no waiting. A shared lock held before is lost either way."""
        return try_flock(self.fd, fcntl.LOCK_EX)

    def try_shared(self) -> bool:
        """Take it with others, if that needs no waiting. An exclusive lock held before is lost either way."""
        return try_flock(self.fd, fcntl.LOCK_SH)

    def unlock(self) -> None:
        """Give the lock back and keep the file open."""
        if self.fd >= 0 and self._pid == os.getpid():
            fcntl.flock(self.fd, fcntl.LOCK_UN)

    def is_named(self) -> bool:
        """Whether the name still leads to the file that is open here: a lock on an unlinked file protects nothing."""
        return leads_to(self.name, self.fd, self._dir_fd)

    def read_text(self) -> str:
        """What the file holds, up to 4 KiB."""
        return os.pread(self.fd, 4096, 0).decode(errors="replace")

    def write_text(self, text: str) -> None:
        """Replace what the file holds. Not atomic, and nothing is written on a full disk: torn text counts as none."""
        os.ftruncate(self.fd, 0)
        try:
            os.pwrite(self.fd, text.encode(), 0)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise

    def close(self) -> None:
        """Unlock and close. The unlock is explicit: a child between fork and exec may hold a duplicate."""
        if self.fd >= 0 and self._pid == os.getpid():
            fcntl.flock(self.fd, fcntl.LOCK_UN)
            DESCRIPTORS.close(self.fd)
        self.fd = -1


def try_flock(fd: int, kind: int) -> bool:
    """Whether the lock was had at once."""
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def try_range_lock(fd: int, first: int, count: int, *, shared: bool = False) -> bool:
    """Whether bytes [first, first + count) of a file were locked at once, for this open description alone.

    A shared lock goes with the shared ones of others. What the description holds already turns into the other kind.

    The lock belongs to the description, as one of flock(2) does: threads that open the file for themselves exclude each
    other, it ends with the process, and fork shares it. The bytes need not be there.

    Raises:
        OSError: The system or the file system has no such locks.
    """
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _range(fcntl.F_RDLCK if shared else fcntl.F_WRLCK, first, count))
    except (BlockingIOError, PermissionError):
        return False
    return True


def is_range_locked(fd: int, first: int, count: int) -> bool:
    """Whether another open description has a lock on some of these bytes, as `try_range_lock` takes them.

    Raises:
        OSError: The system or the file system has no such locks.
    """
    found = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _range(fcntl.F_WRLCK, first, count))
    kind: int = struct.unpack_from("h", found)[0]
    return kind != fcntl.F_UNLCK


def unlock_range(fd: int, first: int, count: int) -> None:
    """Give back what `try_range_lock` took; nothing where there are no such locks."""
    with contextlib.suppress(OSError):
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _range(fcntl.F_UNLCK, first, count))


def _range(kind: int, first: int, count: int) -> bytes:
    """A struct flock: type, whence, start, length, and a process id that has to be 0."""
    return struct.pack("hhqqi4x", kind, os.SEEK_SET, first, count, 0)


def leads_to(name: str | Path, fd: int, dir_fd: int | None = None) -> bool:
    """Whether a name leads to a file that is open."""
    try:
        return inode_of(name, dir_fd) == inode_of(fd)
    except OSError:  # also of a directory that another thread has left
        return False


def lock_holders(file: int | str | Path, dir_fd: int | None = None) -> list[int]:
    """Ids of the processes that hold a lock on a file, as /proc/locks knows them; [] where that cannot be read."""
    try:
        return inode_holders().get(inode_of(file, dir_fd), [])
    except OSError:
        return []


def inode_holders() -> dict[tuple[int, int], list[int]]:
    """For each (device, inode) with flock locks: the ids of the processes that took them."""
    holders: dict[tuple[int, int], list[int]] = {}
    try:
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return holders
    for line in lines:
        # 1: FLOCK  ADVISORY  WRITE 812 00:19:1043 0 EOF
        fields = line.split()
        if len(fields) >= 6 and fields[1] == "FLOCK":
            major, minor, inode = fields[5].split(":")
            file_id = (os.makedev(int(major, 16), int(minor, 16)), int(inode))
            holders.setdefault(file_id, []).append(int(fields[4]))
    return holders
