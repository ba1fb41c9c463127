"""Which dataset of a mixture each position belongs to, and where in that dataset's own sequence: pure integers.

Datasets are chosen for blocks of L positions, one for each lane, so that position p of the mixture keeps lane p mod L
whatever dataset it falls to, and a node goes on reading its own lanes. Each dataset goes through its epochs at its own
pace, cut to a multiple of L windows.

The choice is a tree: at each fork, of the first b blocks that reach it, ``round(b * share)`` have gone left. Forks
share evenly enough (no branch that forks again has more than 2/3) that after any number of blocks each dataset is
less than 2 blocks away from its weight: the roundings, at most 1/2 each, add up to less than
1/2 + 1/2 * (1 + 2/3 + 4/9 + ...).
Counts have a closed form, so any position is found without walking there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import lcm
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from epistream.errors import OptionError

Stop = Literal["first_exhausted", "all_exhausted"]


@dataclass(frozen=True)
class _Fork:
    """`left` of `total` blocks that come here go to `low`, the others to `high`; a dataset's number is a leaf."""

    low: "_Fork | int"
    high: "_Fork | int"
    left: int
    total: int

    def gone_left(self, blocks: int) -> int:
        """How many of the first `blocks` went to `low`: the nearest integer to their share, halves up."""
        return (2 * blocks * self.left + self.total) // (2 * self.total)


class DatasetPosition(NamedTuple):
    """Where a dataset of a mixture stands: its own epoch, and windows of it consumed in that epoch."""

    epoch: int
    position: int


