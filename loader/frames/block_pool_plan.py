"""The pool of decoded blocks as it is planned: how large it is, and where in a block each frame of a window lies."""

import json
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epistream.cache.arena import in_pages
from epistream.cache.arena_slots import table_bytes
from epistream.cache.source.entry import part_offsets
from epistream.lazy import lazy
from epistream.loader.frames.frame_decoder import FrameDecoder
from epistream.loader.frames.frames import FrameOptions
from epistream.loader.frames.keeping import DecodedStats
from epistream.loader.order.options import FEWEST_STEPS, LANE_BLOCKS, SMALL_GROUP, OrderOptions
from epistream.loader.order.window import Window
from epistream.sharding.format.feature_sets import longest_group
from epistream.sharding.format.features import Feature
from epistream.sharding.pictures.planes import planes_shape
from epistream.units import distinct_sizes

# Raised whenever the bytes of the pool change their meaning: jobs of other releases share the node's cache.
_VERSION = 1
# Decoded frames that nearly any machine keeps (`keeping.py`: an eighth of what is available).
_FEW_BYTES = 1 << 30

Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class PooledCamera:
    """A camera whose frames a pool holds.

    Args:
        name: of the feature.
        offsets: ascending, of the steps that a window shows.
        block_steps: anchors of a block.
        shape: of a frame as it is kept: (H, W, C) as batches show it, or that of its planes.
        dtype: of it.
        as_planes: whether frames of a video are kept before they are colours, see `sharding/pictures/planes.py`: at
            half the bytes, and at no cost where each frame is shown by one window.
    """

    name: str
    offsets: tuple[int, ...]
    block_steps: int
    shape: tuple[int, ...]
    dtype: str
    as_planes: bool = False

    @lazy
    def steps(self) -> Int64:
        """(rows,) the steps that a block's windows show, ascending, less its first anchor; where the episode ends not.

        With 4 anchors and the offsets -6 and 0 these are -6 -5 -4 -3 0 1 2 3.
        """
        shown: Int64 = np.unique(np.arange(self.block_steps)[:, None] + np.asarray(self.offsets))
        return shown

    @lazy
    def places(self) -> Int64:
        """(block_steps, n) where in `steps` each of the steps stands that the window of each anchor shows."""
        places: Int64 = np.searchsorted(self.steps, np.arange(self.block_steps)[:, None] + np.asarray(self.offsets))
        return places

    @property
    def num_bytes(self) -> int:
        """Of the frames of a block."""
        return len(self.steps) * prod(self.shape) * np.dtype(self.dtype).itemsize

    def reach(self, first: Int64, length: Int64) -> tuple[Int64, Int64]:
        """The rows that stand for the first and the last step of an episode, for all rows before and behind them.

        Args:
            first: (N,) first anchors of blocks.
            length: (N,) of their episodes.
        """
        lowest = np.searchsorted(self.steps, -first, side="right") - 1
        highest = np.searchsorted(self.steps, length - 1 - first, side="left")
        return np.maximum(lowest, 0), np.minimum(highest, len(self.steps) - 1)

    def wanted(self, first: int, length: int) -> tuple[list[int], list[int]]:
        """Rows of a block that its windows need, and the steps of the episode that belong there."""
        low, high = self.reach(np.array([first]), np.array([length]))
        rows = np.unique(np.clip(self.places[: min(self.block_steps, length - first)], low, high))
        return rows.tolist(), np.clip(first + self.steps[rows], 0, length - 1).tolist()


class PoolCounts:
    """What became of the frames that this process needed of a pool. Its readers share it, and threads may.

    In another process, by fork or by pickling, it starts afresh.
    """

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._mutex = threading.Lock()
        self._stats = DecodedStats()

    def add(self, stats: DecodedStats) -> None:
        """A batch was read."""
        if self._pid != os.getpid():
            self._begin()
        with self._mutex:
            self._stats = replace(stats + self._stats, why=stats.why)

    def stats(self) -> DecodedStats:
        """Counts so far."""
        return self._stats if self._pid == os.getpid() else DecodedStats()

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._begin()


