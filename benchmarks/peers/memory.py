"""Memory of a job's processes: their own pages, and the machine's shared memory."""

import os
from pathlib import Path

import psutil


def tree() -> list[psutil.Process]:
    """This process and all that it started."""
    me = psutil.Process()
    return [me, *me.children(recursive=True)]


def own_bytes(pid: int) -> int:
    """A process's share of anonymous and file pages; shared memory is counted once for the machine."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("Pss_Anon:", "Pss_File:")))


def shared_bytes() -> int:
    """Shared memory in use on the machine: tmpfs files, memfds, anonymous shared mappings."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("Shmem:"))) * 1024


def forget_pages(folder: Path) -> None:
    """Ask the kernel to drop the page cache of a folder's files."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_pages(folder: Path) -> None:
    """Have the files of a folder in the page cache, whatever the machine did with them since they were written."""
    buffer = bytearray(8 << 20)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass
