"""Mounts and control groups as the kernel tells of them: what limits this process, wherever that is mounted."""

import re
from collections.abc import Iterator
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
    (/proc/self/cgroup).
    """
    try:
        lines = (system.proc / "self" / "cgroup").read_text().splitlines()
        hierarchies = [
            (system.root / point.lstrip("/"), mounted, 2 if kind == "cgroup2" else 1)
            for point, mounted, kind, options in mounts(system)
            if kind == "cgroup2" or (kind == "cgroup" and controller in options)
        ]
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        version = 1 if controllers else 2
        if version == 1 and controller not in controllers.split(","):
            continue
        for mount, mounted, mount_version in hierarchies:
            if mount_version == version:
                # In a container the mount shows a part of the hierarchy, and the path may be the host's.
                inner = path[len(mounted) :] if mounted != "/" and path.startswith(mounted) else path
                group = mount / inner.strip("/")
                group = group if group.is_dir() else mount
                above = (folder for folder in group.parents if folder.is_relative_to(mount))
                found += [(folder, version) for folder in (group, *above)]
    return found


def mounts(system: System) -> Iterator[tuple[str, str, str, list[str]]]:
    """(mount point, what of the file system is mounted there, type, options) of each mount, later ones over earlier.

    Source: https://man7.org/linux/man-pages/man5/proc_pid_mountinfo.5.html.

    Raises:
        OSError: The kernel does not say.
    """
    for line in (system.proc / "self" / "mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        # Blanks and the like are written as octal numbers there.
        point = re.sub(r"\\(\d{3})", lambda found: chr(int(found[1], 8)), fields[4])
        yield point, fields[3], kind[0], kind[-1].split(",")
