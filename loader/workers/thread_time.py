"""What a thread spent its time on, as the kernel counts it: running, waiting for a core, reading from storage."""

import resource
import time
from dataclasses import dataclass
from pathlib import Path

_SCHEDSTAT = Path("/proc/thread-self/schedstat")
_MIN_LAP_S = 0.005
_SECTOR_BYTES = 512  # unit of ru_inblock, see getrusage(2)


@dataclass(frozen=True)
class ThreadTime:
    """Totals of one thread.

    Attributes:
        cpu_s: seconds on a core.
        queue_s: seconds ready to run, but without a core; 0 where the kernel does not say.
        storage_bytes: bytes that had to come from a disk of this machine, not from the page cache.
    """

    cpu_s: float = 0.0
    queue_s: float = 0.0
    storage_bytes: int = 0

    def __add__(self, other: "ThreadTime") -> "ThreadTime":
        return ThreadTime(
            self.cpu_s + other.cpu_s, self.queue_s + other.queue_s, self.storage_bytes + other.storage_bytes
        )

    def __sub__(self, other: "ThreadTime") -> "ThreadTime":
        return ThreadTime(
            self.cpu_s - other.cpu_s, self.queue_s - other.queue_s, self.storage_bytes - other.storage_bytes
        )


_NOTHING = ThreadTime()


def read_thread_time() -> ThreadTime:
    """The calling thread's totals so far; two of them differ by what lay between. About 15 microseconds.

    Source: https://docs.kernel.org/scheduler/sched-stats.html, "/proc/<pid>/schedstat".
    """
    try:
        queue_ns = int(_SCHEDSTAT.read_bytes().split()[1])
    except (OSError, IndexError, ValueError):
        queue_ns = 0
    blocks = resource.getrusage(resource.RUSAGE_THREAD).ru_inblock
    return ThreadTime(time.thread_time(), queue_ns / 1e9, blocks * _SECTOR_BYTES)


class ThreadTimer:
    """What the thread that made it did since it was last asked, for threads that do nothing else worth mention.

    The kernel is asked once in five milliseconds at most: the answers are added up, so that what is left out of one
    is in the next, and small batches do not pay more for being counted than large ones.
    """

    def __init__(self) -> None:
        self._asked_s = time.perf_counter()
        self._before = read_thread_time()

    def lap(self) -> ThreadTime:
        """What it did since the last answer; zeros, to be in the next one, if that was within five milliseconds."""
        now = time.perf_counter()
        if now - self._asked_s < _MIN_LAP_S:
            return _NOTHING
        total = read_thread_time()
        added = total - self._before
        self._asked_s, self._before = now, total
        return added
