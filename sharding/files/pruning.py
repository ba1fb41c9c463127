"""Keeps the folder of a user's indexes small: what nobody opened for long goes, and never what is in use."""

import contextlib
import errno
import os
import re
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from epistream.sharding.files.locks import locked

_DAY_S = 86_400.0
# What is kept, the lock of whoever makes it, and what a killed process leaves of either. Nothing else is touched.
_OURS = re.compile(
    r"\.?([0-9a-f]{32})\.(?:(?:\d+\.)?index|rows|pictures|statistics-\d+\.(?:json|tables)|(?:packets|footer|rows)\.tables|looks\.json|"
    r"(?:statistics-\d+\.)?lock)(?:\.\d+\.tmp)?"
)
# Its time says when the folder was pruned; its lock, who is about it.
_MARK = ".pruned"


@dataclass(frozen=True)
class Limits:
    """What stays.

    Args:
        max_bytes: Of all files together; those opened longest ago go first.
        unused_days: Files that nobody opened for so long go in any case.
        safe_days: Files opened since then stay in any case: a stream may be reading them.
    """

    max_bytes: int = 2 << 30
    unused_days: float = 90.0
    safe_days: float = 14.0


def mark_used(path: Path) -> None:
    """Note that a kept file is in use, before it is relied on: disks are often mounted without times of reading.

    Raises:
        FileNotFoundError: If it was removed meanwhile.
    """
    modified_ns = path.stat().st_mtime_ns
    try:
        os.utime(path, ns=(time.time_ns(), modified_ns))
    except PermissionError:  # somebody else's
        return
    except OSError as error:
        if error.errno != errno.EROFS:
            raise


def mark_seen(path: Path, time_ns: int) -> None:
    """Note as a kept file's time of writing when its source was last seen as it was then; no harm if that fails."""
    with contextlib.suppress(OSError):
        os.utime(path, ns=(time.time_ns(), time_ns))


def prune_daily(folder: Path, limits: Limits | None = None) -> None:
    """`prune`, unless it was done within a day or another process is about it; a folder that resists stays as it is."""
    mark = folder / _MARK
    with contextlib.suppress(OSError):
        if mark.exists() and 0 <= time.time() - mark.stat().st_mtime < _DAY_S:
            return
        with locked(mark, 0.0):  # TimeoutError is an OSError
            os.utime(mark)
            prune(folder, limits or Limits())


def prune(folder: Path, limits: Limits) -> list[str]:
    """Remove what is not worth keeping; returns the names of the files that are gone.

    A file's last use is the later one of its times of reading and writing. Readers say that they use a file
    (`mark_used`) before they rely on it; it is put aside, looked at again, and only then removed.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for name in sorted(path.name for path in folder.iterdir()):
        if matched := _OURS.fullmatch(name):
            groups[matched[1]].append(name)
    now = time.time()
    known = sorted((_last_use(folder, names), _num_bytes(folder, names), names) for names in groups.values())
    total = sum(num_bytes for _, num_bytes, _ in known)
    gone: list[str] = []
    for last_use, num_bytes, names in known:
        days = (now - last_use) / _DAY_S
        if days < limits.safe_days or (days < limits.unused_days and total <= limits.max_bytes):
            break
        if _remove(folder, names, now - limits.safe_days * _DAY_S):
            total -= num_bytes
            gone += names
    return gone


def _remove(folder: Path, names: Sequence[str], used_before: float) -> bool:
    """Remove the files of one source; False if somebody makes or reads them just now."""
    # Sorted: the first part of an index comes first, and where that is missing nobody asks for the others.
    kept = [name for name in names if name.endswith((".index", ".json", ".tables", ".rows", ".pictures"))]
    with contextlib.ExitStack() as held:
        for name in names:
            if name.endswith(".lock"):
                try:
                    held.enter_context(locked(folder / name, 0.0))
                except TimeoutError:
                    return False
        if kept:
            aside = folder / f".{kept[0]}.0.tmp"
            with contextlib.suppress(FileNotFoundError):
                (folder / kept[0]).rename(aside)
                if _time_of(aside) >= used_before:
                    aside.rename(folder / kept[0])
                    return False
                aside.unlink()
        for name in names:
            (folder / name).unlink(missing_ok=True)
    return True


def _last_use(folder: Path, names: Sequence[str]) -> float:
    return max(_time_of(folder / name) for name in names)


def _time_of(path: Path) -> float:
    try:
        status = path.stat()
    except FileNotFoundError:
        return 0.0
    return max(status.st_atime, status.st_mtime)


def _num_bytes(folder: Path, names: Sequence[str]) -> int:
    total = 0
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            total += (folder / name).stat().st_size
    return total
