"""How much memory a loader's processes take, counted so that shared pages are not counted twice."""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from epistream.cache.options import CacheOptions
from epistream.cache.store.places import default_directory


@dataclass(frozen=True)
class ProcessMemory:
    """One process. `pss_bytes` counts each page that n processes share as 1/n, so that they add up."""

    name: str
    pid: int
    pss_bytes: int


@dataclass(frozen=True)
class MemoryUse:
    """What a rank and the cache of its node hold.

    Attributes:
        processes: this process and its workers.
        ring_bytes: size of the batch ring; what of it is in use is in `processes` too.
        cache_path: the shared-memory directory of the node's cache.
        cache_bytes: what lies in it, for all jobs that share it.
    """

    processes: tuple[ProcessMemory, ...]
    ring_bytes: int
    cache_path: str
    cache_bytes: int

    @property
    def pss_bytes(self) -> int:
        """Sum over the processes."""
        return sum(process.pss_bytes for process in self.processes)


def measure_memory(worker_pids: list[int], ring_bytes: int, options: CacheOptions) -> MemoryUse:
    """Look now; takes a few milliseconds for each process. Processes that are gone are left out."""
    processes = []
    for name, pid in [("main", os.getpid()), *((f"worker {i}", pid) for i, pid in enumerate(worker_pids))]:
        with suppress(psutil.Error):
            processes.append(ProcessMemory(name, pid, psutil.Process(pid).memory_full_info().pss))
    path = Path(options.directory) if options.directory else default_directory("shm")
    return MemoryUse(tuple(processes), ring_bytes, str(path), _directory_bytes(path))


def _directory_bytes(path: Path) -> int:
    total = 0
    with suppress(OSError), os.scandir(path) as items:
        for item in items:
            with suppress(OSError):  # shards may be evicted while we look
                total += item.stat(follow_symlinks=False).st_blocks * 512
    return total
