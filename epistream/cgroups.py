"""The control groups above this process, wherever their hierarchies are mounted: what limits its memory and cores."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class System:
    """Where the kernel tells about itself; tests put a folder of their own here."""

    proc: Path = Path("/proc")
    root: Path = Path("/")


def groups_above(controller: str, system: System) -> list[tuple[Path, int]]:
    """This process's group and all above it in each hierarchy that has a controller, each with its version.

    Args:
        controller: "memory" or "cpu".
        system: Where the kernel's files are read.

    Source: https://docs.kernel.org/admin-guide/cgroup-v2.html and https://man7.org/linux/man-pages/man7/cgroups.7.html
    (/proc/self/cgroup), https://man7.org/linux/man-pages/man5/proc_pid_mountinfo.5.html.
    """
    try:
        lines = (system.proc / "self" / "cgroup").read_text().splitlines()
        mounts = _mounts(controller, system)
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        version = 1 if controllers else 2
        if version == 1 and controller not in controllers.split(","):
            continue
        for mount, mounted, mount_version in mounts:
            if mount_version == version:
                # In a container the mount shows a part of the hierarchy, and the path may be the host's.
                inner = path[len(mounted) :] if mounted != "/" and path.startswith(mounted) else path
                group = mount / inner.strip("/")
                group = group if group.is_dir() else mount
                above = (folder for folder in group.parents if folder.is_relative_to(mount))
                found += [(folder, version) for folder in (group, *above)]
    return found


def _mounts(controller: str, system: System) -> list[tuple[Path, str, int]]:
    """(mount point, what of the hierarchy is mounted there, version), from mountinfo."""
    mounts = []
    for line in (system.proc / "self" / "mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        point = system.root / fields[4].lstrip("/")
        if kind[0] == "cgroup2":
            mounts.append((point, fields[3], 2))
        elif kind[0] == "cgroup" and controller in kind[-1].split(","):
            mounts.append((point, fields[3], 1))
    return mounts
