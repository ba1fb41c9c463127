"""The shard store: one copy of each entry in a directory that many processes share. The protocol lives here.

State of a key, as its files tell it (``.fill`` is only ever a lock and a note):

    nothing --reserve--> .part --rename--> .shard --evict--> nothing
                          |
                          +--any failure, or the cleaning of the next who counts the files--> nothing

A ``.part`` that cold readers may read has a ``.have`` beside it (see `partial`): it stays when its filler dies, and is
gone on with, or evicted like a ``.shard``.

A ``.fill`` lives no longer than the fill, unless a note is left in it. No wait holds a lock: `acquire` polls for the
fill right, and gives it back before it waits for room.
"""

import contextlib
import fcntl
import math
import os
import time
from collections.abc import Callable, Collection
from pathlib import Path

from epistream.cache.store.budget import Budget
from epistream.cache.store.claims import Claims, drop_dead_claims
from epistream.cache.store.descriptors import DESCRIPTORS
from epistream.cache.store.directory import ANOTHER, CacheDirectory, Observer, ignore
from epistream.cache.store.eviction import Reach, Stamps, free, rebase_stamps
from epistream.cache.store.fill import (
    Filler,
    Filling,
    NoRoomError,
    Outcome,
    PresentError,
    StoreOptions,
    TooLargeError,
)
from epistream.cache.store.joining import Joining
from epistream.cache.store.lease import Lease
from epistream.cache.store.locks import LockFile, lock_holders, pauses, try_flock
from epistream.cache.store.markers import Note, agree_on_cap, boot_time_s, fresh_note, mark_kept, read_note, write_note
from epistream.cache.store.places import default_name, is_of_family
from epistream.cache.store.refusals import Refusals
from epistream.cache.store.survey import FILL, SHARD, unlink
from epistream.cache.store.sweep import sweep
from epistream.cache.store.total import counted, drop_unsure, held_bytes
from epistream.errors import CacheError, DeadlineError

__all__ = ["Filler", "NoRoomError", "Outcome", "ShardStore", "StoreOptions", "TooLargeError"]


