"""Blocks of frames, decoded once per node and kept in shared memory for as long as an order draws windows from them."""

import logging
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epistream.cache.arena import Arena
from epistream.cache.arena_slots import ArenaSlots
from epistream.cache.node import NodeCache
from epistream.cache.source.entry import Entry, Part
from epistream.errors import EpistreamError, FormatError
from epistream.loader.frames.block_pool_plan import PoolPlan
from epistream.loader.frames.frame_decoder import FrameDecoder
from epistream.loader.frames.keeping import DecodedStats
from epistream.loader.frames.pooled_frames import PooledFrames
from epistream.loader.shards.open_shards import OpenShard
from epistream.loader.shards.shard_entry import data_version
from epistream.sharding.manifest.opened_dataset import Dataset

logger = logging.getLogger(__name__)

# How long a block is waited for that another process decodes: two cameras of 32 frames take some 30 ms where nobody
# else wants the core. Who is stopped while it decodes costs each reader this once a block.
_PATIENCE_S = 0.25
# Where there is no room, or somebody makes the pool at this moment, it is looked for again after so long.
_FIRST_PAUSE_S, _LAST_PAUSE_S = 0.05, 30.0
# How long to do without where memory is short: the pool is the largest entry, and nobody can evict it while it is open.
_SHORT_PAUSE_S = 5.0
# How often it is looked whether others still find the pool under its name.
_LOOK_S = 0.5
# Hex digits of an index's checksum that go into keys, which are below 2**61.
_KEY_DIGITS = 15

Int64 = NDArray[np.int64]
Arrays = Mapping[str, NDArray[Any]]


