"""Giving memory back when the machine runs short of it, or when others take what the budget counted on."""

import contextlib
import logging
import random
import time

from epistream.cache.store.locks import LockFile
from epistream.cache.store.markers import boot_time_s
from epistream.cache.store.memory import free_share, pressure_percent
from epistream.cache.store.store import ShardStore
from epistream.cgroups import System
from epistream.units import distinct_sizes, distinct_texts, size_text

logger = logging.getLogger(__name__)

_FILE = ".pressure"
# How often a process looks, in seconds: a look costs 0.8 ms, and a process may take some GB of memory in a second.
_LOOK_EVERY_S = 0.25, 0.75
# How soon it looks again when leases stood in the way, which their holders are giving up; and if they still do: a vain
# look counts the files.
_LOOK_AGAIN_S = 0.05
_LOOK_IN_VAIN_S = 2.0
# The kernel's figure is a mean of ten seconds: what was given back is not seen at once.
_BETWEEN_S = 5.0
# Share of time in which something waited for memory, from which on bytes are given back.
_LIMIT_PERCENT = 10.0
# Share of the memory below which what is free is too little, also where the kernel tells of no waiting.
_LEAST_FREE = 0.05
_SHARES = tuple(f"{{:.{digits}%}}".format for digits in (0, 1, 2, 4, 8))
# Part of the held bytes that is given back at a time.
_SHARE = 0.25
# So far the held bytes may lie above the budget, which is measured and goes up and down a little.
_SLACK = 0.05
# For so long after memory was short nothing new is made: it would be given back again.
_PAUSE_S = 10.0
# For so long after something was given back it may be mapped by somebody.
_GIVEN_S = 1.0
# How often at most it is told: while others grow slowly, a little is given back at each look.
_TELL_EVERY_S = 30.0


class Relief:
    """Looks at the memory now and then, and evicts a part of what nobody leases where it is short."""

    def __init__(self) -> None:
        self._next_look = 0.0
        self._short_until = self._given_until = 0.0
        self._is_in_vain = False
        self._tell_at = 0.0
        self._untold_bytes = 0

    @property
    def is_short(self) -> bool:
        """Whether memory was short seconds ago: what can be done without is not kept, and leases are given up."""
        return time.monotonic() < self._short_until

    @property
    def has_given(self) -> bool:
        """Whether something that lay above the budget was given back a moment ago."""
        return time.monotonic() < self._given_until

    def look(self, store: ShardStore) -> int:
        """Called often, looks twice a second, and only one process of the node at a time acts on it.

        Nothing happens where the store's directory is not in memory.

        Returns:
            Bytes given back.
        """
        now = time.monotonic()
        if now < self._next_look or not store.options.limits.in_memory:
            return 0
        self._next_look = now + random.uniform(*_LOOK_EVERY_S)
        shortage = _shortage(store.options.limits.system)
        if not shortage and not _excess(store):
            return 0
        if shortage:
            self._short_until = now + _PAUSE_S
        with contextlib.closing(LockFile(_FILE, store.directory.dir_fd)) as lock:
            if not lock.try_exclusive():
                return 0  # another process is at it
            share = int(store.held_bytes() * _SHARE) if shortage and _is_due(lock) else 0
            excess = _excess(store)  # again: another process may just have given it back
            wanted = max(share, excess)
            given = store.give_back(wanted, made_first=True) if wanted else 0
            store.directory.observe("relief.given")
            if share:
                # Unrounded: a time that was rounded up would lie in the future of the next one to look.
                lock.write_text(repr(boot_time_s()))
        if given < excess:  # leases stand in the way: their holders are to give them up
            self._short_until = now + _PAUSE_S
            self._next_look = now + (_LOOK_IN_VAIN_S if self._is_in_vain else _LOOK_AGAIN_S)
        elif given:  # whoever maps what has just left gives that up, or its memory would not be free
            self._given_until = now + _GIVEN_S
        self._is_in_vain = given < excess
        self._untold_bytes += given
        if self._untold_bytes and now >= self._tell_at:
            logger.warning(
                "%s: %s; %s given back. Lower memory_fraction or budget_bytes.",
                store.directory.path,
                shortage or f"others took memory, {distinct_sizes(excess, 0)[0]} were held above the budget",
                size_text(self._untold_bytes),
            )
            self._untold_bytes, self._tell_at = 0, now + _TELL_EVERY_S
        return given


def _shortage(system: System) -> str:
    """What is wrong with the memory, found and wanted; "" if nothing is."""
    percent, share = pressure_percent(system), free_share(system)
    if percent is not None and percent >= _LIMIT_PERCENT:
        found, limit = distinct_texts((percent / 100, _LIMIT_PERCENT / 100), _SHARES)
        return f"memory pressure {found}, wanted below {limit}"
    if share is not None and share < _LEAST_FREE:
        found, least = distinct_texts((share, _LEAST_FREE), _SHARES)
        return f"{found} of the memory free, wanted {least} or more"
    return ""


def _excess(store: ShardStore) -> int:
    """Bytes held above the budget as it is now, 0 if they are few."""
    budget, held = store.budget(afresh=True).bytes, store.held_bytes()
    return held - budget if held > budget * (1 + _SLACK) else 0


def _is_due(lock: LockFile) -> bool:
    try:
        last_s = float(lock.read_text())
    except ValueError:  # nobody yet, or torn
        return True
    return not 0 <= boot_time_s() - last_s < _BETWEEN_S
