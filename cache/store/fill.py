"""Filling one entry: make room, write, verify, publish; or leave nothing behind."""

import contextlib
import errno
import fcntl
import logging
import mmap
import os
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from epistream.cache.store.budget import Budget, Limits, MemoryTerms, measure
from epistream.cache.store.claims import Claims
from epistream.cache.store.descriptors import DESCRIPTORS
from epistream.cache.store.directory import CacheDirectory
from epistream.cache.store.eviction import Leaving, Reach, Stamps, free
from epistream.cache.store.lease import Lease
from epistream.cache.store.locks import LockFile, try_flock
from epistream.cache.store.markers import CARRIED, Note, boot_time_s, read_cap, write_note
from epistream.cache.store.partial import is_shared
from epistream.cache.store.survey import HAVE, PART, SHARD, charge, mark_made, unlink
from epistream.cache.store.total import Total, counted, held_bytes
from epistream.errors import CacheError
from epistream.units import distinct_sizes

logger = logging.getLogger(__name__)

# Writes a complete, verified entry into the descriptor of a file that has its full size already.
Filler = Callable[[int], None]

_MEMORY_S = 0.75


class NoRoomError(CacheError):
    """No room now: leases stand in the way, the file system is full, or somebody has just found so."""


class TooLargeError(CacheError):
    """The entry is larger than the budget: waiting would not help."""


class PresentError(CacheError):
    """The entry is there after all. Whoever asked for room looks once more, so that nobody else ever sees it."""


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
        check_s: How long the running total of a directory is believed before its files are counted again; longer
            where that takes long, 0 for not at all.
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
    check_s: float = 10.0
    durable: bool = False
    upcoming: Callable[[], Collection[str]] = tuple


@dataclass
class Outcome:
    """What happened in one `acquire`, for the statistics."""

    hit: bool = False
    filled: bool = False
    refused: bool = False
    busy: bool = False
    num_evicted: int = 0
    wait_s: float = 0.0
    fill_s: float = 0.0


