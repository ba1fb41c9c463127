"""Reading ahead on a slow local disk: one process per node and plan brings the next files into the page cache.

Correctness never depends on it: readers read the same files, sooner or later.
"""

import contextlib
import logging
import os
import random
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from epistream.cache.ahead_board import AheadBoard
from epistream.cache.ahead_thread import AheadThread
from epistream.cache.source.entry import Entry
from epistream.cache.source.page_cache import SAMPLE_BYTES, DiskSpeed, advise, is_at_hand
from epistream.cache.stats import Counters
from epistream.cache.store.memory import available_bytes, cgroup_free_bytes
from epistream.cgroups import System
from epistream.errors import EpistreamError
from epistream.file_systems import local_path
from epistream.plain_files import refuse_other_than_plain

logger = logging.getLogger(__name__)

# One request of the largest disks; readers of others wait behind few of them.
_PIECE_BYTES = 1 << 20
# Share of the memory that the machine and the control groups leave, page cache counted as free: what was read ahead
# must not push out what is in use, and others have files too.
_MEMORY_SHARE = 0.5
_LOOK_S = 5.0
# How often one that does not lead looks whether it may.
_PAUSE_S = 0.5
# Longest wait for the first batches of ranks.
_FIRST_S, _FIRST_PAUSE_S = 10.0, 0.01
# Where a disk is tried before anything is read ahead: so many files, at so many places of each.
_TRY_FILES, _TRY_PLACES = 8, 4
# A slow disk is tried again with one of so many files.
_TRY_AGAIN = 32
# Reading on their own is not worse than that for readers who waited so many times as long for those ahead.
_PATIENCE = 2.0
_TRY_PATIENCE = 8


@dataclass(frozen=True)
class FileRange:
    """Bytes [first, stop) of a local file."""

    path: Path
    first: int
    stop: int


# What of local files an entry is read from, in the order to read it.
Places = tuple[FileRange, ...]


@dataclass(eq=False)
class _Ahead:
    """Something that lies ahead: its place in the order, its number, and whether anything of it is still to be read."""

    position: int
    number: int
    ranges: Places
    is_done: bool = False

    @property
    def num_bytes(self) -> int:
        return sum(each.stop - each.first for each in self.ranges)


