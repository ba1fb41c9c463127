"""A folder that stands for the kernel's: what it says of memory may change at any time."""

from pathlib import Path

from epistream.cgroups import System

GIB = 1 << 30


class Machine:
    """A machine that tells what a test wants it to tell.

    Args:
        path: An empty folder.
    """

    def __init__(self, path: Path) -> None:
        self.system = System(path / "proc", path)
        (path / "proc" / "pressure").mkdir(parents=True)

    def wait_for_memory(self, percent: float) -> None:
        """Something waited for memory in this share of the last seconds."""
        text = f"some avg10={percent:.2f} avg60=0.00 avg300=0.00 total=9\n"
        (self.system.proc / "pressure" / "memory").write_text(text)

    def have(self, available: int, total: int = 64 * GIB) -> None:
        """So many bytes are available."""
        text = f"MemTotal: {total // 1024} kB\nMemAvailable: {available // 1024} kB\n"
        (self.system.proc / "meminfo").write_text(text)
