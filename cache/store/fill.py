"""Filling one entry: make room, write, verify, publish; or leave nothing behind."""

import contextlib
import errno
import fcntl
import logging
import mmap
import os
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

from epistream.cache.store.budget import Budget, Limits, measure
from epistream.cache.store.descriptors import DESCRIPTORS
from epistream.cache.store.directory import CacheDirectory
from epistream.cache.store.eviction import (
    PART,
    SHARD,
    Item,
    Stamps,
    allocated_bytes,
    charge,
    charged_bytes,
    evict,
    free,
    remove_remains,
    survey,
    unlink,
)
from epistream.cache.store.lease import Lease
from epistream.cache.store.locks import LockFile, try_flock
from epistream.cache.store.markers import CARRIED, Note, boot_time_s, read_cap, write_note
from epistream.errors import CacheError
from epistream.units import size_text

logger = logging.getLogger(__name__)

# Writes a complete, verified entry into the descriptor of a file that has its full size already.
Filler = Callable[[int], None]


class NoRoomError(CacheError):
    """No room now: leases stand in the way, the file system is full, or somebody has just found so."""


class TooLargeError(CacheError):
    """The entry is larger than the budget: waiting would not help."""


class PresentError(Exception):
    """The entry is there after all."""


@dataclass(frozen=True)
class StoreOptions:
    """How long things may take, and what bounds the directory.

    Args:
        limits: The measured terms of the budget.
        cap: Bytes that the user allows; None for no wish.
        fill_timeout_s: How long another process's fill is waited for.
        room_timeout_s: How long leases are waited for when nothing can be evicted.
        lock_timeout_s: How long ``.lock`` is waited for; it is held for microseconds to milliseconds.
        note_s: Lifetime of a note in ``.fill``.
        durable: Write entries through to the disk before they get their name, so that a power cut leaves no
            hollow shard. For directories that outlive the machine's uptime.
        upcoming: Tells the keys that this process is about to use again: they are the last that it evicts.
    """

    limits: Limits
    cap: int | None = None
    fill_timeout_s: float = 600.0
    room_timeout_s: float = 10.0
    lock_timeout_s: float = 60.0
    note_s: float = 5.0
    durable: bool = False
    upcoming: Callable[[], Collection[str]] = tuple


@dataclass
class Outcome:
    """What happened in one `acquire`, for the statistics."""

    hit: bool = False
    filled: bool = False
    num_evicted: int = 0
    wait_s: float = 0.0
    fill_s: float = 0.0


