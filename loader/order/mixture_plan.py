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

    def portions(self, epoch: int, positions: NDArray[np.int64], batch_size: int) -> Iterator[Portion]:
        """The windows at positions of a mixture epoch, by dataset and its own epoch within each batch.

        Args:
            epoch: the mixture's epoch.
            positions: (n,), those of whole batches, and maybe of a last one that is short.
            batch_size: windows of a batch.
        """
        dataset, own_epoch, own = self.schedule.locate(positions, epoch)
        for first in range(0, len(positions), batch_size):
            rows_of: dict[tuple[int, int], list[int]] = {}
            batch = slice(first, first + batch_size)
            owners = zip(dataset[batch].tolist(), own_epoch[batch].tolist(), strict=True)
            for row, owner in enumerate(owners, first):
                rows_of.setdefault(owner, []).append(row)
            for (number, theirs), rows in sorted(rows_of.items()):
                chosen = np.array(rows)
                yield Portion(number, theirs, own[chosen], chosen)

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

    def uses_from(self, epoch: int, position: int, lanes: Sequence[int] | None = None) -> Iterator[MixtureUse]:
        """Shards of all datasets in the order of need, to the end of the epoch, with the positions that need them.

        Args:
            epoch: the mixture's epoch.
            position: in it, where to begin.
            lanes: the lanes that this node reads (`Schedule.lanes`); all when left out.
        """
        starts = self.schedule.consumed(position, epoch)
        return heapq.merge(*(self._uses_of(dataset, epoch, start, lanes) for dataset, start in enumerate(starts)))

    def _uses_of(
        self, dataset: int, epoch: int, start: DatasetPosition, lanes: Sequence[int] | None
    ) -> Iterator[MixtureUse]:
        def place(own_epoch: int, position: int) -> int:
            """Where a window stands, counted from the beginning of this mixture epoch."""
            at = self.schedule.position_of(dataset, DatasetPosition(own_epoch, position))
            return (at[0] - epoch) * self.num_windows + at[1]

        size = self.schedule.size_of(dataset)
        own_epoch, position = start
        while place(own_epoch, position) < self.num_windows:
            for use in self.plans[dataset].epoch(own_epoch).uses_from(position, lanes):
                if use.first >= size:  # only windows that are cut off for the sake of whole blocks
                    continue
                first = place(own_epoch, use.first)
                if first < self.num_windows:
                    stop = place(own_epoch, min(use.stop, size) - 1) + 1
                    yield MixtureUse(first, min(stop, self.num_windows), dataset, use.shard)
            own_epoch, position = own_epoch + 1, 0
