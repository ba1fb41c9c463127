"""A note on each entry of where it came from, for people who look at the cache."""

import contextlib
import os

_ATTRIBUTE = "user.epistream.url"


def write_origin(fd: int, url: str) -> None:
    """Note the URL on an open file; queries, which may hold secrets, are left out."""
    with contextlib.suppress(OSError):  # tmpfs knows such attributes since Linux 6.6
        os.setxattr(fd, _ATTRIBUTE, url.partition("?")[0].encode()[:1000])


def read_origin(dir_fd: int, name: str) -> str:
    """The URL noted on a file of a directory; "" where there is none."""
    try:
        return os.getxattr(f"/proc/self/fd/{dir_fd}/{name}", _ATTRIBUTE).decode(errors="replace")
    except OSError:
        return ""