class Filling:
    """Makes room in a directory and fills it, one key at a time per ``.fill`` lock."""

    def __init__(self, directory: CacheDirectory, options: StoreOptions, stamps: Stamps) -> None:
        self.directory = directory
        self.options = options
        self._stamps = stamps
        self._observe = directory.observe

    def run(
        self, fill_lock: LockFile, key: str, size: int, fill: Filler, outcome: Outcome, *, may_evict: bool = True
    ) -> Lease:
        """Make room, write, verify and publish, as `ShardStore.try_acquire` for who holds the key's ``.fill``.

        Returns:
            The filler's own lease.

        Raises:
            PresentError: It is there after all; nothing was done.
            NoRoomError: Leases stand in the way, or the file system is full.
            TooLargeError: It can never fit.
        """
        started = time.monotonic()
        fill_lock.write_text(str(os.getpid()))
        part, evicted = self._reserve(key, size, may_evict)
        outcome.num_evicted += len(evicted)
        published = False
        try:
            self._observe("fill.reserved")
            free(evicted)
            self._observe("fill.freed")
            self._allocate(part, size)
            self._observe("fill.allocated")
            fill(part)
            self._observe("fill.verified")
            if self.options.durable:
                os.fdatasync(part)
            # The filler's own lease, before anybody can see the shard and evict it.
            if not try_flock(part, fcntl.LOCK_SH):
                raise CacheError(f"{key}{PART}: locked by a stranger, wanted our own. Remove what locks it.")
            self._stamps.touch(part)
            self._observe("fill.leased")
            # Under .lock, although it is one atomic call: a listing that runs at the same time may see neither
            # name (the new one comes to lie where it has been already), and would let in a shard too many.
            with self.directory.locked(self.options.lock_timeout_s):
                self._observe("publish.locked")
                dir_fd = self.directory.dir_fd
                os.rename(key + PART, key + SHARD, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
                published = True
            self._observe("fill.renamed")
        except BaseException as error:
            if not published:
                unlink(self.directory, key + PART)
            name = type(error).__name__
            text = write_note(Note("failed", name, str(error), boot_time_s())) if name in CARRIED else ""
            fill_lock.write_text(text)
            DESCRIPTORS.close(part)
            raise
        fill_lock.write_text("")
        self._observe("fill.done")
        outcome.filled = True
        outcome.fill_s += time.monotonic() - started
        return Lease(part, key + SHARD, self.directory.dir_fd, size)

    def _allocate(self, part: int, size: int) -> None:
        """Get every page now: later, a full tmpfs would be SIGBUS instead of an error."""
        if size == 0:
            return
        try:
            os.posix_fallocate(part, 0, size)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            space = os.statvfs(self.directory.dir_fd)
            raise NoRoomError(
                f"{self.directory.path}: file system full with {size_text(space.f_bavail * space.f_frsize)} free, "
                f"wanted {size_text(size)}. Free some, or enlarge it (--shm-size, emptyDir.medium: Memory)."
            ) from error

    def _reserve(self, key: str, size: int, may_evict: bool) -> tuple[int, list[int]]:
        """Make room and take it: a ``.part`` of the full size, which counts from now on.

        Returns:
            The part's descriptor, and those of evicted files, which the caller closes.
        """
        directory = self.directory
        with directory.locked(self.options.lock_timeout_s):
            self._observe("reserve.locked")
            items = remove_remains(directory, survey(directory), key, self.options.note_s)
            self._discard_damaged(items, key, size)
            budget = self.measure(items)
            wanted = charge(size)
            if wanted > budget.bytes:
                raise TooLargeError(
                    f"{directory.path}: a budget of {budget}, wanted {size_text(wanted)} for one shard. {budget.cure}."
                )
            used = charged_bytes(items)
            missing = used + wanted - budget.bytes
            others = items if may_evict else []
            evicted, freed = evict(directory, others, missing, self.options.upcoming(), least_bytes=missing)
            if freed < missing:
                raise NoRoomError(
                    f"{directory.path}: a budget of {budget}, {size_text(used)} held and too much of it leased, wanted "
                    f"{size_text(wanted)} more. {budget.cure}, or keep fewer shards resident."
                )
            self._observe("reserve.evicted")
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
            part = DESCRIPTORS.open(key + PART, flags, dir_fd=directory.dir_fd)
            try:
                self._observe("reserve.created")
                os.ftruncate(part, size)
            except BaseException:
                unlink(directory, key + PART)
                DESCRIPTORS.close(part)
                raise
            self._observe("reserve.sized")
            return part, evicted

    def measure(self, items: list[Item]) -> Budget:
        """The budget now, given a survey."""
        dir_fd = self.directory.dir_fd
        return measure(dir_fd, read_cap(dir_fd), allocated_bytes(items), self.options.limits)

    def _discard_damaged(self, items: list[Item], key: str, size: int) -> None:
        """Remove a ``.shard`` of a wrong size, which `lookup` refused: it stands where the new one goes."""
        for item in [item for item in items if item.key == key and item.kind == SHARD]:
            if item.size == size:  # it was refused only because an evictor was trying its lock
                raise PresentError
            logger.warning(
                "%s/%s: %d bytes, wanted %d. Fetched again.", self.directory.path, item.name, item.size, size
            )
            unlink(self.directory, item.name)
            items.remove(item)


def write_mapped(fd: int, size: int, fill: Callable[[memoryview], None]) -> None:
    """Let `fill` write the `size` bytes of an open file through a mapping.

    The mapping is of another description of the same file: CPython's mmap keeps a duplicate of the descriptor that
    it is given, and with it the lock on its description, for as long as anybody looks at the mapping.
    """
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
    try:
        mapping = mmap.mmap(again, size)
    finally:
        os.close(again)
    view = memoryview(mapping)
    try:
        fill(view)
    finally:
        # After an error the traceback may still look at it: then it ends with that.
        with contextlib.suppress(BufferError):
            view.release()
            mapping.close()
