"""Checks of how values change from step to step: jumps, spikes, wraps, values that were held, motion and rest."""

from collections.abc import Callable, Iterator

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
from epistream.loader.doctor.facts.facts import ACTION, STATE, Facts
from epistream.loader.doctor.facts.kinds import is_rate
from epistream.loader.doctor.facts.motion import rest_steps
from epistream.loader.doctor.facts.values import ValueFacts

# A step this many times as large as the largest of a usual episode, and this share of the usual range.
_LARGEST, _REACH, _OF_ALL = 5.0, 0.3, 0.15
# Of few episodes: this many times as large as the mean step, and this share of the episode's range.
_MEAN, _OWN_REACH = 40.0, 0.6
# Dimensions that rest most of the time are switches, which jump.
_CONTINUOUS = 0.4
_TURNS = (2 * np.pi, 360.0)
_TURN_TOLERANCE = 0.1
# Of the steps: values that are repeated so often, in so many stretches, come from a sensor that is slower.
_STALE, _STALE_RUNS, _STALE_USUAL = 0.3, 10, 0.1
_HELD_SHARE, _HELD_STEPS = 0.1, 10
# Half a second of a start or an end is a person's reaction; what is idle longer teaches a policy to wait.
_IDLE_SECONDS, _IDLE_SHARE = 0.5, 0.05
_PAUSE_SHARE = 0.25


def _limits(facts: Facts, found: ValueFacts) -> Float:
    """(R, D) the change from one step to the next beyond which it is a jump; infinite for switches."""
    reach = found.high - found.low
    if facts.num >= LEAST_EPISODES:
        low, high = envelope(found.low, found.high)
        least = np.maximum(_REACH * usual(reach), _OF_ALL * (high - low))  # a dimension may rest in most episodes
        limit = np.maximum(_LARGEST * usual(found.top), least)
        is_switch = (usual(found.changed) < _CONTINUOUS) | (usual(reach) == 0)
        limits: Float = np.broadcast_to(np.where(is_switch, np.inf, limit), found.top.shape)
        return limits
    limits = np.maximum(_MEAN * found.mean_step, _OWN_REACH * reach)
    return np.where((found.changed < _CONTINUOUS) | (reach == 0), np.inf, limits)


def _turns(found: ValueFacts) -> Bool:
    """(R, D) where the largest step is a whole turn, of an angle that stays within one."""
    is_turn = np.zeros(found.top.shape, np.bool_)
    for turn in _TURNS:
        near = np.abs(found.top - turn) < _TURN_TOLERANCE * turn
        is_turn |= near & (found.high - found.low <= turn * 1.01)
    return is_turn


def _positions(facts: Facts) -> list[tuple[str, ValueFacts]]:
    """Features that change little by little; what objects do, that are touched and let go, is not."""
    values = facts.measured.values.items()
    return [(name, found) for name, found in values if not is_rate(name) and "object" not in name]


def _jumps(facts: Facts) -> Iterator[Place]:
    for name, found in _positions(facts):
        limits = _limits(facts, found)
        is_jump = (found.top > limits) & (found.spike < 0.5 * found.top) & ~_turns(found)
        yield from _at_steps(facts, name, is_jump, found.top, found.top_at, "a jump of")


def _spikes(facts: Facts) -> Iterator[Place]:
    for name, found in _positions(facts):
        is_spike = found.spike > np.minimum(_limits(facts, found), 1e300)
        yield from _at_steps(facts, name, is_spike, found.spike, found.spike_at, "a spike of")


def _wraps(facts: Facts) -> Iterator[Place]:
    for name, found in _positions(facts):
        for row, dims in rows_of(_turns(found)):
            step, size = int(found.top_at[row, dims[0]]), found.top[row, dims[0]]
            text = f"{dims_text(dims, found.top.shape[1])}: a jump of a whole turn, {number(size)}, at step {step}"
            yield Place(text, _episode(facts, row), name, tuple(dims), (step, step + 1))


