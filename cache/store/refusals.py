"""What this process remembers of its vain searches for room, so that it does not repeat each at once."""

import time

from epistream.cache.store.eviction import Reach

# By who may leave for it. A search surveys the directory: without a memory 1,673 batches of decode="once" over a full
# budget searched 13,329 times. Room that nobody has to leave comes only when somebody gives back, and what others claim
# only when they end; what may evict all waits for a lease to end, which is more often.
_LIFETIME_S = {Reach.NOBODY: 3.0, Reach.UNCLAIMED: 2.0, Reach.ALL: 0.25}


class Refusals:
    """The least size that found no room, and until when that is believed."""

    def __init__(self) -> None:
        self._found: dict[Reach, tuple[int, float]] = {}

    def add(self, size: int, reach: Reach) -> None:
        """No room was found for so many bytes."""
        least = min((known for known, until in self._live(reach)), default=size)
        self._found[reach] = (min(size, least), time.monotonic() + _LIFETIME_S[reach])

    def forbids(self, size: int, reach: Reach) -> bool:
        """Whether a search for so many bytes would be in vain."""
        # Where not even more eviction helped, less does not either.
        return any(size >= least for more in Reach if more >= reach for least, _ in self._live(more))

    def forget(self) -> None:
        """This process has freed something."""
        self._found.clear()

    def _live(self, reach: Reach) -> list[tuple[int, float]]:
        found = self._found.get(reach)
        return [] if found is None or found[1] <= time.monotonic() else [found]
