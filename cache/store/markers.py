"""What processes write down in a directory for each other: its cap, what is kept, notes on fills, origins.

Everything takes the directory's descriptor, so that entering and leaving it can use this too.
"""

import contextlib
import json
import logging
import os
import re
import shlex
import time
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from epistream.cache.store.descriptors import DESCRIPTORS
from epistream.errors import ChecksumError, FetchError, SourceChangedError, SourceError
from epistream.shown_urls import MARK, shown

logger = logging.getLogger(__name__)

_BUDGET = ".budget"
_BOOT = ".boot"
_NO_CAP = "none"
KEEP = ".keep"
# What the files of claims begin with; a claim does not outlive the users of its directory.
CLAIM = "claim-"
# Read by nobody, and removed with what is not kept, should its writer die.
_NEW_KEEP = ".keep.new"
# Errors that are carried to the waiters; any other is worth another try by the next process.
CARRIED: dict[str, type[OSError]] = {
    error.__name__: error for error in (FetchError, ChecksumError, SourceChangedError, SourceError)
}
# Entries and fills, claims, locks of prefetchers, and what is known of the whole.
_OURS = re.compile(
    r"[^.]+\.(?:shard|part|have|fill)|claim-.*|prefetch-.*\.lock|\.(?:users|lock|budget|boot|names|pressure|keep(?:\.new)?)"
)
_URL_ATTRIBUTE = "user.epistream.url"
# Where files have no such attributes: a line for each fill; begun afresh when it is long, for it counts for nobody.
_NAMES = ".names"
_MOST_NAMES_BYTES = 1 << 20


# --- the cap that the users of a directory agreed on -----------------------------------------------------


def read_cap(dir_fd: int) -> int | None:
    """The directory's cap in bytes; None for none."""
    text = _cap_text(dir_fd)
    return int(text) if text.isdecimal() else None


def write_cap(dir_fd: int, cap: int | None) -> None:
    """Set the directory's cap. Under ``.lock``."""
    with DESCRIPTORS.opened(_BUDGET, os.O_RDWR | os.O_CREAT, dir_fd) as fd:
        os.ftruncate(fd, 0)
        os.pwrite(fd, (_NO_CAP if cap is None else str(cap)).encode(), 0)


def agree_on_cap(dir_fd: int, wish: int | None, *, sole: bool, where: Path) -> None:
    """Settle the cap on entering, in bytes or None for no wish. Under ``.lock``.

    The first who enters decides, and so does a sole user, who finds nobody else; others are told that they differ.
    """
    text = _cap_text(dir_fd)
    if not (text == _NO_CAP or text.isdecimal()):  # none yet, or torn
        write_cap(dir_fd, wish)
    elif wish is not None and str(wish) != text:
        if sole:
            write_cap(dir_fd, wish)
        else:
            logger.warning(
                "%s: a budget of %s bytes is in force, wanted %d. Others use the directory: change it for all: "
                "epistream cache resize %d --directory %s",
                where,
                text,
                wish,
                wish,
                shlex.quote(str(where)),
            )


def _cap_text(dir_fd: int) -> str:
    return (read_text(dir_fd, _BUDGET) or "").strip()


def read_text(dir_fd: int, name: str) -> str | None:
    """What a file of a directory holds; None if it is not there."""
    try:
        with DESCRIPTORS.opened(name, os.O_RDONLY, dir_fd) as fd:
            return os.pread(fd, os.fstat(fd).st_size, 0).decode(errors="replace")
    except FileNotFoundError:
        return None


# --- the boot in which a directory on a disk was last entered --------------------------------------------


def is_of_this_boot(dir_fd: int) -> bool:
    """Whether the machine is up since somebody called `mark_boot`."""
    return read_text(dir_fd, _BOOT) == _boot_id()


def mark_boot(dir_fd: int) -> None:
    """Note this boot. On a full file system there is no note, or a torn one."""
    with contextlib.suppress(OSError), DESCRIPTORS.opened(_BOOT, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, dir_fd) as fd:
        os.write(fd, _boot_id().encode())


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:
        return "unknown"


# --- what outlives the last user: everything, or chosen keys ---------------------------------------------


