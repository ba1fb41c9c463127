"""How varied batches are: distinct episodes a global batch in a closed form, from counts that the manifest has.

A batch takes q = G / L neighbouring items of each lane. Where a segment of S items holds c windows of an episode, these
lie one in each of c equal stretches (`spread`), so that the q items cover x = q * c / S stretches and hold the episode
with the probability

    x - x**3 / 6                 for x up to 1,
    1 - (2 - x)**3 / 6           for x from 1 to 2,
    1                            beyond,

which follows from two neighbouring stretches with one uniform place in each; a lane that is one segment has no stretch
beyond its ends. A shard gives 1 / k of its windows to each of k segments, more at the ends of the epoch, and which ones
is chance: c is drawn from a binomial distribution, as far as the shard has other episodes. A full random permutation
holds an episode of n of N windows with the probability ``1 - (1 - G / N)**n``.

Only sums, products and quotients of doubles are used, one by one, and `math.fsum`: those give the same bits on every
machine, which functions such as ``exp`` do not. K may follow from them, and K must be the same on all ranks.
"""

import math
from bisect import bisect_left
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from epistream.loader.order.lanes import Lanes

Floats = NDArray[np.float64]

# Lengths of episodes are put into so many classes an octave, and lanes into so many by their pieces and episodes.
_CLASSES_PER_OCTAVE = 4
_LANE_CLASSES = 16
# Expected counts from which their chance no longer matters.
_MANY = 10.0
# What varies evenly from piece to piece is looked at in so many places.
_PLACES = (np.arange(8) + 0.5) / 8


class _LaneKind(NamedTuple):
    """Lanes that are much alike: windows, pieces and episodes of one, and the share of it that a window's piece has."""

    length: float
    pieces: float
    episodes: float
    largest: float


class EpisodeMix:
    """The lengths of the episodes and how lanes hold them: what `distinct` needs. O(lanes) once made.

    Args:
        lanes: the shards cut into lanes.
        shard_episodes: (S,) episodes of each shard that have windows.
        windows_per_episode: (E,) windows of each episode; those of 0 do not count.
    """

    def __init__(self, lanes: Lanes, shard_episodes: NDArray[np.int64], windows_per_episode: NDArray[np.int64]) -> None:
        self._num_windows, self._num_lanes = lanes.num_windows, lanes.num_lanes
        self._length, self._count = _classes(windows_per_episode)  # mean windows and number of alike episodes
        self._num_episodes = int(self._count.sum())
        pieces, episodes, squares = lanes.counts(shard_episodes)
        kind = pieces * _LANE_CLASSES // pieces.max() * (_LANE_CLASSES + 1)
        kind += episodes * _LANE_CLASSES // max(int(episodes.max()), 1)
        _, kind = np.unique(kind, return_inverse=True)
        sums = [np.bincount(kind, values).tolist() for values in (None, pieces, episodes, squares)]
        length = self._num_windows / self._num_lanes
        self._lanes = [
            (int(n), _LaneKind(length, p / n, e / n, s / n / length / length)) for n, p, e, s in zip(*sums, strict=True)
        ]

    def distinct_permuted(self, global_batch: int) -> float:
        """Distinct episodes in a batch of a full random permutation, in expectation."""
        outside = 1 - min(global_batch, self._num_windows) / self._num_windows
        return math.fsum((self._count * (1 - _power(np.array([outside]), self._length))).tolist())

    def distinct(self, global_batch: int, parts: int) -> float:
        """Distinct episodes in a global batch, in expectation, over an epoch whose lanes draw from `parts` shards."""
        items = min(global_batch, self._num_windows) / self._num_lanes
        found = [n * self._of_lane(items, lane, parts) for n, lane in self._lanes]
        return min(math.fsum(found), float(self._num_episodes))

    def share(self, global_batch: int, parts: int) -> float:
        """Of the distinct episodes that a full permutation would give a batch, how many the order does."""
        return self.distinct(global_batch, parts) / self.distinct_permuted(global_batch)

    def parts_for(self, global_batch: int, share: float) -> int:
        """The fewest shards that each lane must draw from for such a share; all that it has if fewer do not do."""
        most = max(2, math.ceil(max(lane.pieces for _, lane in self._lanes)))
        wanted = share * self.distinct_permuted(global_batch)
        return 2 + bisect_left(range(2, most), True, key=lambda parts: self.distinct(global_batch, parts) >= wanted)

    def _of_lane(self, items: float, lane: "_LaneKind", parts: int) -> float:
        """Of `items` neighbouring items of a lane."""
        episodes = self._count / self._num_episodes * lane.episodes
        # Of a window's lane, its own piece and k - 1 others are resident; a large piece is more often one's own.
        resident = lane.largest + (parts - 1) / lane.pieces
        if parts >= lane.pieces or resident >= 1:
            covered = self._length * (items / lane.length)
            return math.fsum((episodes * _met(covered, self._length)).tolist())
        pieces = parts / resident
        segment = lane.length / pieces
        if items >= segment:
            return self._of_segments(items / segment, episodes / pieces, parts)
        # The first and last segment, and what they take of the pieces: from all to 1 / k of their windows.
        ends, share = (parts + 1) / pieces, 1 / parts + (1 - 1 / parts) * _PLACES
        chance = np.maximum(1 - self._length / (lane.length / lane.pieces), 0)
        middle = self._mean_met(np.array([1 / parts]), items / segment, chance)[0]
        at_ends = sum(self._mean_met(share, items / (segment * (parts + 1) / 2), chance)) / len(share)
        met = middle + min(ends, 1.0) * (at_ends - middle)
        return math.fsum((episodes / pieces * parts * met).tolist())

    def _mean_met(self, share: Floats, per_window: float, chance: Floats) -> Floats:
        """(shares, classes): probability that an episode is met that has a share of its windows in the segment.

        How many these are is chance as far as other episodes are in its shard: `chance`, (classes,).
        """
        share = share[:, None]
        mean = share * self._length
        certain = _met(per_window * mean)
        few = mean < _MANY
        if not few.any():
            return certain
        probability = _power(1 - share, self._length)
        odds = share / np.maximum(1 - share, 1e-300)
        total = np.zeros_like(mean)
        for count in range(1, int(4 * _MANY)):
            probability = probability * (np.maximum(self._length - count + 1, 0) / count) * odds
            total = total + probability * _met(np.full_like(mean, per_window * count))
        return np.where(few & (share < 1), certain + chance * (total - certain), certain)

    def _of_segments(self, segments: float, of_class: Floats, parts: int) -> float:
        """Of an interval of one segment or more, all of whose whole segments are seen."""
        most = min(segments, parts)
        # While it slides over a piece's k segments, the interval covers up to `most` of them.
        covered = np.concatenate([_PLACES * most, [most]])
        times = np.concatenate([np.full(len(_PLACES), 2 * most / len(_PLACES)), [abs(parts - segments)]])
        missed = _power(1 - covered[:, None] / parts, self._length)
        return math.fsum((times[:, None] * of_class * (1 - missed)).reshape(-1).tolist())


