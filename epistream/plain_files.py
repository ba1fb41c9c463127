"""Whether a path is a plain file that can be read, before anybody opens it: a FIFO would never answer."""

import errno
import os
import stat
from pathlib import Path

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe (FIFO)",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def not_a_plain_file(path: str | os.PathLike[str]) -> str | None:
    """What is at a path instead of a file that can be read, in words for a message; None if it is one."""
    try:
        status = Path(path).stat()
    except OSError as error:
        if error.errno == errno.ELOOP:
            return "a symbolic link that leads back to itself"
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return _dangling(path) or "no such file"
        return _refused(error)
    except ValueError:  # a null byte
        return "no such file"
    if not stat.S_ISREG(status.st_mode):
        return _KINDS.get(stat.S_IFMT(status.st_mode), "no plain file")
    return None if os.access(path, os.R_OK) else "not readable (permission denied)"


def refuse_other_than_plain(path: str | os.PathLike[str]) -> None:
    """Raise OSError, as opening would and before it waits, if there is no plain file at a path."""
    problem = not_a_plain_file(path)
    if problem == "no such file":
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(path))
    if problem:
        raise OSError(errno.EINVAL, problem, os.fspath(path))


def pointer_in_place_of(path: str | os.PathLike[str]) -> str:
    """What to do about a Git LFS pointer in place of a file, as the end of a message; empty if it is none."""
    try:
        if not_a_plain_file(path) is None:
            with Path(path).open("rb") as file:
                if file.read(len(LFS_POINTER)) == LFS_POINTER:
                    return " It is a Git LFS pointer, not the file itself: run 'git lfs pull'."
    except OSError:
        pass
    return ""


def version_of_file(status: os.stat_result) -> str:
    """What changes whenever a local file is replaced or written to."""
    return f"bytes={status.st_size};mtime_ns={status.st_mtime_ns};inode={status.st_ino}"


def _dangling(path: str | os.PathLike[str]) -> str | None:
    try:
        return f"a symbolic link to {Path(path).readlink()}, which is not there"
    except OSError:
        return None


def _refused(error: OSError) -> str:
    reason = (error.strerror or str(error)).lower()
    return f"not readable ({reason})"
