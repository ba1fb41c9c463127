"""What outlives the last user of a cache's directory, in its ``.keep`` file: everything, or chosen keys."""

import contextlib
import os
from collections.abc import Collection

from epistream.cache.store.descriptors import DESCRIPTORS

KEEP = ".keep"
# Read by nobody, and removed with what is not kept, should its writer die.
_NEW = ".keep.new"


def mark_kept(dir_fd: int, keys: Collection[str] | None = None) -> None:
    """Let a directory outlive its last user, with all that it holds, or with these keys alone. Under ``.lock``.

    An empty ``.keep`` stands for all, and whoever wants all wins; else there is a key on each line.

    Raises:
        OSError: it cannot be written; what was said before stands.
    """
    if keys is not None and not keys:
        return
    kept = _kept(dir_fd)
    wanted = set() if keys is None or kept == set() else {*(kept or ()), *keys}
    if wanted == kept:
        return
    # As a whole or not at all: one that was made and not written would stand for all.
    fd = DESCRIPTORS.open(_NEW, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, dir_fd=dir_fd)
    try:
        text = memoryview("".join(f"{key}\n" for key in sorted(wanted)).encode())
        while text:
            text = text[os.write(fd, text) :]
        os.rename(_NEW, KEEP, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
    except OSError:
        os.unlink(_NEW, dir_fd=dir_fd)
        raise
    finally:
        DESCRIPTORS.close(fd)


def drop_unkept(dir_fd: int) -> bool:
    """Whether a directory outlives its last user, who calls this; what is not to be kept is removed then."""
    kept = _kept(dir_fd)
    if not kept:
        return kept is not None
    for name in os.listdir(dir_fd):
        key, dot, _ = name.rpartition(".")
        if dot and key and key not in kept:  # names that begin with a dot are not of entries
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=dir_fd)
    return True


def _kept(dir_fd: int) -> set[str] | None:
    """The keys that are kept, none of them for all; None if the directory does not outlive its last user."""
    try:
        fd = DESCRIPTORS.open(KEEP, os.O_RDONLY, dir_fd=dir_fd)
    except FileNotFoundError:
        return None
    try:
        return set(os.pread(fd, os.fstat(fd).st_size, 0).decode(errors="replace").split())
    finally:
        DESCRIPTORS.close(fd)
