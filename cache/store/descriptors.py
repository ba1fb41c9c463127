"""File descriptors of the cache, all known in one place, so that a forked child can close what it inherited.

A lock of flock(2) belongs to the open file description, and fork shares that: a child that merely keeps the
number alive keeps its parent's leases and fill rights alive, and an unlock in the child takes them from the
parent. So every descriptor of the cache is opened and closed here, and a hook closes them in a forked child
without unlocking.
"""

import contextlib
import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol


class ForkAware(Protocol):
    """Something that holds what only the process that made it may use."""

    def after_fork_in_child(self) -> None:
        """Forget it. Called in the child, where the descriptors are closed already."""


class DescriptorRegistry:
    """The descriptors of this process that belong to the cache."""

    def __init__(self) -> None:
        # Held while a descriptor is opened and noted, and by fork: no child is born in between.
        self._mutex = threading.RLock()
        self._open: set[int] = set()
        # Those that are being closed outside the mutex, with the (device, inode) that they lead to.
        self._closing: dict[int, tuple[int, int]] = {}
        self._aware: list[weakref.ref[ForkAware]] = []
        self._prune_at = 64
        self._hooked = False

    def open(self, name: str | Path, flags: int, mode: int = 0o600, dir_fd: int | None = None) -> int:
        """As ``os.open``, close-on-exec and never through a symbolic link; the caller owns the descriptor."""
        with self._mutex:
            self._hook()
            fd = os.open(name, flags | os.O_CLOEXEC | os.O_NOFOLLOW, mode, dir_fd=dir_fd)
            self._open.add(fd)
            return fd

    def close(self, fd: int) -> None:
        """Close a descriptor of `open`; one that a fork hook has closed already is left alone."""
        with self._mutex:
            if fd in self._open:
                self._open.discard(fd)
                os.close(fd)

    @contextlib.contextmanager
    def opened(self, name: str | Path, flags: int, dir_fd: int | None = None) -> Iterator[int]:
        """As `open`, closed at the end of the block."""
        fd = self.open(name, flags, dir_fd=dir_fd)
        try:
            yield fd
        finally:
            self.close(fd)

    def close_slowly(self, fd: int) -> None:
        """As `close`, where closing frees many pages (37 ms for 256 MiB): no other thread waits for it."""
        with self._mutex:
            if fd not in self._open:
                return
            self._open.discard(fd)
            inode = self._closing[fd] = inode_of(fd)
        os.close(fd)
        with self._mutex:
            if self._closing.get(fd) is inode:
                del self._closing[fd]

    def unforked(self) -> AbstractContextManager[object]:
        """Keep other threads from forking while the block runs; short, and it may be entered again inside."""
        return self._mutex

    def watch(self, aware: ForkAware) -> None:
        """Call its ``after_fork_in_child`` in forked children, as long as it lives."""
        with self._mutex:
            self._hook()
            if len(self._aware) >= self._prune_at:
                self._aware = [ref for ref in self._aware if ref() is not None]
                # Not at every call: that would cost as much as there are leases.
                self._prune_at = max(64, 2 * len(self._aware))
            self._aware.append(weakref.ref(aware))

    def _hook(self) -> None:
        if not self._hooked:
            self._hooked = True
            os.register_at_fork(before=self._before, after_in_parent=self._in_parent, after_in_child=self._in_child)

    # The mutex is looked up at each fork: a child has another one than its parent.
    def _before(self) -> None:
        self._mutex.acquire()

    def _in_parent(self) -> None:
        self._mutex.release()

    def _in_child(self) -> None:
        self._mutex = threading.RLock()
        inherited, self._open = self._open, set()
        closing, self._closing = self._closing, {}
        for fd in inherited:
            os.close(fd)
        for fd, inode in closing.items():
            # The parent may have closed it already, and another thread may own the number now.
            with contextlib.suppress(OSError):
                if inode_of(fd) == inode:
                    os.close(fd)
        for ref in self._aware:
            aware = ref()
            if aware is not None:
                aware.after_fork_in_child()
        self._aware = []


def inode_of(file: int | str | Path, dir_fd: int | None = None) -> tuple[int, int]:
    """(device, inode) of an open file, or of what a name stands for."""
    status = os.stat(file, dir_fd=dir_fd, follow_symlinks=isinstance(file, int))
    return status.st_dev, status.st_ino


# The one global of the cache: descriptors belong to the process, and so does the hook.
DESCRIPTORS = DescriptorRegistry()
