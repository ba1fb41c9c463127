"""What records of episodes say of one feature, as columns: moments, extremes, and points for quantiles."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epistream.sharding.format.ragged import Int64, positions_of

Float = NDArray[Any]  # float64, or float32 where that says the same

NOT_FINITE = ("nan", "inf", "steps")


@dataclass(frozen=True, eq=False)
class FeatureRecords:
    """R episodes of one array feature, D dimensions, flattened. Arrays may be read-only views of a file.

    Args:
        shape: Of one step.
        mean: (R, D) float64, mean of the finite values.
        squares: (R, D) float64, sum of squared distances from the mean.
        minimum: (R, D) smallest finite value, inf if there is none; float32 where that is exact, else float64.
        maximum: (R, D) largest finite value, -inf if there is none; likewise.
        count: (R, D) int64 finite values; None where all are.
        not_finite: (R, 3) int64 values that are NaN, that are infinite, and steps with either; None where all are zero.
        points: (P, D) order statistics of each episode, one episode after the other, for quantiles; NaN stands for what
            is not finite. None if the feature has none.
    """

    shape: tuple[int, ...]
    mean: NDArray[np.float64]
    squares: NDArray[np.float64]
    minimum: Float
    maximum: Float
    count: Int64 | None = None
    not_finite: Int64 | None = None
    points: Float | None = None

    @property
    def num_dims(self) -> int:
        """Dimensions, D."""
        return prod(self.shape)

    def select(self, rows: Int64, point_offsets: Int64) -> "FeatureRecords":
        """Those of some rows; `point_offsets` (R + 1,) says where the points of each row begin and end."""
        chosen: dict[str, Any] = {name: value[rows] for name in _OF_ROWS if (value := getattr(self, name)) is not None}
        if self.points is not None:
            chosen["points"] = self.points[positions_of(point_offsets, rows)]
        return FeatureRecords(self.shape, **chosen)

    @staticmethod
    def join(parts: Sequence["FeatureRecords"], num_steps: Sequence[Int64]) -> "FeatureRecords":
        """One after the other, of the same shape; `num_steps` are those of the records of each."""
        joined: dict[str, Any] = {
            name: np.concatenate([getattr(part, name) for part in parts]) for name in _OF_ROWS[:4]
        }
        if any(part.count is not None for part in parts):
            joined["count"] = np.concatenate([part.counts(steps) for part, steps in zip(parts, num_steps, strict=True)])
        if any(part.not_finite is not None for part in parts):
            nothing = [np.zeros((len(part.mean), len(NOT_FINITE)), np.int64) for part in parts]
            joined["not_finite"] = np.concatenate(
                [
                    none if part.not_finite is None else part.not_finite
                    for part, none in zip(parts, nothing, strict=True)
                ]
            )
        points = [part.points for part in parts if part.points is not None]
        if len(points) == len(parts):
            joined["points"] = np.concatenate(points)
        return FeatureRecords(parts[0].shape, **joined)

    def counts(self, num_steps: Int64) -> Int64:
        """(R, D) finite values of records of so many steps."""
        if self.count is not None:
            return self.count
        return np.broadcast_to(num_steps[:, None], self.mean.shape)

    def arrays(self, num_steps: Int64) -> dict[str, NDArray[Any]]:
        """Those that say something by name, of records of so many steps, in few bytes."""
        found = {name: getattr(self, name) for name in (*_OF_ROWS, "points") if getattr(self, name) is not None}
        if self.not_finite is not None and not self.not_finite.any():
            del found["not_finite"]
        if self.count is not None and (self.count == num_steps[:, None]).all():
            del found["count"]
        for name in _SMALLER & found.keys():
            found[name] = smallest(found[name])
        return found

    def problems(self, num_steps: Int64, num_points: int) -> Iterator[str]:
        """What cannot be, of records of so many steps and points in all; later checks rely on the earlier ones."""
        wanted = (len(num_steps), self.num_dims)
        shapes = dict.fromkeys(_OF_ROWS, wanted)
        shapes |= {"not_finite": (len(num_steps), len(NOT_FINITE)), "points": (num_points, self.num_dims)}
        for name, shape in shapes.items():
            array = getattr(self, name)
            if array is None:
                continue
            kinds = _DTYPES[name]
            if array.shape != shape or array.dtype not in kinds:
                yield f"{name} {array.dtype} {array.shape}, wanted {kinds[-1]} {shape}"
        if self.count is not None and ((self.count < 0) | (self.count > num_steps[:, None])).any():
            yield "finite values that are fewer than none or more than its steps"
        if self.not_finite is not None:
            most = num_steps[:, None] * np.array([self.num_dims, self.num_dims, 1])
            if ((self.not_finite < 0) | (self.not_finite > most)).any():
                yield "values that are not finite, fewer than none or more than there are"
        if (self.squares < 0).any():
            yield "a negative sum of squares"


_OF_ROWS = tuple(one.name for one in fields(FeatureRecords) if one.name not in ("shape", "points"))
_SMALLER = {"minimum", "maximum", "points"}
_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
_DTYPES = {
    **dict.fromkeys(("mean", "squares"), _FLOATS[1:]),
    **dict.fromkeys(("minimum", "maximum", "points"), _FLOATS),
    **dict.fromkeys(("count", "not_finite"), (np.dtype(np.int64),)),
}


def smallest(values: Float) -> Float:
    """As float32 where that says the same: most features are stored so."""
    with np.errstate(over="ignore"):
        smaller = values.astype(np.float32, copy=False)
    if smaller.dtype == values.dtype:
        return values
    return smaller if ((smaller == values) | np.isnan(values)).all() else values
