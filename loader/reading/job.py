"""What a rank reads, of one dataset or of several: all that worker processes receive, free of torch."""

import contextlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from epistream.cache.node import NodeCache
from epistream.cache.source.entry import Entry
from epistream.errors import EpistreamError
from epistream.file_systems import local_path
from epistream.lazy import lazy
from epistream.loader.frames.block_pool_plan import PoolPlan, pooled_cameras
from epistream.loader.frames.decoded_frames import chunk_rows
from epistream.loader.frames.frames import FrameOptions
from epistream.loader.frames.keeping import DecodedPlan, DecodedStats
from epistream.loader.order.anchors import Anchors
from epistream.loader.order.epoch import EpochOrder
from epistream.loader.order.mixture_plan import MixturePlan, MixtureUse
from epistream.loader.order.plan import Plan
from epistream.loader.order.schedule import Remainder, Schedule
from epistream.loader.order.segments import ShardUse
from epistream.loader.order.window import Window
from epistream.loader.order.working_set import blocks_in_flight, open_bytes, open_shards, pool_slots
from epistream.loader.order.world import World
from epistream.loader.reading.batch_layout import BatchLayout
from epistream.loader.reading.instructions import Instruction, first_task, random_task
from epistream.loader.reading.reader import BatchWindows, ReaderOptions
from epistream.loader.shards.shard_entry import entries_at_once, place_of, shard_entry
from epistream.sharding.format.features import Feature
from epistream.sharding.manifest.opened_dataset import Dataset

OnBad = Literal["raise", "skip"]

# The array of a mixture's batches that says which dataset each window is of.
DATASET_INDEX = "dataset_index"
# Batches that the workers of a rank read at a time, where nobody says how many workers there are.
BATCHES_AT_ONCE = 4
# Shards that are tried to learn which way those of a dataset go: the first episodes of a LeRobot data set may be torn.
_MOST_TRIED = 8
# Shards that are looked ahead to at a time: those of episodes over a network have to be indexed first.
_USES_AT_ONCE = 16

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DatasetPart:
    """What is read of one dataset, and in which order. Picklable."""

    dataset: Dataset
    features: dict[str, Feature]
    window: Window
    anchors: Anchors
    plan: Plan
    instruction: Instruction = "first"
    on_bad: OnBad = "raise"
    frames: FrameOptions = field(default_factory=FrameOptions)
    dtypes: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"DatasetPart({self.dataset!r}, {self.window!r})"

    def layout(self, batch_size: int) -> BatchLayout:
        """How batches of its windows lie in memory."""
        return BatchLayout.plan(self.frames.all_shown(self.features), self.window, batch_size, self.dtypes)

    def windows(self, order: EpochOrder, schedule: Schedule, batch_index: int) -> BatchWindows:
        """The windows of a rank's batch, in batch order, of a stream of this dataset alone."""
        return self.windows_at(order, schedule.epoch, *schedule.positions(batch_index))

    def windows_at(
        self, order: EpochOrder, epoch: int, positions: NDArray[np.int64], is_repeat: NDArray[np.bool_]
    ) -> BatchWindows:
        """The windows at positions of an epoch of this dataset, in that order."""
        shard, k = order.windows(positions)
        episode_index, episode_in_shard, step = self.anchors.locate(shard, k)
        if self.instruction == "random":
            seed = self.plan.options.seed
            task_index = random_task(self.dataset, episode_index, (shard, k), seed, epoch)
        else:
            task_index = first_task(self.dataset, episode_index)
        ends_block = order.ends_block(positions)
        return BatchWindows(shard, episode_index, episode_in_shard, step, is_repeat, task_index, ends_block)


