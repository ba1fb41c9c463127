"""How much memory this process may still use: the machine's, and what its control groups leave."""

import re
from pathlib import Path

from epistream.cgroups import System, groups_above

# cgroup v1 writes "no limit" as the largest multiple of the page size.
_NO_LIMIT = 1 << 60
# By version of the control groups: the files of limit and use, and how names in memory.stat begin that count the
# groups below, too.
_MEMORY_FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    2: ("memory.max", "memory.current", ""),
}


def available_bytes(system: System) -> int | None:
    """MemAvailable of the machine in bytes; None where the kernel does not say."""
    kib = _numbers(system.proc / "meminfo").get("MemAvailable")
    return None if kib is None else kib * 1024


def cgroup_free_bytes(system: System) -> int | None:
    """The least that any control group above this process leaves, in bytes; None without limits.

    Page cache is counted as free: the kernel takes it back before it kills.

    Source: https://docs.kernel.org/admin-guide/cgroup-v2.html (memory.max, memory.current, memory.stat) and
    https://docs.kernel.org/admin-guide/cgroup-v1/memory.html.
    """
    left = [_left(group, version) for group, version in groups_above("memory", system)]
    return min((each for each in left if each is not None), default=None)


def pressure_percent(system: System) -> float | None:
    """Share of the last ten seconds in which something waited for memory (PSI "some avg10"); None if unreadable.

    The most of the machine's and of the control groups' above this process: a container that is short of memory
    does not show in the figure of a machine that is not.

    Source: https://docs.kernel.org/accounting/psi.html.
    """
    files = [group / "memory.pressure" for group, version in groups_above("memory", system) if version == 2]
    found = [_some_avg10(file) for file in (*files, system.proc / "pressure" / "memory")]
    return max((each for each in found if each is not None), default=None)


def _some_avg10(file: Path) -> float | None:
    try:
        found = re.search(r"^some avg10=([\d.]+)", file.read_text(), re.MULTILINE)
    except OSError:
        return None
    return float(found[1]) if found else None


def _left(group: Path, version: int) -> int | None:
    limit_name, usage_name, prefix = _MEMORY_FILES[version]
    limit, usage = _number(group / limit_name), _number(group / usage_name)
    if limit is None or usage is None or limit >= _NO_LIMIT:
        return None
    stat = _numbers(group / "memory.stat")
    return limit - (usage - stat.get(f"{prefix}active_file", 0) - stat.get(f"{prefix}inactive_file", 0))


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # "max", or no such controller
        return None


def _numbers(path: Path) -> dict[str, int]:
    """What a file tells as "name number" or "name: number kB", a line each; nothing where it cannot be read."""
    try:
        lines = (line.split() for line in path.read_text().splitlines())
        return {words[0].rstrip(":"): int(words[1]) for words in lines if len(words) >= 2}
    except OSError:
        return {}
