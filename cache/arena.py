"""Memory in one entry of the cache that is used again and again: a table and equal slots, shared by a node's processes.

Who may touch what is settled by locks on bytes of the entry's file, each held by one open description: the kernel gives
them back when a process dies. The bytes lie behind the end of the file, one for each slot and one for each key.
"""

import contextlib
import errno
import mmap
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epistream.cache.open_entry import OpenEntry
from epistream.cache.store.descriptors import DESCRIPTORS
from epistream.cache.store.locks import pauses, try_range_lock, unlock_range
from epistream.cache.store.survey import PAGE_BYTES

# Where the bytes of slots and of keys begin that are locked; no file is so large.
_SLOTS, _KEYS = 1 << 60, 1 << 61
# A number of Linux that `mmap` has no name for.
_POPULATE_READ = 22
# The byte of whoever counts, before all slots.
COUNTING = -1


def in_pages(num_bytes: int) -> int:
    """Bytes of so many, in whole pages."""
    return -(-num_bytes // PAGE_BYTES) * PAGE_BYTES


class Arena:
    """The mapping of such an entry, and the locks of one user. Not shared between threads; unusable after fork.

    It keeps the entry leased, so that nobody evicts it while it is written.

    Args:
        entry: the entry, opened; closed with the arena.
        table_bytes: of the table at its beginning, in whole pages.
        slot_bytes: of each slot, in whole pages.
        num_slots: slots behind the table.

    Attributes:
        bytes: (table_bytes + num_slots * slot_bytes,) uint8, all of it, to read and to write. What looks at it keeps it
            mapped. A slot may be touched after `allocate` only: where memory is missing that would be SIGBUS.

    Raises:
        OSError: the file is gone, or the system has no such locks.
    """

    def __init__(self, entry: OpenEntry, table_bytes: int, slot_bytes: int, num_slots: int) -> None:
        self._entry = entry
        self._table_bytes, self._slot_bytes = table_bytes, slot_bytes
        self._pid = os.getpid()
        self._fd = -1
        self._mapping: mmap.mmap | None = None
        self._is_mapped = np.zeros(num_slots, np.bool_)
        try:
            # No child is born with a mapping or a lock that it does not know of.
            with DESCRIPTORS.unforked():
                self._fd = entry.open_again()
                # Of its own description: a mapping keeps a duplicate of its descriptor, and with it the locks.
                again = entry.open_again()
                try:
                    self._mapping = mmap.mmap(again, table_bytes + slot_bytes * num_slots)
                finally:
                    DESCRIPTORS.close(again)
                self.bytes: NDArray[Any] = np.frombuffer(self._mapping, np.uint8)
                DESCRIPTORS.watch(self)
            self.try_lock(COUNTING, shared=True)  # an error if there are no such locks
            self.unlock(COUNTING)
        except BaseException:
            self.close()
            raise

    @property
    def is_open(self) -> bool:
        """Whether it is this process's."""
        return self._fd >= 0 and self._pid == os.getpid()

    def is_current(self) -> bool:
        """Whether others still find it under its name."""
        return self.is_open and os.fstat(self._fd).st_nlink > 0

    def allocate(self, slot: int) -> bool:
        """Get the memory of a slot; False if the file system is full. What is there stays as it is."""
        try:
            os.posix_fallocate(self._fd, self._table_bytes + slot * self._slot_bytes, self._slot_bytes)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            return False
        return True

    def map(self, slot: int) -> None:
        """Have the pages of a slot mapped, before it is touched for the first time.

        Page by page, as they are written, that takes as long as decoding a JPEG; for all at once a quarter of it.
        """
        if not self._is_mapped[slot] and self._mapping is not None:
            self._is_mapped[slot] = True
            with contextlib.suppress(OSError):  # Linux before 5.14
                self._mapping.madvise(_POPULATE_READ, self._table_bytes + slot * self._slot_bytes, self._slot_bytes)

    def try_lock(self, slot: int, *, shared: bool = False) -> bool:
        """Whether a slot was locked at once, for this user alone or, shared, against those who want it so."""
        return try_range_lock(self._fd, _SLOTS + slot, 1, shared=shared)

    def unlock(self, slot: int) -> None:
        """Give a slot back."""
        unlock_range(self._fd, _SLOTS + slot, 1)

    def try_lock_key(self, key: int, deadline: float = 0.0) -> bool:
        """Whether a key was locked for this user alone: at once, or until a deadline on ``time.monotonic()``."""
        return any(try_range_lock(self._fd, _KEYS + key, 1) for _ in pauses(deadline))

    def unlock_key(self, key: int) -> None:
        """Give a key back."""
        unlock_range(self._fd, _KEYS + key, 1)

    def close(self) -> None:
        """Give every lock and the lease up. Harmless when called twice, or in a forked child."""
        fd, self._fd = self._fd, -1
        if fd >= 0 and self._pid == os.getpid():
            # Explicit: a child between fork and exec may hold a duplicate of the descriptor.
            unlock_range(fd, 0, 0)
            DESCRIPTORS.close(fd)
        self._forget()
        self._entry.close()

    def after_fork_in_child(self) -> None:
        """Drop the mapping; descriptors are closed already, and the locks stay the parent's."""
        self._fd = -1
        self._forget()

    def _forget(self) -> None:
        # The mapping ends with the last view of it.
        self.bytes = np.zeros(0, np.uint8)
        self._mapping = None

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()
