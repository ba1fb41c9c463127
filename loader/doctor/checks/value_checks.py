"""Checks of the values of a feature: numbers that are none, and ranges that are unlike those of other episodes."""

from collections.abc import Iterator

import numpy as np

from epistream.loader.doctor.checks.check import Check, Place
from epistream.loader.doctor.checks.robust import (
    LEAST_EPISODES,
    Bool,
    Float,
    dims_text,
    envelope,
    number,
    rows_of,
    usual,
)
from epistream.loader.doctor.facts.facts import Facts
from epistream.loader.doctor.facts.kinds import is_rate
from epistream.loader.doctor.facts.values import ValueFacts

# Nothing that robots measure in a usual unit is as large; memory that was never written, and counters, are.
_HUGE = 1e6
# A dimension is dead where it moves in this share of the others.
_ALIVE = 0.9
_LEAST_STEPS = 10
# At an end of the range for a twentieth of the steps, in several stretches: once is a gripper that closed.
_CLIPPED, _CLIPPED_STEPS, _CLIPPED_RUNS = 0.05, 5, 3
# Dimensions that are at one of two values most of the time are switches: grippers, buttons, modes.
_SWITCH = 0.5
# Times the range of all others, beyond it: robots reach farther now and then, but not that far.
_FAR = 1.0
_UNITS = {"degrees for radians": 180 / np.pi, "millimetres for metres": 1000.0, "centimetres for metres": 100.0}
_UNIT_TOLERANCE = 1.35
_GRIPPER_OFF = 0.5
_NORM = 0.05
_QUATERNIONS = 0.7
_FOUR = 4


def _not_finite(facts: Facts) -> Iterator[Place]:
    for name, found in facts.measured.values.items():
        for row in np.flatnonzero(found.num_bad).tolist():
            step, dim = int(found.bad_at[row]), int(found.bad_dim[row])
            count = int(found.num_bad[row])
            values = "one value is" if count == 1 else f"{count:,} values are"
            yield Place(
                f"{values} NaN or infinite, the first at step {step}",
                episode=_episode(facts, row),
                feature=name,
                dims=(dim,),
                steps=(step, step + 1),
            )


def _huge(facts: Facts) -> Iterator[Place]:
    for name, found in facts.measured.values.items():
        largest = np.maximum(np.abs(found.low), np.abs(found.high))
        for row, dims in rows_of(largest > _HUGE):
            text = f"{dims_text(dims, largest.shape[1])} up to {number(largest[row].max())}"
            yield Place(text, episode=_episode(facts, row), feature=name, dims=tuple(dims))


def _dead(facts: Facts) -> Iterator[Place]:
    if facts.num < LEAST_EPISODES:
        return
    for name, found in facts.measured.values.items():
        moves = found.high > found.low
        alive = moves.sum(axis=0) >= _ALIVE * (facts.num - 1)
        dead = ~moves & alive & (facts.length >= _LEAST_STEPS)[:, None]
        dead[dead.all(axis=1) & (moves.shape[1] > 1)] = False  # which `frozen-state` or `nothing-moves` says
        for row, dims in rows_of(dead):
            others = int(moves[:, dims].all(axis=1).sum())
            at = f" at {number(found.low[row, dims[0]])}" if len(dims) == 1 else ""
            text = f"{dims_text(dims, moves.shape[1])} stays{'' if len(dims) == 1 else ' the same'}{at} for all steps"
            text = text.replace(" stays the same", " stay the same") if len(dims) > 1 else text
            yield Place(
                f"{text}, and moves in {others} others", episode=_episode(facts, row), feature=name, dims=tuple(dims)
            )


def _constant(facts: Facts) -> Iterator[Place]:
    if not facts.num or facts.length.sum() < _LEAST_STEPS:
        return
    for name, found in facts.measured.values.items():
        low, high = found.low.min(axis=0), found.high.max(axis=0)
        dims = np.flatnonzero(low == high).tolist()
        if dims:
            same = f" at {number(low[dims[0]])}" if len({low[dim] for dim in dims}) == 1 else ""
            which = dims_text(dims, len(low))
            stays = "stays" if which == "it" or len(dims) == 1 else "stay"
            yield Place(f"{which} {stays} the same{same} in all episodes", feature=name, dims=tuple(dims))


