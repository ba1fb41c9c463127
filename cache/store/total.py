"""The running total of a directory: the bytes that its shards and fills count for, so that nobody has to count them.

It is written in ``.lock`` itself, by whoever holds that: "clean 00000000000004194304 000000001234.567890" are the bytes
and the time of the boot clock from which on the files are counted again. A holder writes "dirty" over the first word
before it touches a file, and the whole line when it is done; whoever finds it dirty, torn or missing counts the files.
"""

import contextlib
import errno
import os
import time
from collections.abc import Iterator

from epistream.cache.store.budget import Limits
from epistream.cache.store.directory import IN_DOUBT, LOCK, CacheDirectory
from epistream.cache.store.locks import LockFile
from epistream.cache.store.markers import boot_time_s, is_of_this_boot, mark_boot, read_text
from epistream.cache.store.survey import (
    FILL,
    HAVE,
    PART,
    SHARD,
    Item,
    charge,
    charged_bytes,
    drop_fill,
    find_remains,
    survey,
    unlink,
)

# A survey may take this share of the time of one processor (of 10,000 entries it takes some 50 ms).
_SHARE = 0.005
_LONGEST_S = 3600.0


class Total:
    """The total of a directory whose ``.lock`` the caller holds. Build it with `counted`."""

    def __init__(self, directory: CacheDirectory, lock: LockFile, check_s: float) -> None:
        self.directory = directory
        self._lock = lock
        self._check_s = check_s
        self._is_open = False
        # Whether the files were counted since `.lock` was taken: the total, and an order that came of it, are exact.
        self.is_exact = False
        found = _parse(lock.read_text())
        self._is_known = found is not None and found[0] == "clean"
        self.bytes, self._due_s = (0, 0.0) if found is None else found[1:]

    @property
    def is_due(self) -> bool:
        """Whether the files are to be counted: nobody knows the total, or it has been believed for long enough."""
        return not (self._is_known and 0 < self._due_s - boot_time_s() < _LONGEST_S)

    def open(self) -> None:
        """Say that files are about to change; until the block of `counted` ends, the total in ``.lock`` is in doubt."""
        if not self._is_open:
            self._is_open = True
            self._write(IN_DOUBT)
            self.directory.observe("total.opened")

    def remove(self, name: str) -> int:
        """Unlink a shard or a fill; returns the bytes that it counted for, 0 if it is gone already."""
        try:
            size = os.stat(name, dir_fd=self.directory.dir_fd, follow_symlinks=False).st_size
        except FileNotFoundError:
            return 0
        self.open()
        if not unlink(self.directory, name):
            return 0
        self.bytes -= charge(size)
        return charge(size)

    def check(self, own_key: str, note_s: float) -> list[Item]:
        """Count the files, remove what the dead left, and set the total right.

        Args:
            own_key: The key whose ``.fill`` the caller holds; "" for none.
            note_s: Lifetime of a note in a ``.fill``.

        Returns:
            The shards and fills that are left.
        """
        started = time.monotonic()
        items = survey(self.directory)
        remains = find_remains(self.directory, items, own_key)
        for item in remains:
            self.open()
            unlink(self.directory, item.name)
            self.directory.observe(f"remains{item.kind}")
        for item in items:
            if item.kind == FILL and item.key != own_key:
                drop_fill(self.directory, item.key, note_s)
        gone = set(remains)
        left = [item for item in items if item.kind in (SHARD, PART) and item not in gone]
        self.directory.observe("total.counted")
        self.open()
        self.bytes = charged_bytes(left)
        self._is_known = self.is_exact = True
        took_s = time.monotonic() - started
        believed_s = self._check_s and min(max(self._check_s, took_s / _SHARE), _LONGEST_S / 2)
        self._due_s = boot_time_s() + believed_s
        self.close()
        return left

    def close(self) -> None:
        """Files and total agree again."""
        if self._is_open:
            self._is_open = False
            self._write(f"clean {max(0, self.bytes):020d} {self._due_s:019.6f}\n".encode())
            self.directory.observe("total.closed")

    def _write(self, text: bytes) -> None:
        # On a full file system there is no total, or one that is in doubt: then everybody counts.
        try:
            os.pwrite(self._lock.fd, text, 0)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise


@contextlib.contextmanager
def counted(directory: CacheDirectory, timeout_s: float, check_s: float) -> Iterator[Total]:
    """Hold ``.lock`` with the total in it; an error leaves the total in doubt once `Total.open` was called.

    Args:
        directory: Whose.
        timeout_s: How long ``.lock`` is waited for.
        check_s: How long a total is believed, at least, after a survey; 0 for not at all.

    Raises:
        DeadlineError: Somebody else held it for `timeout_s`.
    """
    with directory.locked(timeout_s) as lock:
        total = Total(directory, lock, check_s)
        yield total
        total.close()


def drop_unsure(total: Total, items: list[Item], limits: Limits) -> list[Item]:
    """Remove what was made, and may have been written in place, before the machine started; returns what is left.

    A disk may have got what says that bytes are there, and not the bytes, when the power went. So for partial entries.

    Args:
        total: Of a directory.
        items: What it holds.
        limits: Whether it is in memory: nothing there has seen another start.
    """
    if limits.in_memory or is_of_this_boot(total.directory.dir_fd):
        return items
    unsure = {item for item in items if item.is_made or item.kind == PART}
    for item in unsure:
        if item.kind == PART:
            unlink(total.directory, item.key + HAVE)
        total.remove(item.name)
    mark_boot(total.directory.dir_fd)
    return [item for item in items if item not in unsure]


def held_bytes(directory: CacheDirectory) -> int:
    """Bytes that a directory's files count for: the total, or a survey where that is in doubt. Takes no lock."""
    found = _parse(read_text(directory.dir_fd, LOCK) or "")
    return found[1] if found is not None and found[0] == "clean" else charged_bytes(survey(directory))


def _parse(text: str) -> tuple[str, int, float] | None:
    """State, bytes and time of a total; None for torn text or none."""
    words = text.split()
    try:
        state, num_bytes, due_s = words
        return state, int(num_bytes), float(due_s)
    except ValueError:
        return None
