"""The shard store: one copy of each entry in a directory that many processes share. The protocol lives here.

State of a key, as its files tell it (``.fill`` is only ever a lock and a note):

    nothing --reserve--> .part --rename--> .shard --evict--> nothing
                          |
                          +--any failure, or the next locker's cleaning--> nothing

No wait holds a lock: `acquire` polls for the fill right, and gives it back before it waits for room.
"""

import errno
import fcntl
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from epistream.cache.budget import Budget, Limits, measure, mib
from epistream.cache.cap import read_cap
from epistream.cache.descriptors import DESCRIPTORS
from epistream.cache.directory import CacheDirectory
from epistream.cache.lease import Lease
from epistream.cache.locks import LockFile, lock_holders, pauses, try_flock
from epistream.cache.notes import CARRIED, Note, boot_time_s, read_note, write_note
from epistream.cache.room import (
    FILL,
    PART,
    SHARD,
    Item,
    charge,
    evict,
    free,
    held_bytes,
    remove_remains,
    survey,
    unlink,
)
from epistream.errors import CacheError, DeadlineError

logger = logging.getLogger(__name__)

# Writes a complete, verified entry into the descriptor of a file that has its full size already.
Filler = Callable[[int], None]


class NoRoomError(CacheError):
    """No room now: leases stand in the way, the file system is full, or somebody has just found so."""


class TooLargeError(CacheError):
    """The entry is larger than the budget: waiting would not help."""


