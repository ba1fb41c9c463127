"""All that reading a stream needs, free of torch: what worker processes receive."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epistream.cache.node import NodeCache
from epistream.loader.anchors import Anchors
from epistream.loader.batch import BatchLayout
from epistream.loader.decoded import DecodedPlan
from epistream.loader.feed import BatchFeed, OnBad
from epistream.loader.frames import FrameOptions
from epistream.loader.instructions import Instruction, first_task, random_task
from epistream.loader.plan import EpochOrder, Plan
from epistream.loader.reader import BatchWindows, EpisodeReader, ReaderOptions, shard_entry
from epistream.loader.residency import open_bytes
from epistream.loader.schedule import Remainder, Schedule
from epistream.loader.window import Window
from epistream.loader.world import World
from epistream.sharding.dataset import Dataset
from epistream.sharding.features import Feature


@dataclass(frozen=True)
class ReadJob:
    """What to read, in which order, for which rank. Picklable; opens nothing until a reader reads."""

    dataset: Dataset
    features: dict[str, Feature]
    window: Window
    anchors: Anchors
    plan: Plan
    world: World
    batch_size: int
    remainder: Remainder
    cache: NodeCache = field(repr=False)
    instruction: Instruction = "first"
    on_bad: OnBad = "raise"
    frames: FrameOptions = field(default_factory=FrameOptions)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Everything that the order of an epoch is a function of, but the epoch; equal on all ranks, kept in states."""
        return {
            "dataset": self.dataset.fingerprint,
            "window": self.window.describe(),
            "anchors": self.anchors.digest,
            **self.plan.describe(),
        }

    @cached_property
    def layout(self) -> BatchLayout:
        """How one batch of this job lies in memory."""
        return BatchLayout.plan(self.frames.all_shown(self.features), self.window, self.batch_size)

    def schedule(self, epoch: int, start: int) -> Schedule:
        """Which positions of an epoch this rank takes, from position `start` on."""
        return Schedule(
            self.anchors.num_windows,
            num_lanes=self.plan.num_lanes,
            seed=self.plan.options.seed,
            epoch=epoch,
            start=start,
            world=self.world,
            batch_size=self.batch_size,
            remainder=self.remainder,
        )

    def feed(self, *, prefetch: bool = False) -> BatchFeed:
        """Batches for one thread or process, which may fill the node's cache ahead."""
        return BatchFeed(self, prefetch=prefetch)

    def keeps_shards(self) -> bool:
        """Whether shards go through the node's cache, rather than being read where they lie."""
        return self.cache.keeps(shard_entry(self.dataset, int(np.argmax(self.plan.per_shard))))

    def reader(self) -> EpisodeReader:
        """A reader for one thread or process."""
        return EpisodeReader(self.dataset, self.features, self.window, self.cache, self._reader_options)

    @cached_property
    def _reader_options(self) -> ReaderOptions:
        # Room for the shards of the segments in flight: a batch may reach into the next segment of each lane.
        max_open_shards = self.plan.resident_shards + self.plan.num_lanes
        if self.frames.decode == "per_read" or (self.frames.decode == "auto" and self.cache.options.mode == "off"):
            return ReaderOptions(max_open_shards, self.frames)
        episodes = self.anchors.per_shard[self.dataset.episode_shard] > 0
        num_steps = int(self.dataset.episode_length[episodes].sum())
        step_bytes = sum(self.frames.shown(f).step_bytes for f in self.features.values() if f.kind == "frames")
        source_bytes = open_bytes(self.plan, self.batch_size * self.world.size)
        plan = DecodedPlan(self.frames.decode == "once", num_steps * step_bytes, source_bytes)
        return ReaderOptions(max_open_shards, self.frames, plan)

    def windows(self, order: EpochOrder, schedule: Schedule, batch_index: int) -> BatchWindows:
        """The windows of this rank's batch, in batch order."""
        return self.windows_at(order, schedule.epoch, *schedule.positions(batch_index))

    def windows_at(
        self, order: EpochOrder, epoch: int, positions: NDArray[np.int64], is_repeat: NDArray[np.bool_]
    ) -> BatchWindows:
        """The windows at positions of an epoch, in that order."""
        shard, k = order.windows(positions)
        episode_index, episode_in_shard, step = self.anchors.locate(shard, k)
        if self.instruction == "random":
            seed = self.plan.options.seed
            task_index = random_task(self.dataset, episode_index, (shard, k), seed, epoch)
        else:
            task_index = first_task(self.dataset, episode_index)
        return BatchWindows(shard, episode_index, episode_in_shard, step, is_repeat, task_index)
