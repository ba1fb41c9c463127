"""Episodes that lie one behind the other along the last axis of arrays, and sums, extremes and runs of each."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.floating[Any]]
Int64 = NDArray[np.int64]
Bool = NDArray[np.bool_]


class Runs(NamedTuple):
    """Stretches of True of each episode. E episodes.

    Attributes:
        first: (E,) step at which the longest begins; 0 where there is none.
        steps: (E,) how long it is; 0 where there is none.
        number: (E,) stretches.
    """

    first: Int64
    steps: Int64
    number: Int64


class Segments:
    """E episodes of N steps in all, side by side: arrays are (..., N), what is found of them (..., E).

    Args:
        lengths: (E,) steps of each, at least 1.
    """

    def __init__(self, lengths: Sequence[int] | Int64) -> None:
        self.length = np.asarray(lengths, np.int64)
        self.stop = np.cumsum(self.length)
        self.first = self.stop - self.length
        self.num_steps = int(self.stop[-1]) if len(self.length) else 0

    def __len__(self) -> int:
        return len(self.length)

    def slices(self) -> list[slice]:
        """Where each lies."""
        return [slice(*pair) for pair in zip(self.first.tolist(), self.stop.tolist(), strict=True)]

    def least(self, values: NDArray[Any]) -> NDArray[Any]:
        """The smallest value of each."""
        found: NDArray[Any] = np.minimum.reduceat(values, self.first, axis=-1)
        return found

    def most(self, values: NDArray[Any]) -> NDArray[Any]:
        """The largest value of each."""
        found: NDArray[Any] = np.maximum.reduceat(values, self.first, axis=-1)
        return found

    def total(self, values: NDArray[Any]) -> NDArray[Any]:
        """The sum of each; of truths how many there are."""
        dtype = np.int32 if values.dtype == np.bool_ else np.float64
        found: NDArray[Any] = np.add.reduceat(values, self.first, axis=-1, dtype=dtype)
        return found

    def share(self, truths: Bool) -> Float:
        """The share of steps of each at which it is true."""
        shares: Float = self.total(truths) / self.length
        return shares

    def spread(self, of_each: NDArray[Any]) -> NDArray[Any]:
        """What is known of each, at every step of it."""
        return np.repeat(of_each, self.length, axis=-1)

    def differences(self, values: Float) -> Float:
        """To the step before; 0 at the first step of each."""
        found = np.empty_like(values)
        np.subtract(values[..., 1:], values[..., :-1], out=found[..., 1:])
        found[..., self.first] = 0
        return found

    def largest(self, values: Float) -> tuple[Float, Int64]:
        """The largest of each row of (D, N) and the step of its episode at which it is, both (D, E)."""
        at = np.stack([values[:, part].argmax(axis=1) for part in self.slices()], axis=1)
        return np.take_along_axis(values, at + self.first, axis=1), at

    def before(self, truths: Bool) -> Int64:
        """Steps of each before the first at which it is true; all of them where there is none."""
        place = np.where(truths, np.arange(self.num_steps), self.num_steps)
        steps: Int64 = np.minimum(self.least(place) - self.first, self.length)
        return steps

    def after(self, truths: Bool) -> Int64:
        """Steps of each after the last at which it is true; all of them where there is none."""
        place = np.where(truths, np.arange(self.num_steps), -1)
        steps: Int64 = np.minimum(self.stop - 1 - self.most(place), self.length)
        return steps

    def runs(self, truths: Bool) -> Runs:
        """The stretches of True."""
        inner = np.concatenate([truths, [False]])
        inner_before = np.concatenate([[False], truths])
        begins = inner & ~inner_before
        begins[self.first] = truths[self.first]
        ends = ~inner & inner_before
        ends[self.stop] |= inner_before[self.stop]
        start, stop = np.flatnonzero(begins), np.flatnonzero(ends)
        episode = np.searchsorted(self.first, start, side="right") - 1
        count = np.bincount(episode, minlength=len(self))
        first, steps = np.zeros(len(self), np.int64), np.zeros(len(self), np.int64)
        order = np.lexsort((-start, stop - start))  # of equally long ones the earlier counts: what is set last stays
        first[episode[order]] = start[order] - self.first[episode[order]]
        steps[episode[order]] = (stop - start)[order]
        return Runs(first, steps, count)
