"""The byte budget of a cache directory: what the user allows and what the machine has, measured when it matters."""

import math
import os
import time
from dataclasses import dataclass, field

from epistream.cache.store.memory import GroupMemory, available_bytes, group_memories
from epistream.cgroups import System
from epistream.units import distinct_sizes

# What each term means to somebody who wants more.
_CURES = {
    "cap": "raise budget_bytes, or run 'epistream cache resize SIZE'",
    "filesystem": (
        "enlarge the file system, of which a tenth, and 64 MiB at least, is left to others (--shm-size in Docker, an "
        "emptyDir with medium: Memory in Kubernetes), or name another directory"
    ),
    "disk": "free some space there, or name another disk_directory; half of what is free is left to others",
    "cgroup": "raise the job's memory limit (--memory, Slurm --mem)",
    "memory": "raise memory_fraction, or use a machine with more memory",
}
# Share of a disk's free space that a directory may take.
_DISK_FRACTION = 0.5
# What a tmpfs always leaves to others, who cannot do without it: other loaders pass their batches through /dev/shm.
_SHARE_LEFT = 0.1
_BYTES_LEFT = 64 << 20


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

    @property
    def next_step(self) -> str:
        """The same as the begin of a sentence."""
        return self.cure[:1].upper() + self.cure[1:]

    def __str__(self) -> str:
        return self.beside()[0]

    def beside(self, *sizes: int) -> tuple[str, ...]:
        """The budget in words, and sizes that a message compares with it."""
        own, *texts = distinct_sizes(self.bytes, *self.terms.values(), *sizes)
        terms = ", ".join(f"{name} {text}" for name, text in zip(self.terms, texts, strict=False))
        return f"{own} (the least of: {terms})", *texts[len(self.terms) :]


class MemoryTerms:
    """What control groups and machine leave to the cache, read at most once in a while: it costs a dozen files.

    Kept is the sum of what was free and what the cache held then. Fills do not change it, so that it stays true while
    the cache fills at any rate.
    """

    def __init__(self, limits: Limits, lifetime_s: float = 0.0) -> None:
        self._limits = limits
        self._lifetime_s = lifetime_s
        self._read_at = -math.inf
        self._terms: dict[str, int] = {}

    def measure(self, held_bytes: int) -> dict[str, int]:
        """The terms in bytes, by name."""
        now = time.monotonic()
        if now - self._read_at >= self._lifetime_s:
            self._terms = _memory_terms(held_bytes, self._limits)
            self._read_at = now
        return self._terms

    def forget(self) -> None:
        """Read again at the next call: what the cache holds was not what it was taken to hold."""
        self._read_at = -math.inf


def measure(dir_fd: int, cap: int | None, held_bytes: int, limits: Limits, memory: MemoryTerms | None = None) -> Budget:
    """Compute the budget of a directory now, with its own cap in bytes, or None for none.

    Every measured term is what is free plus what the cache holds already, so that the budget does not shrink as the
    cache fills. The fractions are taken of that sum: a fraction of what is free, plus what is held, would grow with
    each fill until everything is taken. On a tmpfs a tenth of the whole, and 64 MiB at least, are left to others; on a
    disk half of what is free.

    Args:
        dir_fd: The directory.
        cap: Its cap.
        held_bytes: Bytes that its files count for.
        limits: What else bounds it.
        memory: Where the terms of memory come from, which may be of a moment ago; None measures them.
    """
    terms = {} if cap is None else {"cap": cap}
    space = os.statvfs(dir_fd)
    free = space.f_bavail * space.f_frsize + held_bytes
    if limits.in_memory:
        if space.f_blocks:  # a tmpfs mounted with size=0 has no limit of its own
            size = space.f_blocks * space.f_frsize
            terms["filesystem"] = free - max(int(size * _SHARE_LEFT), _BYTES_LEFT)
        terms |= (memory or MemoryTerms(limits)).measure(held_bytes)
    else:
        terms["disk"] = int(free * _DISK_FRACTION)
    terms = {name: max(0, value) for name, value in terms.items()}
    return Budget(min(terms.values(), default=0), terms)


def _memory_terms(held_bytes: int, limits: Limits) -> dict[str, int]:
    terms = {}
    groups, available = group_memories(limits.system), available_bytes(limits.system)
    if groups:
        terms["cgroup"] = min(
            _memory_term(group.free_bytes, held_bytes, _charged_bytes(group, held_bytes), limits) for group in groups
        )
    if available is not None:
        terms["memory"] = _memory_term(available, held_bytes, held_bytes, limits)
    return terms


def _memory_term(free_bytes: int, held_bytes: int, own_bytes: int, limits: Limits) -> int:
    """Bytes that may be held, of which `own_bytes` are a burden on the memory that has `free_bytes` left.

    What is held besides burdens others, and nothing that this process evicts would give it more.
    """
    unreserved = free_bytes + own_bytes - limits.reserved_bytes
    return int(unreserved * limits.memory_fraction) + held_bytes - own_bytes


def _charged_bytes(group: GroupMemory, held_bytes: int) -> int:
    """Bytes of those held that a control group pays for, at most: jobs in other groups may have filled the rest."""
    return held_bytes if group.shared_bytes is None else min(held_bytes, group.shared_bytes)
