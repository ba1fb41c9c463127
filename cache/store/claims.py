"""Claims: what live jobs use of the entries that were made in a group, so that no job evicts what another needs."""

import contextlib
import errno
import os

from epistream.cache.store.directory import CacheDirectory
from epistream.cache.store.locks import LockFile
from epistream.cache.store.markers import CLAIM

# Hex digits of a key that tell its group.
_DIGITS = 8


def group_of(key: str) -> str:
    """The digits of a key that tell its group; of an entry without one they are those of no claim."""
    return key[:_DIGITS]


class Claims:
    """The claims of one process on a directory, and what others claim there.

    A claim is a shared lock on ``claim-<8 hex digits>``: its holders use the entries whose keys begin with these
    digits. The file says how many bytes all of them are. The kernel ends a claim with its process, however that dies.
    Files of claims are locked, looked at and removed under ``.lock`` alone: whether a claim is alive is seen by trying
    its lock, and two who try at a time would each take the other for a claimant.

    Args:
        directory: What is claimed; entered.
        lock_timeout_s: How long ``.lock`` is waited for.
    """

    def __init__(self, directory: CacheDirectory, lock_timeout_s: float) -> None:
        self._directory = directory
        self._lock_timeout_s = lock_timeout_s
        self._own: dict[str, LockFile] = {}
        self._told: dict[str, int] = {}
        self._is_closed = False

    def claim(self, group: str, num_bytes: int) -> int:
        """Tell the others on the node that this process uses so many bytes of the entries of a group.

        Args:
            group: The 8 hex digits that their keys begin with.
            num_bytes: Of all of them that it uses, whoever made them; 0 gives the claim up.

        Returns:
            Bytes that live processes claim in other groups.

        Raises:
            DeadlineError: ``.lock`` could not be had.
        """
        name = CLAIM + group
        if self._told.get(name, 0) != num_bytes or (num_bytes and not self._own[name].is_named()):
            with self._directory.locked(self._lock_timeout_s):
                self._tell(name, num_bytes)
        # Listed after the claim was told, so that of two who claim at the same time at least the later one sees both;
        # and not under .lock, because that takes as long as there are entries.
        others = [other for other in claim_names(self._directory) if other != name]
        if not others:
            return 0
        with self._directory.locked(self._lock_timeout_s):
            return sum(_live_bytes(self._directory, other) or 0 for other in others)

    def are_others(self, key: str) -> bool:
        """Whether another live process claims the group of a key, and this one does not. Under ``.lock``."""
        name = CLAIM + group_of(key)
        return name not in self._own and _live_bytes(self._directory, name) is not None

    def close(self) -> None:
        """Give every claim up; the files go when somebody looks for claims."""
        self._is_closed = True
        for name in list(self._own):
            self._drop(name)

    def _tell(self, name: str, num_bytes: int) -> None:
        observe = self._directory.observe
        observe("claim.locked")
        if name in self._own and not self._own[name].is_named():  # the file was removed by hand
            self._drop(name)
        if not num_bytes:
            self._drop(name)
            _live_bytes(self._directory, name)
            return
        if name not in self._own:
            lock = LockFile(name, self._directory.dir_fd)
            observe("claim.created")
            if not lock.try_shared():
                lock.close()
                return  # locked by a stranger to the protocol: there is no claim then
            self._own[name] = lock
        observe("claim.held")
        try:
            # In place and of one length: whoever is killed here leaves the old number or the new one.
            os.pwrite(self._own[name].fd, f"{num_bytes:<20}".encode(), 0)
            self._told[name] = num_bytes
        except OSError as error:  # a full file system: entries are spared all the same
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
        observe("claim.told")
        if self._is_closed:  # by another thread, meanwhile
            self._drop(name)

    def _drop(self, name: str) -> None:
        self._told.pop(name, None)
        lock = self._own.pop(name, None)
        if lock is not None:
            lock.close()


def claim_names(directory: CacheDirectory) -> list[str]:
    """The files of claims, of live and of dead processes."""
    return [name for name in os.listdir(directory.dir_fd) if name.startswith(CLAIM)]  # noqa: PTH208, an open directory


def drop_dead_claims(directory: CacheDirectory) -> None:
    """Remove the files of claims that nobody holds. Under ``.lock``."""
    for name in claim_names(directory):
        _live_bytes(directory, name)


def read_claim(directory: CacheDirectory, name: str) -> int:
    """Bytes that a claim says; 0 where it is gone or says nothing."""
    with (
        contextlib.suppress(FileNotFoundError),
        contextlib.closing(LockFile(name, directory.dir_fd, create=False)) as lock,
    ):
        return _bytes_in(lock)
    return 0


def _live_bytes(directory: CacheDirectory, name: str) -> int | None:
    """Bytes of a claim; None if nobody holds it, and its file is removed then. Under ``.lock``."""
    try:
        lock = LockFile(name, directory.dir_fd, create=False)
    except FileNotFoundError:
        return None
    with contextlib.closing(lock):
        if not lock.try_exclusive():
            return _bytes_in(lock)
        if lock.is_named():
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=directory.dir_fd)
            directory.observe("claim.removed")
        return None


def _bytes_in(lock: LockFile) -> int:
    text = lock.read_text().strip()
    return int(text) if text.isdecimal() else 0
