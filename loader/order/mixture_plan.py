"""The order of a mixture: the plans of its datasets, joined by the mixture's schedule."""

import heapq
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from epistream.errors import OptionError
from epistream.loader.order.epoch import EpochOrder
from epistream.loader.order.mixture_schedule import DatasetPosition, MixtureSchedule, Stop
from epistream.loader.order.plan import Plan, Portion


class MixtureUse(NamedTuple):
    """A shard of a dataset that positions [first, stop) of a mixture's epoch draw from."""

    first: int
    stop: int
    dataset: int
    shard: int


class MixturePlan:
    """The order of all epochs of a mixture. Give `num_windows` and `num_lanes` to `Schedule`, as with a `Plan`."""

    def __init__(
        self, plans: Sequence[Plan], weights: Sequence[float | int | Fraction], stop: Stop | int = "first_exhausted"
    ) -> None:
        """Join the orders of datasets into one, by weight.

        Args:
            plans: of the datasets, all with the same number of lanes.
            weights: of the datasets, above 0; only their ratios matter.
            stop: when a mixture epoch ends, as `MixtureSchedule` takes it.

        Raises:
            OptionError: for plans that differ in lanes, and what `MixtureSchedule` refuses.
        """
        lanes = [plan.num_lanes for plan in plans]
        if len(set(lanes)) > 1:
            fewest = lanes.index(min(lanes))
            raise OptionError(
                f"mixture: datasets of {', '.join(map(str, lanes))} lanes, wanted the same for all. Use "
                f"OrderOptions(lanes={lanes[fewest]}) for all of them (dataset {fewest} has "
                f"{plans[fewest].num_windows} windows)."
            )
        self.plans = tuple(plans)
        sizes = [plan.num_windows for plan in plans]
        self.schedule = MixtureSchedule(weights, sizes, lanes[0] if lanes else 1, stop)
        self.num_lanes, self.num_windows = self.schedule.num_lanes, self.schedule.num_windows
        self._weights, self._stop = [str(weight) for weight in weights], stop

    def epoch(self, epoch: int) -> "MixtureEpoch":
        """The order of one mixture epoch; nothing is computed before it is asked for."""
        if epoch < 0:
            raise OptionError(f"epoch: {epoch}, wanted 0 or more.")
        return MixtureEpoch(self, epoch)

    def portions(self, epoch: int, positions: NDArray[np.int64], batch_size: int) -> Iterator[Portion]:
        """The windows at positions of a mixture epoch, by dataset and its own epoch within each batch.

        Args:
            epoch: the mixture's epoch.
            positions: (n,), those of whole batches, and maybe of a last one that is short.
            batch_size: windows of a batch.
        """
        dataset, own_epoch, own = self.schedule.locate(positions, epoch)
        for first in range(0, len(positions), batch_size):
            batch = slice(first, first + batch_size)
            for number, theirs in sorted(set(zip(dataset[batch].tolist(), own_epoch[batch].tolist(), strict=True))):
                rows = first + np.flatnonzero((dataset[batch] == number) & (own_epoch[batch] == theirs))
                yield Portion(number, theirs, own[rows], rows)

    def own_epochs(self, epoch: int, position: int) -> list[int]:
        """The epoch that each dataset is in at a position of a mixture epoch."""
        return [place.epoch for place in self.schedule.consumed(position, epoch)]

    def describe(self) -> dict[str, str | int | list[str]]:
        """What decides the order, to compare ranks and states; the fingerprint of each dataset's plan is in it."""
        return {
            "weights": self._weights,
            "stop": self._stop,
            "plans": [plan.fingerprint for plan in self.plans],
        }


class MixtureEpoch:
    """The windows of one mixture epoch by position."""

    def __init__(self, plan: MixturePlan, epoch: int) -> None:
        self._plan, self._epoch = plan, epoch
        self.num_windows, self.num_lanes = plan.num_windows, plan.num_lanes
        # The epoch that each dataset is in, and for a while the one before, since batches are read side by side.
        self._orders: list[dict[int, EpochOrder]] = [{} for _ in plan.plans]

    def windows(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """The windows at positions of the epoch.

        Args:
            positions: (n,) in [0, num_windows).

        Returns:
            dataset, shard and the window's number within the shard, each (n,) int64.

        Raises:
            OptionError: if a position lies outside the epoch.
        """
        dataset, own_epoch, own_position = self._plan.schedule.locate(positions, self._epoch)
        shard, window = np.empty_like(dataset), np.empty_like(dataset)
        for number, epoch in sorted(set(zip(dataset.tolist(), own_epoch.tolist(), strict=True))):
            rows = np.flatnonzero((dataset == number) & (own_epoch == epoch))
            shard[rows], window[rows] = self._order(number, epoch).windows(own_position[rows])
        return dataset, shard, window

    def uses_from(self, position: int, lanes: Sequence[int] | None = None) -> Iterator[MixtureUse]:
        """Shards of all datasets in the order of need, to the end of the epoch, with the positions that need them.

        Args:
            position: where to begin.
            lanes: the lanes that this node reads (`Schedule.lanes`); all when left out.
        """
        starts = self._plan.schedule.consumed(position, self._epoch)
        return heapq.merge(*(self._uses_of(dataset, start, lanes) for dataset, start in enumerate(starts)))

    def _uses_of(self, dataset: int, start: DatasetPosition, lanes: Sequence[int] | None) -> Iterator[MixtureUse]:
        size = self._plan.schedule.size_of(dataset)
        epoch, position = start
        while self._place(dataset, epoch, position) < self.num_windows:
            for use in self._order(dataset, epoch).uses_from(position, lanes):
                if use.first >= size:  # only windows that are cut off for the sake of whole blocks
                    continue
                first = self._place(dataset, epoch, use.first)
                if first < self.num_windows:
                    stop = self._place(dataset, epoch, min(use.stop, size) - 1) + 1
                    yield MixtureUse(first, min(stop, self.num_windows), dataset, use.shard)
            epoch, position = epoch + 1, 0

    def _place(self, dataset: int, epoch: int, position: int) -> int:
        """Where a dataset's window stands, counted from the beginning of this mixture epoch."""
        mixture_epoch, place = self._plan.schedule.position_of(dataset, DatasetPosition(epoch, position))
        return (mixture_epoch - self._epoch) * self.num_windows + place

    def _order(self, dataset: int, epoch: int) -> EpochOrder:
        orders = self._orders[dataset]
        order = orders.get(epoch)
        if order is None:
            order = orders[epoch] = self._plan.plans[dataset].epoch(epoch)
            for old in [known for known in orders if known < epoch - 1]:
                orders.pop(old, None)
        return order
