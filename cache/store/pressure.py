"""Giving memory back when the machine runs short of it."""

import contextlib
import logging
import random
import time

from epistream.cache.store.locks import LockFile
from epistream.cache.store.markers import boot_time_s
from epistream.cache.store.memory import pressure_percent
from epistream.cache.store.store import ShardStore
from epistream.cgroups import System
from epistream.units import size_text

logger = logging.getLogger(__name__)

_FILE = ".pressure"
# The kernel's figure is a mean of ten seconds: what was given back is not seen at once.
_BETWEEN_S = 5.0
# Share of time in which something waited for memory, from which on bytes are given back.
_LIMIT_PERCENT = 10.0
# Part of the held bytes that is given back at a time.
_SHARE = 0.25


class Relief:
    """Looks at the memory pressure now and then, and evicts a part of what nobody leases."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._next_look = 0.0

    def look(self, store: ShardStore) -> int:
        """Called often, looks every few seconds, and only one process of the node acts on it.

        Returns:
            Bytes given back.
        """
        now = time.monotonic()
        if now < self._next_look:
            return 0
        self._next_look = now + random.uniform(1.0, 3.0)
        pressure = pressure_percent(self._system)
        if pressure is None or pressure < _LIMIT_PERCENT:
            return 0
        with contextlib.closing(LockFile(_FILE, store.directory.dir_fd)) as lock:
            if not lock.try_exclusive() or not self._is_due(lock):
                return 0
            given = store.give_back(int(store.held_bytes() * _SHARE))
            # Unrounded: a time that was rounded up would lie in the future of the next one to look.
            lock.write_text(repr(boot_time_s()))
        if given:
            logger.warning(
                "%s: memory pressure %.0f%%, wanted below %.0f%%: %s given back. Lower memory_fraction.",
                store.directory.path,
                pressure,
                _LIMIT_PERCENT,
                size_text(given),
            )
        return given

    def _is_due(self, lock: LockFile) -> bool:
        try:
            last_s = float(lock.read_text())
        except ValueError:  # nobody yet, or torn
            return True
        return not 0 <= boot_time_s() - last_s < _BETWEEN_S
