"""Homes that keep nothing, each for a reason of its own, and what is left when all is over."""

import errno
import os
import pwd
import tempfile

import pytest

from epistream.sharding.files import spare_folder, user_cache


def without_home(monkeypatch):
    """A user whom the machine does not know, as in a container with a number for a user."""

    def unknown(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)


def refuse_writes(monkeypatch, below, code, after=0):
    """Every write below a folder fails, but the first `after` of them."""
    real, left = user_cache.write_local, [after]

    def write(path, data, **how):
        if path.is_relative_to(below):
            if not left[0]:
                raise OSError(code, os.strerror(code), str(path))
            left[0] -= 1
        real(path, data, **how)

    monkeypatch.setattr(user_cache, "write_local", write)


def use_home(monkeypatch, tmp_path, kind):
    """Give this process a home of a kind; returns what messages call its folder."""
    home = tmp_path / "home"
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(home))
    folder = str(home / ".cache" / "epistream" / "indexes")
    if kind == "a file":
        home.write_text("")
    elif kind == "no home":
        without_home(monkeypatch)
        return "~/.cache/epistream/indexes"
    elif kind == "relative":
        monkeypatch.setenv("XDG_CACHE_HOME", "somewhere")
        return "somewhere/epistream/indexes"
    elif kind == "unknown ~name":
        monkeypatch.setenv("XDG_CACHE_HOME", "~nobody-of-that-name/x")
        return "~nobody-of-that-name/x/epistream/indexes"
    elif kind == "where nothing can be made":
        monkeypatch.setenv("HOME", "/proc/self")
        return "/proc/self/.cache/epistream/indexes"
    elif kind in CODES:
        refuse_writes(monkeypatch, home, CODES[kind])
    elif kind == "locks refused":

        def refused(path, deadline_s):
            if path.is_relative_to(home):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
            return real(path, deadline_s)

        real = user_cache.locked
        monkeypatch.setattr(user_cache, "locked", refused)
    else:
        raise ValueError(kind)
    return folder


CODES = {
    "full": errno.ENOSPC,
    "over its quota": errno.EDQUOT,
    "read-only": errno.EROFS,
    "a dead mount": errno.ETIMEDOUT,
    "a limit on files": errno.EFBIG,
}
KINDS = (
    *("a file", "no home", "relative", "unknown ~name", "where nothing can be made", "locks refused"),
    *CODES,
)


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The folder for temporary files; what was there is taken away as at the end of a process."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setattr(spare_folder, "_MEMORY", str(tmp_path / "memory"))
    yield folder
    spare_folder._leave_all()
    assert list(folder.iterdir()) == []