class ShardStore:
    """The entries of one directory. Safe to use from several threads; unusable after fork."""

    def __init__(self, directory: CacheDirectory, options: StoreOptions) -> None:
        self.directory = directory
        self.options = options
        self.claims = Claims(directory, options.lock_timeout_s)
        self._observe = directory.observe
        self._stamps = Stamps()
        self._filling = Filling(directory, options, self._stamps, self.claims)
        self._refusals = Refusals()
        # None after a wait in vain, until there was room: who holds it may be stopped, and each batch would wait anew.
        self._room_patience_s = options.room_timeout_s
        self.joining = Joining(self._filling, self._refusals, self.lookup)

    def lookup(self, key: str, size: int) -> Lease | None:
        """Lease a complete entry, without waiting; None if it is not there, or damaged: of another size in bytes."""
        name = key + SHARD
        while True:
            try:
                fd = DESCRIPTORS.open(name, os.O_RDWR, dir_fd=self.directory.dir_fd)
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
            DeadlineError: Another process filled, or held ``.lock``, for too long; or somebody has waited in vain for
                it before, and it is filling still.
            FetchError: `fill` failed, here or just now in another process.
        """
        outcome = outcome if outcome is not None else Outcome()
        lease = self.lookup(key, size)
        if lease is not None:
            outcome.hit = True
            return lease
        self._refuse_if_stuck(key)
        if before_wait is not None:
            before_wait()
        started = time.monotonic()
        room_deadline: float | None = None
        try:
            while True:
                granted = self._wait_fill_lock(key, size)
                if isinstance(granted, Lease):
                    return granted
                attempted = time.monotonic()
                try:
                    lease = self._filling.run(granted, key, size, fill, outcome)
                    self._room_patience_s = self.options.room_timeout_s
                    return lease
                except PresentError:
                    continue
                except NoRoomError as error:
                    reason = str(error)
                finally:
                    granted.close()
                now = time.monotonic()
                room_deadline = room_deadline or now + self._room_patience_s
                # A vain search counts the files: it is not to fill the wait.
                self._wait_room(key, reason, room_deadline, max(0.02, 10 * (now - attempted)))
        finally:
            outcome.wait_s = max(0.0, time.monotonic() - started - outcome.fill_s)

    def try_acquire(
        self,
        key: str,
        size: int,
        fill: Filler | None,
        outcome: Outcome | None = None,
        *,
        may_evict: bool = True,
        is_made: bool = False,
        allocated: int | None = None,
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
            is_made: Whether it is made of other entries: nothing that another live process claims leaves for it, and it
                leaves before others where memory is short.
            allocated: Bytes from the beginning that get memory now; all unless given. The others get it as they are
                written, by system calls alone: a mapping of what got none would be SIGBUS where there is none left.

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
        reach = (Reach.UNCLAIMED if is_made else Reach.ALL) if may_evict else Reach.NOBODY
        if self._refusals.forbids(size, reach):
            outcome.refused = True
            return None
        with contextlib.closing(LockFile(key + FILL, self.directory.dir_fd)) as fill_lock:
            outcome.busy = not fill_lock.try_exclusive()
            if outcome.busy or fresh_note(fill_lock.read_text(), self.options.note_s) is not None:
                return None
            # Who had the lock until now may have completed it; the file of the lock is gone then.
            is_named = fill_lock.is_named()
            lease = self.lookup(key, size)
            if is_named and lease is not None:
                unlink(self.directory, fill_lock.name)
            elif is_named:
                try:
                    lease = self._filling.run(
                        fill_lock, key, size, fill, outcome, reach, is_made=is_made, allocated=allocated
                    )
                except PresentError:
                    pass
                except (NoRoomError, TooLargeError):
                    self._refusals.add(size, reach)
                    outcome.refused = True
        return lease

    def _wait_fill_lock(self, key: str, size: int) -> Lease | LockFile:
        """The entry, if somebody else completes it; else the right to fill it."""
        deadline = time.monotonic() + self.options.fill_timeout_s
        lock: LockFile | None = None
        keep = False
        try:
            for _ in pauses(deadline):
                self._observe("turn.poll")
                lease = self.lookup(key, size)
                if lease is not None:
                    return lease
                lock = lock or LockFile(key + FILL, self.directory.dir_fd)
                if not lock.try_exclusive():
                    self._refuse_if_stuck(key)
                    continue
                if not lock.is_named():  # whoever filled has just ended
                    lock.close()
                    lock = None
                    continue
                self._observe("turn.locked")
                # It may have been completed between the look and the lock.
                lease = self.lookup(key, size)
                if lease is not None:
                    unlink(self.directory, lock.name)
                    return lease
                note = fresh_note(lock.read_text(), self.options.note_s)
                if note is not None:
                    raise NoRoomError(note.text) if note.kind == "bypass" else note.to_error()
                keep = True
                return lock
            reason = (
                f"{self.directory.path}/{key}{FILL}: held by process {lock_holders(key + FILL, self.directory.dir_fd)} "
                f"for {self.options.fill_timeout_s:g} s, wanted the shard that it fills. Look whether that process is "
                "stopped, or raise fill_timeout_s."
            )
            if lock is not None:
                lock.write_text(write_note(Note("stuck", "", reason, boot_time_s())))
            raise DeadlineError(reason)
        finally:
            if lock is not None and not keep:
                lock.close()

    def _refuse_if_stuck(self, key: str) -> None:
        """Raise at once what somebody has waited for in vain, as long as the same process fills."""
        with contextlib.suppress(FileNotFoundError):
            lock = LockFile(key + FILL, self.directory.dir_fd, create=False)
            with contextlib.closing(lock):
                note = read_note(lock.read_text())
                if note is not None and note.kind == "stuck" and not lock.try_exclusive():
                    raise DeadlineError(note.text)

    def _wait_room(self, key: str, reason: str, deadline: float, pause_s: float) -> None:
        """Wait a little, with no lock held; at the deadline, tell the others of the decision and give up."""
        self._observe("room.wait")
        left_s = deadline - time.monotonic()
        if left_s > 0:
            time.sleep(min(left_s, pause_s))
            return
        self._room_patience_s = 0.0
        with contextlib.closing(LockFile(key + FILL, self.directory.dir_fd)) as lock:
            if lock.try_exclusive() and lock.is_named():
                lock.write_text(write_note(Note("bypass", "", reason, boot_time_s())))
                self._observe("room.noted")
        raise NoRoomError(reason)

    def leave(self) -> None:
        """Give every claim up, and stop using the directory; the last one out removes it."""
        self.claims.close()
        self.directory.leave()

    def budget(self, *, afresh: bool = False) -> Budget:
        """The byte budget as it is now; `afresh`, rather than as it was within the last second."""
        return self._filling.measure(afresh=afresh)

    def held_bytes(self) -> int:
        """Bytes of entries and fills, in whole pages, as they are now."""
        return held_bytes(self.directory)

    def discard(self, key: str) -> None:
        """Remove an entry that turned out to be damaged; those who lease it keep their mapping."""
        with self._filling.counted() as total:
            total.remove(key + SHARD)
        self._refusals.forget()

    def keep(self, keys: Collection[str]) -> None:
        """Let entries outlive the last user of the directory."""
        with self.directory.locked(self.options.lock_timeout_s):
            mark_kept(self.directory.dir_fd, keys)

    def give_back(self, wanted_bytes: float = math.inf, *, made_first: bool = False) -> int:
        """Evict unleased entries, the least recently used first; last what this process will use soon, or others claim.

        Args:
            wanted_bytes: Stop when so much is free; infinite for all that nobody leases.
            made_first: Whether all that was made of other entries leaves before those.

        Returns:
            Bytes given back.
        """
        leaving, given = self._filling.leaving, 0
        while given < wanted_bytes:
            with self._filling.counted() as total:
                if not given and not total.is_exact:
                    self._filling.check(total, "", 0.0)
                fds, freed = leaving.evict(total, wanted_bytes - given, is_fresh=True, made_first=made_first)
            free(fds)
            given += freed
            if not fds:
                break
        self._refusals.forget()
        return given


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
            with counted(directory, options.lock_timeout_s, options.check_s) as total:
                observe("open.locked")
                agree_on_cap(directory.dir_fd, options.cap, sole=sole, where=path)
                if keep:
                    mark_kept(directory.dir_fd)
                if sole:
                    drop_dead_claims(directory)
                    rebase_stamps(directory, drop_unsure(total, total.check("", 0.0), options.limits))
        except OSError as error:
            directory.leave()
            if isinstance(error, CacheError | DeadlineError):
                raise
            raise CacheError(f"{path}: {error.strerror}, wanted to keep shards there. {ANOTHER}") from error
        if not sole or directory.share():
            break
    observe("open.shared")
    family = default_name()
    sweep(path, family if is_of_family(path.name, family) else None, observe)
    return ShardStore(directory, options)
