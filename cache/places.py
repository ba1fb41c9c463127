"""Where a file lies: on a disk of this machine, in its memory, or on a network."""

import os
from pathlib import Path

# File systems whose pages are another machine's or another process's business. Others are local.
_NETWORK = frozenset(
    (
        *("9p", "afs", "beegfs", "ceph", "cifs", "coda", "davfs", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs"),
        *("nfs", "nfs4", "ocfs2", "orangefs", "panfs", "pvfs2", "smb3", "smbfs", "vboxsf", "virtiofs", "wekafs"),
    )
)


def _mounts() -> tuple[tuple[str, str], ...]:
    """(mount point, type) of every mounted file system, later ones over earlier ones."""
    try:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return ()
    mounts = []
    for line in lines:
        before, _, after = line.partition(" - ")
        # Blanks and the like are written as octal numbers there.
        point = before.split()[4].encode().decode("unicode_escape")
        mounts.append((point, after.split()[0]))
    return tuple(mounts)


def file_system_type(path: Path) -> str:
    """The type of the file system that holds a path, "ext4" for example; "" if the kernel does not say."""
    real = os.path.realpath(path)
    best, kind = "", ""
    for point, mounted in _mounts():
        inside = point in (real, "/") or real.startswith(point + "/")
        if inside and len(point) >= len(best):
            best, kind = point, mounted
    return kind


def is_network(kind: str) -> bool:
    """Whether a type of file system is a network's; FUSE counts as one, because most of its users are."""
    return kind in _NETWORK or kind == "fuse" or kind.startswith("fuse.")


def is_memory(kind: str) -> bool:
    """Whether its files are memory."""
    return kind in ("tmpfs", "ramfs", "devtmpfs", "hugetlbfs")
