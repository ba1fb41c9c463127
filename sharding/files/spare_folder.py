"""A folder in place of the user's own where that cannot be used: one for a tree of processes, gone with the last.

Its name has the number of the process that they descend from; each holds a shared lock on it, which the kernel ends
with the process. Who leaves it last removes it. Where all were killed at once, the next to need such a folder does.
"""

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from multiprocessing import util
from pathlib import Path

import xxhash

# Taken away or entered by somebody else just now, which takes a moment.
_TRIES, _PAUSE_S = 200, 0.02
# Where memory is: disks are often full together.
_MEMORY = "/dev/shm"
# Folders that this process is in, and the descriptor whose lock says so. A forked child has them too.
_entered: dict[Path, int] = {}


def spare_folders(refusals: list[str]) -> Iterator[Path]:
    """Folders that can be entered, one after the other: with temporary files, then in memory.

    Args:
        refusals: Told why others cannot be.
    """
    try:
        parents = [Path(tempfile.gettempdir())]
    except FileNotFoundError as error:
        parents = []
        refusals.append(f"temporary files: {error.strerror}")
    for parent in (*parents, Path(_MEMORY)):
        try:
            folder = enter(parent)
        except OSError as error:
            refusals.append(f"{parent}: {error}")
        else:
            yield folder


def enter(parent: Path) -> Path:
    """This tree's folder below `parent`; made if there is none, and this process's until it ends.

    Raises:
        OSError: If it cannot be made, or is not this user's alone.
    """
    for folder in _names(parent):
        if _is_held(folder):
            return folder
    _remove_deserted(parent)
    for _ in range(_TRIES):
        names = _names(parent)
        folder = next((name for name in names if name.is_dir()), _own(names))
        folder.mkdir(mode=0o700, exist_ok=True)
        held = _lock(folder)
        if held is not None:
            if not _entered:
                # Unlike `atexit` also at the end of what `multiprocessing` starts.
                util.Finalize(None, _leave_all, exitpriority=-100)
            if _entered.setdefault(folder, held) != held:  # by another thread
                os.close(held)
            return folder
        time.sleep(_PAUSE_S)
    raise TimeoutError(f"{folder}: locked by another process for {_TRIES * _PAUSE_S:g} s")


def entered() -> list[Path]:
    """The folders that this process is in already, since it could not keep something elsewhere."""
    return [folder for folder, held in list(_entered.items()) if _is_at(held, folder)]


def is_first_to_say(folder: Path, what: str) -> bool:
    """Whether nobody of this tree has said `what` yet."""
    mark = folder / f".said-{xxhash.xxh3_64_hexdigest(what.encode())}"
    try:
        os.close(os.open(mark, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        return False
    except OSError:  # twice is better than never
        return True
    return True


def _names(parent: Path) -> list[Path]:
    """The folders of this process and of those that it descends from."""
    import psutil  # late: hardly anybody comes here

    family = [os.getpid()]
    try:
        family += [process.pid for process in psutil.Process().parents()]
    except (psutil.Error, OSError):
        family.append(os.getppid())
    return [parent / f"epistream-indexes-{os.geteuid()}-{pid}" for pid in family if pid > 1 or len(family) == 1]


def _own(names: list[Path]) -> Path:
    """What siblings share, the ranks of a launcher for example; the first of all processes has no siblings."""
    return names[min(1, len(names) - 1)]


def _is_held(folder: Path) -> bool:
    held = _entered.get(folder)
    if held is None:
        return False
    if _is_at(held, folder):
        return True
    os.close(_entered.pop(folder))  # removed by hand
    return False


def _lock(folder: Path, how: int = fcntl.LOCK_SH) -> int | None:
    """A descriptor with the folder's lock; None if others are in the way, or it is gone meanwhile."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        status = os.fstat(descriptor)
        if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
            raise PermissionError(f"{folder}: not a folder of this user alone")
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, how | fcntl.LOCK_NB)
            if _is_at(descriptor, folder):
                kept, descriptor = descriptor, -1
                return kept
        return None
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _is_at(descriptor: int, folder: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), folder.lstat())
    except OSError:
        return False


def _remove_deserted(parent: Path) -> None:
    for folder in parent.glob(f"epistream-indexes-{os.geteuid()}-*"):
        _remove(folder)


def _remove(folder: Path) -> None:
    """Remove a folder that no process is in."""
    with contextlib.suppress(OSError):
        held = _lock(folder, fcntl.LOCK_EX)
        if held is not None:
            try:
                aside = folder.with_name(f".{folder.name}.{os.getpid()}")
                folder.rename(aside)  # from here on nobody can enter it
                shutil.rmtree(aside, ignore_errors=True)
            finally:
                os.close(held)


def _leave_all() -> None:
    while _entered:
        folder, held = _entered.popitem()
        os.close(held)  # a forked child that lives on still holds it
        _remove(folder)