def _at_steps(
    facts: Facts, name: str, found: Bool, sizes: Float, at: "np.typing.NDArray[np.int32]", what: str
) -> Iterator[Place]:
    for row, dims in rows_of(found):
        dim = max(dims, key=lambda one: float(sizes[row, one]))
        step = int(at[row, dim])
        mean = facts.measured.values[name].mean_step
        text = (
            f"{dims_text(dims, sizes.shape[1])}: {what} {number(sizes[row, dim])} at step {step}, "
            f"usually {number(float(np.median(mean[:, dim])))} a step"
        )
        yield Place(text, _episode(facts, row), name, tuple(dims), (step, step + 1))


def _is_stale(found: ValueFacts) -> Bool:
    stale: Bool = (found.repeats > _STALE) & (found.repeat_runs >= _STALE_RUNS)
    return stale


def _stale(facts: Facts) -> Iterator[Place]:
    for name, found in facts.measured.values.items():
        if not name.startswith("observation."):
            continue
        stale = _is_stale(found)
        # A stretch is short: two or three steps, not a rest.
        stale &= found.repeats * facts.length / np.maximum(1, found.repeat_runs) < 5
        common = float(np.median(found.repeats)) if facts.num else 0.0
        if facts.num >= LEAST_EPISODES and common < _STALE_USUAL:
            for row in np.flatnonzero(stale).tolist():
                text = f"{found.repeats[row]:.0%} of the steps repeat the one before, usually {common:.0%}"
                yield Place(text, _episode(facts, row), name)
        elif stale.any() and stale.mean() > 0.5:
            text = f"{np.median(found.repeats[stale]):.0%} of the steps repeat the one before in {stale.sum()} episodes"
            yield Place(text, feature=name)


def _held(facts: Facts) -> Iterator[Place]:
    state = _state_names(facts)
    for name in state:
        found = facts.measured.values[name]
        long = found.held_steps >= np.maximum(_HELD_STEPS, _HELD_SHARE * facts.length)
        whole = found.held_steps >= facts.length - 1
        for row in np.flatnonzero(long & ~whole & facts.measured.held_while_acting).tolist():
            first, count = int(found.held_first[row]), int(found.held_steps[row])
            text = f"stays the same to the last bit for {count} steps from step {first} on while actions go on"
            yield Place(text, _episode(facts, row), name, steps=(first, first + count))


def _state_names(facts: Facts) -> list[str]:
    return [name for name in facts.measured.values if name == "observation.state"]


def _frozen(facts: Facts) -> Iterator[Place]:
    if STATE not in facts.measured.motion or ACTION not in facts.measured.motion:
        return
    state, action = facts.measured.motion[STATE], facts.measured.motion[ACTION]
    if not state.moves.any():  # then it is none of the recorder's that was meant to, and `constant-dimension` says so
        return
    for row in np.flatnonzero(~state.moves & action.moves & (facts.length >= _HELD_STEPS)).tolist():
        yield Place("the state stays the same for all steps while actions change", _episode(facts, row))


def _nothing(facts: Facts) -> Iterator[Place]:
    motions = list(facts.measured.motion.values())
    if not motions:
        return
    still = ~np.any([one.moves for one in motions], axis=0)
    for row in np.flatnonzero(still).tolist():
        yield Place("neither states nor actions change", _episode(facts, row))


def idle_of(facts: Facts) -> tuple["np.typing.NDArray[np.int64]", "np.typing.NDArray[np.int64]"]:
    """(R,) steps at the start, and at the end, at which nothing moves; 0 where nothing does at all."""
    motions = list(facts.measured.motion.values())
    if not motions:
        none = np.zeros(facts.num, np.int64)
        return none, none
    moves = np.any([one.moves for one in motions], axis=0)
    start = np.min([one.idle_start for one in motions], axis=0)
    # Something has left its place at this step: the step before is the last one at rest.
    end = np.min([one.idle_end for one in motions], axis=0)
    return np.where(moves, np.maximum(0, start - 1), 0), np.where(moves, np.maximum(0, end - 1), 0)


