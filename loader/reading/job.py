"""All that reading a stream needs, free of torch: what worker processes receive."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from epistream.cache.node import NodeCache
from epistream.cache.source.entry import Entry
from epistream.loader.order.anchors import Anchors
from epistream.loader.order.instructions import Instruction, first_task, random_task
from epistream.loader.order.plan import EpochOrder, Plan
from epistream.loader.order.schedule import Remainder, Schedule
from epistream.loader.order.window import Window
from epistream.loader.order.working_set import open_bytes, open_shards
from epistream.loader.order.world import World
from epistream.loader.reading.batch_layout import BatchLayout
from epistream.loader.reading.decoded_episodes import DecodedPlan
from epistream.loader.reading.feed import BatchFeed, Feed
from epistream.loader.reading.frames import FrameOptions
from epistream.loader.reading.reader import BatchWindows, EpisodeReader, ReaderOptions
from epistream.loader.reading.shard_entry import shard_entry
from epistream.sharding.format.features import Feature
from epistream.sharding.format.opened_dataset import Dataset

OnBad = Literal["raise", "skip"]


class Job(Protocol):
    """What a loader and its workers need of a stream, be it of one dataset or a mixture. Picklable."""

    @property
    def url(self) -> str:
        """What is read, for titles."""

    @property
    def world(self) -> World:
        """Which rank this is."""

    @property
    def batch_size(self) -> int:
        """Windows per batch and rank."""

    @property
    def remainder(self) -> Remainder:
        """What happens to the last windows of an epoch."""

    @property
    def num_windows(self) -> int:
        """Windows of an epoch over all ranks."""

    @property
    def plans(self) -> tuple[Plan, ...]:
        """The plan of each dataset."""

    @property
    def left_out(self) -> Mapping[str, str]:
        """Why files were left out when the datasets were opened, by path."""

    @property
    def cache(self) -> NodeCache:
        """Where shards are kept on this node."""

    @property
    def layout(self) -> BatchLayout:
        """How a batch lies in memory."""

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that the order of an epoch is a function of, but the epoch; equal on all ranks, kept in states."""

    def schedule(self, epoch: int, start: int) -> Schedule:
        """Which positions of an epoch this rank takes, from position `start` on."""

    def budget_ahead(self, reserved_bytes: int) -> int | None:
        """Bytes that the node's cache will have beside so much other memory; None if nothing goes through it."""

    def feed(self, *, prefetch: bool = False) -> Feed:
        """Batches for one thread or process, which may fill the node's cache ahead."""


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

    @property
    def url(self) -> str:
        """What is read, for titles."""
        return self.dataset.url

    @property
    def left_out(self) -> Mapping[str, str]:
        """Why files were left out when the dataset was opened, by path."""
        return self.dataset.skipped

    @property
    def num_windows(self) -> int:
        """Windows of an epoch over all ranks."""
        return self.anchors.num_windows

    @property
    def plans(self) -> tuple[Plan, ...]:
        """The plan of the dataset."""
        return (self.plan,)

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
        return self.layout_of(self.batch_size)

    def layout_of(self, batch_size: int) -> BatchLayout:
        """How batches of another size would lie in memory."""
        return BatchLayout.plan(self.frames.all_shown(self.features), self.window, batch_size)

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

    @cached_property
    def num_open_shards(self) -> int:
        """Shards that a node draws from at a time: those of the segments that a batch reaches into."""
        return open_shards(self.plan, self.batch_size * self.world.size, self.schedule(0, 0).lanes)

    def uses_from(self, epoch: int, position: int) -> Iterator[tuple[int, Entry]]:
        """The shards that this node needs from a position of an epoch on, each with the position where it is passed."""
        for use in self.plan.epoch(epoch).uses_from(position, self.schedule(epoch, position).lanes):
            yield use.stop, shard_entry(self.dataset, use.shard)

    def keeps_shards(self) -> bool:
        """Whether shards go through the node's cache, rather than being read where they lie."""
        return self.cache.keeps(self._some_entry)

    def budget_ahead(self, reserved_bytes: int) -> int | None:
        """Bytes that the node's cache will have beside so much other memory; None if nothing goes through it."""
        budget = self.cache.budget_ahead(self._some_entry, reserved_bytes)
        return None if budget is None else budget.bytes

    @property
    def _some_entry(self) -> Entry:
        return shard_entry(self.dataset, int(np.argmax(self.plan.per_shard)))

    def reader(self, before_wait: Callable[[], None] | None = None, num_readers: int = 1) -> EpisodeReader:
        """A reader for one thread or process, which has `num_readers`; `before_wait` as for `EpisodeReader`."""
        options = replace(self.reader_options, num_readers=num_readers)
        return EpisodeReader(self.dataset, self.features, self.window, self.cache, options, before_wait)

    @cached_property
    def reader_options(self) -> ReaderOptions:
        """How its readers read; of no effect on what they read."""
        max_open_shards = self.num_open_shards
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