@dataclass(frozen=True)
class ReadJob:
    """What to read, in which order, for which rank. Picklable; opens nothing until a feed reads.

    Args:
        parts: the dataset of a stream, or those of a mixture.
        world: which rank this is.
        batch_size: windows per batch and rank.
        remainder: what happens to the last windows of an epoch.
        cache: where the shards of all parts are kept on this node.
        mixture: which part each position belongs to, and what of it; None for the order of the only part.
        batches_at_once: of each rank that are being read at a time, which the pool of blocks has slots for.
    """

    parts: tuple[DatasetPart, ...]
    world: World
    batch_size: int
    remainder: Remainder
    cache: NodeCache = field(repr=False)
    mixture: MixturePlan | None = None
    batches_at_once: int = BATCHES_AT_ONCE

    def __repr__(self) -> str:
        of = repr(self.parts[0]) if len(self.parts) == 1 else f"{len(self.parts):,} datasets"
        return f"ReadJob({of}, {self.world!r}, batch_size={self.batch_size}, remainder={self.remainder!r})"

    @property
    def part(self) -> DatasetPart:
        """The part of a stream of one dataset."""
        [part] = self.parts
        return part

    @property
    def dataset(self) -> Dataset:
        """The dataset of a stream of one."""
        return self.part.dataset

    @property
    def features(self) -> dict[str, Feature]:
        """What is read of the dataset of a stream of one."""
        return self.part.features

    @property
    def url(self) -> str:
        """What is read, for titles."""
        return " + ".join(part.dataset.url for part in self.parts)

    @property
    def left_out(self) -> Mapping[str, str]:
        """Why files were left out when the datasets were opened, by path."""
        return {path: reason for part in self.parts for path, reason in part.dataset.skipped.items()}

    @lazy  # asked for each batch
    def marks_repeats(self) -> bool:
        """Whether batches can hold windows that are repeats."""
        return self.remainder == "pad" or any(part.on_bad == "skip" for part in self.parts)

    @property
    def plans(self) -> tuple[Plan, ...]:
        """The plan of each dataset."""
        return tuple(part.plan for part in self.parts)

    @property
    def order(self) -> Plan | MixturePlan:
        """Whose windows stand at each position of an epoch, and which."""
        return self.mixture or self.parts[0].plan

    @property
    def num_windows(self) -> int:
        """Windows of an epoch over all ranks."""
        return self.order.num_windows

    @lazy
    def identity(self) -> dict[str, Any]:
        """Everything that the order of an epoch is a function of, but the epoch; equal on all ranks, kept in states."""
        parts = [
            {"dataset": part.dataset.fingerprint, "window": part.window.describe(), "anchors": part.anchors.digest}
            for part in self.parts
        ]
        if self.mixture is None:
            return {**parts[0], **self.part.plan.describe()}
        return {**{name: [part[name] for part in parts] for name in parts[0]}, **self.mixture.describe()}

    @lazy
    def layout(self) -> BatchLayout:
        """How one batch lies in memory; those of a mixture also say which dataset each window is of."""
        layout = self.parts[0].layout(self.batch_size)
        return layout if self.mixture is None else layout.with_field(DATASET_INDEX, np.dtype(np.int64))

    def schedule(self, epoch: int, start: int) -> Schedule:
        """Which positions of an epoch this rank takes, from position `start` on."""
        return Schedule(
            self.num_windows,
            num_lanes=self.order.num_lanes,
            seed=self.parts[0].plan.options.seed,
            epoch=epoch,
            start=start,
            world=self.world,
            batch_size=self.batch_size,
            remainder=self.remainder,
        )

    def uses_from(self, epoch: int, position: int) -> Iterator[tuple[int, Entry]]:
        """The shards that this node needs from a position of an epoch on, each with the position where it is passed."""
        lanes = self.schedule(epoch, position).lanes
        uses: Iterator[ShardUse | MixtureUse] = self.order.uses_from(epoch, position, lanes)
        while some := list(islice(uses, _USES_AT_ONCE)):
            made = {
                number: entries_at_once(part.dataset, [use.shard for use in some if use.dataset == number])
                for number, part in enumerate(self.parts)
            }
            for use in some:
                entry = made[use.dataset].get(use.shard) or self._entry(use.dataset, use.shard)
                if isinstance(entry, EpistreamError):  # told by whoever reads it
                    logger.info("not read ahead: %s", entry)
                else:
                    yield use.stop, entry

    def _entry(self, dataset: int, shard: int) -> Entry | EpistreamError:
        try:
            return shard_entry(self.parts[dataset].dataset, shard)
        except EpistreamError as error:
            return error

    def keeps_shards(self) -> bool:
        """Whether shards of any dataset go through the node's cache, rather than being read where they lie."""
        return any(self.cache.keeps(entry) for entry in self._some_entries())

    def board(self) -> Path | None:
        """The file where the processes that read this plan tell each other what they read ahead.

        Returns:
            The index of the plan's first shard on a disk of this node; None if none is read in place from one.
        """
        if not any(self.cache.is_on_disk(entry) for entry in self._some_entries()):
            return None
        return next((local_path(e.parts[-1].url) for _, e in self.uses_from(0, 0) if self.cache.is_on_disk(e)), None)

    def budget_ahead(self, reserved_bytes: int) -> int | None:
        """Bytes that the node's cache will have for shards beside so much other memory; None if none go through it."""
        budgets = (self.cache.budget_ahead(entry, reserved_bytes) for entry in self._some_entries())
        least = min((budget.bytes for budget in budgets if budget is not None), default=None)
        return None if least is None else max(0, least - self.pool_bytes)

    def _some_entries(self) -> Iterator[Entry]:
        """A shard of each dataset: which way they go depends on where they lie."""
        return (entry for entry in map(_some_entry, self.parts) if entry is not None)

    @property
    def num_open_shards(self) -> int:
        """Shards that a node draws from at a time: those of the segments that a batch reaches into."""
        return sum(options.max_open_shards for options in self.reader_options)

    @lazy
    def reader_options(self) -> tuple[ReaderOptions, ...]:
        """How the readers of the parts read; of no effect on what they read."""
        schedule = self.schedule(0, 0)
        return tuple(
            ReaderOptions(
                open_shards(part.plan, schedule.global_batch, schedule.lanes),
                part.frames,
                self._decoded(part, schedule.global_batch),
                num_readers=len(self.parts),
                dtypes=part.dtypes,
                pool=pool,
            )
            for part, pool in zip(self.parts, self.pools, strict=True)
        )

    @lazy
    def pools(self) -> tuple[PoolPlan | None, ...]:
        """The pool of decoded blocks of each part; None where it has none."""
        schedule = self.schedule(0, 0)
        return tuple(self._pool(part, schedule) for part in self.parts)

    @property
    def pool_bytes(self) -> int:
        """Bytes of the node's cache that decoded blocks take."""
        return sum(pool.num_bytes for pool in self.pools if pool is not None)

    def decoded_stats(self) -> DecodedStats:
        """What became of the frames that this process needed, over all datasets."""
        plans = [options.decoded for options in self.reader_options if options.decoded is not None]
        pools = [pool for pool in self.pools if pool is not None]
        stats = [plan.costs.stats(plan.num_bytes) for plan in plans] + [pool.counts.stats() for pool in pools]
        summed = sum(stats, DecodedStats())
        return replace(
            summed,
            room_bytes=sum(each.room_bytes for each in stats),
            all_bytes=sum(each.all_bytes for each in stats),
            pool_bytes=sum(each.pool_bytes for each in stats),
        )

    def _decoded(self, part: DatasetPart, windows_in_flight: int) -> DecodedPlan | None:
        """Sizes of the decoded frames of a part; None where frames are decoded whenever they are read."""
        decode = part.frames.decode
        if decode == "per_read" or (decode == "auto" and (part.plan.blocks or self.cache.options.mode == "off")):
            return None
        episodes = part.anchors.per_shard[part.dataset.episode_shard] > 0
        num_steps = int(part.dataset.episode_length[episodes].sum())
        step_bytes = sum(part.frames.shown(f).step_bytes for f in part.features.values() if f.kind == "frames")
        return DecodedPlan(
            decode == "once",
            num_steps * step_bytes,
            self._source_bytes(part, windows_in_flight),
            chunk_rows(part.dataset.num_steps * step_bytes, max(1, step_bytes)),
            f"decoded frames of {part.dataset.fingerprint} {step_bytes}",
        )

    def _pool(self, part: DatasetPart, schedule: Schedule) -> PoolPlan | None:
        """Sizes of the pool of decoded blocks; None where the order has none, or frames are kept otherwise or not."""
        pool = planned_pool(part, schedule, self.batches_at_once)
        return None if pool is None else replace(pool, source_bytes=self._source_bytes(part, schedule.global_batch))

    def _source_bytes(self, part: DatasetPart, windows_in_flight: int) -> int:
        """Of the shards that are open at a time, beside the frames: none where shards are read in place."""
        entry = _some_entry(part)
        is_kept = entry is not None and self.cache.budget_ahead(entry, 0) is not None
        return open_bytes(part.plan, windows_in_flight) if is_kept else 0


