"""Removing directories of caches that nobody uses any more: the dead cannot, if all were killed at once."""

import contextlib
import os
import re
from pathlib import Path

from epistream.cache.store.descriptors import DESCRIPTORS
from epistream.cache.store.directory import (
    DEAD_PREFIX,
    USERS,
    CacheDirectory,
    Observer,
    bury,
    ignore,
    open_private,
    remove_dead,
)
from epistream.cache.store.locks import LockFile
from epistream.cache.store.markers import is_kept, is_ours
from epistream.cache.store.places import is_of_family


def sweep(path: Path, family: str | None, observe: Observer = ignore) -> list[Path]:
    """Remove what dead processes left beside `path`: nobody else will, if all were killed at once.

    Args:
        path: The cache's own directory, which is not touched.
        family: Directories of this name, or of this name with a "-" and more, are caches too. None for a
            directory that the user named: what lies beside it is none of ours.
        observe: Told each step.

    Returns:
        The directories that were removed.
    """
    removed: list[Path] = []
    try:
        others = list(path.parent.iterdir())
    except OSError:
        return removed
    grave = re.compile(rf"{re.escape(DEAD_PREFIX + (family or path.name))}(-.*)?-\d+-[0-9a-f]{{8}}")
    for other in others:
        name = other.name
        dead = grave.fullmatch(name) is not None
        alive = family is not None and is_of_family(name, family) and other != path
        if (dead or alive) and _end_if_unheld(other, dead=dead, observe=observe):
            removed.append(other)
    return removed


def _end_if_unheld(path: Path, *, dead: bool, observe: Observer) -> bool:
    """Remove a directory that nobody uses and nobody asked to keep; True if it is gone."""
    try:
        dir_fd = open_private(path)
    except OSError:
        return False
    try:
        try:
            users = LockFile(USERS, dir_fd, create=False)
        except FileNotFoundError:
            if dead:
                remove_dead(path, observe)
                return True
            # Somebody may be about to make .users in it: only the system knows whether it is empty.
            with contextlib.suppress(OSError):
                path.rmdir()
                return True
            return False
        with contextlib.closing(users):
            directory = CacheDirectory(path, dir_fd, users, observe)
            names = [] if dead else os.listdir(dir_fd)  # noqa: PTH208, an open directory
            is_alone = users.try_exclusive() and not is_kept(dir_fd) and all(map(is_ours, names))
            if not is_alone or not directory.is_current():
                return False
            grave = path if dead else bury(path)
            observe("sweep.buried")
            users.unlock()
            remove_dead(grave, observe)
            return True
    finally:
        DESCRIPTORS.close(dir_fd)
