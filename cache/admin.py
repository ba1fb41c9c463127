"""Looking at caches from outside, and tending them: what `epistream cache` does, without the printing."""

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path

from epistream.cache.store import places
from epistream.cache.store.budget import Limits
from epistream.cache.store.claims import claim_names, read_claim
from epistream.cache.store.descriptors import DESCRIPTORS, inode_of
from epistream.cache.store.directory import USERS, CacheDirectory, open_private
from epistream.cache.store.eviction import in_leaving_order
from epistream.cache.store.locks import LockFile, inode_holders
from epistream.cache.store.markers import (
    CLAIM,
    KEEP,
    Note,
    boot_time_s,
    is_kept,
    read_note,
    read_origin,
    read_origins,
    write_cap,
)
from epistream.cache.store.places import default_name, file_system_type, is_memory, is_of_family
from epistream.cache.store.store import ShardStore, StoreOptions, open_store
from epistream.cache.store.survey import FILL, HAVE, PART, SHARD, Item, charge, charged_bytes, survey, unlink
from epistream.cache.store.sweep import sweep
from epistream.errors import CacheError


@dataclass(frozen=True)
class EntryRow:
    """One entry of a cache.

    Args:
        key: Its key.
        url: Where its first part came from, without query, user and password; "" where that was not noted.
        size: Bytes.
        state: "ready", "filling", "partial" if cold readers brought some of it, or "remains" of a filler that died.
        idle_s: Seconds since it was last used.
        pids: Processes that lease it, fill it, or read what is there of it.
        is_made: Whether it was made of other entries, as decoded frames are. The first eight digits of its key are its
            group's.
    """

    key: str
    url: str
    size: int
    state: str
    idle_s: float
    pids: tuple[int, ...]
    is_made: bool = False


@dataclass(frozen=True)
class ClaimRow:
    """What live processes use of the entries of one group, which others do not evict for what they make.

    Args:
        group: What the keys of the group begin with.
        num_bytes: What is claimed.
        held_bytes: Bytes of entries of the group that are there.
        pids: Processes that claim it.
    """

    group: str
    num_bytes: int
    held_bytes: int
    pids: tuple[int, ...]


@dataclass(frozen=True)
class CacheView:
    """A cache as it is now.

    Args:
        path: Its directory.
        budget: The budget in bytes, and what it comes from, in words.
        budget_bytes: The same as a number.
        held_bytes: Bytes of entries and fills, in whole pages.
        pids: Processes that use it.
        kept: Whether it outlives its last user.
        entries: Most recently used first.
        notes: Failures and decisions of the last seconds, by key.
        claims: Groups of entries that live processes claim.
    """

    path: Path
    budget: str
    budget_bytes: int
    held_bytes: int
    pids: tuple[int, ...]
    kept: bool
    entries: tuple[EntryRow, ...]
    notes: dict[str, Note]
    claims: tuple[ClaimRow, ...]

    @property
    def leased_bytes(self) -> int:
        """Bytes of entries that somebody leases or fills."""
        return sum(entry.size for entry in self.entries if entry.pids)


def find_caches() -> list[Path]:
    """This user's cache directories in the usual places."""
    name = default_name()
    return [
        path
        for parent in (places.SHM_PARENT, places.DISK_PARENT)
        for path in sorted(parent.glob(f"{name}*"))
        if is_of_family(path.name, name)
    ]


def look(path: Path) -> CacheView:
    """Look at a cache without entering it: nothing is changed and nobody has to wait.

    Raises:
        CacheError: No such cache, or not ours.
    """
    try:
        dir_fd = open_private(path)
    except FileNotFoundError:
        raise CacheError(f"{path}: not there, wanted a cache. 'epistream cache ls' lists yours.") from None
    try:
        directory = CacheDirectory(path, dir_fd, None)
        items, locks = survey(directory), inode_holders()
        budget = ShardStore(directory, _options(path)).budget()
        held = charged_bytes(items)
        return CacheView(
            path=path,
            budget=budget.beside(held)[0],
            budget_bytes=budget.bytes,
            held_bytes=held,
            pids=_holders(directory, USERS, locks),
            kept=is_kept(dir_fd),
            entries=tuple(_rows(directory, items, locks)),
            notes=_notes(directory, items),
            claims=tuple(_claims(directory, items, locks)),
        )
    finally:
        DESCRIPTORS.close(dir_fd)