@dataclass(frozen=True)
class PoolPlan:
    """What is known of a pool before any window is read.

    Args:
        cameras: whose frames it holds.
        block_steps: anchors of a block: the windows of an episode whose ``step // block_steps`` is the same.
        num_slots: blocks that it holds at a time.
        name: what is read and in which order; jobs of which it is the same share the pool.
        pool_blocks: blocks that the order draws from at a time.
        in_flight: slots beside these, for blocks that come while others are being read.
        lanes: of the order, and those of them that the node reads.
        least_blocks: fewest `pool_blocks` that the order can have.
        source_bytes: of the shards that are open at a time, which must fit beside it.
        counts: of the readers of this process, from epoch to epoch.
    """

    cameras: tuple[PooledCamera, ...]
    block_steps: int
    num_slots: int
    name: str = ""
    pool_blocks: int = 0
    in_flight: int = 0
    lanes: tuple[int, int] = (1, 1)
    least_blocks: int = 2
    source_bytes: int = 0
    counts: PoolCounts = field(default_factory=PoolCounts, compare=False, repr=False)

    @lazy
    def slot_offsets(self) -> tuple[int, ...]:
        """Where in a slot the frames of each camera begin, in bytes."""
        return part_offsets([camera.num_bytes for camera in self.cameras])

    @lazy
    def slot_bytes(self) -> int:
        """Of a block."""
        return in_pages(self.slot_offsets[-1] + self.cameras[-1].num_bytes)

    @property
    def table_bytes(self) -> int:
        """Of what says where which block is."""
        return table_bytes(self.num_slots)

    @property
    def num_bytes(self) -> int:
        """Of the node's shared memory, all slots in use."""
        return self.table_bytes + self.num_slots * self.slot_bytes

    def fitting(self, num_bytes: int) -> int:
        """The most `pool_blocks` whose pool takes no more than so many bytes; 0 if not even the fewest do."""
        all_lanes, lanes = self.lanes
        slots = max(0, num_bytes - self.table_bytes) // self.slot_bytes - self.in_flight
        fitting = max(0, slots) // lanes * all_lanes
        return fitting if fitting >= self.least_blocks else 0

    def too_large_for(self, budget_bytes: int) -> str | None:
        """What to tell of a budget that cannot hold it beside the open shards; None if it can."""
        if self.num_bytes + self.source_bytes <= budget_bytes:
            return None
        allowed, wanted, beside = distinct_sizes(budget_bytes, self.num_bytes, self.source_bytes)
        fitting = self.fitting(budget_bytes - self.source_bytes)
        fewer = "fewer lanes, " if self.lanes[0] > 1 else ""
        cure = f"{fewer}by='windows' or a smaller image_size"
        next_step = f"Use pool_blocks={fitting}" if fitting else f"Use {cure}"
        shards = f" beside {beside} of open shards" if self.source_bytes else ""
        return f"the cache's budget is {allowed}, and the pool of decoded blocks takes {wanted}{shards}. {next_step}"

    def content(self) -> str:
        """Tells pools apart."""
        cameras = [[c.name, c.offsets, c.shape, c.dtype, c.as_planes] for c in self.cameras]
        return f"pool {json.dumps([_VERSION, self.name, self.block_steps, self.num_slots, cameras])}"


def resolved_order(
    order: OrderOptions, episode_length: Int64, features: Mapping[str, Feature], window: Window, frames: FrameOptions
) -> OrderOptions:
    """The order of a stream, with what its user left open: see `OrderOptions.resolved`.

    Of a video in groups of two, as LeRobot writes them, a window at random decodes one and a half frames for one, and
    of the dear half more: three quarters more of AV1. Where all frames are few they are kept instead, so those go by
    windows; where they are more, by blocks, of one group if windows show one step, which is as mixed as windows are,
    and as soon there. All blocks are in the pool where they fit it: then nothing is decoded twice.

    Args:
        order: as the user said it.
        episode_length: (E,) steps of each episode.
        features: that are read.
        window: what is shown of them.
        frames: how frames are made.
    """
    group_steps = longest_group(features.values())

    def block_bytes(steps: int) -> int:
        return sum(camera.num_bytes for camera in pooled_cameras(features, window, frames, steps))

    if order.shuffle and order.by != "windows" and group_steps == SMALL_GROUP:
        step_bytes = sum(frames.shown(f).step_bytes for f in features.values() if f.kind == "frames")
        is_many = int(episode_length.sum()) * step_bytes > _FEW_BYTES
        if is_many or (order.by, order.block_steps, order.pool_blocks) != (None, None, None):
            return _by_groups_of_two(order, episode_length, block_bytes, pooled_cameras(features, window, frames, 1))
    return order.resolved(group_steps, block_bytes)


def _by_groups_of_two(
    order: OrderOptions, episode_length: Int64, block_bytes: Callable[[int], int], cameras: Sequence[PooledCamera]
) -> OrderOptions:
    shows_one = all(len(camera.offsets) == 1 for camera in cameras)
    steps = order.block_steps or (SMALL_GROUP if shows_one else FEWEST_STEPS)
    order = replace(order, by="blocks", block_steps=steps)
    if order.pool_blocks is not None:
        return order
    all_blocks, num_bytes = int((-(-episode_length // steps)).sum()), block_bytes(steps)
    pool = order.fitting_pool(num_bytes, all_blocks)
    if pool < all_blocks:  # more would bring nothing
        pool = order.fitting_pool(
            num_bytes, max(LANE_BLOCKS * order.lanes, LANE_BLOCKS * order.lanes * FEWEST_STEPS // steps)
        )
    return replace(order, pool_blocks=pool)


def pooled_cameras(
    features: Mapping[str, Feature], window: Window, frames: FrameOptions, block_steps: int
) -> Sequence[PooledCamera]:
    """The cameras whose frames cost something to make: those that are not stored as they are wanted."""
    cameras = []
    for name, feature in features.items():
        if feature.kind != "frames" or (decoder := FrameDecoder(feature, frames.shown(feature).shape)).is_copy:
            continue
        offsets = window.offsets(name)
        # Sides that are odd may be coded as they are, or with one row or column more; depth maps are no planes.
        can_be_planes = decoder.shape[0] % 2 == decoder.shape[1] % 2 == 0 and decoder.shape[2] == 3
        as_planes = decoder.is_video and decoder.shape == feature.shape and can_be_planes and len(offsets) == 1
        shape = planes_shape(decoder.shape) if as_planes else decoder.shape
        cameras.append(PooledCamera(name, offsets, block_steps, shape, np.dtype(feature.dtype).str, as_planes))
    return cameras
