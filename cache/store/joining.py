"""Cold readers of an entry that is not complete: they join those who bring it, or begin it."""

import contextlib
import time
from collections.abc import Callable

from epistream.cache.store.descriptors import DESCRIPTORS
from epistream.cache.store.eviction import Reach, free
from epistream.cache.store.fill import Filling, NoRoomError, Outcome, PresentError, TooLargeError
from epistream.cache.store.lease import Lease
from epistream.cache.store.locks import LockFile, lock_holders, pauses
from epistream.cache.store.markers import Note, boot_time_s, fresh_note, read_note, write_note
from epistream.cache.store.partial import Partial, Places, begin, join
from epistream.cache.store.refusals import Refusals
from epistream.cache.store.survey import FILL, unlink

# How long one waits for another process that is making room for the entry that both want.
_BEGIN_S = 0.25
# What others claim leaves for a whole shard in the end, but not before somebody needs all of it.
_REACH = Reach.UNCLAIMED


class Joining:
    """Opens partial entries of a store.

    Args:
        filling: Makes room for those that nobody began.
        refusals: Remembers that there is none.
        lookup: Leases a complete entry, given its key and size.
    """

    def __init__(self, filling: Filling, refusals: Refusals, lookup: Callable[[str, int], Lease | None]) -> None:
        self._filling = filling
        self._refusals = refusals
        self._lookup = lookup

    def join(self, key: str, places: Places, outcome: Outcome) -> Lease | Partial | None:
        """An entry while it comes in, to read what is there of it and to bring more; waits for no room and no fill.

        Args:
            key: The entry's key.
            places: Of its parts.
            outcome: Filled in.

        Returns:
            The entry itself if it is complete by now; None if it cannot be begun: there is no room, somebody fills it
            alone, or a note says not to try.

        Raises:
            DeadlineError: ``.lock`` could not be had.
            OSError: The files cannot be made.
        """
        for _ in pauses(time.monotonic() + _BEGIN_S):
            found = self._find(key, places)
            if found is not None:
                return found
            with contextlib.closing(LockFile(key + FILL, self._filling.directory.dir_fd)) as fill_lock:
                # Else somebody is about to begin it, or to complete it, or has just removed the lock's file.
                if fill_lock.try_exclusive():
                    if fill_lock.is_named():
                        return self._begin(fill_lock, key, places, outcome)
                elif _is_late(fill_lock):
                    return None  # somebody waited for the same one, in vain
        self._tell_late(key)
        return None

    def _tell_late(self, key: str) -> None:
        """Let no other cold reader wait for whoever has the right to begin an entry, and may be stopped."""
        directory, name = self._filling.directory, key + FILL
        directory.observe("begin.in_vain")
        with (
            contextlib.suppress(FileNotFoundError),
            contextlib.closing(LockFile(name, directory.dir_fd, create=False)) as lock,
        ):
            if not lock.try_exclusive() and not _is_late(lock):
                reason = (
                    f"{directory.path}/{name}: held by process {lock_holders(name, directory.dir_fd)} for {_BEGIN_S:g} "
                    "s, wanted the shard that it begins. Look whether that process is stopped."
                )
                lock.write_text(write_note(Note("late", "", reason, boot_time_s())))

    def share(self, key: str, places: Places) -> Partial:
        """The ``.part`` of an entry as cold readers know it, for its filler, while it fills."""
        return begin(self._filling.directory, key, places, self._filling.stamps.touch)

    def _find(self, key: str, places: Places) -> Lease | Partial | None:
        filling = self._filling
        return join(filling.directory, key, places, filling.stamps.touch) or self._lookup(key, sum(places[-1]))

    def _begin(self, fill_lock: LockFile, key: str, places: Places, outcome: Outcome) -> Lease | Partial | None:
        size = sum(places[-1])
        if fresh_note(fill_lock.read_text(), self._filling.options.note_s):
            return None
        # Who had the lock just before may have begun it, or completed it.
        found = self._find(key, places)
        if found is not None or self._refusals.forbids(size, _REACH):
            unlink(self._filling.directory, fill_lock.name)
            return found
        try:
            return self._make(key, places, outcome)
        except PresentError:
            return None
        except (NoRoomError, TooLargeError):
            self._refusals.add(size, _REACH)
            return None
        finally:
            unlink(self._filling.directory, fill_lock.name)
            self._filling.directory.observe("begin.done")

    def _make(self, key: str, places: Places, outcome: Outcome) -> Partial:
        """Make room for an entry; its pages come as they are written."""
        filling = self._filling
        part, evicted = filling.reserve(key, sum(places[-1]), _REACH, outcome)
        try:
            free(evicted)
            filling.directory.observe("begin.reserved")
            return begin(filling.directory, key, places, filling.stamps.touch)
        except BaseException:
            filling.abandon(key)
            raise
        finally:
            DESCRIPTORS.close(part)


def _is_late(fill_lock: LockFile) -> bool:
    """Whether somebody waited in vain for the holder of a ``.fill``."""
    note = read_note(fill_lock.read_text())
    return note is not None and note.kind in ("stuck", "late")
