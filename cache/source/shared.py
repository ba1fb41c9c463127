"""What a part is to readers and fetchers who bring it together with other processes of the node."""

from contextlib import AbstractContextManager
from typing import Protocol


class Shared(Protocol):
    """A file that holds one part, or will. Offsets are the part's, and ranges of whole granules but at its end.

    Attributes:
        granule_bytes: It is known of so many bytes each whether they are there.
    """

    @property
    def granule_bytes(self) -> int:
        """See above."""

    def absent(self, start: int, stop: int, unit_bytes: int = ...) -> list[tuple[int, int]]:
        """Half-open runs of bytes within [start, stop) that are not there, in whole units from `start`."""

    def turn(
        self, start: int, stop: int, unit_bytes: int, patience_s: float
    ) -> AbstractContextManager[list[tuple[int, int]] | None]:
        """The right to bring some of what is absent: as much as nobody else is bringing; waits until there is some.

        Whoever wants all of the range asks again until nothing is left.

        Args:
            start: First byte.
            stop: One after the last.
            unit_bytes: Bytes that are brought together or not at all.
            patience_s: How long to wait for others, who may be stopped.

        Returns:
            Half-open runs that are absent, and brought by nobody else during the block; [] if all is there. None after
            `patience_s`, or at once for what somebody else was waited for in vain, and where nothing can be shared:
            others may be bringing the same then.
        """

    def read(self, start: int, stop: int) -> bytes:
        """Bytes that are there, to be checked where there are checksums."""

    def write(self, start: int, data: bytes | memoryview) -> None:
        """Bytes for all, checked before where there are checksums.

        Raises:
            OSError: They cannot be written.
        """

    def clear(self) -> None:
        """Say that nothing is there: it was found to be wrong."""
