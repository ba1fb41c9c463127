"""How much memory this process may still use: the machine's, and what its control groups leave."""

from pathlib import Path

from epistream.cgroups import System, groups_above

# cgroup v1 writes "no limit" as the largest multiple of the page size.
_NO_LIMIT = 1 << 60


def available_bytes(system: System) -> int | None:
    """MemAvailable of the machine in bytes; None where the kernel does not say."""
    return _meminfo(system).get("MemAvailable")


def cgroup_free_bytes(system: System) -> int | None:
    """The least that any control group above this process leaves, in bytes; None without limits.

    Page cache is counted as free: the kernel takes it back before it kills.

    Source: https://docs.kernel.org/admin-guide/cgroup-v2.html (memory.max, memory.current, memory.stat) and
    https://docs.kernel.org/admin-guide/cgroup-v1/memory.html.
    """
    left = [_left_v2(group) if version == 2 else _left_v1(group) for group, version in groups_above("memory", system)]
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
        for line in file.read_text().splitlines():
            if line.startswith("some "):
                return float(line.split("avg10=")[1].split()[0])
    except (OSError, IndexError, ValueError):
        pass
    return None


def _meminfo(system: System) -> dict[str, int]:
    try:
        lines = (system.proc / "meminfo").read_text().splitlines()
    except OSError:
        return {}
    fields = (line.split() for line in lines)
    return {field[0].rstrip(":"): int(field[1]) * 1024 for field in fields if len(field) >= 2}


def _left_v2(group: Path) -> int | None:
    limit = _number(group / "memory.max")
    usage = _number(group / "memory.current")
    if limit is None or usage is None:
        return None
    stat = _stat(group)
    return limit - (usage - stat.get("active_file", 0) - stat.get("inactive_file", 0))


def _left_v1(group: Path) -> int | None:
    limit = _number(group / "memory.limit_in_bytes")
    usage = _number(group / "memory.usage_in_bytes")
    if limit is None or usage is None or limit >= _NO_LIMIT:
        return None
    stat = _stat(group)
    return limit - (usage - stat.get("total_active_file", 0) - stat.get("total_inactive_file", 0))


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # "max", or no such controller
        return None


def _stat(group: Path) -> dict[str, int]:
    try:
        pairs = (line.split() for line in (group / "memory.stat").read_text().splitlines())
        return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2}
    except OSError:
        return {}
