"""Count, mean, deviation, extremes and quantiles of array features, mergeable in any grouping of the same order."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import zip_longest
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epistream.units import count_text

Float = NDArray[np.float64]

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
# A summary keeps this many evenly spaced order statistics of each dimension; its quantiles are exact up to this
# many steps, and within half of 1/2,048 of the rank for each time that it was thinned.
MAX_POINTS = 2048
# Point clouds and the like get no quantiles: nobody normalises by them, and 2,048 points a dimension cost too much.
MAX_QUANTILE_DIMS = 1024

# The points that a summary keeps; see `Summary.levels`.
Sketch = tuple[Float, ...]


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
    levels: Sketch


def summarize(values: NDArray[Any]) -> Summary:
    """The summary of (T, ...) values. NaN and infinities are not counted, see `count_not_finite`."""
    with np.errstate(over="ignore", invalid="ignore"):  # squares of 1e200: the deviation is then not known
        return _summarize(values)


def _summarize(values: NDArray[Any]) -> Summary:
    flat = flattened(values)
    finite = np.isfinite(flat)
    count = finite.sum(axis=0)
    safe = np.where(finite, flat, 0.0)
    divisor = np.maximum(count, 1)
    # Taking the first value away before summing keeps the digits of values far from zero.
    origin = safe[0] if len(safe) else np.zeros(flat.shape[1])
    mean = origin + np.where(finite, safe - origin, 0.0).sum(axis=0) / divisor
    squares = np.where(finite, (safe - mean) ** 2, 0.0).sum(axis=0)
    levels: Sketch = ()
    if flat.shape[1] <= MAX_QUANTILE_DIMS:
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


def flattened(values: NDArray[Any]) -> Float:
    """(T, ...) values as (T, D) float64, also those of no step."""
    return np.asarray(values, np.float64).reshape(len(values), prod(values.shape[1:]))


def merge(left: Summary, right: Summary) -> Summary:
    """The summary of both. Merging in the same order gives the same bits."""
    with np.errstate(over="ignore", invalid="ignore"):
        return _merge(left, right)


def _merge(left: Summary, right: Summary) -> Summary:
    count = left.count + right.count
    divisor = np.maximum(count, 1)
    # Chan, Golub and LeVeque (1979), "Updating formulae and a pairwise algorithm for computing sample variances".
    base = np.where(left.count > 0, left.mean, right.mean)
    delta = np.where(right.count > 0, right.mean, left.mean) - base
    mean = base + delta * right.count / divisor
    squares = left.squares + right.squares + delta**2 * left.count * right.count / divisor
    return Summary(
        shape=left.shape,
        count=count,
        num_steps=left.num_steps + right.num_steps,
        mean=mean,
        squares=squares,
        minimum=np.minimum(left.minimum, right.minimum),
        maximum=np.maximum(left.maximum, right.maximum),
        levels=merge_sketches(left.levels, right.levels),
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
    values |= quantiles_of(summary.levels) if summary.levels else dict.fromkeys(QUANTILES, np.full(len(known), np.nan))
    plain: dict[str, Any] = {"count": int(summary.num_steps)}
    if (summary.count != summary.num_steps).any():
        plain["finite"] = summary.count.reshape(summary.shape).tolist()
    for name, value in values.items():
        plain[name] = plain_numbers(value, known).reshape(summary.shape).tolist()
    return plain


def plain_statistics(summaries: Mapping[str, Summary]) -> dict[str, dict[str, Any]]:
    """`to_plain` by feature, of those that have any step: an episode may have no valid range."""
    return {name: to_plain(summary) for name, summary in summaries.items() if summary.num_steps}


def plain_numbers(values: Float, known: bool | NDArray[np.bool_] = True) -> NDArray[np.object_]:
    """`values` of any shape as JSON can hold them: None where they are not finite, or not known."""
    numbers = np.array(values, object)
    numbers[~(known & np.isfinite(values))] = None
    return numbers


def merge_sketches(left: Sketch, right: Sketch) -> Sketch:
    """The sketch of the values of both, of the same dimensions; none where one is none."""
    if not left or not right:
        return ()
    nothing = np.empty((0, left[0].shape[1]))
    return _thin(map(np.concatenate, zip_longest(left, right, fillvalue=nothing)))


def quantiles_of(sketch: Sketch) -> dict[str, Float]:
    """(D,) values of each dimension by the names in `QUANTILES`, interpolated as numpy.quantile does; NaN for none."""
    return {name: _quantile(sketch, rank) for name, rank in QUANTILES.items()}


def _thin(levels: Iterable[Float]) -> Sketch:
    """Halve every level that is too long into the next: of each sorted pair one value stands for both."""
    result = list(levels)
    for i, points in enumerate(result):
        # The list grows while it is walked: a level that is halved may fill the next.
        if len(points) <= MAX_POINTS:
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


def _quantile(sketch: Sketch, rank: float) -> Float:
    values = np.concatenate(sketch)
    weights = np.concatenate([np.full(len(level), 2.0**i) for i, level in enumerate(sketch)])
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


@dataclass(frozen=True)
class NotFinite:
    """The values of one feature that statistics leave out, each dimension counted by itself.

    Args:
        nan: Values that are no number.
        inf: Values that are infinite, of either sign.
        steps: That have at least one of either.
        episodes: Likewise.
    """

    nan: int
    inf: int
    steps: int
    episodes: int

    def __add__(self, other: "NotFinite") -> "NotFinite":
        return NotFinite(*(a + b for a, b in zip(asdict(self).values(), asdict(other).values(), strict=True)))

    def __str__(self) -> str:
        found = [f"{count:,} {what}" for count, what in ((self.nan, "NaN"), (self.inf, "inf")) if count]
        return f"{' and '.join(found)} in {count_text(self.steps, 'step')} of {count_text(self.episodes, 'episode')}"

    def to_dict(self) -> dict[str, int]:
        """As JSON can hold it."""
        return asdict(self)


def count_not_finite(arrays: Mapping[str, NDArray[Any]]) -> dict[str, NotFinite]:
    """Of the arrays (T, ...) of one episode by feature, those that have any such value."""
    found = {}
    for name, values in arrays.items():
        if values.dtype.kind != "f":
            continue
        is_finite = np.isfinite(values)
        if not is_finite.all():
            nan = int(np.isnan(values).sum())
            steps = int((~is_finite).reshape(len(values), -1).any(axis=1).sum())
            found[name] = NotFinite(nan, int((~is_finite).sum()) - nan, steps, 1)
    return found


def add_counts(groups: Iterable[Mapping[str, NotFinite]]) -> dict[str, NotFinite]:
    """The counts of different episodes together, by feature."""
    added: dict[str, NotFinite] = {}
    for group in groups:
        for name, counts in group.items():
            added[name] = added[name] + counts if name in added else counts
    return added


def not_finite_of(plain: object) -> dict[str, NotFinite]:
    """The inverse of `NotFinite.to_dict`, of all features.

    Raises:
        ValueError: If it is anything else.
    """
    if not isinstance(plain, Mapping):
        raise ValueError(f"{plain!r:.80}, wanted a map")
    wanted = ("nan", "inf", "steps", "episodes")
    for name, counts in plain.items():
        if not isinstance(counts, Mapping) or not set(wanted) <= set(counts):
            raise ValueError(f"{name!r:.80}: {counts!r:.80}, wanted a map with {', '.join(wanted)}")
        if any(type(counts[key]) is not int or not 0 <= counts[key] < 1 << 63 for key in wanted):
            raise ValueError(f"{name!r:.80}: {counts!r:.200}, wanted integers of at least 0")
    return {name: NotFinite(*(counts[key] for key in wanted)) for name, counts in plain.items()}
