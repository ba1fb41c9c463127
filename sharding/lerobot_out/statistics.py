"""Statistics of an episode as LeRobot takes them, by its formulas, and those of many episodes from them.

Version 3.0 estimates quantiles from 5,000 bins, which is repeated. Not repeated are two faults of its releases up to
0.4.4. They square pictures in 8 bits: their deviations come out near 0 (0.0007 in place of 0.19). And they take the
variance as the mean of squares less the square of the mean, in single precision: of two steps that differ by 8e-5 the
deviation comes out as 0, of episodes of usual lengths 1e-4 of it is wrong. Here all sums are in double precision.
Version 2.1 has no quantiles.

Source: lerobot/datasets/compute_stats.py of https://github.com/huggingface/lerobot, releases 0.3.3 and 0.4.4 and later.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epistream.sharding.lerobot_out.model import Frames, Statistics

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
_NUM_BINS = 5000
# The bins reach a little further than the values.
_MARGIN = 1e-10
_FEWEST_FRAMES, _MOST_FRAMES, _POWER = 100, 10_000, 0.75
_MERGED_AT_ONCE = 1000
_LARGE_SIDE, _REDUCED_SIDE = 300, 150

Floats = NDArray[np.floating[Any]]


def sampled_steps(length: int) -> list[int]:
    """The steps of an episode whose pictures count: rising, spread evenly, first and last included."""
    number = max(min(_FEWEST_FRAMES, length), min(int(length**_POWER), _MOST_FRAMES))
    return [int(step) for step in np.round(np.linspace(0, length - 1, number))]


def array_statistics(values: NDArray[Any], version: str) -> dict[str, NDArray[Any]]:
    """Of one episode's (T, ...) values.

    In version 2.1 each value of a step has its own; in 3.0 all axes but the last count as steps.

    Returns:
        min, max, mean, std, count, in 3.0 also the `QUANTILES`: of the values' dtype or float64; count is [T].
    """
    count = np.array([len(values)])
    if version == "2.1":
        how: dict[str, Any] = {"axis": 0, "keepdims": values.ndim == 1}
        enough = _squarable(values)
        with np.errstate(all="ignore"):
            mean, std = np.mean(enough, **how), np.std(enough, **how)
        return {"min": np.min(values, **how), "max": np.max(values, **how), "mean": mean, "std": std, "count": count}
    rows = values.reshape(-1, values.shape[-1] if values.ndim > 1 else 1)
    with np.errstate(all="ignore"):
        enough = rows.astype(np.float64)
        lowest, highest, mean = rows.min(axis=0), rows.max(axis=0), np.mean(enough, axis=0)
        std = np.std(enough, axis=0) if len(rows) > 1 else np.zeros_like(mean)
        quantiles = _quantiles_of(np.sort(rows.T, axis=1), lowest, highest, mean)
    return {"min": lowest, "max": highest, "mean": mean, "std": std, "count": count, **quantiles}


def columns_statistics(columns: Mapping[str, NDArray[Any]], version: str) -> dict[str, dict[str, NDArray[Any]]]:
    """The same of (T,) values each, by name, worked out together."""
    names, length = list(columns), len(next(iter(columns.values())))
    whole = np.array(list(columns.values()), np.float64)
    mean, std, ordered = whole.mean(axis=1), whole.std(axis=1), np.sort(whole, axis=1)
    found: dict[str, NDArray[Any]] = {"min": ordered[:, 0], "max": ordered[:, -1], "mean": mean, "std": std}
    if version != "2.1":
        found |= _quantiles_of(ordered, found["min"], found["max"], mean)
    by_name = {}
    for place, name in enumerate(names):
        mine = {key: values[place : place + 1] for key, values in found.items()}
        kind = columns[name].dtype
        extremes = {key: mine.pop(key).astype(kind) for key in ("min", "max")}
        means = {key: mine.pop(key) for key in ("mean", "std")}
        by_name[name] = {**extremes, **means, "count": np.array([length]), **mine}
    return by_name


@lru_cache(maxsize=1024)
def _looks(dtype: str, shape: tuple[int, ...], version: str) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
    """Dtypes and shapes of the statistics of a feature."""
    measured = array_statistics(np.zeros((2, *shape), dtype), version)
    return {name: (value.dtype, value.shape) for name, value in measured.items()}


def known_or_measured(values: NDArray[Any], known: Statistics | None, version: str) -> dict[str, NDArray[Any]]:
    """Of one episode's (T, ...) values: as the source says, where it has them in this form, else as they are.

    Versions round them in their own ways.
    """
    looks = _looks(values.dtype.name, values.shape[1:], version)
    plain = [name for name in looks if name not in QUANTILES]
    if known is None or any(name not in known or known[name].shape != looks[name][1] for name in plain):
        return array_statistics(values, version)
    if not (known["count"] == len(values)).all():
        return array_statistics(values, version)
    said = {name: known[name].astype(looks[name][0]) for name in plain}
    said |= {name: known[name] for name in looks if name in QUANTILES and name in known}
    if len(said) == len(looks):
        return said
    return {**array_statistics(values, version), **said}


def _squarable(values: NDArray[Any]) -> NDArray[Any]:
    """In numbers that hold their squares and sums."""
    if values.dtype.kind == "f":
        return values.astype(np.result_type(values.dtype, np.float32), copy=False)
    return values.astype(np.float64)


def _quantiles_of(
    columns: NDArray[Any], lowest: NDArray[Any], highest: NDArray[Any], mean: NDArray[Any]
) -> dict[str, Floats]:
    """Of (D, N) sorted columns, all together where they are numbers of usual sizes."""
    if columns.shape[1] < 2:
        return {name: mean.copy() for name in QUANTILES}
    kind = columns.dtype if columns.dtype in (np.float32, np.float64) else np.dtype(np.float64)
    values = columns.astype(kind, copy=False)
    first, last = lowest.astype(kind) - kind.type(_MARGIN), highest.astype(kind) + kind.type(_MARGIN)
    found = np.empty((len(columns), len(QUANTILES)))
    usual = np.isfinite(last - first) if columns.dtype != np.float16 else np.zeros(len(columns), np.bool_)
    found[usual] = _usual_quantiles(values[usual], first[usual], last[usual])
    for place in np.flatnonzero(~usual).tolist():
        column, edges = columns[place], _edges(lowest[place], highest[place])
        # How many values lie below the end of each bin; the last bin has its end as well.
        below = np.append(np.searchsorted(column, edges[1:-1], "left"), np.searchsorted(column, edges[-1], "right"))
        found[place] = _quantiles(edges, below, len(column))
    return dict(zip(QUANTILES, found.T, strict=True))


def _usual_quantiles(columns: NDArray[Any], first: NDArray[Any], last: NDArray[Any]) -> Floats:
    """As `_quantiles`, of (D, N) sorted columns: only the bins that quantiles lie in are looked at. (D, Q)."""
    number = columns.shape[1]
    first, last = first[:, None], last[:, None]
    bin_width = (last - first) / _NUM_BINS

    def edge(place: NDArray[np.int64]) -> NDArray[Any]:
        """As `np.linspace` has it."""
        return np.where(place < _NUM_BINS, place.astype(columns.dtype) * bin_width + first, last)

    target = np.array(list(QUANTILES.values())) * number
    # So many values lie below the end of the bin: the last of these must.
    inside = columns[:, np.ceil(target).astype(np.int64) - 1]
    with np.errstate(all="ignore"):
        guess = np.nan_to_num((inside - first) / bin_width).clip(1, _NUM_BINS - 2).astype(np.int64)
    # Mostly it is right, but for rounding; where bins are narrower than numbers can tell, all are searched.
    is_near = (edge(guess - 1) <= inside) & (edge(guess + 2) > inside)
    low, high = np.where(is_near, guess - 1, 0), np.where(is_near, guess + 1, _NUM_BINS - 1)
    while (low < high).any():
        middle = (low + high) // 2
        is_below = (low == high) | (edge(middle + 1) > inside)
        low, high = np.where(is_below, low, middle + 1), np.where(is_below, middle, high)
    lower, upper = edge(low), edge(low + 1)
    before, below = np.empty(low.shape, np.int64), np.empty(low.shape, np.int64)
    for place, column in enumerate(columns):
        before[place] = np.searchsorted(column, lower[place], "left")
        below[place] = np.searchsorted(column, upper[place], "left")
    below[low == _NUM_BINS - 1] = number
    share = (target - before) / (below - before)
    found: Floats = np.where(low == 0, lower, lower + share * (upper - lower))
    return found


def _edges(least: Any, most: Any) -> Floats:
    if isinstance(least, np.bool_):
        least, most = int(least), int(most)
    edges: Floats = np.linspace(least - _MARGIN, most + _MARGIN, _NUM_BINS + 1)
    return edges


def _quantiles(edges: Floats, below: NDArray[np.integer[Any]], number: int) -> list[float]:
    """Where so many of the values lie below, as if those of a bin were spread evenly.

    Args:
        edges: (bins + 1,)
        below: (bins,) values below the end of each bin.
        number: Of values.
    """
    found = []
    for quantile in QUANTILES.values():
        target = quantile * number
        place = int(np.searchsorted(below, target))
        if place == 0:
            found.append(edges[0])
        elif place >= len(below):
            found.append(edges[-1])
        else:
            before = below[place - 1]
            share = (target - before) / (below[place] - before)
            found.append(edges[place] + share * (edges[place + 1] - edges[place]))
    return found


class PictureStatistics:
    """Of the pictures of one camera and episode, which are counted by value, so that nothing is held of them.

    Pictures of 300 pixels or more on a side count with every n-th row and column only, as LeRobot has it.

    Args:
        channels: Of the statistics.
        num_values: That a pixel can have.
        one: The value that is 1 in the statistics.
    """

    def __init__(self, channels: int = 3, num_values: int = 256, one: float = 255.0) -> None:
        self._counts, self._one = np.zeros((channels, num_values), np.int64), one
        self._num_pictures = 0

    def add(self, picture: Frames) -> None:
        """Count a picture, (H, W, 1 or 3); grey ones have three equal channels."""
        height, width, channels = picture.shape
        step = 1
        if max(height, width) >= _LARGE_SIDE:
            step = int((width if width > height else height) / _REDUCED_SIDE)
        reduced = picture[::step, ::step]
        for channel in range(len(self._counts)):
            plane = reduced[:, :, min(channel, channels - 1)]
            self._counts[channel] += np.bincount(plane.ravel(), minlength=self._counts.shape[1])
        self._num_pictures += 1

    def result(self, version: str) -> dict[str, NDArray[Any]]:
        """Of what was counted, (C, 1, 1), of colours in [0, 1]; count is (1,), of pictures."""
        rows = [_of_counts(counts) for counts in self._counts]
        names = [name for name in rows[0] if version != "2.1" or name not in QUANTILES]
        found = {name: np.array([row[name] for row in rows]).reshape(-1, 1, 1) / self._one for name in names}
        found["count"] = np.array([self._num_pictures])
        return {name: found[name] for name in ("min", "max", "mean", "std", "count", *names[4:])}


def _of_counts(counts: NDArray[np.int64]) -> dict[str, float]:
    """Of pixels of which it is known how many have each value."""
    values, number = np.arange(len(counts)), int(counts.sum())
    there = np.flatnonzero(counts)
    mean = float(counts @ values) / number
    variance = float(counts @ (values - mean) ** 2) / number
    found = {"min": float(there[0]), "max": float(there[-1]), "mean": mean, "std": variance**0.5}
    if number < 2:
        return found | dict.fromkeys(QUANTILES, mean)
    edges = _edges(float(there[0]), float(there[-1]))
    up_to = np.append(0, np.cumsum(counts))
    below = up_to[np.clip(np.ceil(edges[1:]), 0, len(counts)).astype(int)]
    below[-1] = number
    return found | dict(zip(QUANTILES, _quantiles(edges, below, number), strict=True))


def merged(parts: Sequence[Statistics]) -> dict[str, NDArray[Any]]:
    """Of parts together: exact but for quantiles, of which LeRobot takes the mean, weighted by steps."""
    counts = np.stack([part["count"] for part in parts])
    total = counts.sum(axis=0)
    means = np.stack([part["mean"] for part in parts])
    weights = counts.reshape(counts.shape + (1,) * (means.ndim - counts.ndim))

    def weighted(values: NDArray[Any]) -> NDArray[Any]:
        result: NDArray[Any] = (values * weights).sum(axis=0) / total
        return result

    mean = weighted(means)
    variances = np.stack([part["std"] ** 2 for part in parts])
    quantiles = [name for name in QUANTILES if all(name in part for part in parts)]
    return {
        "min": np.stack([part["min"] for part in parts]).min(axis=0),
        "max": np.stack([part["max"] for part in parts]).max(axis=0),
        "mean": mean,
        "std": np.sqrt(weighted(variances + (means - mean) ** 2)),
        "count": total,
        **{name: weighted(np.stack([part[name] for part in parts])) for name in quantiles},
    }


def merge_all(episodes: Iterable[Mapping[str, Statistics]]) -> dict[str, Statistics]:
    """Those of many episodes, all with the same features, by feature."""
    total: dict[str, Statistics] = {}
    rest = iter(episodes)
    # Many at once for speed, not all for memory.
    while group := list(islice(rest, _MERGED_AT_ONCE)):
        group = [total, *group] if total else group
        total = {name: merged([part[name] for part in group]) for name in group[0]}
    return total
