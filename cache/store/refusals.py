"""What this process remembers of its vain searches for room, so that it does not repeat each at once."""

import time

# By whether others may leave for it. A search surveys the directory: without a memory 1,673 batches of decode="once"
# over a full budget searched 13,329 times. Room that nobody has to leave comes only when somebody gives back; what may
# evict waits for a lease to end, which is more often.
_LIFETIME_S = {False: 3.0, True: 0.25}


class Refusals:
    """The least size that found no room, and until when that is believed."""

    def __init__(self) -> None:
        self._found: dict[bool, tuple[int, float]] = {}

    def add(self, size: int, *, may_evict: bool) -> None:
        """No room was found for so many bytes."""
        least = min((known for known, until in self._live(may_evict)), default=size)
        self._found[may_evict] = (min(size, least), time.monotonic() + _LIFETIME_S[may_evict])

    def forbids(self, size: int, *, may_evict: bool) -> bool:
        """Whether a search for so many bytes would be in vain."""
        # Where not even eviction helped, nothing is free either.
        return any(size >= least for kind in {may_evict, True} for least, _ in self._live(kind))

    def forget(self) -> None:
        """This process has freed something."""
        self._found.clear()

    def _live(self, may_evict: bool) -> list[tuple[int, float]]:
        found = self._found.get(may_evict)
        return [] if found is None or found[1] <= time.monotonic() else [found]
