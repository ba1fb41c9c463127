"""The byte cap that the users of a directory agreed on, in its ``.budget`` file."""

import logging
import os

from epistream.cache.store.descriptors import DESCRIPTORS
from epistream.cache.store.directory import BUDGET, CacheDirectory

logger = logging.getLogger(__name__)

_NO_CAP = "none"


def read_cap(directory: CacheDirectory) -> int | None:
    """The directory's cap in bytes; None for none."""
    text = _read(directory)
    return int(text) if text.isdecimal() else None


def write_cap(directory: CacheDirectory, cap: int | None) -> None:
    """Set the directory's cap. Under ``.lock``."""
    fd = DESCRIPTORS.open(BUDGET, os.O_RDWR | os.O_CREAT, dir_fd=directory.dir_fd)
    try:
        os.ftruncate(fd, 0)
        os.pwrite(fd, (_NO_CAP if cap is None else str(cap)).encode(), 0)
    finally:
        DESCRIPTORS.close(fd)


def agree_on_cap(directory: CacheDirectory, wish: int | None, *, sole: bool) -> None:
    """Settle the cap on entering. Under ``.lock``.

    The first who enters decides, and so does whoever finds nobody else; others are told that they differ.

    Args:
        directory: Entered.
        wish: Bytes, or None for no wish.
        sole: Whether nobody else uses the directory.
    """
    text = _read(directory)
    if not (text == _NO_CAP or text.isdecimal()):  # none yet, or torn
        write_cap(directory, wish)
    elif wish is not None and str(wish) != text:
        if sole:
            write_cap(directory, wish)
        else:
            logger.warning(
                "%s: a budget of %s bytes is in force, wanted %d. Others use the directory: change it for all "
                "with 'epistream cache resize'.",
                directory.path,
                text,
                wish,
            )


def _read(directory: CacheDirectory) -> str:
    try:
        fd = DESCRIPTORS.open(BUDGET, os.O_RDONLY, dir_fd=directory.dir_fd)
    except FileNotFoundError:
        return ""
    try:
        return os.pread(fd, 64, 0).decode(errors="replace").strip()
    finally:
        DESCRIPTORS.close(fd)
