"""How much memory this process may still use: the machine's, and what its control groups leave."""

import re
from dataclasses import dataclass
from pathlib import Path

from epistream.cgroups import System, groups_above

# cgroup v1 writes "no limit" as the largest multiple of the page size.
_NO_LIMIT = 1 << 60
# Share of a machine's memory that is free where nobody waits for it but within a limit of his own.
_AMPLE = 0.25
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


@dataclass(frozen=True)
class GroupMemory:
    """What a control group with a limit has of memory, in bytes.

    Args:
        limit_bytes: What it may use, above 0.
        free_bytes: What it leaves; page cache is counted as free, because the kernel takes it back before it kills.
        shared_bytes: Files on a tmpfs and other shared memory that are charged to it; None if it does not say.
    """

    limit_bytes: int
    free_bytes: int
    shared_bytes: int | None


def group_memories(system: System) -> list[GroupMemory]:
    """Each control group at or above this process that has a limit.

    Source: https://docs.kernel.org/admin-guide/cgroup-v2.html (memory.max, memory.current, memory.stat) and
    https://docs.kernel.org/admin-guide/cgroup-v1/memory.html.
    """
    groups = (_memory_of(group, version) for group, version in groups_above("memory", system))
    return [group for group in groups if group is not None]


def cgroup_free_bytes(system: System) -> int | None:
    """The least that any control group above this process leaves, in bytes; None without limits."""
    return min((group.free_bytes for group in group_memories(system)), default=None)


def free_share(system: System) -> float | None:
    """The least share of memory that is free, 0 to 1: of the machine's, and of the limit of each control group above.

    None where the kernel does not say. Page cache is counted as free.
    """
    shares = [group.free_bytes / group.limit_bytes for group in group_memories(system)]
    of_machine = _free_share_of_machine(system)
    return min(shares if of_machine is None else [*shares, of_machine], default=None)


def _free_share_of_machine(system: System) -> float | None:
    found = _numbers(system.proc / "meminfo")
    available, total = found.get("MemAvailable"), found.get("MemTotal")
    return available / total if available is not None and total else None


def pressure_percent(system: System) -> float | None:
    """Share of the last ten seconds in which something waited for memory (PSI "some avg10"); None if unreadable.

    The most of the machine's and of the control groups' above this process: a container that is short of memory
    does not show in the figure of a machine that is not. The machine's does not count while a quarter of its memory is
    free: somebody waits then for memory in a group of his own, and nothing that is given back elsewhere helps him.

    Source: https://docs.kernel.org/accounting/psi.html.
    """
    files = [group / "memory.pressure" for group, version in groups_above("memory", system) if version == 2]
    free = _free_share_of_machine(system)
    if free is None or free < _AMPLE:
        files.append(system.proc / "pressure" / "memory")
    found = [_some_avg10(file) for file in files]
    return max((each for each in found if each is not None), default=None)


def _some_avg10(file: Path) -> float | None:
    try:
        found = re.search(r"^some avg10=([\d.]+)", file.read_text(), re.MULTILINE)
    except OSError:
        return None
    return float(found[1]) if found else None


def _memory_of(group: Path, version: int) -> GroupMemory | None:
    limit_name, usage_name, prefix = _MEMORY_FILES[version]
    limit, usage = _number(group / limit_name), _number(group / usage_name)
    if not limit or usage is None or limit >= _NO_LIMIT:
        return None
    stat = _numbers(group / "memory.stat")
    used = usage - stat.get(f"{prefix}active_file", 0) - stat.get(f"{prefix}inactive_file", 0)
    return GroupMemory(limit, limit - used, stat.get(f"{prefix}shmem"))


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
