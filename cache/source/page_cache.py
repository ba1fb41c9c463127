"""Files into the page cache ahead of their readers, and how long a disk takes for that."""

import os
import statistics
import time
from collections import deque
from collections.abc import Iterator

from epistream.units import size_text

# What a disk's speed is judged by: a read of about the size of a frame, from which NVMe and SATA flash answer within
# 0.1 to 0.25 ms. Disks with heads take 8 ms, volumes over a network 1 ms and more, or whatever they are sold with.
SAMPLE_BYTES = 64 << 10
_FAST_S = 0.3e-3
_SAMPLES, _ENOUGH = 8, 4
# Pieces that a disk is asked for at a time.
_DEPTH = 4


def is_at_hand(fd: int, offset: int) -> bool:
    """Whether a byte of a file is in the page cache; False where the system cannot tell."""
    try:
        return os.preadv(fd, [bytearray(1)], offset, os.RWF_NOWAIT) == 1
    except (OSError, AttributeError):  # would wait, or the file system or the system cannot tell
        return False


def advise(fd: int, first: int, size: int) -> None:
    """Tell the kernel that a range is wanted soon; it brings as much as the device takes in a request, and no more."""
    os.posix_fadvise(fd, first, size, os.POSIX_FADV_WILLNEED)


class DiskSpeed:
    """What was seen of a disk: single reads that were not in the page cache, and reading on in sequence.

    Attributes:
        num_bytes: that were read in sequence.
    """

    def __init__(self) -> None:
        self._reads_s: deque[float] = deque(maxlen=_SAMPLES)
        self.num_bytes = 0
        self._seconds = 0.0

    def sample(self, fd: int, offset: int) -> bool:
        """Read at a place that will be needed, and note how long it took; True, and nothing, if it was there."""
        began = time.perf_counter()
        if is_at_hand(fd, offset):
            return True
        if os.pread(fd, SAMPLE_BYTES, offset):
            self._reads_s.append(time.perf_counter() - began)
        return False

    def read_on(self, fd: int, first: int, stop: int, buffer: bytearray) -> Iterator[int]:
        """Read a range in sequence, piece by piece, while the disk brings those behind; yields the bytes of each."""
        size, advised = len(buffer), first
        for start in range(first, stop, size):
            began = time.perf_counter()
            while advised < min(stop, start + _DEPTH * size):
                advise(fd, advised, min(size, stop - advised))
                advised += size
            got = os.preadv(fd, [memoryview(buffer)[: stop - start]], start)
            self._seconds += time.perf_counter() - began
            self.num_bytes += got
            if not got:  # the file was truncated
                return
            yield got

    @property
    def is_known(self) -> bool:
        """Whether enough was seen to judge."""
        return len(self._reads_s) >= _ENOUGH

    @property
    def is_slow(self) -> bool:
        """Whether reading ahead in sequence is worth more than reading what is wanted when it is wanted."""
        return self.is_known and self.read_s > _FAST_S

    @property
    def read_s(self) -> float:
        """Seconds that a read takes, 0 before the first."""
        return statistics.median(self._reads_s) if self._reads_s else 0.0

    @property
    def bytes_per_s(self) -> float:
        """Bytes a second in sequence; as single reads bring them before the first of those."""
        if self._seconds:
            return self.num_bytes / self._seconds
        return SAMPLE_BYTES / self.read_s if self.read_s else 0.0

    @property
    def waste(self) -> float:
        """How many times as long a byte takes that is read on its own."""
        return self.read_s * self.bytes_per_s / SAMPLE_BYTES

    def __str__(self) -> str:
        """What it is like, and how it is therefore read; "" while that is not known."""
        if not self.is_known:
            return ""
        found = f"{self.read_s * 1000:.1f} ms a read"
        if not self.is_slow:
            return f"{found}: read where and when needed"
        if self.num_bytes:
            found += f", {size_text(self.bytes_per_s)}/s in sequence"
        return f"{found}: shards are read ahead whole"
