"""Readers wait, within measure, for what is being read ahead: on a slow disk their own reads would cost far more."""

import time
from collections.abc import Callable
from pathlib import Path

from epistream.cache.ahead_board import AheadBoard, number_of
from epistream.loader.shards.shard_entry import shard_entry
from epistream.sharding.manifest.opened_dataset import Dataset

# Longest wait of a batch: then it is read piece by piece, so that batches keep coming.
_MOST_S = 30.0
# A leader that does nothing for so long is stopped, or its disk is.
_STUCK_S = 5.0
# What a batch is taken to cost before one was read so.
_COST_S = 1.0
_FIRST_PAUSE_S, _LAST_PAUSE_S = 0.001, 0.01
# Where nobody reads ahead, whether somebody does is asked so often.
_LOOK_S = 0.01


class Arrivals:
    """What a feed knows of the shards that are read ahead, by this process or another one. One per feed.

    A batch whose shards are still to come waits for them, at most a multiple of what reading it without took the last
    time. The multiple is the leader's, from what single reads cost more than reading on. So reads at random places
    take only a part of the disk's time, however many read.
    """

    def __init__(self) -> None:
        self._board: AheadBoard | None = None
        self._there: set[tuple[str, int]] = set()
        self._cost_s = _COST_S
        self._began = self._waited_s = 0.0
        self._is_led = self._is_late = self._is_first = False
        self._count, self._counted_at = -1, 0.0
        self._stuck_at = -1
        self._next_look = 0.0

    def follow(self, path: Path) -> None:
        """Look at the board of a file from now on; nobody waits before.

        Raises:
            OSError: it cannot be opened.
        """
        self.close()
        self._board = AheadBoard(path)

    def begin_epoch(self) -> None:
        """What was there may have left the page cache since."""
        self._there.clear()

    def begin_batch(self, *, is_first: bool = False) -> None:
        """A batch is going to be read. The first one of a rank waits for nothing."""
        self._began, self._waited_s, self._is_late = time.monotonic(), 0.0, is_first
        self._is_led, self._is_first = False, is_first
        if is_first and self._board is not None:
            self._board.begin_first()
        else:
            self._look(self._began)

    def wait_for(self, dataset: Dataset, shard: int, before_wait: Callable[[], None]) -> None:
        """Return when a shard has been read ahead, or nobody does, or it takes too long."""
        name = dataset.fingerprint, shard
        if name in self._there or self._board is None or self._is_late:
            return
        if not self._is_led:
            self._look(time.monotonic())
            if not self._is_led:
                return
        number = number_of(shard_entry(dataset, shard))
        if not self._board.is_expected(number):
            self._there.add(name)
            return
        before_wait()
        began, pause_s = time.monotonic(), _FIRST_PAUSE_S
        self._count = -1
        while not self._is_over():
            time.sleep(pause_s)
            pause_s = min(_LAST_PAUSE_S, 1.5 * pause_s)
            if not self._board.is_expected(number):
                self._there.add(name)
                break
        else:
            self._is_late = True
        self._waited_s += time.monotonic() - began

    def end_batch(self) -> None:
        """The batch was read. If it did not wait for all its shards, the next one is patient accordingly."""
        if self._is_late:
            self._cost_s = time.monotonic() - self._began - self._waited_s
        if self._is_first and self._board is not None:
            self._board.end_first()
        self._is_first = False

    def close(self) -> None:
        """Wait for nobody any more."""
        board, self._board = self._board, None
        if board is not None:
            board.close()

    def _look(self, now: float) -> None:
        """See whether somebody reads ahead, now and then."""
        if self._board is None or now < self._next_look:
            return
        self._next_look = now + _LOOK_S
        told = self._board.told()
        self._is_led = told is not None
        if told is not None:
            self._next_look = 0.0

    def _is_over(self) -> bool:
        """Whether a wait is to end: it is too long, or nothing goes on."""
        now = time.monotonic()
        told = None if self._board is None else self._board.told()
        if told is None or told[0] == self._stuck_at:
            return True
        if now - self._began >= min(_MOST_S, told[1] * self._cost_s):
            return True
        if told[0] != self._count:
            self._count, self._counted_at = told[0], now
        if now - self._counted_at > _STUCK_S:
            self._stuck_at = told[0]  # once, not for every shard
        return self._stuck_at == told[0]
