"""Where caches lie unless somebody says otherwise, and whether a path is on a disk, in memory or on a network."""

import contextlib
import os
from pathlib import Path

from epistream.cgroups import System, mounts

# Parents of caches that nobody gave a directory; looked up here at each use, never imported by value.
SHM_PARENT = Path("/dev/shm")
# Local on clusters where home is a network file system, and it survives reboots.
DISK_PARENT = Path("/var/tmp")

# File systems whose pages are another machine's or another process's business. Others are local.
_NETWORK = frozenset(
    (
        *("9p", "afs", "beegfs", "ceph", "cifs", "coda", "davfs", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs"),
        *("nfs", "nfs4", "ocfs2", "orangefs", "panfs", "pvfs2", "smb3", "smbfs", "vboxsf", "virtiofs", "wekafs"),
    )
)


def default_name() -> str:
    """The name of this user's cache directory, the same for all jobs on a node, so that they share it."""
    return f"epistream-{os.geteuid()}"


def default_directory(tier: str) -> Path:
    """Where the tier "shm" or "disk" lies unless the user says otherwise."""
    return (SHM_PARENT if tier == "shm" else DISK_PARENT) / default_name()


def is_of_family(name: str, family: str) -> bool:
    """Whether a directory's name is a family's, or begins with it: /dev/shm/epistream-1000, .../epistream-1000-mine."""
    return name == family or name.startswith(family + "-")


def file_system_type(path: Path) -> str:
    """The type of the file system that holds a path, "ext4" for example; "" if the kernel does not say."""
    real = os.path.realpath(path)
    best, best_kind = "", ""
    with contextlib.suppress(OSError):
        for point, _, kind, _ in mounts(System()):
            inside = point in (real, "/") or real.startswith(point + "/")
            if inside and len(point) >= len(best):
                best, best_kind = point, kind
    return best_kind


def is_network(kind: str) -> bool:
    """Whether a type of file system is a network's; FUSE counts as one, because most of its users are."""
    return kind in _NETWORK or kind == "fuse" or kind.startswith("fuse.")


def is_memory(kind: str) -> bool:
    """Whether its files are memory."""
    return kind in ("tmpfs", "ramfs", "devtmpfs", "hugetlbfs")
