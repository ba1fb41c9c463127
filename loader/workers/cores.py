"""How many cores this process may use."""

import math
import os
from pathlib import Path

from epistream.cgroups import System, groups_above


def num_usable_cores(system: System = System()) -> int:  # noqa: B008, frozen
    """The least of the cores in the process's affinity and what its control groups allow, at least 1.

    A container with ``--cpus 2`` on a machine of 64 cores sees 64 of them, and is stopped for most of each period
    when it uses more than two.

    Source: https://docs.kernel.org/admin-guide/cgroup-v2.html (cpu.max) and
    https://docs.kernel.org/scheduler/sched-bwc.html (cpu.cfs_quota_us).
    """
    counts = [len(os.sched_getaffinity(0))]
    for group, version in groups_above("cpu", system):
        quota, period = _quota(group, version)
        if quota > 0 and period > 0:
            counts.append(math.ceil(quota / period))
    return max(1, min(counts))


def _quota(group: Path, version: int) -> tuple[int, int]:
    """(quota, period) in microseconds; (0, 0) without a limit."""
    try:
        if version == 2:
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return int(quota), int(period)
    except (OSError, ValueError):  # "max", or no such controller
        return 0, 0
