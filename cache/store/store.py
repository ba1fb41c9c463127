"""The shard store: one copy of each entry in a directory that many processes share. The protocol lives here.

State of a key, as its files tell it (``.fill`` is only ever a lock and a note):

    nothing --reserve--> .part --rename--> .shard --evict--> nothing
                          |
                          +--any failure, or the next locker's cleaning--> nothing

No wait holds a lock: `acquire` polls for the fill right, and gives it back before it waits for room.
"""

import contextlib
import fcntl
import math
import os
import time
from collections.abc import Callable, Collection
from pathlib import Path

from epistream.cache.store.budget import Budget
from epistream.cache.store.descriptors import DESCRIPTORS
from epistream.cache.store.directory import CacheDirectory, Observer, ignore
from epistream.cache.store.eviction import (
    FILL,
    SHARD,
    Stamps,
    charged_bytes,
    evict,
    free,
    rebase_stamps,
    remove_remains,
    survey,
    unlink,
)
from epistream.cache.store.fill import (
    Filler,
    Filling,
    NoRoomError,
    Outcome,
    PresentError,
    StoreOptions,
    TooLargeError,
)
from epistream.cache.store.lease import Lease
from epistream.cache.store.locks import LockFile, lock_holders, pauses, try_flock
from epistream.cache.store.markers import Note, agree_on_cap, boot_time_s, fresh_note, mark_kept, write_note
from epistream.cache.store.places import default_name, is_of_family
from epistream.cache.store.sweep import sweep
from epistream.errors import CacheError, DeadlineError

__all__ = ["Filler", "NoRoomError", "Outcome", "ShardStore", "StoreOptions", "TooLargeError"]