class MixtureSchedule:
    """The dataset, its epoch and its position for each position of a mixture.

    One mixture epoch is as long as `stop` says; the next one goes on where each dataset was left.

    Args:
        weights: of each dataset, above 0; only their ratios matter. Floats are taken as written (0.1 is 1/10).
        num_windows: of an epoch of each dataset.
        num_lanes: L, equal for all datasets (`Plan.num_lanes`).
        stop: when a mixture epoch ends: when the first dataset has given an epoch's windows, when all have (smaller
            ones then repeat), or after this number of windows, cut to a multiple of L.

    Raises:
        OptionError: for weights, sizes or stop rules that cannot work.
    """

    def __init__(
        self,
        weights: Sequence[float | int | Fraction],
        num_windows: Sequence[int],
        num_lanes: int,
        stop: Stop | int = "first_exhausted",
    ) -> None:
        self.weights = _whole(weights)
        if len(num_windows) != len(self.weights):
            raise OptionError(f"mixture: {len(self.weights)} weights for {len(num_windows)} datasets, wanted one each.")
        for dataset, count in enumerate(num_windows):
            if count < num_lanes:
                raise OptionError(
                    f"mixture, dataset {dataset}: {count} windows, wanted at least one for each of {num_lanes} lanes. "
                    f"Use lanes={max(count, 1)} or less for all datasets, or leave it out."
                )
        self.num_lanes = num_lanes
        self._blocks_of_epoch = [int(count) // num_lanes for count in num_windows]
        self._tree = _grow(dict(enumerate(self.weights)))
        self.num_windows = self._num_blocks(stop) * num_lanes

    def locate(
        self, positions: NDArray[np.int64], epoch: int = 0
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Whose windows stand at positions of a mixture epoch.

        Args:
            positions: (n,) in [0, num_windows).
            epoch: the mixture's epoch.

        Returns:
            dataset, the dataset's own epoch, and its position in it (`EpochOrder.windows` takes it), each (n,) int64.
        """
        positions = np.asarray(positions, np.int64)
        if len(positions) and not 0 <= positions.min() <= positions.max() < self.num_windows:
            raise OptionError(
                f"mixture position: {positions.min()} to {positions.max()}, wanted 0 to {self.num_windows - 1}."
            )
        block, lane = np.divmod(positions, self.num_lanes)
        blocks, which = np.unique(block, return_inverse=True)
        first = epoch * (self.num_windows // self.num_lanes)
        chosen = [self._descend(first + number) for number in blocks.tolist()]
        dataset, count = np.array(chosen, np.int64).reshape(-1, 2)[which].T
        own_epoch, own_block = np.divmod(count, np.array(self._blocks_of_epoch, np.int64)[dataset])
        return dataset, own_epoch, own_block * self.num_lanes + lane

    def consumed(self, position: int, epoch: int = 0) -> list[DatasetPosition]:
        """Where each dataset stands when `position` windows of a mixture epoch have been consumed."""
        block, lane = divmod(epoch * self.num_windows + position, self.num_lanes)
        counts = [count * self.num_lanes for count in self._counts(block)]
        if lane:
            counts[self._descend(block)[0]] += lane
        return [DatasetPosition(*divmod(count, self.size_of(dataset))) for dataset, count in enumerate(counts)]

    def position_of(self, dataset: int, own: DatasetPosition) -> tuple[int, int]:
        """The mixture's epoch and position at which a window of a dataset stands: the inverse of `locate`."""
        block, lane = divmod(own.position, self.num_lanes)
        count = own.epoch * self._blocks_of_epoch[dataset] + block + 1
        position = (self._blocks_until(dataset, count) - 1) * self.num_lanes + lane
        return divmod(position, self.num_windows)

    def size_of(self, dataset: int) -> int:
        """Windows of a dataset that an epoch of its own has: those of its plan, cut to a multiple of the lanes."""
        return self._blocks_of_epoch[dataset] * self.num_lanes

    def _descend(self, block: int) -> tuple[int, int]:
        """The dataset of a block, and how many blocks it had before."""
        here = self._tree
        while isinstance(here, _Fork):
            left = here.gone_left(block)
            if here.gone_left(block + 1) > left:
                here, block = here.low, left
            else:
                here, block = here.high, block - left
        return here, block

    def _counts(self, blocks: int) -> list[int]:
        """How many of the first `blocks` each dataset has."""
        counts = [0] * len(self.weights)
        waiting: list[tuple[_Fork | int, int]] = [(self._tree, blocks)]
        while waiting:
            here, arrived = waiting.pop()
            if isinstance(here, _Fork):
                left = here.gone_left(arrived)
                waiting += [(here.low, left), (here.high, arrived - left)]
            else:
                counts[here] = arrived
        return counts

    def _num_blocks(self, stop: Stop | int) -> int:
        if isinstance(stop, int) and not isinstance(stop, bool):
            if stop < self.num_lanes:
                raise OptionError(f"stop: {stop} windows, wanted at least one for each of {self.num_lanes} lanes.")
            return stop // self.num_lanes
        if stop not in get_args(Stop):
            raise OptionError(f"stop: {stop!r}, wanted {', '.join(get_args(Stop))} or a number of windows.")
        ends = [self._blocks_until(dataset, count) for dataset, count in enumerate(self._blocks_of_epoch)]
        return min(ends) if stop == "first_exhausted" else max(ends)

    def _blocks_until(self, dataset: int, count: int) -> int:
        """The fewest blocks of which `dataset` has `count`."""
        low, high = count, (count + 2) * sum(self.weights) // self.weights[dataset] + 1
        while low < high:
            middle = (low + high) // 2
            if self._counts(middle)[dataset] >= count:
                high = middle
            else:
                low = middle + 1
        return low


def _whole(weights: Sequence[float | int | Fraction]) -> list[int]:
    """Weights as integers of the same ratios."""
    exact = []
    for dataset, weight in enumerate(weights):
        try:
            # By way of its text, a float is the decimal that was written, not the nearest binary fraction.
            exact.append(Fraction(str(weight)))
        except ValueError:
            raise OptionError(f"mixture, dataset {dataset}: weight {weight!r}, wanted a number above 0.") from None
        if exact[-1] <= 0:
            raise OptionError(
                f"mixture, dataset {dataset}: weight {weight!r}, wanted a number above 0, or leave it out."
            )
    if not exact:
        raise OptionError("mixture: no datasets, wanted at least one.")
    scale = lcm(*(weight.denominator for weight in exact))
    return [int(weight * scale) for weight in exact]


def _grow(weights: dict[int, int]) -> _Fork | int:
    """A tree over datasets by weight in which no branch that forks again has more than 2/3 of its fork."""
    if len(weights) == 1:
        return next(iter(weights))
    total = sum(weights.values())
    heaviest_first = sorted(weights, key=lambda dataset: (-weights[dataset], dataset))
    low = {heaviest_first[0]: weights[heaviest_first[0]]}
    for dataset in heaviest_first[1:]:
        # A weight of a third or more stands alone; smaller ones are gathered until they have a third.
        if 3 * sum(low.values()) >= total:
            break
        low[dataset] = weights[dataset]
    high = {dataset: weight for dataset, weight in weights.items() if dataset not in low}
    return _Fork(_grow(low), _grow(high), sum(low.values()), total)
