"""The stores of one process, one per tier, opened when they are first needed."""

import contextlib
import errno
import logging
import os
import threading
from collections.abc import Callable, Collection
from pathlib import Path

from epistream.cache.options import CacheOptions
from epistream.cache.routes import KEEPING_TIERS
from epistream.cache.store import places
from epistream.cache.store.budget import Budget, Limits, measure
from epistream.cache.store.descriptors import DESCRIPTORS
from epistream.cache.store.directory import ANOTHER, CacheDirectory, Observer, end_deserted, ignore
from epistream.cache.store.markers import read_cap
from epistream.cache.store.places import file_system_type, is_memory
from epistream.cache.store.store import ShardStore, StoreOptions, open_store
from epistream.cache.store.total import held_bytes
from epistream.errors import CacheError, DeadlineError
from epistream.working_folder import absolute

logger = logging.getLogger(__name__)

# What another thread is told that still is in a directory which this one has left.
_OF_THE_OLD_ONE = (errno.EBADF, errno.ENOENT, errno.EFAULT)
# The next step where a directory was removed under those who use it.
_LEAVE_ALONE = f"Clean up with 'epistream cache clear', which leaves alone what is in use. {ANOTHER}"


class Stores:
    """Opens the stores, remembers which cannot be used, and says so once."""

    def __init__(
        self,
        options: CacheOptions,
        reserved_bytes: int,
        observe: Observer = ignore,
        upcoming: Callable[[], Collection[str]] = tuple,
        *,
        is_quiet: bool = False,
    ) -> None:
        self._options = options
        self._level = logging.INFO if is_quiet else logging.WARNING
        self._reserved_bytes = reserved_bytes
        self._observe = observe
        self._upcoming = upcoming
        self._mutex = threading.Lock()
        self._stores: dict[str, ShardStore | CacheError | DeadlineError] = {}
        self._warned: set[str] = set()

    def get(self, tier: str) -> ShardStore | None:
        """The store of a tier; None if it cannot be used.

        Raises:
            CacheError: It cannot be used, and shared memory was asked for.
        """
        with self._mutex:
            if tier not in self._stores:
                try:
                    self._stores[tier] = self._open(tier)
                except (CacheError, DeadlineError) as error:
                    self._stores[tier] = error
                    if self._options.mode != "shm":
                        self.step_down(tier, error)
            store = self._stores[tier]
        if isinstance(store, ShardStore):
            return store
        if self._options.mode == "shm":
            raise store
        return None

    def why_not(self, tier: str) -> str:
        """Why a tier cannot be used, in words."""
        store = self._stores.get(tier)
        return str(store) if isinstance(store, OSError) else ""

    def forget(self, tier: str) -> None:
        """Leave a tier's directory, to be entered anew when it is needed again."""
        with self._mutex:
            store = self._stores.pop(tier, None)
        if isinstance(store, ShardStore):
            store.leave()

    def lost(self, tier: str, error: OSError | None = None) -> str:
        """Leave a tier's directory that does not serve any more; why, in words, which are said once if it is gone.

        Args:
            tier: Whose it is.
            error: What it answered; None if it was only looked at.
        """
        store = self._stores.get(tier)
        is_current = isinstance(store, ShardStore) and store.directory.is_current()
        if is_current and (error is None or error.errno in _OF_THE_OLD_ONE):
            return "its directory was made anew by another thread"
        self.forget(tier)
        if is_current and error is not None:
            return self.step_down(tier, error)
        found = "removed while it was in use, wanted it until its last user leaves; it is made anew"
        text = f"{self._path(tier)}: {found}. {_LEAVE_ALONE}"
        if text not in self._warned:
            self._warned.add(text)
            logger.log(self._level, "%s", text)
        return text

    def end_deserted(self) -> None:
        """Remove the directories of processes that were killed, if nobody else uses them."""
        for tier in KEEPING_TIERS[self._options.mode]:
            with contextlib.suppress(OSError):
                end_deserted(self._path(tier))

    def entered(self) -> list[ShardStore]:
        """The stores whose directories this process uses now."""
        return [store for store in list(self._stores.values()) if isinstance(store, ShardStore)]

    def step_down(self, tier: str, error: OSError) -> str:
        """Say once per tier and kind of reason that it does not serve; the reason in words."""
        kind = f"{tier} {type(error).__name__}"
        if kind not in self._warned:
            self._warned.add(kind)
            logger.log(self._level, "Cache tier %s left aside, the next one is used: %s", tier, error)
        return str(error)

    def budget(self) -> Budget | None:
        """The budget of the first tier that can be used; None if nothing is kept."""
        for tier in KEEPING_TIERS[self._options.mode]:
            store = self.get(tier)
            if store is not None:
                return store.budget(afresh=True)
        return None

    def budget_ahead(self, tier: str) -> Budget | None:
        """The budget of whoever enters a tier's directory, which need not be there yet: nothing is made or locked.

        The cap that the user wants counts, and the one in force; the lesser of them is taken. None if the directory
        cannot be looked at.
        """
        try:
            path = self._path(tier)
            exists = path.is_dir()
            nearest = path if exists else next(parent for parent in path.parents if parent.is_dir()).resolve()
            with DESCRIPTORS.opened(nearest, os.O_RDONLY | os.O_DIRECTORY) as dir_fd:
                wish, agreed = self._options.budget(tier), read_cap(dir_fd) if exists else None
                caps = [cap for cap in (wish, agreed) if cap is not None]
                held = held_bytes(CacheDirectory(path, dir_fd, None)) if exists else 0
                return measure(dir_fd, min(caps, default=None), held, self._limits(path))
        except OSError:
            return None

    def close(self) -> None:
        """Leave every directory."""
        for tier in list(self._stores):
            self.forget(tier)

    def _path(self, tier: str) -> Path:
        given = self._options.disk_directory if tier == "disk" else self._options.directory
        if given:
            return absolute(Path(given))
        if tier == "shm" and not (places.SHM_PARENT.is_dir() and is_memory(file_system_type(places.SHM_PARENT))):
            found = "not in memory" if places.SHM_PARENT.is_dir() else "not there"
            raise CacheError(f"{places.SHM_PARENT}: {found}, wanted a tmpfs. Mount one. {ANOTHER}")
        return places.default_directory(tier)

    def _limits(self, path: Path) -> Limits:
        return Limits(
            memory_fraction=self._options.memory_fraction,
            reserved_bytes=self._reserved_bytes,
            in_memory=is_memory(file_system_type(path)),
        )

    def _open(self, tier: str) -> ShardStore:
        options, path, on_disk = self._options, self._path(tier), tier == "disk"
        limits = self._limits(path)
        store = open_store(
            path,
            StoreOptions(
                limits,
                cap=options.budget(tier),
                fill_timeout_s=options.fill_timeout_s,
                room_timeout_s=options.room_timeout_s,
                durable=on_disk and not limits.in_memory,
                upcoming=self._upcoming,
            ),
            # A disk directory that the user named is a tier of its own, which outlives the job.
            keep=options.keep or (on_disk and options.disk_directory is not None),
            observe=self._observe,
        )
        logger.info("%s: cache entered, a budget of %s.", path, store.budget())
        return store
