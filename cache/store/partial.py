"""Partial entries: ``<key>.part`` with ``<key>.have`` beside it, which tells the granules of it that are there.

Many processes bring bytes of an entry at the same time: cold readers what they need first, the holder of ``.fill`` the
rest. A lock on the granules' bytes of ``.have`` lets one of them bring each. It only saves requests. What makes the
bytes right is that everybody but the holder of ``.fill`` writes nothing but what was checked, that the holder checks
the whole at the end, and that readers check what they read: whoever writes late, because he was stopped, writes what
is there already. Whoever has waited in vain for somebody tells all others, who wait for nothing of that one any more.

Of an entry that lies in pieces of remote files nobody knows checksums, so its bytes are right if its servers sent the
right ones: everybody writes what a file of the right size gave, and takes what was written as it is. Flags are written
after the bytes that they tell of, so a process may be killed at any step. A machine may not, on a disk, which can lose
the bytes and keep the flags: no partial entry outlives a restart, see `total.drop_unsure`.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate

from epistream.cache.store.descriptors import DESCRIPTORS, inode_of
from epistream.cache.store.directory import CacheDirectory
from epistream.cache.store.locks import LockFile, is_range_locked, pauses, try_range_lock, unlock_range
from epistream.cache.store.survey import HAVE, PART

# Every block size of an index is a multiple of it.
GRANULE_BYTES = 64 << 10
# Who waits looks at the flags each time, which is one call, and tries the locks once in so many: they are free again
# when what they stand for is there, but for a holder that failed or died.
_LOCK_EVERY = 8


# Flags of granules. The last is of one that is not there, and whose bringer was waited for in vain: he may be stopped.
_ABSENT, _THERE, _IN_VAIN = b"\0", b"\1", b"\2"

# Where each part of the entry begins in its file, and the part's bytes.
Places = Sequence[tuple[int, int]]


class Partial:
    """The two files of a partial entry, held open by one who reads or fills it. Safe to use from several threads.

    The shared lock on ``.have`` says that the entry is in use, as a lease does for a complete one. It lasts until
    `close`, or until this process dies.

    Args:
        directory: Where it is.
        places: Of the entry's parts.
        part_fd: The ``.part``, opened for reading and writing; closed at the end.
        have: The ``.have``, opened and locked shared; closed at the end.
        touch: Makes an open file the most recently used: writing to it gives it a time of another clock.
    """

    def __init__(
        self, directory: CacheDirectory, places: Places, part_fd: int, have: LockFile, touch: Callable[[int], None]
    ) -> None:
        self.directory = directory
        self.part_fd = part_fd
        self._have = have
        self._touch = touch
        self._pid = os.getpid()
        firsts = accumulate((count_granules(size) for _, size in places), initial=0)
        self.parts = tuple(SharedPart(self, *place, first) for place, first in zip(places, firsts, strict=False))

    def flags(self, first: int, count: int) -> bytes:
        """A byte for each granule: 1 where it is there."""
        return os.pread(self._have.fd, count, first).ljust(count, _ABSENT)

    def set_flags(self, first: int, flags: bytes) -> None:
        """Say of granules whether they are there. On a full file system nobody is told: they are brought again."""
        with contextlib.suppress(OSError):
            os.pwrite(self._have.fd, flags, first)

    def tell_in_vain(self, fd: int) -> None:
        """Say of all that others are bringing at this moment that they were waited for in vain.

        Whoever is stopped has no more than that, so that he costs one wait, whatever is read of the entry. Who only is
        slow, and told of with him, is not waited for either: what he is bringing is brought twice.

        Args:
            fd: Of `opened_again`.
        """
        for number, flag in enumerate(self.flags(0, os.fstat(fd).st_size)):
            if flag == _ABSENT[0] and is_range_locked(fd, number, 1):
                self.set_flags(number, _IN_VAIN)
        self.directory.observe("share.in_vain")

    @contextlib.contextmanager
    def opened_again(self) -> Iterator[int]:
        """Another description of ``.have``, because its locks are the description's; not for threads to share.

        Raises:
            FileNotFoundError: The entry is complete by now, or was given up.
        """
        with DESCRIPTORS.opened(self._have.name, os.O_RDWR, dir_fd=self.directory.dir_fd) as fd:
            if inode_of(fd) != inode_of(self._have.fd):
                raise FileNotFoundError(self._have.name)
            yield fd

    def close(self) -> None:
        """Let go of it. Harmless when called twice, or in a forked child."""
        if self.part_fd >= 0 and self._pid == os.getpid():
            with contextlib.suppress(OSError):
                self._touch(self.part_fd)
            DESCRIPTORS.close(self.part_fd)
        self.part_fd = -1
        self._have.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()


class SharedPart:
    """One part of a partial entry. Offsets are the part's; ranges are of whole granules, or end where the part does."""

    granule_bytes = GRANULE_BYTES

    def __init__(self, partial: Partial, offset: int, size: int, first_granule: int) -> None:
        self._partial = partial
        self._offset = offset
        self._size = size
        self._first = first_granule

    def absent(self, start: int, stop: int, unit_bytes: int = GRANULE_BYTES) -> list[tuple[int, int]]:
        """Half-open runs of bytes within [start, stop) that are not there, in whole units from `start`."""
        first, count = self._granules(start, stop)
        per_unit = count_granules(unit_bytes)
        flags = self._partial.flags(first, count)
        runs: list[tuple[int, int]] = []
        if flags.count(1) == count:
            return runs
        for number in range(0, count, per_unit):
            flags_of_unit = flags[number : number + per_unit]
            if flags_of_unit.count(1) < len(flags_of_unit):
                begin = start + number * GRANULE_BYTES
                end = min(begin + per_unit * GRANULE_BYTES, stop)
                if runs and runs[-1][1] == begin:
                    runs[-1] = (runs[-1][0], end)
                else:
                    runs.append((begin, end))
        return runs

    @contextlib.contextmanager
    def turn(self, start: int, stop: int, unit_bytes: int, patience_s: float) -> Iterator[list[tuple[int, int]] | None]:
        """As `source.shared.Shared.turn`; nothing is held while it waits.

        None also where the file system has no such locks, or the entry was given up.
        """
        with contextlib.ExitStack() as held:
            yield self._take(held, (start, stop, unit_bytes), patience_s)

    def _take(
        self, held: contextlib.ExitStack, wanted: tuple[int, int, int], patience_s: float
    ) -> list[tuple[int, int]] | None:
        fd = -1
        try:
            for attempt, _ in enumerate(pauses(time.monotonic() + patience_s)):
                runs = self.absent(*wanted)
                if not runs:
                    return []
                if attempt % _LOCK_EVERY:
                    continue
                if fd < 0:
                    fd = held.enter_context(self._partial.opened_again())
                    # Explicit: a child between fork and exec may hold a duplicate of the descriptor.
                    held.callback(unlock_range, fd, *self._granules(*wanted[:2]))
                ours = self._lock(fd, runs, wanted[2])
                self._partial.directory.observe("share.locked")
                # Who had the lock just before may have brought it.
                ours = [run for begin, end in ours for run in self.absent(begin, end, wanted[2])]
                if ours:
                    return ours
                unlock_range(fd, *self._granules(*wanted[:2]))
                if self._is_in_vain(runs, wanted[2]):
                    return None
            if patience_s:
                self._partial.tell_in_vain(fd)
        except OSError:
            return None
        return None

    def _is_in_vain(self, runs: list[tuple[int, int]], unit_bytes: int) -> bool:
        """Whether of each unit of some runs, which are brought whole, something was waited for in vain before."""
        per_unit = count_granules(unit_bytes)
        flags = (self._partial.flags(*self._granules(start, stop)) for start, stop in runs)
        return all(
            _IN_VAIN in flags_of_run[number : number + per_unit]
            for flags_of_run in flags
            for number in range(0, len(flags_of_run), per_unit)
        )

    def _lock(self, fd: int, runs: list[tuple[int, int]], unit_bytes: int) -> list[tuple[int, int]]:
        """Lock what is free of some runs; the runs of it."""
        ours: list[tuple[int, int]] = []
        for start, stop in runs:
            if try_range_lock(fd, *self._granules(start, stop)):
                ours.append((start, stop))
                continue
            step = count_granules(unit_bytes) * GRANULE_BYTES
            for begin in range(start, stop, step):
                end = min(begin + step, stop)
                if try_range_lock(fd, *self._granules(begin, end)):
                    is_next = bool(ours) and ours[-1][1] == begin
                    ours[-1:] = [(ours[-1][0], end)] if is_next else [*ours[-1:], (begin, end)]
        return ours

    def read(self, start: int, stop: int) -> bytes:
        """Bytes as they are; the caller checks them if he can. Never from a mapping: the file may have holes yet."""
        pieces = []
        while start < stop:
            piece = os.pread(self._partial.part_fd, stop - start, self._offset + start)
            if not piece:
                break
            pieces.append(piece)
            start += len(piece)
        return b"".join(pieces)

    def write(self, start: int, data: bytes | memoryview) -> None:
        """Bytes for all: checked if there are checksums, unless by the holder of ``.fill``, who checks the whole last.

        Raises:
            OSError: They cannot be written; nobody is told of them then.
        """
        observe = self._partial.directory.observe
        observe("share.fetched")
        view, position = memoryview(data), self._offset + start
        while view:
            written = os.pwrite(self._partial.part_fd, view, position)
            view, position = view[written:], position + written
        observe("share.written")
        first, count = self._granules(start, start + len(data))
        self._partial.set_flags(first, _THERE * count)
        observe("share.flagged")

    def clear(self) -> None:
        """Say that nothing is there: it was found to be wrong."""
        self._partial.set_flags(self._first, bytes(count_granules(self._size)))

    def _granules(self, start: int, stop: int) -> tuple[int, int]:
        """(first, count) of the granules of a range, in ``.have``."""
        first = start // GRANULE_BYTES
        return self._first + first, count_granules(stop) - first