class ShardStore:
    """The entries of one directory. Safe to use from several threads; unusable after fork."""

    def __init__(self, directory: CacheDirectory, options: StoreOptions) -> None:
        self.directory = directory
        self.options = options
        self._observe = directory.observe
        self._stamps = Stamps()
        self._filling = Filling(directory, options, self._stamps)

    # --- hit ---------------------------------------------------------------------------------------------

    def lookup(self, key: str, size: int) -> Lease | None:
        """Lease a complete entry, without waiting; None if it is not there, or damaged: of another size in bytes."""
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
                self._stamps.touch(fd)
                usable = True
            finally:
                if not usable:
                    DESCRIPTORS.close(fd)
            return Lease(fd, name, self.directory.dir_fd, size)

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
                granted = self._wait_fill_lock(key, size)
                if isinstance(granted, Lease):
                    return granted
                try:
                    return self._filling.run(granted, key, size, fill, outcome)
                except PresentError:
                    continue
                except NoRoomError as error:
                    reason = str(error)
                finally:
                    granted.close()
                now = time.monotonic()
                room_deadline = room_deadline or now + self.options.room_timeout_s
                self._wait_room(key, reason, room_deadline)
        finally:
            outcome.wait_s = max(0.0, time.monotonic() - started - outcome.fill_s)

    def try_acquire(
        self, key: str, size: int, fill: Filler | None, outcome: Outcome | None = None, *, may_evict: bool = True
    ) -> Lease | None:
        """Lease an entry, filling it if that needs nobody else: no fill of another process, no lease to end.

        For those who may hold leases meanwhile (a prefetcher, a decoder with its source open): they wait for
        the source's bytes, and never for another reader.

        Args:
            key: The entry's key.
            size: Its bytes.
            fill: As in `acquire`; None only looks whether it is there.
            outcome: Filled in, if given.
            may_evict: Whether others may have to leave for it; else it only takes what is free.

        Returns:
            None if somebody is filling it, there is no room now or ever, or a note says not to try.

        Raises:
            DeadlineError: ``.lock`` could not be had.
            FetchError: `fill` failed.
        """
        outcome = outcome if outcome is not None else Outcome()
        lease = self.lookup(key, size)
        if lease is not None:
            outcome.hit = True
        if lease is not None or fill is None:
            return lease
        with (
            contextlib.closing(LockFile(key + FILL, self.directory.dir_fd)) as fill_lock,
            contextlib.suppress(NoRoomError, TooLargeError, PresentError),
        ):
            # A lock whose file was just removed belongs to nobody; the next try opens the new one.
            if not fill_lock.try_exclusive() or not fill_lock.is_named():
                return None
            if fresh_note(fill_lock.read_text(), self.options.note_s) is not None:
                return None
            # Who had the lock just before may have completed it.
            lease = self.lookup(key, size)
            if lease is None:
                lease = self._filling.run(fill_lock, key, size, fill, outcome, may_evict=may_evict)
        return lease

    def _wait_fill_lock(self, key: str, size: int) -> Lease | LockFile:
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
                note = fresh_note(lock.read_text(), self.options.note_s)
                if note is not None:
                    raise NoRoomError(note.text) if note.kind == "bypass" else note.to_error()
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

    def _wait_room(self, key: str, reason: str, deadline: float) -> None:
        """Wait a little, with no lock held; at the deadline, tell the others of the decision and give up."""
        self._observe("room.wait")
        left_s = deadline - time.monotonic()
        if left_s > 0:
            time.sleep(min(left_s, 0.02))
            return
        with contextlib.closing(LockFile(key + FILL, self.directory.dir_fd)) as lock:
            if lock.try_exclusive() and lock.is_named():
                lock.write_text(write_note(Note("bypass", "", reason, boot_time_s())))
                self._observe("room.noted")
        raise NoRoomError(reason)

    # --- the whole ---------------------------------------------------------------------------------------

    def budget(self) -> Budget:
        """The byte budget as it is now."""
        return self._filling.measure(survey(self.directory))

    def held_bytes(self) -> int:
        """Bytes of entries and fills, in whole pages, as they are now."""
        return charged_bytes(survey(self.directory))

    def discard(self, key: str) -> None:
        """Remove an entry that turned out to be damaged; those who lease it keep their mapping."""
        with self.directory.locked(self.options.lock_timeout_s):
            unlink(self.directory, key + SHARD)

    def keep(self, keys: Collection[str]) -> None:
        """Let entries outlive the last user of the directory."""
        with self.directory.locked(self.options.lock_timeout_s):
            mark_kept(self.directory.dir_fd, keys)

    def give_back(self, wanted_bytes: float = math.inf) -> int:
        """Evict unleased entries, the least recently used first and what this process is about to use last.

        Args:
            wanted_bytes: Stop when so much is free; infinite for all that nobody leases.

        Returns:
            Bytes given back.
        """
        with self.directory.locked(self.options.lock_timeout_s):
            items = remove_remains(self.directory, survey(self.directory), "", 0.0)
            fds, freed = evict(self.directory, items, wanted_bytes, self.options.upcoming())
        free(fds)
        return freed


def open_store(path: Path, options: StoreOptions, *, keep: bool = False, observe: Observer = ignore) -> ShardStore:
    """Enter a directory, made if need be, and return its store; end it with ``store.directory.leave()``.

    With `keep` the directory outlives its last user, with all that it holds.

    Raises:
        CacheError: The directory cannot be used.
        DeadlineError: A lock was held for too long.
    """
    while True:
        directory, sole = CacheDirectory.enter(path, options.lock_timeout_s, observe)
        try:
            with directory.locked(options.lock_timeout_s):
                observe("open.locked")
                agree_on_cap(directory.dir_fd, options.cap, sole=sole, where=path)
                if keep:
                    mark_kept(directory.dir_fd)
                if sole:
                    rebase_stamps(directory, remove_remains(directory, survey(directory), "", 0.0))
        except OSError as error:
            directory.leave()
            if isinstance(error, CacheError | DeadlineError):
                raise
            raise CacheError(f"{path}: {error.strerror}, wanted to keep shards there. Choose another one.") from error
        if not sole or directory.share():
            break
    observe("open.shared")
    family = default_name()
    sweep(path, family if is_of_family(path.name, family) else None, observe)
    return ShardStore(directory, options)
