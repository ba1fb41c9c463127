"""Points that stand for the values of an episode, and quantiles and sketches of the points of many episodes.

Of the n values of an episode, sorted, the points are those at the ranks (u + i) n / K, with i from 0 to K - 1 and one u
from [0, 1) an episode, made of its name: systematic sampling. A share of the episode is then known to less than 1 / K,
without drift in either direction, so that the errors of many episodes cancel. With K = n it is all values.
"""

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from epistream.sharding.format.ragged import Int64, offsets_of, positions_of
from epistream.sharding.format.statistics import MAX_POINTS, Sketch, flattened
from epistream.sharding.manifest.record_columns import Float, smallest


def take_points(values: NDArray[Any], num_points: int, identity: str) -> Float:
    """The points (K, D) of one episode.

    Args:
        values: (n, ...) at each step.
        num_points: K, at most n.
        identity: Of the episode.
    """
    return smallest(_of_one_length(_with_nan(values)[None], num_points, first_shares([identity]))[0])


def points_of_runs(values: NDArray[Any], num_steps: Int64, num_points: Int64, firsts: NDArray[np.float64]) -> Float:
    """The points of some episodes, one after the other; episodes of one length are sorted at once.

    Args:
        values: (S, ...) the steps of all, one episode after the other.
        num_steps: (R,) of each.
        num_points: (R,) K of each, at most its steps, the same for episodes of one length.
        firsts: (R,) as `first_shares` gives them.
    """
    flat = _with_nan(values)
    offsets, point_offsets = offsets_of(num_steps), offsets_of(num_points)
    points = np.empty((int(point_offsets[-1]), flat.shape[1]), flat.dtype)
    by_length = np.argsort(num_steps, kind="stable")
    for rows in np.split(by_length, np.flatnonzero(np.diff(num_steps[by_length])) + 1):
        if len(rows) and num_steps[rows[0]]:
            block = flat[positions_of(offsets, rows)].reshape(len(rows), int(num_steps[rows[0]]), -1)
            found = _of_one_length(block, int(num_points[rows[0]]), firsts[rows])
            points[positions_of(point_offsets, rows)] = found.reshape(-1, flat.shape[1])
    return smallest(points)


def _with_nan(values: NDArray[Any]) -> Float:
    """(S, D) of (S, ...), NaN for what is not finite."""
    flat = values.reshape(len(values), prod(values.shape[1:])) if values.dtype == np.float32 else flattened(values)
    return np.where(np.isfinite(flat), flat, np.nan)


def _of_one_length(block: Float, num_points: int, firsts: NDArray[np.float64]) -> Float:
    """The points (R, K, D) of R episodes of n steps, (R, n, D)."""
    length = block.shape[1]
    lines = np.ascontiguousarray(block.transpose(0, 2, 1))  # a sort along the last axis takes a third
    lines.sort(axis=2)  # NaN comes last
    if num_points < length:
        ranks = ((firsts[:, None] + np.arange(num_points)) * (length / num_points)).astype(np.int64)
        lines = np.take_along_axis(lines, np.minimum(ranks, length - 1)[:, None, :], axis=2)
    points: Float = lines.transpose(0, 2, 1)
    return points


def first_shares(identities: Sequence[str]) -> NDArray[np.float64]:
    """The u (R,) of each episode, from [0, 1): where its points begin."""
    digests = [xxhash.xxh3_64_intdigest(one.encode(errors="surrogateescape")) for one in identities]
    return np.array(digests, np.float64) / (1 << 64)


def sketch_of(points: Float, weights: NDArray[np.float32], num_steps: int) -> Sketch:
    """A sketch of weighted points, as `statistics` makes them.

    Its levels stand for `num_steps` steps exactly. Its points are values at the middle of equal shares of the steps,
    1,025 to 2,048 of them, and one more for each power of two that is left over; all values if there are so few.

    Args:
        points: (P, D) in any order.
        weights: (P,) steps that each stands for; they sum up to about `num_steps`.
        num_steps: In all, at least 1.
    """
    level = 0
    while num_steps >> level > MAX_POINTS:
        level += 1
    num_top, left_over = num_steps >> level, [number for number in range(level) if num_steps >> number & 1]
    # What is left over stands in the middle, where the fewest care.
    half = num_top // 2
    spans = np.array([1 << level] * half + [1 << number for number in left_over] + [1 << level] * (num_top - half))
    middles = np.cumsum(spans) - (spans + 1) / 2
    places = _Places.of(weights, num_steps)
    is_even = bool(weights.min() == weights.max())
    columns = []
    for dim in range(points.shape[1]):
        if is_even:
            columns.append(_values_at(np.sort(points[:, dim]), places, middles))
        else:
            values, shares = _sorted(points[:, dim], weights)
            columns.append(_values_at(values, _Places.of(shares, num_steps), middles))
    found = np.stack(columns, axis=1)
    levels = [found[:0]] * level + [np.concatenate([found[:half], found[half + len(left_over) :]])]
    for position, number in enumerate(left_over, half):
        levels[number] = found[position : position + 1]
    return tuple(levels)