def mark_kept(dir_fd: int, keys: Collection[str] | None = None) -> None:
    """Let a directory outlive its last user, with all that it holds, or with these keys alone. Under ``.lock``.

    An empty ``.keep`` stands for all, and whoever wants all wins; else there is a key on each line.

    Raises:
        OSError: it cannot be written; what was said before stands.
    """
    if keys is not None and not keys:
        return
    kept = _kept(dir_fd)
    wanted = set() if keys is None or kept == set() else {*(kept or ()), *keys}
    if wanted == kept:
        return
    # As a whole or not at all: one that was made and not written would stand for all.
    with DESCRIPTORS.opened(_NEW_KEEP, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, dir_fd) as fd:
        try:
            text = memoryview("".join(f"{key}\n" for key in sorted(wanted)).encode())
            while text:
                text = text[os.write(fd, text) :]
            os.rename(_NEW_KEEP, KEEP, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
        except OSError:
            os.unlink(_NEW_KEEP, dir_fd=dir_fd)
            raise


def is_kept(dir_fd: int) -> bool:
    """Whether a directory outlives its last user, or means to: its ``.keep`` may be of a kind that cannot be read."""
    return KEEP in os.listdir(dir_fd)


def is_ours(name: str) -> bool:
    """Whether a name in a cache's directory is one that caches make; others are the user's."""
    return _OURS.fullmatch(name) is not None


def drop_unkept(dir_fd: int) -> bool:
    """Whether a directory outlives its last user, who calls this; what is not to be kept is removed then."""
    kept = _kept(dir_fd)
    if not kept:
        return kept is not None
    for name in os.listdir(dir_fd):
        key, dot, _ = name.rpartition(".")
        # Names that begin with a dot are not of entries.
        if is_ours(name) and ((dot and key and key not in kept) or name.startswith(CLAIM)):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=dir_fd)
    return True


def _kept(dir_fd: int) -> set[str] | None:
    """The keys that are kept, none of them for all; None if the directory does not outlive its last user."""
    text = read_text(dir_fd, KEEP)
    return None if text is None else set(text.split())


# --- what a process writes into a key's .fill file for those who come after it ---------------------------


@dataclass(frozen=True)
class Note:
    """A failure, or the decision to do without the cache, that others follow for a while.

    Args:
        kind: "failed" carries the error; "bypass" says to read the source directly. "stuck" is of somebody who waited
            for the holder of the file's lock in vain: as long as that one holds it, others need not wait as well; and
            "late" of a cold reader, who has far less patience.
        error: Name of the error's class, for "failed".
        text: The error's message, or the reason.
        time_s: When, on the machine's boot clock.
    """

    kind: Literal["failed", "bypass", "stuck", "late"]
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
    return json.dumps({**asdict(note), "text": note.text[:600]})


def read_note(text: str) -> Note | None:
    """The note in a text; None for a filler's process id, torn text or none."""
    if not text:  # nearly always; an exception would cost more than the rest of a look
        return None
    try:
        fields = json.loads(text)
        kind = fields["kind"]
        if kind not in ("failed", "bypass", "stuck", "late"):
            return None
        return Note(kind, str(fields["error"]), str(fields["text"]), float(fields["time_s"]))
    except (ValueError, TypeError, KeyError, OverflowError):
        return None


def fresh_note(text: str, lifetime_s: float) -> Note | None:
    """The note in a text, if it still counts for who holds the lock: nobody else is stuck with it then."""
    note = read_note(text)
    if note is None or note.kind in ("stuck", "late") or not note.is_fresh(lifetime_s, boot_time_s()):
        return None
    return note


# --- where an entry came from, for people who look at the cache ------------------------------------------


def write_origin(dir_fd: int, fd: int, key: str, url: str) -> None:
    """Note on an open file of a directory where the entry of a key came from, without what makes a signed URL open."""
    origin = shown(url).removesuffix(f"?{MARK}").encode(errors="replace")[:1000]
    try:
        os.setxattr(fd, _URL_ATTRIBUTE, origin)
    except OSError:  # tmpfs knows such attributes since Linux 6.6
        with (
            contextlib.suppress(OSError),
            DESCRIPTORS.opened(_NAMES, os.O_WRONLY | os.O_CREAT | os.O_APPEND, dir_fd) as names_fd,
        ):
            if os.fstat(names_fd).st_size > _MOST_NAMES_BYTES:
                os.ftruncate(names_fd, 0)
            os.write(names_fd, key.encode() + b" " + origin.replace(b"\n", b"?") + b"\n")


def read_origins(dir_fd: int) -> dict[str, str]:
    """Where entries came from, by key, of those on whose files it could not be noted."""
    try:
        lines = (read_text(dir_fd, _NAMES) or "").split("\n")
    except OSError:
        return {}
    return {key: shown(url) for key, _, url in (line.partition(" ") for line in lines)}


def read_origin(dir_fd: int, name: str) -> str:
    """The URL noted on a file of a directory; "" where there is none."""
    try:
        origin = os.getxattr(f"/proc/self/fd/{dir_fd}/{name}", _URL_ATTRIBUTE).decode(errors="replace")
    except OSError:
        return ""
    return shown(origin)  # releases before this one noted user and password too
