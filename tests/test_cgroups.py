"""Limits of control groups, wherever their hierarchies are mounted."""

import os
from pathlib import Path

import pytest

from epistream.cache.store.memory import cgroup_free_bytes
from epistream.cgroups import System, groups_above
from epistream.loader.workers.cores import num_usable_cores

MIB = 1 << 20


def kernel(root: Path, files: dict[str, str]) -> System:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return System(root / "proc", root)


V2 = {
    "proc/self/cgroup": "0::/job/step\n",
    "proc/self/mountinfo": "30 23 0:26 / /somewhere/else rw - cgroup2 cgroup2 rw,nsdelegate\n",
    "somewhere/else/job/step/cpu.max": "max 100000\n",
    "somewhere/else/job/cpu.max": "50000 100000\n",
    "somewhere/else/job/memory.max": f"{8 * MIB}\n",
    "somewhere/else/job/memory.current": f"{5 * MIB}\n",
}
V1 = {
    "proc/self/cgroup": "5:cpuacct,cpu:/job/step\n4:memory:/job/step\n3:freezer:/\n",
    "proc/self/mountinfo": (
        "30 23 0:26 / /mnt/processors rw - cgroup cgroup rw,cpu,cpuacct\n"
        "31 23 0:27 / /mnt/ram rw - cgroup cgroup rw,memory\n"
    ),
    "mnt/processors/job/cpu.cfs_quota_us": "50000\n",
    "mnt/processors/job/cpu.cfs_period_us": "100000\n",
    "mnt/processors/job/step/cpu.cfs_quota_us": "-1\n",
    "mnt/processors/job/step/cpu.cfs_period_us": "100000\n",
    "mnt/ram/job/step/memory.limit_in_bytes": "9223372036854771712\n",
    "mnt/ram/job/step/memory.usage_in_bytes": f"{5 * MIB}\n",
    "mnt/ram/job/memory.limit_in_bytes": f"{8 * MIB}\n",
    "mnt/ram/job/memory.usage_in_bytes": f"{5 * MIB}\n",
}
CONTAINER = {
    "proc/self/cgroup": "0::/docker/abc\n",
    "proc/self/mountinfo": "30 23 0:26 /docker/abc /elsewhere rw - cgroup2 cgroup2 rw\n",
    "elsewhere/cpu.max": "50000 100000\n",
    "elsewhere/memory.max": f"{8 * MIB}\n",
    "elsewhere/memory.current": f"{5 * MIB}\n",
}


@pytest.mark.parametrize("files", [V2, V1, CONTAINER], ids=["v2", "v1", "container"])
def test_limits_of_cores_and_memory_are_seen_where_groups_are_mounted_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str]
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    system = kernel(tmp_path, files)
    assert num_usable_cores(system) == 1
    assert cgroup_free_bytes(system) == 3 * MIB


def test_groups_end_at_the_mount(tmp_path: Path) -> None:
    system = kernel(tmp_path, V2)
    mount = tmp_path / "somewhere" / "else"
    assert groups_above("cpu", system) == [(mount / "job" / "step", 2), (mount / "job", 2), (mount, 2)]


def test_groups_of_a_system_that_tells_nothing_are_none(tmp_path: Path) -> None:
    assert groups_above("memory", System(tmp_path / "none", tmp_path)) == []
