"""The budget, from files that stand for the kernel's."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from epistream.cache.store.budget import Limits, measure
from epistream.cache.store.memory import available_bytes, cgroup_free_bytes, free_share, pressure_percent
from epistream.cache.store.places import file_system_type, is_memory, is_network
from epistream.cgroups import System

MIB = 1 << 20
GIB = 1 << 30


def write(root: Path, files: dict[str, str]) -> System:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return System(root / "proc", root)


V2_MOUNT = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNT = "30 23 0:26 / /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory\n"


def test_cgroup_v2_is_the_least_over_the_ancestors(tmp_path: Path) -> None:
    system = write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/user/job/step\n",
            "proc/self/mountinfo": V2_MOUNT,
            "sys/fs/cgroup/user/job/step/memory.max": "max\n",
            "sys/fs/cgroup/user/job/step/memory.current": f"{GIB}\n",
            "sys/fs/cgroup/user/job/memory.max": f"{8 * GIB}\n",
            "sys/fs/cgroup/user/job/memory.current": f"{6 * GIB}\n",
            # Page cache is free: of 6 GiB in use, 3 are files'.
            "sys/fs/cgroup/user/job/memory.stat": (
                f"anon {3 * GIB}\nactive_file {GIB}\ninactive_file {2 * GIB}\nshmem 5\n"
            ),
            "sys/fs/cgroup/user/memory.max": f"{16 * GIB}\n",
            "sys/fs/cgroup/user/memory.current": f"{9 * GIB}\n",
            "sys/fs/cgroup/user/memory.stat": "anon 1\n",
        },
    )
    assert cgroup_free_bytes(system) == 5 * GIB


def test_cgroup_v1_counts_the_whole_hierarchy_and_knows_its_no_limit(tmp_path: Path) -> None:
    system = write(
        tmp_path,
        {
            "proc/self/cgroup": "12:cpu,cpuacct:/x\n4:memory:/slurm/job\n",
            "proc/self/mountinfo": V1_MOUNT,
            "sys/fs/cgroup/memory/slurm/job/memory.limit_in_bytes": f"{4 * GIB}\n",
            "sys/fs/cgroup/memory/slurm/job/memory.usage_in_bytes": f"{3 * GIB}\n",
            "sys/fs/cgroup/memory/slurm/job/memory.stat": (
                f"inactive_file 7\ntotal_active_file 0\ntotal_inactive_file {GIB}\n"
            ),
            "sys/fs/cgroup/memory/slurm/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/memory/slurm/memory.usage_in_bytes": f"{3 * GIB}\n",
        },
    )
    assert cgroup_free_bytes(system) == 2 * GIB


def test_cgroup_v1_in_a_container_finds_its_own_mount(tmp_path: Path) -> None:
    system = write(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/docker/abc\n",
            "proc/self/mountinfo": "30 23 0:26 /docker/abc /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2 * GIB}\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{GIB}\n",
        },
    )
    assert cgroup_free_bytes(system) == GIB


def test_cgroup_without_limits_or_files_is_none(tmp_path: Path) -> None:
    assert cgroup_free_bytes(System(tmp_path / "none", tmp_path)) is None
    system = write(tmp_path, {"proc/self/cgroup": "0::/a\n", "proc/self/mountinfo": V2_MOUNT})
    assert cgroup_free_bytes(system) is None


def test_meminfo_and_pressure_are_read(tmp_path: Path) -> None:
    system = write(
        tmp_path,
        {
            "proc/meminfo": "MemTotal:       1000 kB\nMemAvailable:    200 kB\nHugePages_Total:       0\n",
            "proc/pressure/memory": (
                "some avg10=12.50 avg60=1.00 avg300=0.00 total=1\nfull avg10=1.00 avg60=0 avg300=0 total=0\n"
            ),
        },
    )
    assert available_bytes(system) == 200 * 1024
    assert pressure_percent(system) == 12.5
    assert pressure_percent(System(tmp_path / "none")) is None
    assert available_bytes(System(tmp_path / "none")) is None


@pytest.fixture
def machine(tmp_path: Path) -> System:
    return write(tmp_path, {"proc/meminfo": f"MemAvailable: {8 * MIB} kB\n"})  # 8 GiB


def budget_of(path: Path, system: System, held: int = 0, cap: int | None = None, **changes):
    dir_fd = os.open(path, os.O_RDONLY)
    try:
        return measure(dir_fd, cap, held, Limits(system=system, **changes))
    finally:
        os.close(dir_fd)


def test_budget_is_the_least_of_its_terms(tmp_path: Path, machine: System) -> None:
    # The file system of a test has an unknown amount free: more than a byte.
    assert budget_of(tmp_path, machine, cap=1).bytes == 1
    assert budget_of(tmp_path, machine, cap=1).binding == "cap"
    terms = budget_of(tmp_path, machine, memory_fraction=0.25, reserved_bytes=2 * GIB).terms
    assert terms["memory"] == (8 - 2) * GIB // 4


def test_budget_does_not_grow_as_the_cache_fills(tmp_path: Path) -> None:
    # What the cache takes is no longer available: the budget stays where it was.
    budgets = []
    for held in (0, GIB, 2 * GIB, 4 * GIB):
        system = write(tmp_path, {"proc/meminfo": f"MemAvailable: {(8 * GIB - held) // 1024} kB\n"})
        budgets.append(budget_of(tmp_path, system, held).terms["memory"])
    assert budgets == [4 * GIB] * 4


def test_budget_leaves_a_container_room_to_grow(tmp_path: Path) -> None:
    # 64 GiB free on the machine, 8 in the container: the plain minimum would give the cache all 8.
    system = write(
        tmp_path,
        {
            "proc/meminfo": f"MemAvailable: {64 * MIB} kB\n",
            "proc/self/cgroup": "0::/\n",
            "proc/self/mountinfo": V2_MOUNT,
            "sys/fs/cgroup/memory.max": f"{9 * GIB}\n",
            "sys/fs/cgroup/memory.current": f"{GIB}\n",
        },
    )
    assert budget_of(tmp_path, system).terms["cgroup"] == 4 * GIB


def test_pressure_is_the_most_of_the_machine_and_the_groups_above(tmp_path: Path) -> None:
    def line(percent: float) -> str:
        return f"some avg10={percent:.2f} avg60=0.00 avg300=0.00 total=9\nfull avg10=99.00 avg60=0.00 total=9\n"

    files = {"proc/self/cgroup": "0::/job/step\n", "proc/self/mountinfo": V2_MOUNT, "proc/pressure/memory": line(1)}
    assert pressure_percent(write(tmp_path, files)) == 1.0
    files["sys/fs/cgroup/job/step/memory.pressure"] = line(0.5)
    assert pressure_percent(write(tmp_path, files)) == 1.0
    files["sys/fs/cgroup/job/memory.pressure"] = line(30)
    assert pressure_percent(write(tmp_path, files)) == 30.0
    files["proc/pressure/memory"] = line(80)
    files["proc/meminfo"] = "MemTotal: 1000 kB\nMemAvailable: 249 kB\n"
    assert pressure_percent(write(tmp_path, files)) == 80.0
    files["proc/meminfo"] = "MemTotal: 1000 kB\nMemAvailable: 250 kB\n"
    assert pressure_percent(write(tmp_path, files)) == 30.0, "others wait within a limit of theirs"
    assert pressure_percent(System(tmp_path / "none")) is None


def test_budget_is_never_negative(tmp_path: Path, machine: System) -> None:
    assert budget_of(tmp_path, machine, reserved_bytes=100 * GIB).bytes == 0


def test_budget_on_disk_does_not_look_at_memory(tmp_path: Path, machine: System) -> None:
    assert set(budget_of(tmp_path, machine, in_memory=False).terms) == {"disk"}


def test_budget_says_its_terms_and_a_cure(tmp_path: Path, machine: System) -> None:
    budget = budget_of(tmp_path, machine, cap=3 * MIB)
    assert str(budget).startswith("3.0 MiB (the least of: cap 3.0 MiB, filesystem ")
    assert "epistream cache resize" in budget.cure


@pytest.mark.parametrize(
    ("size", "free", "held", "budget"),
    [
        (64 * MIB, 64 * MIB, 0, 0),  # Docker's default: all of it is left to others
        (128 * MIB, 128 * MIB, 0, 64 * MIB),
        (128 * MIB, 28 * MIB, 36 * MIB, 0),  # others have taken their part, and have 64 left of what is held
        (16 * GIB, 10 * GIB, 3 * GIB, 13 * GIB - 16 * GIB // 10),
        (16 * GIB, 0, GIB // 2, 0),
        (0, 0, 0, None),  # mounted with size=0: no limit
    ],
)
def test_budget_on_a_tmpfs_leaves_a_tenth_and_64_mib_at_least_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, free: int, held: int, budget: int | None
) -> None:
    system = write(tmp_path, {"proc/meminfo": f"MemAvailable: {1024 * MIB} kB\n"})
    space = SimpleNamespace(f_blocks=size // 4096, f_bavail=free // 4096, f_frsize=4096)
    with monkeypatch.context() as patch:
        patch.setattr(os, "statvfs", lambda fd: space)
        found = budget_of(tmp_path, system, held)
    assert found.terms.get("filesystem") == budget
    if budget == 0:
        assert "64 MiB at least, is left to others" in found.cure


def test_budget_in_a_control_group_counts_as_its_own_only_what_it_is_charged_with(tmp_path: Path) -> None:
    # A job with 16 GiB beside one that fills the shared directory from a control group of its own.
    files = {
        "proc/self/cgroup": "0::/\n",
        "proc/self/mountinfo": V2_MOUNT,
        "sys/fs/cgroup/memory.max": f"{16 * GIB}\n",
        "sys/fs/cgroup/memory.current": f"{4 * GIB}\n",
        "sys/fs/cgroup/memory.stat": f"anon {2 * GIB}\nshmem {2 * GIB}\n",
    }
    system = write(tmp_path, files)
    # Of 40 GiB 2 are charged to it: it may have half of 12 + 2, and the other's 38 stay where they are.
    assert budget_of(tmp_path, system, 40 * GIB).terms["cgroup"] == (7 + 38) * GIB
    assert budget_of(tmp_path, system, 2 * GIB).terms["cgroup"] == 7 * GIB
    assert budget_of(tmp_path, system, GIB).terms["cgroup"] == 13 * GIB // 2, "other shared memory is not the cache's"
    del files["sys/fs/cgroup/memory.stat"]
    write(tmp_path, files | {"sys/fs/cgroup/memory.stat": "anon 5\n"})
    assert budget_of(tmp_path, system, 40 * GIB).terms["cgroup"] == 26 * GIB, "a kernel that does not say"


def test_free_share_is_the_least_of_the_machine_and_the_groups_above(tmp_path: Path) -> None:
    files = {"proc/meminfo": "MemTotal: 1000 kB\nMemAvailable: 400 kB\n"}
    assert free_share(write(tmp_path, files)) == 0.4
    files |= {
        "proc/self/cgroup": "0::/job/step\n",
        "proc/self/mountinfo": V2_MOUNT,
        "sys/fs/cgroup/job/step/memory.max": "max\n",
        "sys/fs/cgroup/job/step/memory.current": "100\n",
        "sys/fs/cgroup/job/memory.max": "1000\n",
        "sys/fs/cgroup/job/memory.current": "950\n",
    }
    assert free_share(write(tmp_path, files)) == 0.05
    files["sys/fs/cgroup/job/memory.stat"] = "active_file 100\ninactive_file 150\n"  # page cache is free
    assert free_share(write(tmp_path, files)) == 0.3
    assert free_share(System(tmp_path / "none")) is None


def test_kinds_of_file_systems() -> None:
    assert is_network("nfs4")
    assert is_network("lustre")
    assert is_network("fuse.sshfs")
    assert not is_network("ext4")
    assert not is_network("overlay")
    assert not is_network("fuseblk"), "ntfs on a local disk"
    assert is_memory("tmpfs")
    assert file_system_type(Path("/proc/self")) == "proc"
    assert file_system_type(Path("/no/such/place")) != ""
