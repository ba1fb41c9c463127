"""A cache's private directory: entering it, and leaving it.

The shared lock on ``.users`` says "in use". A directory is removed only by a holder of the exclusive lock,
after it was renamed to a ``.dead-*`` name; whoever has locked ``.users`` therefore looks again whether the
path still leads to the file that it locked.
"""

import contextlib
import logging
import os
import secrets
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from epistream.cache.store.descriptors import DESCRIPTORS
from epistream.cache.store.locks import LockFile, leads_to, lock_holders, poll
from epistream.cache.store.markers import drop_unkept, is_ours
from epistream.errors import CacheError, DeadlineError

logger = logging.getLogger(__name__)

USERS = ".users"
LOCK = ".lock"
DEAD_PREFIX = ".dead-"
# Written over the beginning of the running total in ``.lock`` while that may be wrong.
IN_DOUBT = b"dirty"
# The next step where a directory cannot be used.
ANOTHER = "Name another one with CacheOptions (directory, or disk_directory for a disk)."
# How long a ``.lock`` is waited for that could not be had within its whole time just before.
_STUCK_S = 0.05
_CLOSE_S = 1.0

# Called with the name of each step of the protocol as it is reached; tests stop or kill a process there.
Observer = Callable[[str], None]


def ignore(step: str) -> None:
    """The observer of real runs."""


class CacheDirectory:
    """A directory that this process has entered. Build it with `enter`; end it with `leave`.

    Args:
        path: Where it is.
        dir_fd: It, opened.
        users: The lock on its ``.users``; None for somebody who only looks.
        observe: Told each step of the protocol.
    """

    def __init__(self, path: Path, dir_fd: int, users: LockFile | None, observe: Observer = ignore) -> None:
        self.path = path
        self.dir_fd = dir_fd
        self.observe = observe
        self._users = users
        self._pid = os.getpid()
        # ``.lock`` stays open; threads share that description, and with it the lock: hence a mutex of their own.
        self._mutex = threading.Lock()
        self._lock: LockFile | None = None
        self._is_stuck = False

    @classmethod
    def enter(cls, path: Path, timeout_s: float, observe: Observer = ignore) -> tuple["CacheDirectory", bool]:
        """Make the directory if it is not there, and say that this process uses it.

        Returns:
            The directory, and whether nobody else was using it when it was entered. A sole user holds it
            exclusively until it calls `share`, so that it can set things right first.

        Raises:
            CacheError: Not a directory, not ours, open to others, or it cannot be made.
            DeadlineError: Another process held ``.users`` exclusively for `timeout_s`.
        """
        return poll(
            lambda: cls._try_enter(path, observe),
            time.monotonic() + timeout_s,
            lambda: (
                f"{path}/{USERS}: held exclusively by process {lock_holders(path / USERS)} for {timeout_s:g} s, wanted "
                "it shared. End that process: its lock ends with it."
            ),
        )

    @classmethod
    def _try_enter(cls, path: Path, observe: Observer) -> "tuple[CacheDirectory, bool] | None":
        with contextlib.ExitStack() as undo:
            try:
                _make_private(path)
                dir_fd = open_private(path)
                undo.callback(DESCRIPTORS.close, dir_fd)
                observe("enter.opened")
                users = LockFile(USERS, dir_fd)
            except FileNotFoundError:  # removed by the last one out, just now
                return None
            except CacheError:
                raise
            except OSError as error:
                raise _refused(path, error) from error
            undo.callback(users.close)
            sole = users.try_exclusive()
            if not sole and not users.try_shared():
                return None
            observe("enter.locked")
            directory = cls(path, dir_fd, users, observe)
            if not directory.is_current():
                return None
            undo.pop_all()
            return directory, sole

    def share(self) -> bool:
        """Let others in, after a sole user has set things right.

        Returns:
            False when somebody took the directory away in between (flock changes its kind in two steps):
            this object is then closed, and the caller enters again.
        """
        if self._users is not None and self._users.try_shared() and self.is_current():
            return True
        self._close()
        return False

    def leave(self) -> None:
        """Stop using it; the last one out removes it, unless it holds a ``.keep``."""
        users = self._users
        if self._pid != os.getpid() or self.dir_fd < 0 or users is None:
            return
        try:
            self.observe("leave.begin")
            if not users.is_named() and leads_to(self.path, self.dir_fd):
                # Somebody removed the file and left the directory, which nobody would remove then.
                users.close()
                try:
                    users = self._users = LockFile(USERS, self.dir_fd)
                except OSError:  # and now the directory, too
                    return
            if users.try_exclusive() and self.is_current() and not self._drop_unkept():
                self.observe("leave.exclusive")
                if self._is_shared_with_others():
                    self._remove_ours()
                    return
                dead = bury(self.path)
                self.observe("leave.renamed")
                users.unlock()
                self.observe("leave.unlocked")
                remove_dead(dead, self.observe)
                self.observe("leave.removed")
        finally:
            self._close()

    @contextlib.contextmanager
    def locked(self, timeout_s: float) -> Iterator[LockFile]:
        """Hold ``.lock``: for accounting and eviction, never while waiting or writing. Not to be entered again inside.

        Who has waited in vain once waits only briefly until it is free again: its holder is stopped, and each of many
        fills would wait for all of `timeout_s`.

        Raises:
            DeadlineError: Somebody else held it for `timeout_s`.
        """
        deadline = time.monotonic() + (min(timeout_s, _STUCK_S) if self._is_stuck else timeout_s)
        held = self._mutex.acquire(timeout=max(0.0, deadline - time.monotonic()))
        try:
            # At once, if possible; a poll costs more than the lock.
            lock = (self._try_lock() if held else None) or self._wait_lock(deadline, timeout_s, held=held)
            self._is_stuck = False
            yield lock
        finally:
            if held:
                if self._lock is not None:
                    self._lock.unlock()
                self._mutex.release()

    def _wait_lock(self, deadline: float, timeout_s: float, *, held: bool) -> LockFile:
        try:
            return poll(
                lambda: self._try_lock() if held else None,
                deadline,
                lambda: (
                    f"{self.path}/{LOCK}: held by process {lock_holders(LOCK, self.dir_fd)} for {timeout_s:g} s, "
                    "wanted for accounting. Look whether that process is stopped, and end it."
                ),
            )
        except DeadlineError:
            self._is_stuck = True
            raise

    def _try_lock(self) -> LockFile | None:
        if self._lock is None:
            self._lock = LockFile(LOCK, self.dir_fd)
        if not self._lock.try_exclusive():
            return None
        if not self._lock.is_named():  # somebody removed the file: a lock on it keeps nobody out
            self._lock.close()
            self._lock = None
            return None
        return self._lock

    def _is_shared_with_others(self) -> bool:
        return not all(map(is_ours, os.listdir(self.dir_fd)))  # noqa: PTH208, an open directory

    def _remove_ours(self) -> None:
        """Take away what caches made in a directory that holds other things as well, ``.users`` last."""
        for name in sorted(filter(is_ours, os.listdir(self.dir_fd)), key=USERS.__eq__):  # noqa: PTH208
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=self.dir_fd)

    def _drop_unkept(self) -> bool:
        """As `drop_unkept`, which removes files and does not count them."""
        with contextlib.suppress(OSError), DESCRIPTORS.opened(LOCK, os.O_RDWR | os.O_CREAT, self.dir_fd) as fd:
            os.pwrite(fd, IN_DOUBT, 0)
        return drop_unkept(self.dir_fd)

    def is_current(self) -> bool:
        """Whether its path still leads to it, and to the ``.users`` that is open here."""
        return leads_to(self.path, self.dir_fd) and self._users is not None and self._users.is_named()

    def _close(self) -> None:
        # A thread may be in the middle of its accounting; one that does not end is not waited for.
        held = self._mutex.acquire(timeout=_CLOSE_S)
        try:
            for lock in (self._users, self._lock):
                if lock is not None:
                    lock.close()
            self._lock = None  # who still asks for it meets a directory that is closed
            DESCRIPTORS.close(self.dir_fd)
            self.dir_fd = -1
        finally:
            if held:
                self._mutex.release()


