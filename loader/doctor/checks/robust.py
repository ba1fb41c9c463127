"""What is usual among episodes, so that few that are not do not change it: medians, and distances from them."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.floating[Any]]
Bool = NDArray[np.bool_]

# Of fewer episodes nobody can say which one is unlike the others.
LEAST_EPISODES = 5
# A normal distribution's standard deviation is this many times its median absolute deviation.
_SIGMA = 1.4826
_MOST_DIMS_TOLD = 4
_SPARED = 10


def usual(values: NDArray[Any]) -> Any:
    """The median of each column, of what is not NaN; NaN where nothing is."""
    if not len(values):
        return np.full(values.shape[1:], np.nan)
    ordered = np.sort(values.astype(np.float64), axis=0)  # NaN comes last; `numpy.nanmedian` takes ten times as long
    count = (~np.isnan(ordered)).sum(axis=0, keepdims=True)
    middle = [np.take_along_axis(ordered, np.maximum(place, 0), axis=0)[0] for place in ((count - 1) // 2, count // 2)]
    # Where all are known, count // 2 is the upper of two middles; where none is, the first NaN.
    return (middle[0] + np.where(count[0] % 2 == 0, middle[1], middle[0])) / 2


def envelope(low: NDArray[Any], high: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The smallest and largest value of each column over all episodes but the tenth that goes farthest, or one."""
    spared = max(1, len(low) // _SPARED)
    return np.sort(low, axis=0)[min(spared, len(low) - 1)], np.sort(high, axis=0)[-1 - min(spared, len(high) - 1)]


def sigma(values: NDArray[Any]) -> Any:
    """The spread of each column about its median, as a standard deviation."""
    return _SIGMA * usual(np.abs(values - usual(values)))


def rows_of(found: Bool) -> Iterator[tuple[int, list[int]]]:
    """Rows (R, D) that have any, each with its dimensions."""
    for row in np.flatnonzero(found.any(axis=1)).tolist():
        yield row, np.flatnonzero(found[row]).tolist()


def dims_text(dims: list[int], total: int) -> str:
    """Names dimensions: ``dimension 3``, ``dimensions 0, 2 and 5``, ``all 14 dimensions``."""
    if total == 1:
        return "it"
    if len(dims) == total:
        return "both dimensions" if total == 2 else f"all {total} dimensions"
    if len(dims) == 1:
        return f"dimension {dims[0]}"
    if len(dims) > _MOST_DIMS_TOLD:
        return f"{len(dims)} dimensions ({', '.join(map(str, dims[: _MOST_DIMS_TOLD - 1]))}, ...)"
    return f"dimensions {', '.join(map(str, dims[:-1]))} and {dims[-1]}"


def number(value: float) -> str:
    """A number as a message shows it."""
    return f"{value:.4g}"
