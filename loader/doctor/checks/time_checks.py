"""Checks of time stamps."""

from collections.abc import Iterator

import numpy as np

from epistream.loader.doctor.checks.check import Check, Place
from epistream.loader.doctor.checks.robust import LEAST_EPISODES, number
from epistream.loader.doctor.facts.facts import Facts

# Times the usual gap. Twice is one lost step; schedulers delay a step by less than one and a half.
_GAP = 1.7
_UNEVEN = 0.05
_OTHER_RATE = 0.05
# Time stamps count seconds, or a thousandth, millionth, thousand-millionth of one.
_PER_SECOND = (1.0, 1e3, 1e6, 1e9)
_UNIT_TOLERANCE = 10.0


def _back(facts: Facts) -> Iterator[Place]:
    for name, found in facts.measured.times.items():
        for row in np.flatnonzero(found.num_back).tolist():
            step, count = int(found.back_at[row]), int(found.num_back[row])
            text = f"step {step} is not later than the step before, and so are {count} steps" if count > 1 else ""
            text = text or f"step {step} is not later than the step before"
            yield Place(text, _episode(facts, row), name, steps=(step, step + 1))


def _gaps(facts: Facts) -> Iterator[Place]:
    for name, found in facts.measured.times.items():
        far = (found.longest > _GAP * found.usual) & (found.usual > 0) & (found.num_back == 0)
        for row in np.flatnonzero(far).tolist():
            step, times = int(found.longest_at[row]), found.longest[row] / found.usual[row]
            text = f"step {step} comes {times:.3g} times as late as usual"
            yield Place(text, _episode(facts, row), name, steps=(step, step + 1))


def _uneven(facts: Facts) -> Iterator[Place]:
    for name, found in facts.measured.times.items():
        for row in np.flatnonzero((found.uneven > _UNEVEN) & (found.num_back == 0)).tolist():
            text = f"{found.uneven[row]:.0%} of the steps come too soon or too late by more than half a step"
            yield Place(text, _episode(facts, row), name)


def _rates(facts: Facts) -> Iterator[Place]:
    fps = facts.fps
    for name, found in facts.measured.times.items():
        usual = found.usual
        known = usual > 0
        if fps is None:
            if facts.num < LEAST_EPISODES or not known.any():
                continue
            wanted = float(np.median(usual[known]))
            said = "usually"
        else:
            wanted, said = 1 / fps, "the dataset says"
            near = [unit for unit in _PER_SECOND if 1 / _UNIT_TOLERANCE < np.median(usual[known]) * fps / unit < 10.0]
            wanted *= near[0] if known.any() and near else 1.0
        off = known & (np.abs(usual / wanted - 1) > _OTHER_RATE)
        if off.sum() > facts.num / 2 and fps is not None:
            rate = fps * wanted / float(np.median(usual[off]))
            text = f"{number(rate)} steps a second in {int(off.sum())} of {facts.num} episodes, {said} {fps:g}"
            yield Place(text, feature=name)
            continue
        for row in np.flatnonzero(off).tolist():
            text = f"{number(usual[row])} from step to step, {said} {number(wanted)}"
            yield Place(text, _episode(facts, row), name)


def _episode(facts: Facts, row: int) -> int:
    return int(facts.measured.episode[row])


CHECKS = (
    Check(
        "time-backward",
        "error",
        "time stamps that do not rise from step to step",
        "Remove the episode, or sort its steps: they were written twice or out of order.",
        _back,
    ),
    Check(
        "time-gap",
        "warning",
        "a step that comes much later than usual: steps were lost",
        "Trim the episode at the gap, or see what held the recorder up.",
        _gaps,
    ),
    Check(
        "time-uneven",
        "warning",
        "steps that do not come at one rate",
        "Resample the episode to its rate; windows of steps take it for granted.",
        _uneven,
    ),
    Check(
        "time-rate",
        "warning",
        "another rate of steps than the dataset says, or than the other episodes have",
        "Correct fps, or resample the episode to the rate of the others.",
        _rates,
    ),
)
