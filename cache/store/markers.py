"""What a process writes into a key's ``.fill`` file for those who come after it."""

import json
import time
from dataclasses import dataclass
from typing import Literal

from epistream.errors import ChecksumError, FetchError, SourceChangedError, SourceError

# Errors that are carried to the waiters; any other is worth another try by the next process.
CARRIED: dict[str, type[OSError]] = {
    "FetchError": FetchError,
    "ChecksumError": ChecksumError,
    "SourceChangedError": SourceChangedError,
    "SourceError": SourceError,
}


@dataclass(frozen=True)
class Note:
    """A failure, or the decision to do without the cache, that others follow for a while.

    Args:
        kind: "failed" carries the error; "bypass" says to read the source directly.
        error: Name of the error's class, for "failed".
        text: The error's message, or the reason.
        time_s: When, on the machine's boot clock.
    """

    kind: Literal["failed", "bypass"]
    error: str
    text: str
    time_s: float

    def is_fresh(self, lifetime_s: float, now_s: float) -> bool:
        """Whether it still counts. One from the future is from another boot and does not."""
        return 0 <= now_s - self.time_s < lifetime_s

    def to_error(self) -> OSError:
        """The error that it carries."""
        return CARRIED.get(self.error, FetchError)(self.text)


def boot_time_s() -> float:
    """Seconds since boot: the same clock for all processes, and never set back."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def write_note(note: Note) -> str:
    """Text of a note, below the 4 KiB that are read back."""
    fields = {"kind": note.kind, "error": note.error, "text": note.text[:600], "time_s": note.time_s}
    return json.dumps(fields)


def read_note(text: str) -> Note | None:
    """The note in a text; None for a filler's process id, torn text or none."""
    try:
        fields = json.loads(text)
        kind = fields["kind"]
        if kind not in ("failed", "bypass"):
            return None
        return Note(kind, str(fields["error"]), str(fields["text"]), float(fields["time_s"]))
    except (ValueError, TypeError, KeyError):
        return None