def clear(path: Path, *, forget: bool) -> int:
    """Evict all that nobody leases, and remove what the dead left, here and beside.

    A directory that nobody else uses and that is not kept disappears.

    Args:
        path: The cache's directory.
        forget: Let it no longer outlive its last user.

    Returns:
        Bytes given back.
    """
    if not path.exists():
        return 0
    store = open_store(path, _options(path))
    try:
        freed = store.give_back()
        if forget:
            unlink(store.directory, KEEP)
        return freed
    finally:
        store.directory.leave()


def sweep_usual_places() -> list[Path]:
    """Remove what dead processes of this user left in the usual places; returns what was removed."""
    removed = []
    for parent in (places.SHM_PARENT, places.DISK_PARENT):
        # A name that is never used: no directory is spared as being one's own.
        removed += sweep(parent / (default_name() + "-"), default_name())
    return removed


def resize(path: Path, cap: int | None) -> int:
    """Set the byte cap for all who use a cache, now, and evict what is above it.

    Returns:
        Bytes given back; leased shards may leave the cache above its cap until they are released.
    """
    look(path)  # refuses what is no cache: entering would make one
    store = open_store(path, _options(path))
    try:
        with store.directory.locked(store.options.lock_timeout_s):
            write_cap(store.directory.dir_fd, cap)
            held = store.held_bytes()
        above = held - store.budget().bytes
        return store.give_back(above) if above > 0 else 0
    finally:
        store.directory.leave()


def _options(path: Path) -> StoreOptions:
    return StoreOptions(Limits(in_memory=is_memory(file_system_type(path))), lock_timeout_s=10.0)


_Locks = dict[tuple[int, int], list[int]]


def _holders(directory: CacheDirectory, name: str, locks: _Locks) -> tuple[int, ...]:
    try:
        return tuple(sorted(set(locks.get(inode_of(name, directory.dir_fd), []))))
    except FileNotFoundError:
        return ()


def _rows(directory: CacheDirectory, items: list[Item], locks: _Locks) -> list[EntryRow]:
    now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    noted = read_origins(directory.dir_fd)
    partial = {item.key for item in items if item.kind == HAVE}
    rows = []
    for item in reversed(in_leaving_order(items)):
        if item.kind == SHARD:
            idle_s = max(0.0, (now_ns - item.stamp_ns) / 1e9)
            pids, state = _holders(directory, item.name, locks), "ready"
        elif item.kind == PART:
            # What was written to has its time of day as stamp.
            since_ns = now_ns if item.stamp_ns <= now_ns else time.time_ns()
            idle_s = max(0.0, (since_ns - item.stamp_ns) / 1e9)
            pids = _holders(directory, item.key + FILL, locks)
            state = "filling" if pids else "remains"
            if not pids and item.key in partial:
                pids, state = _holders(directory, item.key + HAVE, locks), "partial"
        else:
            continue
        url = read_origin(directory.dir_fd, item.name) or noted.get(item.key, "")
        rows.append(EntryRow(item.key, url, item.size, state, idle_s, pids, item.is_made))
    return rows


def _claims(directory: CacheDirectory, items: list[Item], locks: _Locks) -> list[ClaimRow]:
    rows = []
    for name in sorted(claim_names(directory)):
        pids = _holders(directory, name, locks)
        if pids:  # others end with the next look of a process that claims
            group = name.removeprefix(CLAIM)
            held = sum(charge(item.size) for item in items if item.kind != FILL and item.key.startswith(group))
            rows.append(ClaimRow(group, read_claim(directory, name), held, pids))
    return rows


def _notes(directory: CacheDirectory, items: list[Item]) -> dict[str, Note]:
    notes = {}
    for item in items:
        if item.kind == FILL and item.size:
            with (
                contextlib.suppress(OSError),
                contextlib.closing(LockFile(item.name, directory.dir_fd, create=False)) as lock,
            ):
                note = read_note(lock.read_text())
                if note is not None and (note.kind == "stuck" or note.is_fresh(60.0, boot_time_s())):
                    notes[item.key] = note
    return notes
