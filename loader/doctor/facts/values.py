"""What the values of one feature look like in each episode: extremes, steps from one to the next, rests, norms."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epistream.loader.doctor.facts.segments import Bool, Float, Int64, Segments

Small = NDArray[np.float32]
Int32 = NDArray[np.int32]

_QUATERNION = 4
# Squared norms that are taken for 1: quaternions as float32 and as printed with three digits are within.
_UNIT = 0.02
# Values beyond are cut off: their squares and differences must not overflow, nor float32.
_MOST = 1e18


@dataclass(frozen=True, eq=False)
class ValueFacts:
    """Of one feature. R episodes, D dimensions, W runs of four neighbouring dimensions.

    Args:
        low: (R, D) smallest finite value.
        high: (R, D) largest finite value.
        total: (R, D) sum of the finite values.
        extremes: (R, D) share of steps at one of these two values.
        clip_low: (R, D) share of steps at the smallest, without the stretches with which an episode begins and ends.
        clip_high: (R, D) likewise of the largest.
        clip_runs: (R, D) stretches of steps at either, likewise.
        changed: (R, D) share of steps at which the value is another than at the step before.
        top: (R, D) largest change from one step to the next.
        top_at: (R, D) step after it.
        mean_step: (R, D) mean change from one step to the next.
        spike: (R, D) largest change that the next step takes back, the smaller of the two.
        spike_at: (R, D) the step that stands out.
        whole: (R, D) whether all values are whole numbers.
        num_bad: (R,) values that are not finite.
        bad_at: (R,) first step with one.
        bad_dim: (R,) its dimension.
        repeats: (R,) share of steps at which no dimension changes.
        repeat_runs: (R,) stretches of these.
        held_first: (R,) step at which the longest begins.
        held_steps: (R,) how long it is.
        norm_low: (R, W) smallest squared norm of four neighbouring dimensions; NaN where they are no quaternion.
        norm_high: (R, W) largest likewise.
        flip_at: (R, W) first step at which such a quaternion changes its sign; -1 where none does.
    """

    low: Float
    high: Float
    total: Float
    extremes: Small
    clip_low: Small
    clip_high: Small
    clip_runs: Int32
    changed: Small
    top: Float
    top_at: Int32
    mean_step: Float
    spike: Float
    spike_at: Int32
    whole: Bool
    num_bad: Int64
    bad_at: Int64
    bad_dim: Int64
    repeats: Small
    repeat_runs: Int64
    held_first: Int64
    held_steps: Int64
    norm_low: Small
    norm_high: Small
    flip_at: Int32


def made_finite(values: Float, segments: Segments) -> tuple[Float, Bool]:
    """Values (D, N) with the last finite one in place of each that is not, and which these are."""
    bad = ~np.isfinite(values)
    if bad.any():
        values = values.copy()
        for part, is_bad in zip(segments.slices(), segments.most(_any(bad)).tolist(), strict=True):
            if is_bad:
                values[:, part] = _filled(values[:, part], bad[:, part])
    if values.size and max(-float(values.min()), float(values.max())) > _MOST:
        values = np.clip(values, -_MOST, _MOST)
    return values, bad


def _any(truths: Bool) -> Bool:
    """(N,) whether it is true of any dimension."""
    found: Bool = np.logical_or.reduce(truths, axis=0)
    return found


def _filled(values: Float, bad: Bool) -> Float:
    at = np.where(bad, -1, np.arange(values.shape[1]))
    at = np.maximum.accumulate(at, axis=1)
    first = np.where(bad.all(axis=1), 0, (~bad).argmax(axis=1))[:, None]
    filled = np.take_along_axis(values, np.where(at < 0, first, at), axis=1)
    return np.where(bad.all(axis=1, keepdims=True), 0.0, filled)


def value_facts(values: Float, bad: Bool, segments: Segments, *, is_quaternion: bool) -> ValueFacts:
    """Measure a feature.

    Args:
        values: (D, N) finite values, see `made_finite`.
        bad: (D, N) where they were not.
        segments: The episodes.
        is_quaternion: Whether the feature's name says that it holds some.
    """
    steps = segments.differences(values)
    unchanged = steps == 0
    unchanged[:, segments.first] = False
    at_rest = unchanged.all(axis=0)
    held = segments.runs(at_rest)
    distance = np.abs(steps)
    top, top_at = segments.largest(distance)
    spike, spike_at = segments.largest(_taken_back(steps, distance))
    any_bad = _any(bad)
    bad_at = segments.before(any_bad) % segments.length
    low, high = segments.least(values), segments.most(values)
    of_low, of_high = values == segments.spread(low), values == segments.spread(high)
    moves = segments.length > 1
    norms = _norms(values, segments, is_quaternion=is_quaternion)
    return ValueFacts(
        low=low.T.astype(np.float64),
        high=high.T.astype(np.float64),
        total=segments.total(np.where(bad, 0.0, values) if any_bad.any() else values).T,
        extremes=segments.share(of_low | of_high).T.astype(np.float32),
        clip_low=_inner_share(of_low, segments),
        clip_high=_inner_share(of_high, segments),
        clip_runs=_inner_runs(of_low | of_high, segments),
        changed=(1 - segments.total(unchanged).T / np.maximum(1, segments.length - 1)[:, None]).astype(np.float32)
        * moves[:, None],
        top=top.T.astype(np.float64),
        top_at=top_at.T.astype(np.int32),
        mean_step=(segments.total(distance) / np.maximum(1, segments.length - 1)).T,
        spike=spike.T.astype(np.float64),
        spike_at=spike_at.T.astype(np.int32),
        whole=(segments.total(values != np.rint(values)) == 0).T,
        num_bad=segments.total(bad).sum(axis=0),
        bad_at=bad_at,
        bad_dim=bad[:, segments.first + bad_at].argmax(axis=0),
        repeats=segments.share(at_rest).astype(np.float32),
        repeat_runs=held.number,
        held_first=held.first,
        held_steps=held.steps,
        **norms,
    )


def _taken_back(steps: Float, distance: Float) -> Float:
    """(D, N) how far a step stands out from both of its neighbours on the same side."""
    found = np.zeros_like(steps)
    np.minimum(distance[:, :-1], distance[:, 1:], out=found[:, :-1])
    down = steps < 0
    np.multiply(found[:, :-1], down[:, :-1] != down[:, 1:], out=found[:, :-1])
    return found


def _inner_share(truths: Bool, segments: Segments) -> Small:
    """(R, D) the share of true steps, but for the stretches with which an episode begins and ends."""
    total = segments.total(truths)
    begins, ends = truths[:, segments.first], truths[:, segments.stop - 1]
    second = truths[:, np.minimum(segments.first + 1, segments.stop - 1)]
    one_before = truths[:, np.maximum(segments.stop - 2, segments.first)]
    is_long = _any((begins & second) | (ends & one_before))
    short = total - begins - ends  # stretches of one step, of which nearly all are
    for number, part in enumerate(segments.slices()):
        if not is_long[number]:
            total[:, number] = short[:, number]
        else:
            mine = truths[:, part]
            lead, trail = (~mine).argmax(axis=1), (~mine[:, ::-1]).argmax(axis=1)
            total[:, number] = np.where(mine.all(axis=1), 0, total[:, number] - lead - trail)
    share: Small = (total / segments.length).T.astype(np.float32)
    return share


def _inner_runs(truths: Bool, segments: Segments) -> Int32:
    """(R, D) stretches of true steps, but for those with which an episode begins and ends."""
    begins = np.zeros_like(truths)
    np.greater(truths[:, 1:], truths[:, :-1], out=begins[:, 1:])
    begins[:, segments.first] = False
    count = segments.total(begins) - (truths[:, segments.stop - 1] & (segments.length > 1))
    runs: Int32 = np.maximum(count, 0).T.astype(np.int32)
    return runs


def _norms(values: Float, segments: Segments, *, is_quaternion: bool) -> dict[str, NDArray[Any]]:
    """What is known of quaternions among the dimensions (D, N)."""
    num = max(0, len(values) - _QUATERNION + 1)
    low, high = np.full((2, num, len(segments)), np.nan)
    flip = np.full((num, len(segments)), -1, np.int64)
    if num:
        firsts = values[:, segments.first] ** 2
        norms = np.stack([firsts[one : one + _QUATERNION].sum(axis=0) for one in range(num)])
        looks = (np.abs(norms - 1) < _UNIT).mean(axis=1) >= 0.5
        if is_quaternion:
            looks[::_QUATERNION] = True
        for one in np.flatnonzero(looks).tolist():
            four = values[one : one + _QUATERNION]
            norm = np.einsum("dn,dn->n", four, four)
            low[one], high[one] = segments.least(norm), segments.most(norm)
            dot = np.einsum("dn,dn->n", four[:, 1:], four[:, :-1])
            turned = np.concatenate([[False], dot < -0.5])
            turned[segments.first] = False
            before = segments.before(turned)
            flip[one] = np.where(before < segments.length, before, -1)
    return {
        "norm_low": low.T.astype(np.float32),
        "norm_high": high.T.astype(np.float32),
        "flip_at": flip.T.astype(np.int32),
    }