class _PresentError(Exception):
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
    """

    limits: Limits
    cap: int | None = None
    fill_timeout_s: float = 600.0
    room_timeout_s: float = 10.0
    lock_timeout_s: float = 60.0
    note_s: float = 5.0
    durable: bool = False


@dataclass
class Outcome:
    """What happened in one `acquire`, for the statistics."""

    hit: bool = False
    filled: bool = False
    num_evicted: int = 0
    wait_s: float = 0.0
    fill_s: float = 0.0


class ShardStore:
    """The entries of one directory. Safe to use from several threads; unusable after fork."""

    def __init__(self, directory: CacheDirectory, options: StoreOptions) -> None:
        self.directory = directory
        self.options = options
        self._observe = directory.observe
        self._last_stamp_ns = 0

    # --- hit ---------------------------------------------------------------------------------------------

    def lookup(self, key: str, size: int) -> Lease | None:
        """Lease a complete entry, without waiting; None if it is not there.

        Args:
            key: The entry's key.
            size: Its bytes. A file of another size is damaged and is not leased.
        """
        name = key + SHARD
        while True:
            try:
                fd = DESCRIPTORS.open(name, os.O_RDONLY, dir_fd=self.directory.dir_fd)
            except FileNotFoundError:
                return None
            self._observe("hit.opened")
            usable = False
            try:
                if not try_flock(fd, fcntl.LOCK_SH):
                    return None  # an evictor has it
                self._observe("hit.locked")
                status = os.fstat(fd)
                if status.st_nlink == 0:
                    continue  # evicted between open and lock
                if status.st_size != size:
                    return None
                self._touch(fd)
                usable = True
            finally:
                if not usable:
                    DESCRIPTORS.close(fd)
            return Lease(fd, name, self.directory.dir_fd, size)

    def _touch(self, fd: int) -> None:
        """Make the file the most recently used. On the boot clock: the wall clock can be set back."""
        stamp_ns = max(time.clock_gettime_ns(time.CLOCK_BOOTTIME), self._last_stamp_ns + 1)
        self._last_stamp_ns = stamp_ns
        os.utime(fd, ns=(stamp_ns, stamp_ns))

    # --- miss --------------------------------------------------------------------------------------------

    def acquire(
        self,
        key: str,
        size: int,
        fill: Filler,
        before_wait: Callable[[], None] | None = None,
        outcome: Outcome | None = None,
    ) -> Lease:
        """Lease an entry, filling it if nobody has.

        Args:
            key: The entry's key.
            size: Its bytes.
            fill: Called at most once, in one process of the node at a time.
            before_wait: Called once, before anything that may take long: the caller gives up its other
                leases in it, so that processes do not wait for each other in a circle.
            outcome: Filled in, if given.

        Raises:
            NoRoomError: No lease ended within ``room_timeout_s``, or the file system is full.
            TooLargeError: It can never fit.
            DeadlineError: Another process filled, or held ``.lock``, for too long.
            FetchError: `fill` failed, here or just now in another process.
        """
        outcome = outcome if outcome is not None else Outcome()
        lease = self.lookup(key, size)
        if lease is not None:
            outcome.hit = True
            return lease
        if before_wait is not None:
            before_wait()
        started = time.monotonic()
        room_deadline: float | None = None
        try:
            while True:
                turn = self._wait_turn(key, size)
                if isinstance(turn, Lease):
                    return turn
                try:
                    return self._fill_in_turn(turn, key, size, fill, outcome)
                except _PresentError:
                    continue
                except NoRoomError as error:
                    reason = str(error)
                finally:
                    turn.close()
                now = time.monotonic()
                room_deadline = room_deadline or now + self.options.room_timeout_s
                self._wait_room(key, reason, room_deadline)
        finally:
            outcome.wait_s = max(0.0, time.monotonic() - started - outcome.fill_s)

    def _wait_turn(self, key: str, size: int) -> Lease | LockFile:
        """The entry, if somebody else completes it; else the right to fill it."""
        deadline = time.monotonic() + self.options.fill_timeout_s
        lock = LockFile(key + FILL, self.directory.dir_fd)
        keep = False
        try:
            for _ in pauses(deadline):
                self._observe("turn.poll")
                lease = self.lookup(key, size)
                if lease is not None:
                    return lease
                if not lock.try_exclusive():
                    continue
                if not lock.is_named():
                    lock.close()
                    lock = LockFile(key + FILL, self.directory.dir_fd)
                    continue
                self._observe("turn.locked")
                # It may have been completed between the look and the lock.
                lease = self.lookup(key, size)
                if lease is not None:
                    return lease
                self._follow_note(lock)
                keep = True
                return lock
            raise DeadlineError(
                f"{self.directory.path}/{key}{FILL}: held by process {lock_holders(lock.fd)} for "
                f"{self.options.fill_timeout_s:g} s, wanted the shard that it fills. Look whether that process is "
                "stopped, or raise fill_timeout_s."
            )
        finally:
            if not keep:
                lock.close()

    def _follow_note(self, turn: LockFile) -> None:
        note = read_note(turn.read_text())
        if note is None or not note.is_fresh(self.options.note_s, boot_time_s()):
            return
        if note.kind == "bypass":
            raise NoRoomError(note.text)
        raise note.to_error()

    def _wait_room(self, key: str, reason: str, deadline: float) -> None:
        """Wait a little, with no lock held; at the deadline, tell the others of the decision and give up."""
        self._observe("room.wait")
        if time.monotonic() < deadline:
            for _ in pauses(min(deadline, time.monotonic() + 0.02)):
                pass
            return
        lock = LockFile(key + FILL, self.directory.dir_fd)
        try:
            if lock.try_exclusive() and lock.is_named():
                lock.write_text(write_note(Note("bypass", "", reason, boot_time_s())))
                self._observe("room.noted")
        finally:
            lock.close()
        raise NoRoomError(reason)

    # --- fill --------------------------------------------------------------------------------------------

    def _fill_in_turn(self, turn: LockFile, key: str, size: int, fill: Filler, outcome: Outcome) -> Lease:
        """Make room, write, verify and publish; the caller holds `turn` and closes it."""
        started = time.monotonic()
        turn.write_text(str(os.getpid()))
        part, evicted = self._reserve(key, size)
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
            self._touch(part)
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
            self._note_failure(turn, error)
            DESCRIPTORS.close(part)
            raise
        turn.write_text("")
        self._observe("fill.done")
        outcome.filled = True
        outcome.fill_s += time.monotonic() - started
        return Lease(part, key + SHARD, self.directory.dir_fd, size)

    def _note_failure(self, turn: LockFile, error: BaseException) -> None:
        name = type(error).__name__
        text = write_note(Note("failed", name, str(error), boot_time_s())) if name in CARRIED else ""
        turn.write_text(text)

    def _allocate(self, part: int, size: int) -> None:
        """Get every page now: later, a full tmpfs would be SIGBUS instead of an error."""
        if size == 0:
            return
        try:
            os.posix_fallocate(part, 0, size)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise NoRoomError(self._full(size)) from error
            raise

    def _full(self, size: int) -> str:
        space = os.statvfs(self.directory.dir_fd)
        return (
            f"{self.directory.path}: file system full with {mib(space.f_bavail * space.f_frsize)} free, wanted "
            f"{mib(size)}. Free some, or enlarge it (--shm-size, emptyDir.medium: Memory)."
        )

    def _reserve(self, key: str, size: int) -> tuple[int, list[int]]:
        """Make room and take it: a ``.part`` of the full size, which counts from now on.

        Returns:
            The part's descriptor, and those of evicted files, which the caller closes.
        """
        directory = self.directory
        with directory.locked(self.options.lock_timeout_s):
            self._observe("reserve.locked")
            items = remove_remains(directory, survey(directory), key, self.options.note_s)
            self._discard_damaged(items, key, size)
            budget = self._measure(items)
            wanted = charge(size)
            if wanted > budget.bytes:
                raise TooLargeError(
                    f"{directory.path}: a budget of {budget}, wanted {mib(wanted)} for one shard. {budget.cure}."
                )
            used = sum(item.charge_bytes for item in items if item.kind != FILL)
            evicted = evict(directory, items, used + wanted - budget.bytes)
            if evicted is None:
                raise NoRoomError(
                    f"{directory.path}: a budget of {budget}, {mib(used)} held and too much of it leased, wanted "
                    f"{mib(wanted)} more. {budget.cure}, or keep fewer shards resident."
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

    def _discard_damaged(self, items: list[Item], key: str, size: int) -> None:
        """Remove a ``.shard`` of a wrong size, which `lookup` refused: it stands where the new one goes."""
        for item in [item for item in items if item.key == key and item.kind == SHARD]:
            if item.size == size:  # it was refused only because an evictor was trying its lock
                raise _PresentError
            logger.warning(
                "%s/%s: %d bytes, wanted %d. Fetched again.", self.directory.path, item.name, item.size, size
            )
            unlink(self.directory, item.name)
            items.remove(item)

    # --- the whole ---------------------------------------------------------------------------------------

    def budget(self) -> Budget:
        """The byte budget as it is now."""
        return self._measure(survey(self.directory))

    def _measure(self, items: list[Item]) -> Budget:
        return measure(self.directory.dir_fd, read_cap(self.directory), held_bytes(items), self.options.limits)

    def discard(self, key: str) -> None:
        """Remove an entry that turned out to be damaged; those who lease it keep their mapping."""
        with self.directory.locked(self.options.lock_timeout_s):
            unlink(self.directory, key + SHARD)

    def give_back(self, wanted_bytes: int | None = None) -> int:
        """Evict unleased entries, the least recently used first.

        Args:
            wanted_bytes: Stop when so much is free; None for all that nobody leases.

        Returns:
            Bytes given back.
        """
        given, fds = 0, []
        with self.directory.locked(self.options.lock_timeout_s):
            items = remove_remains(self.directory, survey(self.directory), "", 0.0)
            for item in sorted(items, key=lambda item: item.stamp_ns):
                if item.kind == SHARD and (wanted_bytes is None or given < wanted_bytes):
                    evicted = evict(self.directory, [item], item.charge_bytes) or []
                    fds += evicted
                    given += item.charge_bytes if evicted else 0
        free(fds)
        return given
