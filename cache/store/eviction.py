"""What a directory holds, and who leaves first: the only place that orders by recency. Under ``.lock`` but for hits."""

import contextlib
import fcntl
import os
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from epistream.cache.store.descriptors import DESCRIPTORS
from epistream.cache.store.directory import CacheDirectory
from epistream.cache.store.locks import LockFile, try_flock
from epistream.cache.store.markers import fresh_note

SHARD = ".shard"
PART = ".part"
FILL = ".fill"
PAGE_BYTES = 4096


@dataclass(frozen=True)
class Item:
    """A file of the directory.

    Args:
        key: The entry's key.
        kind: ".shard", ".part" or ".fill".
        size: Bytes of the file.
        allocated_bytes: Bytes that the file system has given to it.
        stamp_ns: Recency: the mtime, which every hit sets.
    """

    key: str
    kind: str
    size: int
    allocated_bytes: int
    stamp_ns: int

    @property
    def name(self) -> str:
        """The file's name."""
        return self.key + self.kind

    @property
    def charge_bytes(self) -> int:
        """What it counts for: whole pages."""
        return charge(self.size)


def charge(size: int) -> int:
    """Bytes that a file of this size counts for: memory is given in pages, and no file is free."""
    return max(1, -(-size // PAGE_BYTES)) * PAGE_BYTES


def survey(directory: CacheDirectory) -> list[Item]:
    """The shards, fills and fill locks of a directory, as they are now."""
    items = []
    for name in os.listdir(directory.dir_fd):  # noqa: PTH208, an open directory
        key, dot, kind = name.rpartition(".")
        kind = dot + kind
        if kind in (SHARD, PART, FILL) and key:
            with contextlib.suppress(FileNotFoundError):
                status = os.stat(name, dir_fd=directory.dir_fd, follow_symlinks=False)
                items.append(Item(key, kind, status.st_size, status.st_blocks * 512, status.st_mtime_ns))
    return items


def allocated_bytes(items: list[Item]) -> int:
    """Bytes that the file system has given to shards and fills."""
    return sum(item.allocated_bytes for item in items if item.kind != FILL)


def charged_bytes(items: list[Item]) -> int:
    """Bytes that shards and fills count for."""
    return sum(item.charge_bytes for item in items if item.kind != FILL)


def remove_remains(directory: CacheDirectory, items: list[Item], own_key: str, note_s: float) -> list[Item]:
    """Delete what dead fillers left: their ``.part`` files, and fill locks that mark nothing and hold no fresh note.

    The caller holds the ``.fill`` of `own_key` ("" for none), whose ``.part`` is a remain by definition.

    Returns:
        The items that are left.
    """
    with_data = {item.key for item in items if item.kind in (SHARD, PART)}
    left = []
    for item in items:
        if item.kind == PART and _is_dead(directory, item.key, own_key):
            unlink(directory, item.name)
            directory.observe("remains.part")
        elif item.kind == FILL and item.key not in with_data and item.key != own_key:
            drop_fill(directory, item.key, note_s)
        else:
            left.append(item)
    return left


def _is_dead(directory: CacheDirectory, key: str, own_key: str) -> bool:
    """Whether nobody is filling this key."""
    if key == own_key:
        return True
    try:
        with contextlib.closing(LockFile(key + FILL, directory.dir_fd, create=False)) as lock:
            return lock.try_exclusive()
    except FileNotFoundError:
        return True


def drop_fill(directory: CacheDirectory, key: str, note_s: float = 0.0) -> None:
    """Unlink a key's ``.fill`` if nobody holds it and it has no fresh note; its data must be gone."""
    with (
        contextlib.suppress(FileNotFoundError),
        contextlib.closing(LockFile(key + FILL, directory.dir_fd, create=False)) as lock,
    ):
        if lock.try_exclusive() and lock.is_named() and fresh_note(lock.read_text(), note_s) is None:
            unlink(directory, lock.name)


class Stamps:
    """Recency: times on the boot clock, because the wall clock can be set back; never twice the same."""

    def __init__(self) -> None:
        self._last_ns = 0

    def touch(self, fd: int) -> None:
        """Make a file the most recently used."""
        self._last_ns = max(time.clock_gettime_ns(time.CLOCK_BOOTTIME), self._last_ns + 1)
        os.utime(fd, ns=(self._last_ns, self._last_ns))


def in_leaving_order(items: Iterable[Item], upcoming: Collection[str] = ()) -> list[Item]:
    """The least recently used first; keys in `upcoming`, which their process is about to use, last."""
    return sorted(items, key=lambda item: (item.key in upcoming, item.stamp_ns))


def rebase_stamps(directory: CacheDirectory, items: Iterable[Item]) -> None:
    """Bring stamps from before a reboot, which lie in the future of this boot's clock, before all others."""
    now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    shards = in_leaving_order(item for item in items if item.kind == SHARD)
    if any(item.stamp_ns > now_ns for item in shards):
        for rank, item in enumerate(shards):
            os.utime(item.name, ns=(rank, rank), dir_fd=directory.dir_fd, follow_symlinks=False)


def evict(
    directory: CacheDirectory,
    items: list[Item],
    wanted_bytes: float,
    upcoming: Collection[str] = (),
    *,
    least_bytes: int = 0,
) -> tuple[list[int], int]:
    """Unlink shards that nobody leases, in leaving order, until `wanted_bytes` are freed.

    None are unlinked if leases stand in the way of `least_bytes`.

    Returns:
        Descriptors of the unlinked files, exclusively locked: closing them frees their pages, which takes
        long and is done by the caller outside ``.lock``. And the bytes that they free.
    """
    victims: list[tuple[Item, int]] = []
    freed = 0
    for item in in_leaving_order((item for item in items if item.kind == SHARD), upcoming):
        if freed >= wanted_bytes:
            break
        try:
            fd = DESCRIPTORS.open(item.name, os.O_RDONLY, dir_fd=directory.dir_fd)
        except FileNotFoundError:
            continue
        if try_flock(fd, fcntl.LOCK_EX):
            victims.append((item, fd))
            freed += item.charge_bytes
        else:
            DESCRIPTORS.close(fd)
    if freed < least_bytes:
        for _, fd in victims:
            DESCRIPTORS.close(fd)
        return [], 0
    for item, _ in victims:
        directory.observe("evict.locked")
        unlink(directory, item.name)
        directory.observe("evict.unlinked")
        drop_fill(directory, item.key)
    return [fd for _, fd in victims], freed


def unlink(directory: CacheDirectory, name: str) -> None:
    """Unlink a file that may be gone already."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=directory.dir_fd)


def free(fds: list[int]) -> None:
    """Close what `evict` returned, which frees the pages. Not under ``.lock``."""
    for fd in fds:
        DESCRIPTORS.close_slowly(fd)