class BlockPool:
    """The decoded blocks that a reader draws from and adds to. Not shared between threads.

    The pool is an entry of the node's cache, an `Arena`: each slot has room for what the windows of a block show, of
    all cameras that must be decoded. Whoever needs a block first decodes all of it, straight into a slot, and everybody
    copies from there. Where there is no slot, or no pool, a reader decodes what it needs itself.

    Args:
        dataset: what is read.
        decoders: of the cameras, by feature.
        cache: where the pool is kept.
        plan: its sizes.
    """

    def __init__(
        self, dataset: Dataset, decoders: Mapping[str, FrameDecoder], cache: NodeCache, plan: PoolPlan
    ) -> None:
        self._plan = plan
        self._cache = cache
        self._length = dataset.episode_length
        self._index_checksum = dataset.index_checksum
        blocks = -(-self._length // plan.block_steps)
        self._first_block = np.cumsum(blocks) - blocks
        self._decoders = dict(decoders)
        self._entry = Entry((Part(dataset.url, 0, data_version(dataset)),), plan.content())
        self._arena: _Opened | None = None
        self._pause_s = _FIRST_PAUSE_S
        self._look_at = 0.0
        self._given_up = False
        self._bad: set[int] = set()
        self._stuck: set[int] = set()
        self._batch: _Batch | None = None
        self._num_taken = self._num_decoded = self._num_again = self._num_unpooled = 0
        self._why = ""
        self._told: set[str] = set()

    def begin_batch(
        self, episode_index: Int64, step: Int64, ends_block: NDArray[np.bool_], *, is_short: bool = False
    ) -> None:
        """Another batch begins.

        Args:
            episode_index: (B,) in the dataset.
            step: (B,) anchors.
            ends_block: (B,) whether the order draws no more windows from the block for long.
            is_short: memory is short: give up the pool, and do without for a while.
        """
        self._batch = None
        now = time.monotonic()
        if is_short:
            self.close()
            self._look_at = now + _SHORT_PAUSE_S
            self._tell("memory is short", logging.INFO)
            return
        if self._arena is not None and not self._arena.arena.is_open:  # forked meanwhile
            self.close()
        if now >= self._look_at:
            self._look_at = now + _LOOK_S
            if self._arena is not None and not self._arena.arena.is_current():
                self.close()
            if self._arena is None and not self._given_up:
                self._open(now)
        if self._arena is None:
            return
        self._arena.slots.count(len(step))
        number, at = np.divmod(step, self._plan.block_steps)
        first, length = step - at, self._length[episode_index]
        places: list[list[Int64]] = []
        for camera in self._plan.cameras:
            low, high = camera.reach(first, length)
            places.append(list(np.clip(camera.places[at], low[:, None], high[:, None])))
        self._batch = _Batch(self._first_block[episode_index] + number, first, length, ends_block, places)

    def draw(self, opened: OpenShard, rows: Int64, episodes: Int64, out: Arrays, *, wait: bool) -> tuple[Int64, Int64]:
        """Fill rows of the batch with frames of all cameras of the pool.

        Args:
            opened: the shard of these windows.
            rows: (R,) of the batch.
            episodes: (R,) of the shard.
            out: the arrays of the batch.
            wait: whether to wait for blocks that somebody else decodes, shortly.

        Returns:
            Positions in `rows`: of what the caller decodes, and of what is to be asked for again, with `wait`.
        """
        batch, held = self._batch, self._arena
        nobody = np.zeros(0, np.int64)
        if held is None or batch is None or opened.is_cold:  # of a cold shard whole blocks are not at hand
            return np.arange(len(rows)), nobody
        blocks = self._keys(batch.block[rows], opened)
        order = np.argsort(blocks, kind="stable")
        numbers, starts = np.unique(blocks[order], return_index=True)
        groups = np.split(order, starts[1:])
        alone: list[Int64] = []
        later: list[Int64] = []
        deadline = time.monotonic() + _PATIENCE_S if wait else 0.0
        try:
            for number, found, group in zip(numbers.tolist(), held.slots.find(numbers), groups, strict=True):
                slot, its = found, rows[group]
                if slot < 0 or not held.slots.take(slot, number):
                    if not self._may_make(held.slots, number, deadline):
                        (alone if deadline or number in self._stuck else later).append(group)
                        continue
                    slot = self._make(opened, held, number, int(its[0]), int(episodes[group[0]]))
                    if slot < 0:
                        alone.append(group)
                        continue
                is_done = False
                try:
                    wanted = its.tolist(), batch.places
                    self._num_taken += held.frames.copy(opened, slot, int(episodes[group[0]]), wanted, out)
                    is_done = bool(batch.ends_block[its].any())
                finally:
                    held.slots.give_back(slot, is_done=is_done)
        except OSError as error:
            if isinstance(error, EpistreamError):
                raise
            self._give_up(f"the pool cannot be used: {error}")
            return np.arange(len(rows)), nobody
        return _joined(alone, nobody), _joined(later, nobody)

    def _keys(self, blocks: Int64, opened: OpenShard) -> Int64:
        """The keys of blocks of a shard: their numbers, if the dataset tells what is in it.

        Where only an index that is made when it is read does, the files that it is of may be replaced while the pool
        lives: blocks of an index have keys of their own.
        """
        found = opened.source.parts[1].checksum
        if found is None or found == self._index_checksum[opened.number]:
            return blocks
        return (blocks + int(found[:_KEY_DIGITS], 16)) % (1 << 4 * _KEY_DIGITS)

    def count_alone(self, num_frames: int) -> None:
        """Say how many frames the caller decoded himself."""
        self._num_decoded += num_frames
        self._num_unpooled += num_frames

    def end_batch(self) -> None:
        """It is read."""
        self._batch = None
        stats = DecodedStats(
            self._num_taken,
            self._num_decoded,
            why=self._why,
            pool_bytes=self._plan.num_bytes if self._arena is not None else 0,
            num_again=self._num_again,
            num_unpooled=self._num_unpooled,
        )
        self._num_taken = self._num_decoded = self._num_again = self._num_unpooled = 0
        self._plan.counts.add(stats)

    def close(self) -> None:
        """Give the pool up; the next batch opens it again."""
        opened, self._arena = self._arena, None
        self._look_at = 0.0
        self._bad.clear()
        self._stuck.clear()
        if opened is not None:
            opened.arena.close()

    def _may_make(self, slots: ArenaSlots, number: int, deadline: float) -> bool:
        """Claim a block that is not there; False if somebody else decodes it, or if that is waited for in vain."""
        is_waited_for = number not in self._stuck and time.monotonic() < deadline
        if slots.claim(number, deadline if is_waited_for else 0.0):
            self._stuck.discard(number)
            return True
        if is_waited_for:
            self._stuck.add(number)
        return False

    def _make(self, opened: OpenShard, held: "_Opened", number: int, row: int, episode: int) -> int:
        """The slot of a claimed block, held to copy from; -1 if there is none, or the block has torn frames."""
        slots, is_made, slot = held.slots, False, -1
        try:
            slot = -1 if number in self._bad else slots.place(number)
            if slot >= 0 and not slots.is_ready(slot):
                assert self._batch is not None
                first, length = int(self._batch.first[row]), int(self._batch.length[row])
                num_frames = held.frames.decode(opened, slot, episode, first, length)
                self._num_decoded += num_frames
                self._num_again += num_frames * slots.finish(slot)
            elif slot < 0 and number not in self._bad:
                free = "has memory" if slots.is_full else "is free"
                self._tell(f"none of the pool's {self._plan.num_slots:,} slots {free}", logging.INFO)
            is_made = slot >= 0
        except FormatError as error:
            # Whoever shows none of the torn frames can go on, and who shows one says which it is.
            self._bad.add(number)
            self._tell(str(error))
        finally:
            if slot >= 0 and not is_made:
                slots.give_back(slot)
            slots.unclaim(number)
        return slot if is_made else -1

    def _open(self, now: float) -> None:
        """Open the pool, or make it if it fits; else look again later."""
        plan = self._plan
        self._look_at = now + self._pause_s
        try:
            budget = self._cache.budget()
            if budget is None:
                self._give_up("the cache is off")
                return
            if plan.num_bytes + plan.source_bytes > budget.bytes:
                self._rest()
                self._tell(f"{plan.too_large_for(budget.bytes)}, or: {budget.cure}")
                return
            busy: list[bool] = []
            opened = self._cache.open_made(
                self._entry, plan.num_bytes, _begin, allocated=plan.table_bytes, when_busy=lambda: busy.append(True)
            )
            if opened is None:
                if not busy:
                    self._rest()
                    self._tell("the cache has no room for it now")
                return
            arena = Arena(opened, plan.table_bytes, plan.slot_bytes, plan.num_slots)
        except EpistreamError as error:
            self._rest()
            self._tell(str(error))
        except OSError as error:  # the directory was removed, or there are no such locks
            self._rest()
            self._tell(f"{error}")
        else:
            self._arena = _Opened(arena, plan, self._decoders)
            self._pause_s, self._look_at, self._why = _FIRST_PAUSE_S, now + _LOOK_S, ""

    def _rest(self) -> None:
        self._pause_s = min(_LAST_PAUSE_S, 4 * self._pause_s)

    def _give_up(self, why: str) -> None:
        self.close()
        self._given_up = True
        self._tell(why)

    def _tell(self, why: str, level: int = logging.WARNING) -> None:
        """Note why frames are decoded again and again; in the log once for each reason."""
        self._why = why
        if why not in self._told:
            self._told.add(why)
            logger.log(level, "Blocks are decoded anew for each window that shows them: %s.", why.rstrip("."))


class _Opened:
    """The pool while it is open.

    Attributes:
        arena, slots: as they are.
        frames: in the slots.
    """

    def __init__(self, arena: Arena, plan: PoolPlan, decoders: Mapping[str, FrameDecoder]) -> None:
        self.arena = arena
        self.slots = ArenaSlots(arena, plan.num_slots)
        self.frames = PooledFrames(arena, plan, decoders)


class _Batch:
    """What a batch wants of the pool, in batch order.

    Attributes:
        block: (B,) numbers of blocks in the dataset; see `BlockPool._keys`.
        first, length: (B,) first anchor of each block, and steps of its episode.
        ends_block: (B,).
        places: of each camera, for each window, (n,) rows of the block.
    """

    def __init__(
        self, block: Int64, first: Int64, length: Int64, ends_block: NDArray[np.bool_], places: list[list[Int64]]
    ) -> None:
        self.block, self.first, self.length = block, first, length
        self.ends_block, self.places = ends_block, places


def _begin(buffer: memoryview) -> None:
    """All zeros, as files are born: every slot is empty."""


def _joined(parts: list[Int64], nobody: Int64) -> Int64:
    return np.concatenate(parts) if parts else nobody