def _clipped(facts: Facts) -> Iterator[Place]:
    for name, found in facts.measured.values.items():
        if not facts.num:
            continue
        switches = usual(found.extremes) > _SWITCH
        at_high = np.where(found.high == found.high.max(axis=0), found.clip_high, 0)
        at_low = np.where(found.low == found.low.min(axis=0), found.clip_low, 0)
        for shares, ends, word in ((at_high, found.high, "largest"), (at_low, found.low, "smallest")):
            steps = shares * facts.length[:, None]
            clipped = (shares >= _CLIPPED) & (steps >= _CLIPPED_STEPS) & (found.clip_runs >= _CLIPPED_RUNS)
            clipped &= ~switches & (found.high > found.low)
            for row, dims in rows_of(clipped):
                dim = max(dims, key=lambda one: float(shares[row, one]))
                text = (
                    f"{dims_text(dims, shares.shape[1])} at the {word} value of all episodes, "
                    f"{number(ends[row, dim])}, for {shares[row, dim]:.0%} of the steps"
                )
                yield Place(text, episode=_episode(facts, row), feature=name, dims=tuple(dims))


def _whole(facts: Facts) -> Iterator[Place]:
    if facts.num < LEAST_EPISODES:
        return
    for name, found in facts.measured.values.items():
        moves = (found.high - found.low) >= 1
        rare = found.whole.mean(axis=0) < 1 - _ALIVE
        for row, dims in rows_of(found.whole & moves & rare):
            text = f"{dims_text(dims, moves.shape[1])}: whole numbers only, the others have fractions"
            yield Place(text, episode=_episode(facts, row), feature=name, dims=tuple(dims))


def _unit_factors(found: ValueFacts) -> Float:
    """(R,) by how much the ranges of an episode are larger than usual, over its dimensions."""
    reach, largest = found.high - found.low, np.maximum(np.abs(found.low), np.abs(found.high))
    factors = []
    for one in (reach, largest):
        common = usual(one)
        counts = common > 1e-9
        if not counts.any():
            return np.ones(len(reach))
        factors.append(np.median(one[:, counts] / common[counts], axis=1))
    far = [np.abs(np.log(np.maximum(one, 1e-12))) for one in factors]
    result: Float = np.where(far[0] < far[1], factors[0], factors[1])  # both must be off: an offset is no unit
    return result


def unit_of(factor: float) -> str:
    """Which wrong unit a factor speaks of; empty if none."""
    for text, wanted in _UNITS.items():
        one, other = text.split(" for ")
        if wanted / _UNIT_TOLERANCE < factor < wanted * _UNIT_TOLERANCE:
            return f"{one} where the others have {other}"
        if factor and wanted / _UNIT_TOLERANCE < 1 / factor < wanted * _UNIT_TOLERANCE:
            return f"{other} where the others have {one}"
    return ""


def _other_units(facts: Facts, found: ValueFacts) -> dict[int, tuple[float, str]]:
    if facts.num < LEAST_EPISODES:
        return {}
    factors = _unit_factors(found)
    return {row: (float(one), unit) for row, one in enumerate(factors) if (unit := unit_of(float(one)))}


def _units(facts: Facts) -> Iterator[Place]:
    for name, found in facts.measured.values.items():
        for row, (factor, unit) in _other_units(facts, found).items():
            size = f"{factor:.3g} times as large" if factor > 1 else f"{1 / factor:.3g} times as small"
            yield Place(f"values {size} as usual: {unit}?", episode=_episode(facts, row), feature=name)


def _outside(found: ValueFacts) -> Bool:
    """(R, D) where an episode goes far beyond all others."""
    low, high = envelope(found.low, found.high)
    width = np.where(high > low, high - low, np.inf)
    outside: Bool = (found.high > high + _FAR * width) | (found.low < low - _FAR * width)
    return outside


def _outliers(facts: Facts) -> Iterator[Place]:
    if facts.num < LEAST_EPISODES:
        return
    for name, found in facts.measured.values.items():
        if is_rate(name):  # which is far beyond now and then
            continue
        others = _other_units(facts, found)
        for row, dims in rows_of(_outside(found)):
            if row not in others and max(abs(found.low[row]).max(), abs(found.high[row]).max()) <= _HUGE:
                text = _ranges_text(found, row, dims, envelope(found.low, found.high))
                yield Place(text, episode=_episode(facts, row), feature=name, dims=tuple(dims))


def _gripper(facts: Facts) -> Iterator[Place]:
    if facts.num < LEAST_EPISODES:
        return
    for name, found in facts.measured.values.items():
        if is_rate(name) or "object" in name:
            continue
        low, high = envelope(found.low, found.high)
        width = high - low
        is_switch = (usual(found.extremes) > _SWITCH) & (usual(found.high - found.low) > 0) | ("gripper" in name)
        off = (found.high > high + _GRIPPER_OFF * width) | (found.low < low - _GRIPPER_OFF * width)
        off &= is_switch & (width > 0)
        others = _other_units(facts, found)
        for row, dims in rows_of(off & ~_outside(found)):
            if row not in others:
                text = _ranges_text(found, row, dims, (low, high))
                yield Place(text, episode=_episode(facts, row), feature=name, dims=tuple(dims))


