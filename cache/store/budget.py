"""The byte budget of a cache directory: what the user allows and what the machine has, measured when it matters."""

import os
from dataclasses import dataclass, field

from epistream.cache.store.memory import available_bytes, cgroup_free_bytes
from epistream.cgroups import System
from epistream.units import size_text

# What each term means to somebody who wants more.
_CURES = {
    "cap": "raise budget_bytes, or run 'epistream cache resize'",
    "filesystem": "enlarge it: --shm-size (Docker), an emptyDir with medium: Memory (Kubernetes), or budget elsewhere",
    "cgroup": "raise the job's memory limit (--memory, Slurm --mem)",
    "memory": "raise memory_fraction, or use a machine with more memory",
}
# Share of a disk's free space that a directory may take.
_DISK_FRACTION = 0.5


@dataclass(frozen=True)
class Limits:
    """What bounds a directory, apart from what is measured.

    Args:
        memory_fraction: Share of the free memory (machine and control group) that the cache may take.
        reserved_bytes: Memory that the caller needs besides: the batch rings of this node.
        in_memory: Whether the directory is on tmpfs, so that its bytes are memory.
        system: Where the kernel's numbers are read.
    """

    memory_fraction: float = 0.5
    reserved_bytes: int = 0
    in_memory: bool = True
    system: System = field(default_factory=System)


@dataclass(frozen=True)
class Budget:
    """Bytes that the directory may hold, and the terms they are the least of."""

    bytes: int
    terms: dict[str, int]

    @property
    def binding(self) -> str:
        """The name of the term that is the least."""
        return min(self.terms, key=lambda name: self.terms[name]) if self.terms else "none"

    @property
    def cure(self) -> str:
        """What would make the budget larger."""
        return _CURES.get(self.binding, "nothing known")

    def __str__(self) -> str:
        terms = ", ".join(f"{name} {size_text(value)}" for name, value in self.terms.items())
        return f"{size_text(self.bytes)} (the least of: {terms})"


def measure(dir_fd: int, cap: int | None, held_bytes: int, limits: Limits) -> Budget:
    """Compute the budget of a directory now, with its own cap in bytes, or None for none.

    Every measured term is what is free plus what the file system has given to the cache already, so that the budget
    does not shrink as the cache fills. The fractions are taken of that sum: a fraction of what is free, plus what is
    held, would grow with each fill until everything is taken.
    """
    terms = {} if cap is None else {"cap": cap}
    space = os.statvfs(dir_fd)
    free = space.f_bavail * space.f_frsize + held_bytes
    if limits.in_memory:
        if space.f_blocks:  # a tmpfs mounted with size=0 has no limit of its own
            terms["filesystem"] = free
        for name, measured in (
            ("cgroup", cgroup_free_bytes(limits.system)),
            ("memory", available_bytes(limits.system)),
        ):
            if measured is not None:
                unreserved = measured + held_bytes - limits.reserved_bytes
                terms[name] = int(unreserved * limits.memory_fraction)
    else:
        terms["filesystem"] = int(free * _DISK_FRACTION)
    terms = {name: max(0, value) for name, value in terms.items()}
    return Budget(min(terms.values(), default=0), terms)