class Filling:
    """Makes room in a directory and fills it, one key at a time per ``.fill`` lock."""

    def __init__(self, directory: CacheDirectory, options: StoreOptions, stamps: Stamps, claims: Claims) -> None:
        self.directory = directory
        self.options = options
        self.leaving = Leaving(directory, options.upcoming, claims)
        self.stamps = stamps
        self._memory = MemoryTerms(options.limits, _MEMORY_S)
        self._observe = directory.observe

    def run(
        self,
        fill_lock: LockFile,
        key: str,
        size: int,
        fill: Filler,
        outcome: Outcome,
        reach: Reach = Reach.ALL,
        *,
        is_made: bool = False,
        allocated: int | None = None,
    ) -> Lease:
        """Make room, write, verify and publish, as `ShardStore.try_acquire` for who holds the key's ``.fill``.

        The ``.fill`` is unlinked when this ends, unless a note is left in it.

        Returns:
            The filler's own lease.

        Raises:
            PresentError: It is there after all; nothing was done.
            NoRoomError: Leases stand in the way, or the file system is full.
            TooLargeError: It can never fit.
        """
        started = time.monotonic()
        part, published = -1, False
        try:
            fill_lock.write_text(str(os.getpid()))
            part, evicted = self.reserve(key, size, reach, outcome)
            self._observe("fill.reserved")
            free(evicted)
            self._observe("fill.freed")
            self._allocate(part, size if allocated is None else allocated)
            self._observe("fill.allocated")
            fill(part)
            self._observe("fill.verified")
            if is_made:
                mark_made(part)
            if self.options.durable:
                os.fdatasync(part)
            # The filler's own lease, before anybody can see the shard and evict it.
            if not try_flock(part, fcntl.LOCK_SH):
                raise CacheError(f"{key}{PART}: locked by a stranger, wanted our own. Remove what locks it.")
            self.stamps.touch(part)
            self._observe("fill.leased")
            # Under .lock, although it is one atomic call: a listing that runs at the same time may see neither
            # name (the new one comes to lie where it has been already), and would let in a shard too many.
            with self.directory.locked(self.options.lock_timeout_s):
                self._observe("publish.locked")
                dir_fd = self.directory.dir_fd
                os.rename(key + PART, key + SHARD, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
                published = True
                self._observe("fill.renamed")
                if unlink(self.directory, key + HAVE):
                    self._observe("publish.unshared")
                unlink(self.directory, fill_lock.name)
                self._observe("fill.dropped")
        except BaseException as error:
            if part >= 0:
                if not published:
                    self.abandon(key)
                DESCRIPTORS.close(part)
            name = type(error).__name__
            if name in CARRIED:
                fill_lock.write_text(write_note(Note("failed", name, str(error), boot_time_s())))
            else:
                unlink(self.directory, fill_lock.name)
            raise
        self._observe("fill.done")
        outcome.filled = True
        outcome.fill_s += time.monotonic() - started
        return Lease(part, key + SHARD, self.directory.dir_fd, size)

    def abandon(self, key: str) -> None:
        """Remove the ``.part`` of a fill that failed, and what it counted for."""
        unlink(self.directory, key + HAVE)
        try:
            with self.counted() as total:
                total.remove(key + PART)
        except OSError:  # no .lock: its bytes are counted until the next survey
            unlink(self.directory, key + PART)

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
            free, wanted = distinct_sizes(space.f_bavail * space.f_frsize, size)
            raise NoRoomError(
                f"{self.directory.path}: file system full with {free} free, wanted {wanted}. Free some, "
                "or enlarge it (--shm-size, emptyDir.medium: Memory)."
            ) from error

    @contextlib.contextmanager
    def counted(self, own_key: str = "") -> Iterator[Total]:
        """Hold ``.lock`` with the directory's total, counted anew if it is due.

        Args:
            own_key: The key whose ``.fill`` the caller holds, if any.
        """
        options = self.options
        with counted(self.directory, options.lock_timeout_s, options.check_s) as total:
            if total.is_due:
                self.check(total, own_key, options.note_s)
            yield total

    def check(self, total: Total, own_key: str, note_s: float) -> None:
        """Count the files now, as `Total.check`, and go by what was found from now on."""
        self.leaving.renew(total.check(own_key, note_s))
        self._memory.forget()

    def reserve(self, key: str, size: int, reach: Reach, outcome: Outcome) -> tuple[int, list[int]]:
        """Make room and take it: a ``.part`` of the full size, which counts from now on.

        Returns:
            The part's descriptor, and those of evicted files, which the caller closes.
        """
        directory, part = self.directory, key + PART
        evicted: list[int] = []
        try:
            with self.counted(key) as total:
                self._observe("reserve.locked")
                self._discard_damaged(total, key, size)
                adopted = self._adopt(key, size)
                if adopted >= 0:
                    return adopted, []
                self._make_room(total, key, charge(size), reach, evicted, outcome)
                self._observe("reserve.evicted")
                total.open()
                # A .have tells only of a .part that was there before it.
                unlink(directory, key + HAVE)
                flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
                try:
                    fd = DESCRIPTORS.open(part, flags, dir_fd=directory.dir_fd)
                except FileExistsError:  # what a filler of this key left that died: nobody else has its .fill
                    total.remove(part)
                    self._observe("remains.part")
                    fd = DESCRIPTORS.open(part, flags, dir_fd=directory.dir_fd)
                try:
                    self._observe("reserve.created")
                    os.ftruncate(fd, size)
                except BaseException:
                    unlink(directory, part)
                    DESCRIPTORS.close(fd)
                    raise
                total.bytes += charge(size)
                self._observe("reserve.sized")
        except BaseException:
            free(evicted)
            raise
        return fd, evicted

    def _adopt(self, key: str, size: int) -> int:
        """The ``.part`` that others began and that counts already, opened; -1 if there is none that is whole."""
        if not is_shared(self.directory, key):
            return -1
        try:
            part = DESCRIPTORS.open(key + PART, os.O_RDWR, dir_fd=self.directory.dir_fd)
        except FileNotFoundError:
            return -1
        if os.fstat(part).st_size != size:
            DESCRIPTORS.close(part)
            return -1
        self._observe("reserve.adopted")
        return part

    def _make_room(
        self, total: Total, key: str, wanted: int, reach: Reach, evicted: list[int], outcome: Outcome
    ) -> None:
        """Evict until so many bytes fit. Nobody is refused before the files have been counted.

        The descriptors of evicted files are added to `evicted`.
        """
        leaving_bytes = 0  # they are still in memory, and will not be
        while True:
            budget = self.measure(total.bytes + leaving_bytes)
            missing = total.bytes + wanted - budget.bytes
            if missing <= 0:
                return
            if reach != Reach.NOBODY and wanted <= budget.bytes:
                if evicted:  # more than a process can hold open have to leave
                    free(evicted)
                    evicted.clear()
                    leaving_bytes = 0
                    continue
                gone, freed = self.leaving.evict(
                    total, missing, least_bytes=missing, is_fresh=total.is_exact, reach=reach
                )
                evicted += gone
                leaving_bytes += freed
                outcome.num_evicted += len(gone)
                if gone:
                    continue
            if total.is_exact:
                break
            self.check(total, key, self.options.note_s)
        where = self.directory.path
        if wanted > budget.bytes:
            found, asked = budget.beside(wanted)
            raise TooLargeError(f"{where}: a budget of {found}, wanted {asked} for one shard. {budget.next_step}.")
        found, held, asked = budget.beside(total.bytes, wanted)
        claimed = "" if reach == Reach.ALL else " or claimed by others"
        raise NoRoomError(
            f"{where}: a budget of {found}, {held} held and too much of it leased{claimed}, wanted "
            f"{asked} more. {budget.next_step}, or keep fewer shards resident."
        )

    def measure(self, held: int | None = None, *, afresh: bool = False) -> Budget:
        """The budget now, with so many bytes held; None looks. The terms of memory may be of the last second."""
        directory, limits = self.directory, self.options.limits
        held = held_bytes(directory) if held is None else held
        return measure(directory.dir_fd, read_cap(directory.dir_fd), held, limits, None if afresh else self._memory)

    def _discard_damaged(self, total: Total, key: str, size: int) -> None:
        """Remove a ``.shard`` of a wrong size, which `lookup` refused: it stands where the new one goes."""
        name = key + SHARD
        try:
            found = os.stat(name, dir_fd=self.directory.dir_fd, follow_symlinks=False).st_size
        except FileNotFoundError:
            return
        if found == size:  # it was refused only because an evictor was trying its lock
            where = f"{self.directory.path}/{name}"
            raise PresentError(f"{where}: there, and being looked at by who makes room, wanted to fill it. Look again.")
        logger.warning("%s/%s: %d bytes, wanted %d. Fetched again.", self.directory.path, name, found, size)
        total.remove(name)


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
