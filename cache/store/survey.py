"""What a directory holds, counted file by file, and the removal of what dead processes left in it. Under ``.lock``."""

import contextlib
import os
import stat
from typing import NamedTuple

from epistream.cache.store.directory import CacheDirectory
from epistream.cache.store.locks import LockFile
from epistream.cache.store.markers import fresh_note

SHARD = ".shard"
PART = ".part"
HAVE = ".have"
FILL = ".fill"
PAGE_BYTES = 4096


class Item(NamedTuple):
    """A file of the directory.

    Args:
        key: The entry's key.
        kind: ".shard", ".part", ".have" or ".fill".
        size: Bytes of the file.
        stamp_ns: Recency: the mtime, which every hit sets.
        is_made: Whether it was made of other entries, and can be made of them again.
    """

    key: str
    kind: str
    size: int
    stamp_ns: int
    is_made: bool

    @property
    def name(self) -> str:
        """The file's name."""
        return self.key + self.kind


def mark_made(fd: int) -> None:
    """Note on an open file that it was made of other entries: by the sticky bit, which means nothing for a file.

    Only of entries with this note does an eviction that counts the files ask who claims them.
    """
    with contextlib.suppress(OSError):  # on a file system without it
        os.fchmod(fd, stat.S_IRUSR | stat.S_IWUSR | stat.S_ISVTX)


def charge(size: int) -> int:
    """Bytes that a file of this size counts for: memory is given in pages, and no file is free."""
    return max(1, -(-size // PAGE_BYTES)) * PAGE_BYTES


def survey(directory: CacheDirectory) -> list[Item]:
    """The shards, fills and fill locks of a directory, as they are now. The cost grows with their number."""
    items = []
    for name in os.listdir(directory.dir_fd):  # noqa: PTH208, an open directory
        key, dot, kind = name.rpartition(".")
        kind = dot + kind
        if kind in (SHARD, PART, HAVE, FILL) and key:
            with contextlib.suppress(FileNotFoundError):
                status = os.stat(name, dir_fd=directory.dir_fd, follow_symlinks=False)
                is_made = bool(status.st_mode & stat.S_ISVTX)
                items.append(Item(key, kind, status.st_size, status.st_mtime_ns, is_made))
    return items


def charged_bytes(items: list[Item]) -> int:
    """Bytes that shards and fills count for."""
    return sum(charge(item.size) for item in items if item.kind in (SHARD, PART))


def find_remains(directory: CacheDirectory, items: list[Item], own_key: str) -> list[Item]:
    """The ``.part`` files that nobody fills any more or can go on with, and any ``.have`` without its ``.part``.

    The caller holds the ``.fill`` of `own_key` ("" for none), whose ``.part`` is a remain by definition.
    """
    parts = {item.key for item in items if item.kind == PART}
    partial = {item.key for item in items if item.kind == HAVE}
    return [
        item
        for item in items
        if (item.kind == HAVE and item.key not in parts)
        or (item.kind == PART and item.key not in partial and _is_remain(directory, item.key, own_key))
    ]


def _is_remain(directory: CacheDirectory, key: str, own_key: str) -> bool:
    """Whether nobody is filling this key, nor shared it, and ended, since the files were listed: in this order."""
    if not _is_dead(directory, key, own_key):
        return False
    try:
        os.stat(key + HAVE, dir_fd=directory.dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return True
    return False


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
    """Unlink a key's ``.fill`` if nobody holds it and it has no fresh note."""
    with (
        contextlib.suppress(FileNotFoundError),
        contextlib.closing(LockFile(key + FILL, directory.dir_fd, create=False)) as lock,
    ):
        if lock.try_exclusive() and lock.is_named() and fresh_note(lock.read_text(), note_s) is None:
            unlink(directory, lock.name)


def unlink(directory: CacheDirectory, name: str) -> bool:
    """Unlink a file; False if it is gone already."""
    try:
        os.unlink(name, dir_fd=directory.dir_fd)
    except FileNotFoundError:
        return False
    return True
