"""A page cache and a disk for `epistream.cache.source.page_cache`: notes all reads, makes up the time."""

import os
from pathlib import Path

PAGE = 4096


class FakeDisk:
    """Stands in for the modules `os` and `time` there. Bytes are the files' own.

    Args:
        read_s: seconds of a read of what is not in the page cache.
        bytes_per_s: beside that.
    """

    RWF_NOWAIT = 8
    POSIX_FADV_WILLNEED = 3

    def __init__(self, read_s: float, bytes_per_s: float = 100e6) -> None:
        self.read_s, self.bytes_per_s = read_s, bytes_per_s
        self.now = 0.0
        self.cached: set[tuple[str, int]] = set()
        self.read: list[tuple[str, int, int]] = []
        self.advised: list[tuple[str, int, int]] = []
        self.num_probes = 0
        self.last: tuple[str, int] = ("", 0)

    def install(self, monkeypatch) -> "FakeDisk":
        from epistream.cache.source import page_cache

        monkeypatch.setattr(page_cache, "os", self)
        monkeypatch.setattr(page_cache, "time", self)
        return self

    def keep(self, path: Path) -> None:
        """Put a file into the page cache."""
        self.cached |= {(path.name, page) for page in range(-(-path.stat().st_size // PAGE))}

    def perf_counter(self) -> float:
        return self.now

    def posix_fadvise(self, fd: int, offset: int, size: int, advice: int) -> None:
        assert advice == self.POSIX_FADV_WILLNEED
        self.advised.append((self._name(fd), offset, size))

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        data = os.pread(fd, size, offset)
        self._bring(fd, offset, len(data))
        return data

    def preadv(self, fd: int, buffers: list, offset: int, flags: int = 0) -> int:
        name = self._name(fd)
        if flags:
            self.num_probes += 1
            if (name, offset // PAGE) not in self.cached:
                raise BlockingIOError
            return os.preadv(fd, buffers, offset)
        got = os.preadv(fd, buffers, offset)
        self._bring(fd, offset, got)
        return got

    def _bring(self, fd: int, offset: int, size: int) -> None:
        name = self._name(fd)
        self.read.append((name, offset, size))
        pages = {(name, page) for page in range(offset // PAGE, -(-(offset + size) // PAGE))}
        if pages - self.cached:
            if self.last != (name, offset):
                self.now += self.read_s
            self.now += size / self.bytes_per_s
        self.last = (name, offset + size)
        self.cached |= pages

    def _name(self, fd: int) -> str:
        return Path(f"/proc/self/fd/{fd}").readlink().name
