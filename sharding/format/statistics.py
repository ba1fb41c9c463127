"""Count, mean, deviation, extremes and quantiles of array features, mergeable in any grouping of the same order."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]

QUANTILES = {"q01": 0.01, "q99": 0.99}
# A summary keeps this many evenly spaced order statistics of each dimension; its quantiles are exact up to this
# many steps, and within half of 1/2,048 of the rank for each time that it was thinned.
_MAX_POINTS = 2048
# Point clouds and the like get no quantiles: nobody normalises by them, and 2,048 points a dimension cost too much.
_MAX_QUANTILE_DIMS = 1024


@dataclass(frozen=True, eq=False)
class Summary:
    """What is known of the values of one feature. D dimensions, flattened.

    Args:
        shape: Of one step.
        count: (D,) finite values.
        num_steps: Steps seen, with or without finite values.
        mean: (D,) mean of the finite values.
        squares: (D,) sum of squared distances from the mean.
        minimum: (D,) smallest finite value, inf if there is none.
        maximum: (D,) largest finite value, -inf if there is none.
        levels: Weighted samples for quantiles, (points, D) each; those of level i stand for 2**i times the weight
            of level 0. Empty if the feature is too wide for quantiles.
    """

    shape: tuple[int, ...]
    count: NDArray[np.int64]
    num_steps: int
    mean: Float
    squares: Float
    minimum: Float
    maximum: Float
    levels: tuple[Float, ...]


def summarize(values: NDArray[Any]) -> Summary:
    """The summary of (T, ...) values. NaN and infinities are not counted."""
    flat = np.asarray(values, np.float64).reshape(len(values), -1)
    finite = np.isfinite(flat)
    count = finite.sum(axis=0)
    safe = np.where(finite, flat, 0.0)
    divisor = np.maximum(count, 1)
    # Taking the first value away before summing keeps the digits of values far from zero.
    origin = safe[0] if len(safe) else np.zeros(flat.shape[1])
    mean = origin + np.where(finite, safe - origin, 0.0).sum(axis=0) / divisor
    squares = np.where(finite, (safe - mean) ** 2, 0.0).sum(axis=0)
    levels: tuple[Float, ...] = ()
    if flat.shape[1] <= _MAX_QUANTILE_DIMS:
        levels = _thin((np.where(finite, flat, np.nan),))
    return Summary(
        shape=values.shape[1:],
        count=count.astype(np.int64),
        num_steps=len(flat),
        mean=mean,
        squares=squares,
        minimum=np.where(finite, flat, np.inf).min(axis=0, initial=np.inf),
        maximum=np.where(finite, flat, -np.inf).max(axis=0, initial=-np.inf),
        levels=levels,
    )


def merge(left: Summary, right: Summary) -> Summary:
    """The summary of both. Merging in the same order gives the same bits."""
    count = left.count + right.count
    divisor = np.maximum(count, 1)
    # Chan, Golub and LeVeque (1979), "Updating formulae and a pairwise algorithm for computing sample variances".
    base = np.where(left.count > 0, left.mean, right.mean)
    delta = np.where(right.count > 0, right.mean, left.mean) - base
    mean = base + delta * right.count / divisor
    squares = left.squares + right.squares + delta**2 * left.count * right.count / divisor
    levels = zip_longest(left.levels, right.levels, fillvalue=np.empty((0, len(count))))
    return Summary(
        shape=left.shape,
        count=count,
        num_steps=left.num_steps + right.num_steps,
        mean=mean,
        squares=squares,
        minimum=np.minimum(left.minimum, right.minimum),
        maximum=np.maximum(left.maximum, right.maximum),
        levels=_thin(map(np.concatenate, levels)),
    )


def merge_all(groups: Iterable[Mapping[str, Summary]]) -> dict[str, Summary]:
    """Merge summaries by feature, in the order given."""
    merged: dict[str, Summary] = {}
    for group in groups:
        for name, summary in group.items():
            merged[name] = merge(merged[name], summary) if name in merged else summary
    return merged


def to_plain(summary: Summary) -> dict[str, Any]:
    """The summary as JSON can hold it: lists in the shape of one step, numbers for scalars, None where unknown.

    ``std`` divides by the count, as the normalisers of ACT and diffusion policy do.
    """
    known = summary.count > 0
    std = np.sqrt(summary.squares / np.maximum(summary.count, 1))
    values = {"mean": summary.mean, "std": std, "min": summary.minimum, "max": summary.maximum}
    for name, rank in QUANTILES.items():
        values[name] = _quantile(summary, rank)
    plain: dict[str, Any] = {"count": int(summary.num_steps)}
    for name, value in values.items():
        numbers = value.astype(object)
        numbers[~(known & np.isfinite(value))] = None
        plain[name] = numbers.reshape(summary.shape).tolist()
    return plain


def _thin(levels: Iterable[Float]) -> tuple[Float, ...]:
    """Halve every level that is too long into the next: of each sorted pair one value stands for both."""
    result = list(levels)
    for i, points in enumerate(result):
        # The list grows while it is walked: a level that is halved may fill the next.
        if len(points) <= _MAX_POINTS:
            continue
        ordered = np.sort(points, axis=0)  # NaN sorts last
        keep = len(ordered) % 2
        pairs, rest = ordered[: len(ordered) - keep], ordered[len(ordered) - keep :]
        # Alternating which value of a pair is kept would need a coin; the lower ones at even levels and the upper
        # ones at odd levels leave no drift either.
        halved = pairs[i % 2 :: 2]
        result[i] = rest
        if i + 1 == len(result):
            result.append(halved)
        else:
            result[i + 1] = np.concatenate([result[i + 1], halved])
    return tuple(result)


def _quantile(summary: Summary, rank: float) -> Float:
    """(D,) values below which `rank` of the weight lies, interpolated as numpy.quantile does."""
    if not summary.levels:
        return np.full(len(summary.count), np.nan)
    values = np.concatenate(summary.levels)
    weights = np.concatenate([np.full(len(level), 2.0**i) for i, level in enumerate(summary.levels)])
    result = np.empty(values.shape[1])
    for dim in range(values.shape[1]):
        column = values[:, dim]
        finite = np.isfinite(column)
        result[dim] = _weighted_quantile(column[finite], weights[finite], rank) if finite.any() else np.nan
    return result


def _weighted_quantile(values: Float, weights: Float, rank: float) -> float:
    order = np.argsort(values, kind="stable")
    values, weights = values[order], weights[order]
    total = weights.sum()
    # Every value stands for `weight` equal ones; its middle one has this position among `total` of them.
    position = np.cumsum(weights) - (weights + 1) / 2
    return float(np.interp(rank * (total - 1), position, values))
