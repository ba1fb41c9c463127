"""The lock of a file: for one process of this machine at a time, and free again when that ends, however it ends."""

import contextlib
import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from pathlib import Path

_log = logging.getLogger(__name__)

# What most locks here are held for takes a few milliseconds, and a first batch waits for dozens of them.
_POLL_S = 0.01
# What file systems without locks answer: Lustre mounted without them, NFS without its daemon, some of FUSE.
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)


@contextlib.contextmanager
def locked(path: Path, deadline_s: float) -> Iterator[None]:
    """Hold the lock of `path`, a file that is made if it is missing; where there are no locks, only warn.

    Args:
        path: The file. Whoever holds its lock may remove it.
        deadline_s: How long to wait for another process; 0 is one attempt.

    Raises:
        TimeoutError: If another process holds it.
        OSError: If the file cannot be made.
    """
    import filelock  # late: it hooks into every fork of a process, and only who locks should pay for that

    lock: filelock.BaseFileLock = filelock.FileLock(path, thread_local=False)
    try:
        lock.acquire(deadline_s, _POLL_S)
    except (OSError, NotImplementedError) as error:
        is_marker = isinstance(lock, filelock.SoftFileLock)
        if not is_marker and getattr(error, "errno", errno.ENOSYS) not in _NO_LOCKS:
            raise
    if isinstance(lock, filelock.SoftFileLock):
        lock.release()  # a marker in place of a lock outlives a process that is killed
    if not lock.is_locked:
        _log.warning("%s: this file system has no locks; see to it that no other process writes there", path)
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def shared_lock(path: Path) -> Iterator[None]:
    """Hold the lock of `path` beside others that share it; who holds it by `locked` has it alone.

    Raises:
        TimeoutError: If somebody has it alone.
        OSError: If the file cannot be made.
    """
    fd = _open_shared(path)
    try:
        yield
    finally:
        os.close(fd)


def _open_shared(path: Path) -> int:
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            if os.fstat(fd).st_nlink:
                return fd  # else who had it alone has removed it meanwhile
        except BlockingIOError as error:
            os.close(fd)
            raise TimeoutError(f"{path}: somebody has it alone") from error
        except OSError as error:
            if error.errno in _NO_LOCKS:
                _log.warning("%s: this file system has no locks; see to it that no other process writes there", path)
                return fd
            os.close(fd)
            raise
        os.close(fd)
