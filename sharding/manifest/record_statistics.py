"""Statistics of any episodes from what is known of each: no step is read again."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from epistream.sharding.format.ragged import Int64, positions_of, row_numbers
from epistream.sharding.format.statistics import NotFinite, Sketch, Summary, plain_statistics
from epistream.sharding.manifest.episode_records import EpisodeRecords
from epistream.sharding.manifest.record_columns import NOT_FINITE, FeatureRecords
from epistream.sharding.manifest.record_points import fewer_points, sketch_of, weights_of


class RecordStatistics(NamedTuple):
    """What a manifest says of the values: its statistics, their sketches, and values that are not finite."""

    statistics: dict[str, dict[str, Any]]
    sketches: dict[str, Sketch]
    not_finite: dict[str, NotFinite]


def statistics_of(records: EpisodeRecords, rows: NDArray[Any] | Sequence[int] | None = None) -> RecordStatistics:
    """The statistics of some episodes together, of the features that there are records of.

    Counts and extremes are those of the values exactly, means and deviations to rounding. Quantiles are exact for up to
    2,048 steps of which all values are kept. Beyond, their rank is off by less than 1/2,048, and where of an episode
    only K points are kept by less than 1/K more; errors of different episodes cancel: of E episodes with K points, a
    standard deviation of 0.3 / (K sqrt(E)) is left.

    Args:
        records: Of at least these episodes.
        rows: Their numbers, or a mask (R,); all of them if None.

    Returns:
        Plain statistics as in `Manifest.statistics`, without features that have no step here; sketches by feature;
        values that are not finite by feature, where there are any.
    """
    chosen = (
        None
        if rows is None
        else row_numbers(np.asarray(rows, np.int64 if not len(rows) else None), records.num_records)
    )
    summaries = summaries_of(records, chosen)
    counts = not_finite_in(records, chosen)
    sketches = {name: one.levels for name, one in summaries.items() if one.levels}
    return RecordStatistics(plain_statistics(summaries), sketches, counts)


def not_finite_in(records: EpisodeRecords, rows: Int64 | None = None) -> dict[str, NotFinite]:
    """How many values of some episodes, or of all, are not finite: by feature, of those that have any."""
    return {name: counted for name, one in records.features.items() if (counted := _not_finite(one, rows))}


def summaries_of(records: EpisodeRecords, rows: Int64 | None = None) -> dict[str, Summary]:
    """As `statistics_of`: summaries by feature; of none where the episodes have no step."""
    steps, points = records.num_steps, records.num_points
    flat: Int64 | None = None
    if rows is not None:
        flat = positions_of(records.point_offsets, rows)
        steps, points = steps[rows], points[rows]
    num_steps = int(steps.sum())
    if not num_steps:
        return {}
    weights = weights_of(steps, points)
    fewer = fewer_points(weights, len(steps))
    if fewer is not None:
        flat, weights = fewer if flat is None else flat[fewer], np.ones(len(fewer), np.float32)
    return {
        name: _summary(one, _Chosen(rows, flat, steps, weights, num_steps)) for name, one in records.features.items()
    }


class _Chosen(NamedTuple):
    """The episodes that are summed up: their rows and the rows of their points (None for all), steps, weights."""

    rows: Int64 | None
    flat: Int64 | None
    steps: Int64
    weights: NDArray[np.float32]
    num_steps: int


def _summary(one: FeatureRecords, chosen: _Chosen) -> Summary:
    def of(values: NDArray[Any]) -> NDArray[np.float64]:
        return np.asarray(values if chosen.rows is None else values[chosen.rows], np.float64)

    counts = chosen.steps[:, None] if one.count is None else of(one.count)
    mean, is_known = of(one.mean), counts > 0
    count = np.broadcast_to(counts.sum(axis=0).astype(np.int64), mean.shape[1:])
    divisor = np.maximum(count, 1)
    with np.errstate(over="ignore", invalid="ignore"):  # squares of 1e200: the deviation is then not known
        # The distances from some mean have more digits than the means, where values are far from zero.
        base = mean[np.argmax(np.broadcast_to(is_known, mean.shape), axis=0), np.arange(mean.shape[1])]
        distance = np.where(is_known, mean - base, 0.0)
        shift = (counts * distance).sum(axis=0) / divisor
        squares = of(one.squares).sum(axis=0) + (counts * (distance - np.where(is_known, shift, 0.0)) ** 2).sum(axis=0)
    levels: Sketch = ()
    if one.points is not None:
        points = one.points if chosen.flat is None else one.points[chosen.flat]
        levels = sketch_of(points, chosen.weights, chosen.num_steps)
    return Summary(
        shape=one.shape,
        count=count,
        num_steps=chosen.num_steps,
        mean=base + shift,
        squares=squares,
        minimum=of(one.minimum).min(axis=0),
        maximum=of(one.maximum).max(axis=0),
        levels=levels,
    )


def _not_finite(one: FeatureRecords, rows: Int64 | None) -> NotFinite | None:
    if one.not_finite is None:
        return None
    counts = one.not_finite if rows is None else one.not_finite[rows]
    num_episodes = int(counts.any(axis=1).sum())
    added: Mapping[str, int] = dict(zip(NOT_FINITE, counts.sum(axis=0).tolist(), strict=True))
    return NotFinite(**added, episodes=num_episodes) if num_episodes else None