def _make_private(path: Path) -> None:
    """Make a directory for this user alone; one that is there already is left as it is."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700)
    except FileNotFoundError as error:
        # The parent was removed just now, or it is of a kind in which nothing can be made, such as /proc.
        if path.parent.is_dir():
            raise _refused(path, error) from error
        raise
    except FileExistsError:
        if not path.parent.is_dir():
            raise CacheError(f"{path.parent}: not a directory. {ANOTHER}") from None


def _refused(path: Path, error: OSError) -> CacheError:
    """The error of a directory that cannot be used because the system says no."""
    return CacheError(f"{path}: {error.strerror}, wanted a directory to keep shards in. {ANOTHER}")


def open_private(path: Path) -> int:
    """Open a directory that must be this user's alone.

    Returns:
        A descriptor of DESCRIPTORS, owned by the caller.

    Raises:
        FileNotFoundError: It is not there.
        CacheError: A symbolic link, not a directory, somebody else's, or open to others.
    """
    try:
        dir_fd = DESCRIPTORS.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except NotADirectoryError:
        raise CacheError(
            f"{path}: a symbolic link or a file, wanted a directory of our own. Remove it or choose another one."
        ) from None
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _refused(path, error) from error
    status = os.fstat(dir_fd)
    problem = ""
    if status.st_uid != os.geteuid():
        problem = f"owned by user id {status.st_uid}, wanted {os.geteuid()}. {ANOTHER}"
    elif stat.S_IMODE(status.st_mode) & 0o077:
        problem = f"mode {stat.S_IMODE(status.st_mode):o}, wanted 700. Run 'chmod 700 {path}' if it is yours."
    if problem:
        DESCRIPTORS.close(dir_fd)
        raise CacheError(f"{path}: {problem}")
    return dir_fd


def bury(path: Path) -> Path:
    """Rename a directory, whose ``.users`` the caller holds exclusively, to a unique ``.dead-*`` name."""
    dead = path.with_name(f"{DEAD_PREFIX}{path.name}-{os.getpid()}-{secrets.token_hex(4)}")
    path.rename(dead)
    return dead


def end_deserted(path: Path) -> None:
    """Remove a directory whose users were all killed, unless it is kept; one that somebody uses stays as it is.

    What has no ``.users`` never was a cache's, or is being made: it is left alone.
    """
    with contextlib.suppress(OSError):
        dir_fd = open_private(path)
        try:
            users = LockFile(USERS, dir_fd, create=False)
        except OSError:
            DESCRIPTORS.close(dir_fd)
            return
        CacheDirectory(path, dir_fd, users).leave()


def remove_dead(dead: Path, observe: Observer = ignore) -> None:
    """Delete a ``.dead-*`` directory, ``.users`` last; others may be deleting it at the same time."""
    # A process that entered just before the rename may still add a .users: hence several rounds.
    for _ in range(10):
        try:
            files = sorted(dead.iterdir(), key=lambda file: file.name == USERS)
        except FileNotFoundError:
            return
        for file in files:
            with contextlib.suppress(FileNotFoundError, IsADirectoryError, PermissionError):
                file.unlink()
            observe("remove.one")
        try:
            dead.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            continue
        return
    logger.warning("%s: could not be emptied, wanted to remove it. Remove it by hand.", dead)
