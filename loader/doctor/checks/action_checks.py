"""Checks of actions against states: shifts in time, units, signs, and what kind of action it is."""

from collections.abc import Iterator

import numpy as np

from epistream.loader.doctor.checks.check import Check, Place
from epistream.loader.doctor.checks.robust import LEAST_EPISODES, Bool, Float, dims_text, number, rows_of, usual
from epistream.loader.doctor.checks.value_checks import unit_of
from epistream.loader.doctor.facts.facts import Facts
from epistream.loader.doctor.facts.pairs import FIRST_LAG, LAST_LAG, PairFacts

# Actions and states that belong together correlate by more; wrists and grippers pull the mean down.
_FITS = 0.75
_FLIPPED = 0.8
# Steps by which an episode's shift differs from the usual one; noise moves the best shift by one or two.
_SHIFTED = 3
# A slow motion fits nearly as well at the usual shift: then nobody can say.
_PLAINLY = 0.02
_MOSTLY = 0.95
_NONE = 0.02
_CLEARLY = 0.25


def _fits(found: PairFacts) -> Float:
    """(R,) correlation of actions with states or with their changes, whichever is usual."""
    return found.change_fit if _are_changes(found) else found.fit


def _lags(found: PairFacts) -> Float:
    return found.change_lag if _are_changes(found) else found.lag


def _are_changes(found: PairFacts) -> bool:
    fit, change_fit = usual(found.fit[:, None])[0], usual(found.change_fit[:, None])[0]
    return bool(change_fit > fit)


def _shift(facts: Facts) -> Iterator[Place]:
    for pair, found in facts.measured.pairs.items():
        lags, fits = _lags(found), _fits(found)
        common = usual(lags[:, None])[0]
        if facts.num < LEAST_EPISODES or np.isnan(common) or usual(np.abs(lags - common)[:, None])[0] > 1:
            continue
        off = (np.abs(lags - common) >= _SHIFTED) & (fits > _FITS)
        off &= _at_shift(found, int(common)) < fits - _PLAINLY
        for row in np.flatnonzero(off).tolist():
            text = f"{_order(int(lags[row]))}, usually {_order(int(common))}"
            yield Place(text, _episode(facts, row), pair.action)


def _at_shift(found: PairFacts, lag: int) -> Float:
    """(R,) correlation at one shift."""
    curves = found.change_fits if _are_changes(found) else found.fits
    return curves[:, lag - FIRST_LAG]


def _order(lag: int) -> str:
    if lag == 0:
        return "actions and states go together"
    more = " or more" if lag == LAST_LAG else ""
    steps = f"{abs(lag)} step{'s' if abs(lag) > 1 else ''}{more}"
    return f"states follow actions by {steps}" if lag > 0 else f"states are {steps} ahead of actions"


def _late(facts: Facts) -> Iterator[Place]:
    for pair, found in facts.measured.pairs.items():
        lags, fits = _lags(found), _fits(found)
        common = usual(lags[:, None])[0]
        if common < 0 and usual(fits[:, None])[0] > _FITS and usual(np.abs(lags - common)[:, None])[0] <= 1:
            yield Place(f"{_order(int(common))} in most episodes", feature=pair.action)


def _slopes(found: PairFacts) -> tuple[Float, Bool]:
    """(R, D) action by state, and where these fit well enough to say so."""
    return found.slope.astype(np.float64), np.abs(found.sign) > _FLIPPED


def _units(facts: Facts) -> Iterator[Place]:
    for pair, found in facts.measured.pairs.items():
        if _are_changes(found) or not facts.num:
            continue
        slopes, sure = _slopes(found)
        known = np.where(sure, np.abs(slopes), np.nan)
        factor = float(np.nanmedian(known)) if sure.any() else 1.0
        unit = unit_of(factor)
        if unit and sure.mean() > 0.5:
            text = f"actions are {number(factor)} times the states that they lead to, as {unit}"
            yield Place(text.replace("the others have", "states have"), feature=pair.action)


def _signs(facts: Facts) -> Iterator[Place]:
    for pair, found in facts.measured.pairs.items():
        common = usual(found.sign.astype(np.float64))
        if facts.num < LEAST_EPISODES:
            continue
        flipped = (found.sign < -_FLIPPED) & (common > _FLIPPED)
        for row, dims in rows_of(flipped):
            text = f"{dims_text(dims, pair.dims)} against the state, with it in the other episodes"
            yield Place(text, _episode(facts, row), pair.action, tuple(dims))


