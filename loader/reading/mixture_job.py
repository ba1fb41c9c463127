"""What reading a mixture needs, free of torch: the parts, whose turn it is, and batches made of several parts."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epistream.cache.node import NodeCache
from epistream.cache.source.entry import Entry
from epistream.loader.order.mixture_plan import MixturePlan
from epistream.loader.order.plan import Plan
from epistream.loader.order.schedule import Remainder, Schedule
from epistream.loader.order.world import World
from epistream.loader.reading.bad_shards import Replaced, WindowFeed
from epistream.loader.reading.batch_layout import BatchLayout
from epistream.loader.reading.feed import Feed
from epistream.loader.reading.job import ReadJob
from epistream.loader.reading.shard_entry import shard_entry

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
    def left_out(self) -> Mapping[str, str]:
        """Why files were left out when the datasets were opened, by path."""
        return {path: reason for part in self.parts for path, reason in part.left_out.items()}

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

    def budget_ahead(self, reserved_bytes: int) -> int | None:
        """Bytes that the node's cache will have beside so much other memory; None if nothing goes through it."""
        budgets = (part.budget_ahead(reserved_bytes) for part in self.parts)
        return min((budget for budget in budgets if budget is not None), default=None)

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


class MixtureFeed(Feed):
    """The batches of a mixture. The rows of a batch are grouped by dataset, in the order of the parts."""

    def __init__(self, job: MixtureJob, *, prefetch: bool = False) -> None:
        self._plan = job.plan.schedule
        # None of the datasets is held while another one waits.
        self._windows = [WindowFeed(part, self.release, len(job.parts)) for part in job.parts]
        super().__init__(job, self._windows, prefetch=prefetch)

    def _turn(self, epoch: int, start: int) -> None:
        for windows, place in zip(self._windows, self._plan.consumed(start, epoch), strict=True):
            windows.turn(place.epoch)

    def _read(
        self, positions: NDArray[np.int64], is_repeat: NDArray[np.bool_], out: Mapping[str, NDArray[Any]]
    ) -> tuple[Replaced, ...]:
        replaced: list[Replaced] = []
        for first in range(0, len(positions), self._schedule.batch_size):
            rows = slice(first, first + self._schedule.batch_size)
            batch = {name: view[rows] for name, view in out.items()}
            replaced += self._read_batch(positions[rows], is_repeat[rows], batch)
        return tuple(replaced)

    def _read_batch(
        self, positions: NDArray[np.int64], is_repeat: NDArray[np.bool_], out: Mapping[str, NDArray[Any]]
    ) -> list[Replaced]:
        dataset, epochs, own = self._plan.locate(positions, self._schedule.epoch)
        replaced: list[Replaced] = []
        row = 0
        for index, epoch, chosen in _groups(dataset, epochs):
            views = {name: view[row : row + len(chosen)] for name, view in out.items()}
            replaced += self._windows[index].read(epoch, own[chosen], is_repeat[chosen], views)
            views[DATASET_INDEX][:] = index
            row += len(chosen)
        return replaced


def _groups(dataset: NDArray[np.int64], epochs: NDArray[np.int64]) -> Iterator[tuple[int, int, NDArray[np.int64]]]:
    """Dataset, its epoch, and the places (in order) of the windows that belong to both."""
    for index in np.unique(dataset).tolist():
        of_dataset = np.flatnonzero(dataset == index)
        for epoch in np.unique(epochs[of_dataset]).tolist():
            yield index, epoch, of_dataset[epochs[of_dataset] == epoch]
