"""What reading a mixture needs, free of torch: the parts, whose turn it is, and batches made of several parts."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epistream.cache.entry import Entry
from epistream.cache.node import NodeCache
from epistream.loader.ahead import ShardsAhead
from epistream.loader.batch import BatchLayout
from epistream.loader.feed import Replaced, WindowFeed
from epistream.loader.job import ReadJob
from epistream.loader.mixture_plan import MixturePlan
from epistream.loader.plan import Plan
from epistream.loader.reader import shard_entry
from epistream.loader.schedule import Remainder, Schedule
from epistream.loader.world import World

DATASET_INDEX = "dataset_index"


@dataclass(frozen=True)
class MixtureJob:
    """Several datasets as one sequence. Picklable; opens nothing until a feed reads.

    Args:
        parts: one job per dataset; of each, features, window, anchors and plan are used.
        plan: which dataset each position belongs to, and what of it.
        world: which rank this is.
        batch_size: windows per batch and rank.
        remainder: what happens to the last windows of a mixture epoch.
        cache: what all parts keep their shards in.
    """

    parts: tuple[ReadJob, ...]
    plan: MixturePlan
    world: World
    batch_size: int
    remainder: Remainder
    cache: NodeCache = field(repr=False)

    @property
    def url(self) -> str:
        """What is read, for titles."""
        return " + ".join(part.url for part in self.parts)

    @property
    def num_windows(self) -> int:
        """Windows of a mixture epoch over all ranks."""
        return self.plan.num_windows

    @property
    def plans(self) -> tuple[Plan, ...]:
        """The plan of each dataset."""
        return tuple(part.plan for part in self.parts)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Everything that the order is a function of, but the epoch."""
        names = ("dataset", "window", "anchors")
        together = {name: [part.identity[name] for part in self.parts] for name in names}
        return {**together, **self.plan.describe()}

    @property
    def num_open_shards(self) -> int:
        """Shards that a node draws from at a time, of all datasets."""
        return sum(part.num_open_shards for part in self.parts)

    def uses_from(self, epoch: int, position: int) -> Iterator[tuple[int, Entry]]:
        """The shards that this node needs from a position on, each with the position where it is passed."""
        for use in self.plan.epoch(epoch).uses_from(position, self.schedule(epoch, position).lanes):
            yield use.stop, shard_entry(self.parts[use.dataset].dataset, use.shard)

    def keeps_shards(self) -> bool:
        """Whether shards of any dataset go through the node's cache."""
        return any(part.keeps_shards() for part in self.parts)

    @cached_property
    def layout(self) -> BatchLayout:
        """How one batch lies in memory: as one of the first part, and the dataset of each window."""
        return self.parts[0].layout_of(self.batch_size).with_field(DATASET_INDEX, np.dtype(np.int64))

    def schedule(self, epoch: int, start: int) -> Schedule:
        """Which positions of a mixture epoch this rank takes, from position `start` on."""
        return Schedule(
            self.num_windows,
            num_lanes=self.plan.num_lanes,
            seed=self.parts[0].plan.options.seed,
            epoch=epoch,
            start=start,
            world=self.world,
            batch_size=self.batch_size,
            remainder=self.remainder,
        )

    def feed(self, *, prefetch: bool = False) -> "MixtureFeed":
        """Batches for one thread or process, which may fill the node's cache ahead."""
        return MixtureFeed(self, prefetch=prefetch)


class MixtureFeed:
    """The batches of a mixture. The rows of a batch are grouped by dataset, in the order of the parts."""

    def __init__(self, job: MixtureJob, *, prefetch: bool) -> None:
        self._job = job
        self._prefetch = prefetch
        self._feeds = [WindowFeed(part) for part in job.parts]
        self._ahead: ShardsAhead | None = None
        self._schedule = job.schedule(0, 0)

    def begin(self, epoch: int, start: int) -> int:
        """Turn to position `start` of a mixture epoch; returns the number of batches there."""
        goes_on = (epoch, start) == (self._schedule.epoch + 1, 0)
        self._schedule = self._job.schedule(epoch, start)
        for feed, place in zip(self._feeds, self._job.plan.schedule.consumed(start, epoch), strict=True):
            feed.turn(place.epoch)
        if self._ahead is not None and not goes_on:
            self.close()
        if self._ahead is None and self._prefetch and self._job.keeps_shards():
            self._ahead = ShardsAhead(self._job, epoch, start)
        return self._schedule.num_batches

    def num_windows(self, batch_index: int) -> int:
        """Windows of a batch: the batch size, but for the last under ``remainder="uneven"``."""
        return len(self._schedule.positions(batch_index)[0])

    def read(self, batch_index: int, out: Mapping[str, NDArray[Any]]) -> tuple[int, tuple[Replaced, ...]]:
        """Fill the first rows of the arrays of `BatchLayout`; returns the number of windows, and what was replaced."""
        positions, is_repeat = self._schedule.positions(batch_index)
        if self._ahead is not None:
            self._ahead.reach(self._schedule.epoch, int(positions[0]))
        dataset, epochs, own = self._job.plan.schedule.locate(positions, self._schedule.epoch)
        replaced: list[Replaced] = []
        row = 0
        for index, epoch, chosen in _groups(dataset, epochs):
            views = {name: view[row : row + len(chosen)] for name, view in out.items()}
            replaced += self._feeds[index].read(epoch, own[chosen], is_repeat[chosen], views)
            views[DATASET_INDEX][:] = index
            row += len(chosen)
        return row, tuple(replaced)

    def release(self) -> None:
        """Give up every shard that is held open. Call before any wait."""
        for feed in self._feeds:
            feed.release()

    def close(self) -> None:
        """Give up everything, and stop filling ahead."""
        self.release()
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None


def _groups(dataset: NDArray[np.int64], epochs: NDArray[np.int64]) -> Iterator[tuple[int, int, NDArray[np.int64]]]:
    """Dataset, its epoch, and the places (in order) of the windows that belong to both."""
    for index in np.unique(dataset).tolist():
        of_dataset = np.flatnonzero(dataset == index)
        for epoch in np.unique(epochs[of_dataset]).tolist():
            yield index, epoch, of_dataset[epochs[of_dataset] == epoch]