class _Places(NamedTuple):
    """Of sorted points, in steps: the middle of what each stands for, from 0 on, and where that ends."""

    middles: NDArray[np.float64]
    ends: NDArray[np.float64]

    @staticmethod
    def of(shares: NDArray[np.float32], num_steps: int) -> "_Places":
        """Those of points that stand for so much, scaled to all steps."""
        ends = np.cumsum(shares, dtype=np.float64)
        ends *= num_steps / ends[-1]
        return _Places((ends + np.append(0, ends[:-1])) / 2 - 0.5, ends)


def _values_at(values: Float, places: _Places, positions: NDArray[np.float64]) -> NDArray[np.float64]:
    """What lies at positions (n,), in steps, among sorted values of which NaN are the last, interpolated."""
    num_finite = int(np.searchsorted(np.isnan(values), True))
    if not num_finite:
        return np.full(len(positions), np.nan)
    # Nothing is between a number and none.
    found = np.interp(positions, places.middles[:num_finite], values[:num_finite])
    if values.dtype == np.float32:
        found = found.astype(np.float32).astype(np.float64)
    return np.where(positions + 0.5 < places.ends[num_finite - 1], found, np.nan)


def _sorted(column: Float, weights: NDArray[np.float32]) -> tuple[Float, NDArray[np.float32]]:
    """The values in order, NaN last, and their weights."""
    if column.dtype != np.float32:
        order = np.argsort(column, kind="stable")
        return column[order], weights[order]
    # Sorting numbers of which the upper half orders and the lower half is carried takes half of an argsort's time.
    keys = np.ascontiguousarray(column + np.float32(0)).view(np.uint32)  # minus zero is zero
    negative = keys >> np.uint32(31) == 1
    ordered = np.where(negative, ~keys, keys | np.uint32(1 << 31))
    ordered[np.isnan(column)] = 0xFFFFFFFF
    both = ordered.astype(np.uint64) << np.uint64(32) | weights.view(np.uint32)
    both.sort()
    ordered, carried = (both >> np.uint64(32)).astype(np.uint32), both.astype(np.uint32)
    keys = np.where(ordered >> np.uint32(31) == 1, ordered & np.uint32(0x7FFFFFFF), ~ordered)
    return keys.view(np.float32), carried.view(np.float32)


def weights_of(num_steps: Int64, num_points: Int64) -> NDArray[np.float32]:
    """(P,) steps that each point stands for, of episodes of so many steps and points."""
    return np.repeat((num_steps / np.maximum(num_points, 1)).astype(np.float32), num_points)


def fewer_points(weights: NDArray[np.float32], num_episodes: int) -> Int64 | None:
    """Which points do for all of them, with equal weights then; None where there are not too many.

    One of each of so many equal shares of the steps, in the order of the episodes, of which each is sorted. Where in
    its share it lies comes from the golden ratio: regular places would take the same rank of every episode.
    """
    num_wanted = max(_MANY_POINTS, 4 * num_episodes)
    if len(weights) <= num_wanted:
        return None
    ends = np.cumsum(weights, dtype=np.float64)
    shares = np.arange(num_wanted)
    places = (shares + shares * _GOLDEN % 1) * (ends[-1] / num_wanted)
    chosen: Int64 = np.minimum(np.searchsorted(ends, places, side="right"), len(weights) - 1)
    return chosen


def points_an_episode(dims: Sequence[int], num_episodes: int) -> int:
    """How many points are kept of an episode at the most, for features of so many dimensions.

    All episodes together take 32 MiB, or 8 points each if that is more, up to 256 MiB; at least one each.
    """
    point_bytes = 4 * max(1, sum(dims)) * max(1, num_episodes)
    return max(_FEW_BYTES // point_bytes, min(_FEW_POINTS, _MANY_BYTES // point_bytes), 1)


# Sorting 28 dimensions of them takes 40 ms; with those of 10,000 episodes ranks have a standard deviation of 0.02 %.
_MANY_POINTS = 1 << 17
_GOLDEN = (5**0.5 - 1) / 2
_FEW_BYTES, _MANY_BYTES, _FEW_POINTS = 32 << 20, 256 << 20, 8