def _idle(is_start: bool) -> Callable[[Facts], Iterator[Place]]:
    def find(facts: Facts) -> Iterator[Place]:
        start, end = idle_of(facts)
        fps = facts.fps
        least = np.maximum(rest_steps(fps) * _IDLE_SECONDS if fps else _HELD_STEPS, _IDLE_SHARE * facts.length)
        least = np.maximum(5, least)
        offsets, ranges = facts.dataset.valid_ranges
        for row in np.flatnonzero((start if is_start else end) >= least).tolist():
            length, count = int(facts.length[row]), int((start if is_start else end)[row])
            stretch = (0, count) if is_start else (length - count, length)
            episode = int(facts.measured.episode[row])
            drawn = ranges[offsets[episode] : offsets[episode + 1]]
            overlap = np.minimum(drawn[:, 1], stretch[1]) - np.maximum(drawn[:, 0], stretch[0])
            if np.maximum(0, overlap).sum() < least[row]:
                continue  # trimmed already
            seconds = f" ({count / fps:.1f} s)" if fps else ""
            text = f"nothing moves in the {'first' if is_start else 'last'} {count} of {length} steps{seconds}"
            keep = (int(start[row]), length - int(end[row]))
            yield Place(text, _episode(facts, row), steps=stretch, keep=keep)

    return find


def _pauses(facts: Facts) -> Iterator[Place]:
    motions = list(facts.measured.motion.values())
    if STATE not in facts.measured.motion:
        return
    motion = facts.measured.motion[STATE]
    start, end = idle_of(facts)
    least = np.maximum(rest_steps(facts.fps), _PAUSE_SHARE * facts.length)
    inner = (motion.pause_first > start + 1) & (motion.pause_first + motion.pause_steps < facts.length - end - 1)
    moves = np.any([one.moves for one in motions], axis=0)
    for row in np.flatnonzero(inner & moves & (motion.pause_steps >= least)).tolist():
        first, count = int(motion.pause_first[row]), int(motion.pause_steps[row])
        text = f"the robot rests for {count} of {int(facts.length[row])} steps from step {first} on"
        yield Place(text, _episode(facts, row), steps=(first, first + count))


def _episode(facts: Facts, row: int) -> int:
    return int(facts.measured.episode[row])


CHECKS = (
    Check(
        "jump",
        "warning",
        "values that jump from one step to the next, far more than they usually change",
        "Look at the step: lost steps, two recordings in one file, or a reset in the middle.",
        _jumps,
    ),
    Check(
        "spike",
        "warning",
        "a single step that stands out from both of its neighbours",
        "Put the mean of its neighbours in its place, or trim the episode.",
        _spikes,
    ),
    Check(
        "angle-wrap",
        "warning",
        "an angle that jumps by a whole turn",
        "Unwrap the angle (numpy.unwrap), or give its sine and cosine to the policy.",
        _wraps,
    ),
    Check(
        "stale-values",
        "warning",
        "observations that repeat the step before again and again",
        "The sensor is slower than the recording: record at its rate, or leave steps out.",
        _stale,
    ),
    Check(
        "held-values",
        "warning",
        "a state that is held for long while actions go on",
        "The sensor or its connection paused: trim the episode, or remove it.",
        _held,
    ),
    Check(
        "frozen-state",
        "error",
        "a state that never changes in an episode while actions do",
        "Remove the episode: its observations do not belong to its actions.",
        _frozen,
    ),
    Check(
        "nothing-moves",
        "warning",
        "an episode in which neither states nor actions change",
        "Remove the episode.",
        _nothing,
    ),
    Check(
        "idle-start",
        "warning",
        "steps before anything moves",
        "Trim the episode to the steps that 'keep' names; policies learn to wait from such steps.",
        _idle(True),
    ),
    Check(
        "idle-end",
        "warning",
        "steps after everything has come to rest",
        "Trim the episode to the steps that 'keep' names.",
        _idle(False),
    ),
    Check(
        "long-pause",
        "info",
        "a long rest in the middle of an episode",
        "Look whether the operator waited for something that the policy cannot see.",
        _pauses,
    ),
)