def join(directory: CacheDirectory, key: str, places: Places, touch: Callable[[int], None]) -> Partial | None:
    """The partial entry of a key, if there is one, and its files are of the sizes that it has."""
    with contextlib.ExitStack() as undo:
        try:
            have = LockFile(key + HAVE, directory.dir_fd, create=False)
            undo.callback(have.close)
            if not have.try_shared() or os.fstat(have.fd).st_size != _have_bytes(places):
                return None  # an evictor has it; or it is none of this release's
            directory.observe("join.locked")
            part_fd = DESCRIPTORS.open(key + PART, os.O_RDWR, dir_fd=directory.dir_fd)
            undo.callback(DESCRIPTORS.close, part_fd)
        except FileNotFoundError:
            return None
        # The name looked at last: an evictor, or one who completes the entry, may have been there meanwhile.
        if os.fstat(part_fd).st_size != _part_bytes(places) or not have.is_named():
            return None
        touch(part_fd)
        undo.pop_all()
        return Partial(directory, places, part_fd, have, touch)


def begin(directory: CacheDirectory, key: str, places: Places, touch: Callable[[int], None]) -> Partial:
    """Share a ``.part`` of full size with others, with what is in it already if that is known.

    The caller holds the key's ``.fill``.

    Raises:
        OSError: The files cannot be had, or their file system is full.
    """
    with contextlib.ExitStack() as undo:
        have = LockFile(key + HAVE, directory.dir_fd)
        undo.callback(have.close)
        # Nobody else locks it alone but an evictor, who lets those go that have a filler.
        if not have.try_shared():
            raise BlockingIOError(f"{directory.path}/{have.name}: locked by a stranger, wanted it shared.")
        if os.fstat(have.fd).st_size != _have_bytes(places):
            os.ftruncate(have.fd, 0)
            os.ftruncate(have.fd, _have_bytes(places))
        directory.observe("share.begun")
        part_fd = DESCRIPTORS.open(key + PART, os.O_RDWR, dir_fd=directory.dir_fd)
        undo.pop_all()
        return Partial(directory, places, part_fd, have, touch)


def is_shared(directory: CacheDirectory, key: str) -> bool:
    """Whether a key's ``.part`` is a partial entry, from which others may go on, rather than a remain of the dead."""
    try:
        os.stat(key + HAVE, dir_fd=directory.dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _part_bytes(places: Places) -> int:
    return sum(places[-1])


def _have_bytes(places: Places) -> int:
    return sum(count_granules(size) for _, size in places)


def count_granules(size: int) -> int:
    """Granules of so many bytes.

    >>> count_granules(65537)
    2
    """
    return -(-size // GRANULE_BYTES)
