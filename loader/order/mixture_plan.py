"""The order of a mixture: the plans of its datasets, joined by the mixture's schedule."""

import heapq
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from epistream.errors import OptionError
from epistream.loader.order.mixture_schedule import DatasetPosition, MixtureSchedule, Stop
from epistream.loader.order.plan import Plan, Portion


class MixtureUse(NamedTuple):
    """A shard of a dataset that positions [first, stop) of a mixture's epoch draw from."""

    first: int
    stop: int
    dataset: int
    shard: int


class MixturePlan:
    """The order of all epochs of a mixture. Give `num_windows` and `num_lanes` to `Schedule`, as with a `Plan`.

    Args:
        plans: of the datasets, all with the same number of lanes.
        weights: of the datasets, above 0; only their ratios matter.
        stop: when a mixture epoch ends, as `MixtureSchedule` takes it.

    Raises:
        OptionError: for plans that differ in lanes, and what `MixtureSchedule` refuses.
    """

    def __init__(
        self, plans: Sequence[Plan], weights: Sequence[float | int | Fraction], stop: Stop | int = "first_exhausted"
    ) -> None:
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
        """What one mixture epoch needs; nothing is computed before it is asked for."""
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
    """Which shards one mixture epoch needs, and where."""

    def __init__(self, plan: MixturePlan, epoch: int) -> None:
        self._plan, self._epoch = plan, epoch

    def uses_from(self, position: int, lanes: Sequence[int] | None = None) -> Iterator[MixtureUse]:
        """Shards of all datasets in the order of need, to the end of the epoch, with the positions that need them.

        Args:
            position: where to begin.
            lanes: the lanes that this node reads (`Schedule.lanes`); all when left out.
        """
        starts = self._plan.schedule.consumed(position, self._epoch)
        return heapq.merge(*(self._uses_of(dataset, start, lanes) for dataset, start in enumerate(starts)))

    def _uses_of(self, dataset: int, start: DatasetPosition, lanes: Sequence[int] | None) -> Iterator[MixtureUse]:
        size, num_windows = self._plan.schedule.size_of(dataset), self._plan.num_windows
        epoch, position = start
        while self._place(dataset, epoch, position) < num_windows:
            for use in self._plan.plans[dataset].epoch(epoch).uses_from(position, lanes):
                if use.first >= size:  # only windows that are cut off for the sake of whole blocks
                    continue
                first = self._place(dataset, epoch, use.first)
                if first < num_windows:
                    stop = self._place(dataset, epoch, min(use.stop, size) - 1) + 1
                    yield MixtureUse(first, min(stop, num_windows), dataset, use.shard)
            epoch, position = epoch + 1, 0

    def _place(self, dataset: int, epoch: int, position: int) -> int:
        """Where a dataset's window stands, counted from the beginning of this mixture epoch."""
        mixture_epoch, place = self._plan.schedule.position_of(dataset, DatasetPosition(epoch, position))
        return (mixture_epoch - self._epoch) * self._plan.num_windows + place
