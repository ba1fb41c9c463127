"""Records of many short episodes at once: one by one they take a millisecond each, most of it in Python."""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epistream.sharding.format.ragged import Int64, offsets_of
from epistream.sharding.format.statistics import MAX_QUANTILE_DIMS, flattened
from epistream.sharding.format.texts import Texts
from epistream.sharding.manifest.episode_records import EpisodeRecords
from epistream.sharding.manifest.record_columns import FeatureRecords, Float, smallest
from epistream.sharding.manifest.record_making import RecordRules
from epistream.sharding.manifest.record_points import first_shares, points_of_runs


def count_episodes(
    values: Mapping[str, NDArray[Any]],
    num_steps: Int64,
    identities: Sequence[str],
    described: Texts,
    rules: RecordRules,
) -> EpisodeRecords:
    """The records of R episodes; those of `count_episode`, with means and squares to rounding.

    Args:
        values: feature -> (S, ...) the valid steps of all episodes, one episode after the other.
        num_steps: (R,) valid steps of each; they add up to S.
        identities: (R,) as `identity_in_records` gives them.
        described: (R,) as `describe_attributes` does.
        rules: Of the job.
    """
    num_points = np.minimum(num_steps, rules.num_points)
    firsts = first_shares(identities)
    features = {}
    for name, array in values.items():
        if name in rules.features:
            points = None
            if prod(array.shape[1:]) <= MAX_QUANTILE_DIMS:
                points = points_of_runs(array, num_steps, num_points, firsts)
            features[name] = _moments(array, num_steps, points)
    return EpisodeRecords(num_steps, num_points, features, described)


class _Runs:
    """Runs of rows, of which some may be empty: sums and extremes of each."""

    def __init__(self, counts: Int64) -> None:
        self.counts, self._known = counts, np.flatnonzero(counts)
        self._starts = offsets_of(counts)[:-1][self._known]

    def reduce(self, function: np.ufunc, rows: NDArray[Any], nothing: float) -> NDArray[Any]:
        """(R, D) of (S, D) rows; `nothing` for a run of none."""
        found = np.full((len(self.counts), *rows.shape[1:]), nothing, rows.dtype)
        if len(self._known):
            found[self._known] = function.reduceat(rows, self._starts, axis=0)
        return found

    def first(self, rows: NDArray[Any]) -> NDArray[Any]:
        """(R, D) the first row of each, zeros for a run of none."""
        found = np.zeros((len(self.counts), *rows.shape[1:]), rows.dtype)
        found[self._known] = rows[self._starts]
        return found

    def spread(self, found: NDArray[Any]) -> NDArray[Any]:
        """(S, D) what was found of each, at its rows."""
        return np.repeat(found, self.counts, axis=0)


def _moments(values: NDArray[Any], num_steps: Int64, points: Float | None) -> FeatureRecords:
    flat, runs = flattened(values), _Runs(num_steps)
    finite = np.isfinite(flat)
    has_all = bool(finite.all())
    count = odd = None
    divisor = np.maximum(num_steps, 1)[:, None]
    low = high = safe = flat
    if not has_all:
        count = runs.reduce(np.add, finite.astype(np.int64), 0)
        divisor = np.maximum(count, 1)
        odd = _not_finite(flat, finite, runs)
        low, high, safe = (np.where(finite, flat, other) for other in (np.inf, -np.inf, 0.0))

    def distance_from(places: Float) -> Float:
        distance: Float = safe - runs.spread(places)
        if not has_all:
            distance[~finite] = 0.0
        return distance

    with np.errstate(over="ignore", invalid="ignore"):  # squares of 1e200: the deviation is then not known
        # Taking the first value away before summing keeps the digits of values far from zero.
        origin = runs.first(safe)
        mean = origin + runs.reduce(np.add, distance_from(origin), 0.0) / divisor
        squares = runs.reduce(np.add, distance_from(mean) ** 2, 0.0)
    return FeatureRecords(
        shape=values.shape[1:],
        mean=mean,
        squares=squares,
        minimum=smallest(runs.reduce(np.minimum, low, np.inf)),
        maximum=smallest(runs.reduce(np.maximum, high, -np.inf)),
        count=count,
        not_finite=odd if odd is not None and odd.any() else None,
        points=points,
    )


def _not_finite(flat: Float, finite: NDArray[np.bool_], runs: _Runs) -> Int64:
    nan = np.isnan(flat).sum(axis=1)
    inf = (~finite).sum(axis=1) - nan
    found: Int64 = runs.reduce(np.add, np.stack([nan, inf, nan + inf > 0], axis=1).astype(np.int64), 0)
    return found