def _met(stretches: Floats, places: NDArray[Any] | None = None) -> Floats:
    """The probability that an interval over so many stretches holds one of the places, one of which is in each.

    Args:
        stretches: that the interval covers.
        places: how many stretches there are, all of which the interval lies within; it may lie anywhere if None.
    """
    edges: Floats | float = 1.0
    if places is not None:  # borders between stretches, of the room that the interval's begin has
        edges = np.where(places > stretches, (places - 1) / np.maximum(places - stretches, 1e-9), 0.0)
    rest = np.maximum(2 - stretches, 0)
    some = stretches - edges * (stretches * stretches * stretches / 6)
    return np.minimum(np.where(stretches <= 1, some, 1 - edges * (rest * rest * rest / 6)), 1.0)


def _power(base: Floats, exponent: NDArray[Any]) -> Floats:
    """``base**exponent`` for integers from 0, by products alone; the two are broadcast."""
    result = np.ones(np.broadcast_shapes(base.shape, exponent.shape))
    while exponent.any():
        result = np.where(exponent & 1, result * base, result)
        base, exponent = base * base, exponent >> 1
    return result


def _classes(windows_per_episode: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Mean length and number of the episodes of each class; alike lengths are a class."""
    lengths, times = windows_per_episode, None
    if len(lengths) > int(lengths.max()):  # many episodes have few different lengths, which are counted faster
        times = np.bincount(lengths)
        lengths = np.arange(len(times))
    bounds = [int(2 ** (step / _CLASSES_PER_OCTAVE)) for step in range(_CLASSES_PER_OCTAVE * 40)]
    kind = np.searchsorted(np.unique(bounds), lengths, side="right")
    count = np.bincount(kind, times)[1:].astype(np.int64)
    total = np.bincount(kind, lengths if times is None else lengths * times)[1:].astype(np.int64)
    used = count > 0
    return (total[used] + count[used] // 2) // count[used], count[used]
