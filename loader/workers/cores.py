"""How many cores this process may use."""

import math
import os
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")


def num_usable_cores(root: Path = _ROOT, cgroup: Path = Path("/proc/self/cgroup")) -> int:
    """The least of the cores in the process's affinity and what its control groups allow, at least 1.

    A container with ``--cpus 2`` on a machine of 64 cores sees 64 of them, and is stopped for most of each period
    when it uses more than two.

    Source: https://docs.kernel.org/admin-guide/cgroup-v2.html (cpu.max) and
    https://docs.kernel.org/scheduler/sched-bwc.html (cpu.cfs_quota_us).
    """
    counts = [len(os.sched_getaffinity(0))]
    for directory in _groups(root, cgroup):
        quota, period = _quota(directory)
        if quota > 0 and period > 0:
            counts.append(math.ceil(quota / period))
    return max(1, min(counts))


def _groups(root: Path, cgroup: Path) -> list[Path]:
    """This process's group in each hierarchy that may limit cores, and all above it."""
    try:
        lines = cgroup.read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / "cpu" if controllers else root
        here = top / path.strip("/")
        # In a container the path may be the host's; then the mount itself is the group.
        here = here if here.is_dir() else top
        found += [here, *(parent for parent in here.parents if parent == top or top in parent.parents)]
    return found


def _quota(directory: Path) -> tuple[int, int]:
    """(quota, period) in microseconds; (0, 0) without a limit."""
    try:
        quota, period = (directory / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (directory / "cpu.cfs_quota_us").read_text()
            period = (directory / "cpu.cfs_period_us").read_text()
        except OSError:
            return 0, 0
    try:
        return int(quota), int(period)
    except ValueError:  # "max"
        return 0, 0
