"""Opening a store: enter its directory, agree on the budget, and clean up after the dead."""

import os
import time
from pathlib import Path

from epistream.cache.store.cap import agree_on_cap
from epistream.cache.store.directory import CacheDirectory, Observer, ignore, sweep
from epistream.cache.store.eviction import SHARD, Item, remove_remains, survey
from epistream.cache.store.store import ShardStore, StoreOptions
from epistream.errors import CacheError, DeadlineError

# Names of this user's caches begin with it: /dev/shm/epistream-1000.
_FAMILY = "epistream-{uid}"


def default_name() -> str:
    """The name of this user's cache directory, the same for all jobs on a node, so that they share it."""
    return _FAMILY.format(uid=os.geteuid())


def open_store(path: Path, options: StoreOptions, *, keep: bool = False, observe: Observer = ignore) -> ShardStore:
    """Enter a directory, made if need be, and return its store; end it with ``store.directory.leave()``.

    Args:
        path: The directory.
        options: Budget and deadlines.
        keep: Let the directory outlive its last user.
        observe: Told each step of the protocol.

    Raises:
        CacheError: The directory cannot be used.
        DeadlineError: A lock was held for too long.
    """
    while True:
        directory, sole = CacheDirectory.enter(path, options.lock_timeout_s, observe)
        try:
            with directory.locked(options.lock_timeout_s):
                observe("open.locked")
                _set_right(directory, options, keep=keep, sole=sole)
        except OSError as error:
            directory.leave()
            if isinstance(error, CacheError | DeadlineError):
                raise
            raise CacheError(f"{path}: {error.strerror}, wanted to keep shards there. Choose another one.") from error
        if not sole or directory.share():
            break
    observe("open.shared")
    family = default_name()
    sweep(path, family if path.name == family or path.name.startswith(family + "-") else None, observe)
    return ShardStore(directory, options)


def _set_right(directory: CacheDirectory, options: StoreOptions, *, keep: bool, sole: bool) -> None:
    agree_on_cap(directory, options.cap, sole=sole)
    if keep:
        directory.mark_kept()
    if sole:
        _rebase(directory, remove_remains(directory, survey(directory), "", 0.0))


def _rebase(directory: CacheDirectory, items: list[Item]) -> None:
    """Bring stamps from before a reboot, which lie in the future of this boot's clock, before all others."""
    now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    shards = sorted((item for item in items if item.kind == SHARD), key=lambda item: item.stamp_ns)
    if any(item.stamp_ns > now_ns for item in shards):
        for place, item in enumerate(shards):
            os.utime(item.name, ns=(place, place), dir_fd=directory.dir_fd, follow_symlinks=False)