def _ranges_text(found: ValueFacts, row: int, dims: list[int], others: tuple[Float, Float]) -> str:
    """The range of an episode in one dimension, beside that of the others."""
    dim = dims[0]
    which = "" if found.low.shape[1] == 1 else f"{dims_text(dims, found.low.shape[1])} "
    mine = f"{which}from {number(found.low[row, dim])} to {number(found.high[row, dim])}"
    return f"{mine}, elsewhere {number(others[0][dim])} to {number(others[1][dim])}"


def _quaternions(name: str, found: ValueFacts) -> list[int]:
    """First dimensions of what is a quaternion in most episodes."""
    if "quat" in name:
        return list(range(0, found.norm_low.shape[1], _FOUR))
    is_one = (np.abs(found.norm_low - 1) < _NORM) & (np.abs(found.norm_high - 1) < _NORM)
    moves = (found.high - found.low).max(axis=0, initial=0.0) > _NORM
    # Three numbers that stay near 0 and a switch of 1 and -1 have a norm of 1, too.
    switches = usual(found.extremes) > _SWITCH
    full = is_one.mean(axis=0) >= _QUATERNIONS if len(is_one) else np.zeros(0, bool)
    return [
        dim
        for dim in np.flatnonzero(full).tolist()
        if moves[dim : dim + _FOUR].sum() >= 2 and not switches[dim : dim + _FOUR].any()
    ]


def _norm(facts: Facts) -> Iterator[Place]:
    for name, found in facts.measured.values.items():
        for dim in _quaternions(name, found):
            off = (found.norm_low[:, dim] < (1 - _NORM) ** 2) | (found.norm_high[:, dim] > (1 + _NORM) ** 2)
            for row in np.flatnonzero(off).tolist():
                low, high = np.sqrt(found.norm_low[row, dim]), np.sqrt(found.norm_high[row, dim])
                text = f"quaternion in dimensions {dim} to {dim + 3} has a norm of {number(low)} to {number(high)}"
                dims = tuple(range(dim, dim + _FOUR))
                yield Place(text, episode=_episode(facts, row), feature=name, dims=dims)


def _flips(facts: Facts) -> Iterator[Place]:
    for name, found in facts.measured.values.items():
        for dim in _quaternions(name, found):
            for row in np.flatnonzero(found.flip_at[:, dim] >= 0).tolist():
                step = int(found.flip_at[row, dim])
                text = f"quaternion in dimensions {dim} to {dim + 3} changes its sign at step {step}"
                dims = tuple(range(dim, dim + _FOUR))
                yield Place(text, episode=_episode(facts, row), feature=name, dims=dims, steps=(step, step + 1))


def _episode(facts: Facts, row: int) -> int:
    return int(facts.measured.episode[row])


CHECKS = (
    Check(
        "not-finite",
        "error",
        "values that are NaN or infinite",
        "Remove the episode or trim it to the steps before; a single such value makes the loss NaN.",
        _not_finite,
    ),
    Check(
        "huge-values",
        "warning",
        "values beyond a million, which no joint, pose or gripper has",
        "Look at the recorder: memory that was never written, or a counter in place of a measurement.",
        _huge,
    ),
    Check(
        "dead-dimension",
        "warning",
        "a dimension that stays the same in an episode and moves in the others",
        "Look whether a cable, motor or topic was dead while it was recorded; remove the episode if so.",
        _dead,
    ),
    Check(
        "constant-dimension",
        "info",
        "a dimension that is the same in all episodes",
        "Leave the feature out, or see that normalisation does not divide by its standard deviation of 0.",
        _constant,
    ),
    Check(
        "clipped",
        "warning",
        "a dimension that lies at the end of its range for many steps in motion",
        "See whether the recorder cuts values off; actions beyond that are lost to the policy.",
        _clipped,
    ),
    Check(
        "whole-numbers",
        "warning",
        "a dimension with whole numbers in an episode and fractions in the others",
        "See whether values were cast to integers on the way into the file.",
        _whole,
    ),
    Check(
        "units",
        "error",
        "values larger or smaller than in the others by the factor between two units",
        "Convert the episode to the unit of the others, or remove it.",
        _units,
    ),
    Check(
        "outlier-values",
        "warning",
        "values far beyond the range of the other episodes",
        "Look at the episode: another set-up, another calibration, or a fault of a sensor.",
        _outliers,
    ),
    Check(
        "gripper-range",
        "warning",
        "a gripper or switch with other end values than in the other episodes",
        "Bring its values to one range, such as 0 for closed and 1 for open.",
        _gripper,
    ),
    Check(
        "quaternion-norm",
        "warning",
        "quaternions that are not of length 1",
        "Normalise them, or see whether their four numbers are in the right columns.",
        _norm,
    ),
    Check(
        "quaternion-flip",
        "warning",
        "quaternions that change their sign from one step to the next",
        "Both signs are the same rotation, but far apart for a network: multiply by -1 from there on.",
        _flips,
    ),
)