def _kinds(facts: Facts) -> Iterator[Place]:
    for pair, found in facts.measured.pairs.items():
        if facts.num < LEAST_EPISODES:
            continue
        are_changes = _are_changes(found)
        mine, other = (found.change_fit, found.fit) if are_changes else (found.fit, found.change_fit)
        if not usual(mine[:, None])[0] > _FITS:
            continue
        unlike = (other > _FITS) & (mine < other - _CLEARLY) & (mine < _FITS)
        usual_kind, kind = ("changes", "positions") if are_changes else ("positions", "changes")
        for row in np.flatnonzero(unlike).tolist():
            text = f"actions are {kind} of the state, {usual_kind} in the other episodes"
            yield Place(text, _episode(facts, row), pair.action)


def _next_state(facts: Facts) -> Iterator[Place]:
    for pair, found in facts.measured.pairs.items():
        known = found.is_next[~np.isnan(found.is_next)]
        if len(known) and (known > _MOSTLY).all():
            yield Place("every action is the state of the next step", feature=pair.action)


def _mixed(facts: Facts) -> Iterator[Place]:
    for pair, found in facts.measured.pairs.items():
        is_next, is_other = found.is_next > _MOSTLY, found.is_next < _NONE
        if facts.num < LEAST_EPISODES or not is_next.any() or not is_other.any():
            continue
        kinds = ((is_next, "the next state"), (is_other, "commands"))
        (few, what), (_, usually) = kinds if is_next.sum() <= is_other.sum() else kinds[::-1]
        for row in np.flatnonzero(few).tolist():
            text = f"actions are {what}, {usually} in the other episodes"
            yield Place(text, _episode(facts, row), pair.action)


def _same(facts: Facts) -> Iterator[Place]:
    for pair, found in facts.measured.pairs.items():
        same = np.flatnonzero((found.is_same > _MOSTLY) & ~(found.is_next > _MOSTLY)).tolist()
        for row in same:
            yield Place("every action is the state of the same step", _episode(facts, row), pair.action)


def _unrelated(facts: Facts) -> Iterator[Place]:
    for pair, found in facts.measured.pairs.items():
        fits = _fits(found)
        if facts.num < LEAST_EPISODES or not usual(fits[:, None])[0] > _FITS:
            continue
        best = np.maximum(found.fit, found.change_fit)
        # Signs and shifts have checks of their own.
        for row in np.flatnonzero(best < 0.5 * usual(fits[:, None])[0]).tolist():
            if (np.abs(found.sign[row]) > _FLIPPED).mean() > 0.5:
                continue
            text = f"actions and states correlate by {best[row]:.2f}, usually {usual(fits[:, None])[0]:.2f}"
            yield Place(text, _episode(facts, row), pair.action)


def _episode(facts: Facts, row: int) -> int:
    return int(facts.measured.episode[row])


CHECKS = (
    Check(
        "action-shift",
        "warning",
        "states that follow their actions later or sooner than in the other episodes",
        "Align the two recordings of the episode, or remove it.",
        _shift,
    ),
    Check(
        "action-late",
        "warning",
        "states that are ahead of the actions that should cause them",
        "Shift actions by that many steps: they were written after they had taken effect.",
        _late,
    ),
    Check(
        "action-units",
        "warning",
        "actions and states in different units",
        "Convert one of them if a policy sees both, or takes changes of one for the other.",
        _units,
    ),
    Check(
        "action-sign",
        "warning",
        "a dimension of the action that goes against the state, and with it in the other episodes",
        "Change its sign in this episode, or remove the episode.",
        _signs,
    ),
    Check(
        "action-kind",
        "error",
        "actions that are positions in some episodes and changes in others",
        "Convert them to one kind; a policy cannot learn both at once.",
        _kinds,
    ),
    Check(
        "action-unrelated",
        "warning",
        "actions that have nothing to do with the states of their episode",
        "See whether actions of another episode were written here.",
        _unrelated,
    ),
    Check(
        "action-is-next-state",
        "info",
        "actions that are the states of the next step, in all episodes",
        "Common where no commands were recorded; say so when policies are compared.",
        _next_state,
    ),
    Check(
        "action-mixed",
        "warning",
        "actions that are commands in some episodes and the next state in others",
        "Make them alike: all commands, or all next states.",
        _mixed,
    ),
    Check(
        "action-is-state",
        "warning",
        "actions that are the states of the same step: copying solves the task",
        "Shift actions by a step, or record commands.",
        _same,
    ),
)
