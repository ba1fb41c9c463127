"""A lease: the right to read one complete shard file, and the mapping of it."""

import contextlib
import fcntl
import mmap
import os
import time

from epistream.cache.store.descriptors import DESCRIPTORS
from epistream.cache.store.locks import try_range_lock, unlock_range


class Lease:
    """A shared lock on a ``.shard`` file, and its bytes.

    The open descriptor is the lease: while it lives, nobody evicts the shard; dying in any way ends it. The
    mapping is made from a second, unlocked description of the same file, because CPython's mmap keeps a
    duplicate of the descriptor it is given for as long as anybody looks at the mapping. So the lock never lives
    longer than `close`, and in a forked child the lock can be dropped whatever the child still looks at.

    Views that are still alive after `close` stay readable: the mapping ends with the last of them. Their pages
    are then no longer counted, so readers give up their views first.

    Who uses an entry again and again, and can do without it, lets it `rest`: it may be evicted then, but stays mapped,
    and what was mapped stays readable. `renew` tells whether it is still there.
    """

    def __init__(self, fd: int, name: str, dir_fd: int, size: int) -> None:
        """Take over `fd` of DESCRIPTORS, which holds a shared flock, and map the file; it is closed if that fails."""
        self.size = size
        self._fd = fd
        self._name, self._dir_fd = name, dir_fd
        self._pid = os.getpid()
        self._is_written = False
        self._mapping: mmap.mmap | None = None
        self._views: list[memoryview] = []
        try:
            # No child is born with a mapping that it does not know of.
            with DESCRIPTORS.unforked():
                if size:
                    # The name cannot lead elsewhere: a leased shard is neither unlinked nor replaced.
                    again = DESCRIPTORS.open(name, os.O_RDONLY, dir_fd=dir_fd)
                    try:
                        self._mapping = mmap.mmap(again, size, prot=mmap.PROT_READ)
                    finally:
                        DESCRIPTORS.close(again)
                DESCRIPTORS.watch(self)
        except BaseException:
            self.close()
            raise

    def view(self, offset: int, size: int) -> memoryview:
        """Read-only bytes of the mapping, no copy; valid until `close`."""
        if self._mapping is None:
            return memoryview(b"")
        with DESCRIPTORS.unforked(), memoryview(self._mapping) as whole:
            view = whole[offset : offset + size]
            self._views.append(view)
        return view

    def write(self, offset: int, data: bytes | memoryview) -> bool:
        """Change bytes in place, where readers of the entry fill it piece by piece; whether all were written.

        By a system call, because writing fresh pages through a mapping costs two to three times as much, and because
        what one call wrote is seen by whoever sees what a later one wrote. The next `renew`, or `close`, makes it the
        most recently used: until then its stamp is of another clock.
        """
        self._is_written = True
        return os.pwrite(self._fd, data, offset) == memoryview(data).nbytes

    def open_again(self) -> int:
        """Another description of the file, to write and to lock; closed by ``DESCRIPTORS.close``. Only while leased.

        Raises:
            OSError: Somebody removed the file, or the directory.
        """
        return DESCRIPTORS.open(self._name, os.O_RDWR, dir_fd=self._dir_fd)

    def rest(self) -> None:
        """Let the entry be evicted, but keep it mapped."""
        if self._fd >= 0 and self._pid == os.getpid():
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def try_lock(self, offset: int) -> bool:
        """Whether the entry's byte there was locked at once against all others who have it open, until `unlock`.

        Readers agree so who makes which piece. It ends with the lease and with the process; True where the file system
        has no such locks.
        """
        try:
            return try_range_lock(self._fd, offset, 1)
        except OSError:
            return True

    def unlock(self, offset: int) -> None:
        """Give back what `try_lock` took."""
        unlock_range(self._fd, offset, 1)

    def renew(self, *, used: bool) -> bool:
        """Whether the entry is still there; if it was `used` or written, it is the most recently used from now on."""
        if self._fd < 0 or os.fstat(self._fd).st_nlink == 0:
            return False
        if used or self._is_written:
            self._is_written = False
            now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            os.utime(self._fd, ns=(now_ns, now_ns))
        return True

    def close(self) -> None:
        """End the lease. Harmless when called twice, or in a forked child."""
        if self._fd >= 0 and self._pid == os.getpid():
            if self._is_written:
                self.renew(used=True)
            fd, self._fd = self._fd, -1
            # Explicit: a child between fork and exec may hold a duplicate of the descriptor.
            fcntl.flock(fd, fcntl.LOCK_UN)
            DESCRIPTORS.close(fd)
        with DESCRIPTORS.unforked():
            self._unmap()

    def after_fork_in_child(self) -> None:
        """Drop the mapping; the descriptor is closed already, and the lock stays the parent's."""
        self._fd = -1
        self._unmap()

    def _unmap(self) -> None:
        views, self._views = self._views, []
        for view in views:
            with contextlib.suppress(BufferError):
                view.release()
        mapping, self._mapping = self._mapping, None
        if mapping is not None:
            # Somebody still looks at it: it ends with the last view.
            with contextlib.suppress(BufferError):
                mapping.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()