def _some_entry(part: DatasetPart) -> Entry | None:
    """A shard of a dataset that can be had; of a LeRobot data set the first episodes may be torn."""
    for shard in np.flatnonzero(part.plan.per_shard)[:_MOST_TRIED].tolist():
        with contextlib.suppress(EpistreamError):
            return place_of(part.dataset, shard)
    return None


def planned_pool(part: DatasetPart, schedule: Schedule, batches_at_once: int = BATCHES_AT_ONCE) -> PoolPlan | None:
    """Sizes of the pool of decoded blocks on the node of a schedule, without the shards beside it.

    None where the order has none, no camera must be decoded, or frames are kept otherwise or not.
    """
    if part.plan.blocks is None or part.frames.decode != "auto":
        return None
    steps = part.plan.blocks.steps
    cameras = pooled_cameras(part.features, part.window, part.frames, steps)
    if not cameras:
        return None
    windows = batches_at_once * schedule.global_batch
    return PoolPlan(
        tuple(cameras),
        steps,
        pool_slots(part.plan, windows, schedule.lanes),
        name=f"blocks of {part.dataset.fingerprint} by {part.plan.fingerprint}",
        pool_blocks=part.plan.pool_blocks,
        in_flight=blocks_in_flight(part.plan, windows, len(schedule.lanes)),
        lanes=(part.plan.num_lanes, len(schedule.lanes)),
        least_blocks=2 * max(part.plan.num_lanes, part.plan.options.lanes),
    )