class ReadAhead(AheadThread):
    """A thread that reads the next files of a plan in sequence, where that is faster than what readers do.

    Of all processes of the node with the same plan one works, as `Prefetcher` does. It first tries how long the disk
    takes for single reads, and goes on trying with each new file: on a fast disk that is all it does.

    Args:
        board: a local file that all of them have, for what they tell each other.
        uses: number and places of each entry, in the order of use; read lazily, only in this object's thread.
        ahead: entries to keep ready beyond those that were passed; half of them are in use.
        counters: what it did is counted here.
        system: where the kernel tells how much memory there is.
    """

    def __init__(
        self,
        board: Path,
        uses: Iterator[tuple[int, Places]],
        ahead: int,
        counters: Counters,
        system: System | None = None,
    ) -> None:
        super().__init__("epistream-read-ahead")
        self._board_path = board
        self._uses = uses
        self._ahead = ahead
        self._counters = counters
        self._system = System() if system is None else system
        self._next_position = 0
        self._window: deque[_Ahead] = deque()
        self._current: _Ahead | None = None
        self._pieces: Iterator[None] = iter(())
        self._speed = DiskSpeed()
        self._is_tried = self._has_begun = False
        self._expected: set[int] = set()
        self._num_beats = self._num_files = 0
        self._allowed_bytes, self._next_look = 0, 0.0
        self._buffer = bytearray(_PIECE_BYTES)

    def advance(self, num_passed: int) -> None:
        """Tell that this rank needs the first `num_passed` entries no more; cheap, and never waits."""
        if num_passed > self._passed:
            with self._changed:
                self._passed = num_passed
                self._changed.notify()

    # --- in the thread -----------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            board = AheadBoard(self._board_path)
        except OSError as error:
            logger.info("read ahead: %s", error)
            return
        try:
            while (passed := self._progress()) is not None:
                if not board.try_lead():
                    self._wait(passed, _PAUSE_S * random.uniform(0.5, 1.5))
                elif not self.step(board, passed):
                    self._wait(passed, _LOOK_S)
        except Exception:
            logger.exception("read ahead: ended; readers read for themselves.")
        finally:
            board.close()

    def step(self, board: AheadBoard, passed: int) -> bool:
        """Read one piece, or pass over one entry; False if there is nothing to do until more was passed."""
        if self._current is None:
            self._look_ahead(passed)
            self._tell(board)
            self._current = self._next(passed)
            if self._current is None:
                return False
            self._leave_first_batches_alone(board)
            self._pieces = self._read(self._current)
        if next(self._pieces, self) is self:
            self._current.is_done, self._current = True, None
        elif self._speed.is_slow:
            board.tell(self._num_beats, self._patience)
        return True

    def _leave_first_batches_alone(self, board: AheadBoard) -> None:
        """Wait until the ranks have their first batches, which are few single reads; once, and not for ever."""
        if self._has_begun or not self._speed.is_slow:
            return
        self._has_begun, until = True, time.monotonic() + _FIRST_S
        while board.is_first() and time.monotonic() < until and not self.is_closed:
            time.sleep(_FIRST_PAUSE_S)
            self._num_beats += 1
            board.tell(self._num_beats, self._patience)

    def _look_ahead(self, passed: int) -> None:
        while self._window and self._window[0].position < passed:
            self._window.popleft()
        held = sum(ahead.num_bytes for ahead in self._window)
        while self._next_position < passed + self._ahead and held < self._allowed():
            use = next(self._uses, None)
            if use is None:
                break
            if self._next_position >= passed:
                ahead = _Ahead(self._next_position, *use)
                held += ahead.num_bytes
                self._window.append(ahead)
            self._next_position += 1

    def _allowed(self) -> int:
        """Bytes of files that may be in use and ahead."""
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + _LOOK_S
            left = (available_bytes(self._system), cgroup_free_bytes(self._system))
            self._allowed_bytes = int(min((each for each in left if each is not None), default=0) * _MEMORY_SHARE)
        return self._allowed_bytes

    def _next(self, passed: int) -> _Ahead | None:
        """What to read now: all that is in use is wanted as much, so that comes as it lies, and then what is next."""
        todo = [ahead for ahead in self._window if not ahead.is_done]
        near = [ahead for ahead in todo if ahead.position < passed + self._ahead // 2]
        near.sort(key=lambda ahead: [str(file.path) for file in ahead.ranges])
        return next(iter(near or todo), None)

    def _tell(self, board: AheadBoard) -> None:
        """Tell readers what is still to come, and this process's statistics what the disk is like."""
        if not self._is_tried and self._window:
            # Readers wait for the verdict: on a slow disk they would be in its way.
            self._expect(board, _TRY_PATIENCE)
            self._try_disk()
            self._is_tried = True
        if self._speed.is_slow:
            self._expect(board, self._patience)
        elif self._expected:
            self._expected.clear()
            board.forget()
        self._counters.tell_disk(str(self._speed))

    @property
    def _patience(self) -> int:
        if not self._speed.num_bytes:
            return _TRY_PATIENCE
        return int(max(0.0, self._speed.waste - 1) * _PATIENCE)

    def _expect(self, board: AheadBoard, patience: int) -> None:
        expected = {ahead.number for ahead in self._window if not ahead.is_done and ahead.ranges}
        for number in self._expected - expected:
            board.arrive(number)
        for number in expected - self._expected:
            board.expect(number)
        self._expected = expected
        board.tell(self._num_beats, patience)

    def _try_disk(self) -> None:
        """See how long single reads take, at places that are going to be needed."""
        files = [ahead.ranges[-1] for ahead in list(self._window)[:_TRY_FILES] if ahead.ranges]
        for place in range(_TRY_PLACES):
            for file in files:
                size = file.stop - file.first
                with contextlib.suppress(OSError), _opened(file.path) as fd:
                    self._speed.sample(fd, file.first + size * place // _TRY_PLACES)
            if self._speed.is_known:
                return

    def _read(self, ahead: _Ahead) -> Iterator[None]:
        """Read the files of an entry, piece by piece, unless the disk is fast or they are in the page cache."""
        for file in ahead.ranges:
            with contextlib.suppress(OSError), _opened(file.path) as fd:
                if self._is_at_hand(fd, file) or not self._speed.is_slow:
                    continue
                for got in self._speed.read_on(fd, file.first, file.stop, self._buffer):
                    self._num_beats += 1
                    self._counters.add(bytes_ahead=got)
                    yield

    def _is_at_hand(self, fd: int, file: FileRange) -> bool:
        """Whether a file is in the page cache. If not, see what the disk is like now, and advise where it is fast."""
        size = file.stop - file.first
        if self._speed.is_slow:
            if all(is_at_hand(fd, file.first + size * place // 4) for place in range(4)):
                return True
            self._num_files += 1
            if self._num_files % _TRY_AGAIN == 0 and size >= SAMPLE_BYTES:
                self._speed.sample(fd, file.first + size // 2)  # not where the disk is about to read on
            return False
        was_there = self._speed.sample(fd, file.first) if size >= SAMPLE_BYTES else is_at_hand(fd, file.first)
        if not was_there and not self._speed.is_slow:
            advise(fd, file.first, size)
        return was_there


def local_ranges(entry: Entry) -> Places:
    """What of local files an entry is read from; the index, which is needed first, before what it tells of."""
    found = []
    with contextlib.suppress(EpistreamError):  # the reader meets it, and reports it
        for part in reversed(entry.parts):
            if part.supply is not None:
                found += [FileRange(*each) for each in part.supply.local_ranges()]
            else:
                path = local_path(part.url)
                if path is not None and part.size:
                    found.append(FileRange(path, 0, part.size))
    return tuple(found)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    refuse_other_than_plain(path)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
