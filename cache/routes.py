"""Which tiers serve an entry, in which order, and why."""

import logging
from dataclasses import dataclass

from epistream.cache.options import Mode
from epistream.cache.source.entry import Entry
from epistream.cache.store.places import file_system_type, is_memory, is_network
from epistream.file_systems import local_path

logger = logging.getLogger(__name__)

# The tiers that a mode keeps entries in; the first that can be used does.
KEEPING_TIERS: dict[Mode, tuple[str, ...]] = {
    "auto": ("shm", "disk"),
    "shm": ("shm",),
    "disk": ("disk",),
    "off": (),
}


@dataclass(frozen=True)
class Route:
    """Where an entry is served from.

    Args:
        tiers: To try in this order; the last is "direct", the source itself.
        reason: Why, in words.
    """

    tiers: tuple[str, ...]
    reason: str

    @property
    def keeping_tier(self) -> str | None:
        """The tier that keeps it, if that can be used; None if it is read in place."""
        return None if self.tiers[0] == "direct" else self.tiers[0]


def choose_route(mode: Mode, file_system: str | None, *, is_costly: bool = False) -> Route:
    """The route of what lies on a type of file system, "ext4" for example; None for a remote source.

    Args:
        mode: Of the cache.
        file_system: The type.
        is_costly: Whether reading in place costs much more than reading a copy.
    """
    through = (*KEEPING_TIERS[mode], "direct")
    if mode == "off":
        return Route(through, "the cache is off")
    if mode != "auto":
        return Route(through, "asked for")
    if file_system is None:
        return Route(through, "a remote source")
    if is_network(file_system):
        return Route(through, f"on a network file system ({file_system})")
    if is_costly:
        return Route(through, "reading it in place costs much more than reading a copy")
    return Route(("direct",), f"on a local file system ({file_system}), which the page cache shares")


def route_of(entry: Entry, mode: Mode) -> Route:
    """The route of an entry: that of where its first part is."""
    path = local_path(entry.parts[0].url)
    return choose_route(mode, None if path is None else file_system_type(path), is_costly=entry.is_costly)


def is_on_disk(url: str) -> bool:
    """Whether a URL leads to a file on a disk of this machine."""
    path = local_path(url)
    if path is None:
        return False
    kind = file_system_type(path)
    return not is_network(kind) and not is_memory(kind)


class Routes:
    """The routes of entries, found once for each folder and cost, and told then."""

    def __init__(self, mode: Mode) -> None:
        self._mode = mode
        self._by_folder: dict[tuple[str, bool], Route] = {}

    def of(self, entry: Entry) -> Route:
        """The route of an entry: that of its first part's folder."""
        folder = entry.parts[0].url.rpartition("/")[0]
        place = folder, entry.is_costly
        if place not in self._by_folder:
            route = self._by_folder[place] = route_of(entry, self._mode)
            logger.info("%s: cache tiers %s: %s", folder, " -> ".join(route.tiers), route.reason)
        return self._by_folder[place]
