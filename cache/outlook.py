"""The budget that a cache has, or would have: found by looking alone. Nothing is made, entered or locked."""

import os
from pathlib import Path

from epistream.cache.store.budget import Budget, Limits, measure
from epistream.cache.store.cap import read_cap
from epistream.cache.store.descriptors import DESCRIPTORS
from epistream.cache.store.directory import CacheDirectory
from epistream.cache.store.eviction import held_bytes, survey


def budget_ahead(path: Path, wish: int | None, limits: Limits) -> Budget:
    """The budget of whoever enters a directory, which need not be there yet.

    Args:
        path: The directory.
        wish: The cap that the user wants in bytes; the one in force counts too, and the least of them is taken.
        limits: The rest.

    Raises:
        OSError: It cannot be looked at.
    """
    there = path.is_dir()
    place = path if there else next(parent for parent in path.parents if parent.is_dir()).resolve()
    dir_fd = DESCRIPTORS.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        directory = CacheDirectory(path, dir_fd, None)
        caps = [cap for cap in (wish, read_cap(directory) if there else None) if cap is not None]
        return measure(dir_fd, min(caps, default=None), held_bytes(survey(directory)) if there else 0, limits)
    finally:
        DESCRIPTORS.close(dir_fd)
