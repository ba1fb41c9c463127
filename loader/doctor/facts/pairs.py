"""How actions follow from states: by how many steps one leads, with which factor, and as positions or as changes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

from epistream.loader.doctor.facts.segments import Bool, Float, Int64, Segments
from epistream.loader.doctor.facts.values import Small
from epistream.sharding.format.features import Feature

# Steps by which a state may come after its action. Arms follow by 2 to 10 steps at 50 Hz; before it is a fault.
FIRST_LAG, LAST_LAG = -6, 20
# An episode's middle says as much as all of it.
_MOST_STEPS = 256
_LEAST_STEPS = 30
# Dimensions that move less than this share of the one that moves most are noise.
_LEAST_SHARE = 0.05
_EQUAL = 1e-6
_COMPARED_STEPS = 64
_NOTHING = 1e-12

_POSITIONS = ("eef_pos", "ee_pos", "tcp_pos", "cartesian_position")


class Pair(NamedTuple):
    """An action and the state that it may be of.

    Attributes:
        action: Name of the feature.
        state: Name of the feature.
        dims: Dimensions of both, from the first on.
    """

    action: str
    state: str
    dims: int


def pairs_of(features: Mapping[str, Feature]) -> list[Pair]:
    """Actions and states that have as many dimensions, and positions of a hand that actions begin with."""
    arrays = {
        name: int(np.prod(one.shape, dtype=np.int64))
        for name, one in features.items()
        if one.kind == "array" and np.dtype(one.dtype).kind == "f"
    }
    action, state = arrays.get("action", 0), arrays.get("observation.state", 0)
    if action and action == state:
        return [Pair("action", "observation.state", action)]
    hands = [name for name, dims in arrays.items() if name.endswith(_POSITIONS) and dims == 3 <= action]
    return [Pair("action", hands[0], 3)] if hands else []


@dataclass(frozen=True, eq=False)
class PairFacts:
    """Of an action and a state. R episodes, D dimensions; NaN where an episode is too short or stands still.

    Args:
        fit: (R,) mean correlation of actions with the states that follow, at the best shift.
        lag: (R,) that shift: steps by which the state comes later.
        change_fit: (R,) likewise, of actions with the changes of states.
        change_lag: (R,) likewise.
        slope: (R, D) action by state at the best shift.
        sign: (R, D) correlation at that shift, of the better of the two.
        fits: (R, K) mean correlation at each shift.
        change_fits: (R, K) likewise, of changes.
        is_next: (R,) share of steps whose action is the next state.
        is_same: (R,) share of steps whose action is the state.
    """

    fit: Float
    lag: Float
    change_fit: Float
    change_lag: Float
    slope: Small
    sign: Small
    fits: Small
    change_fits: Small
    is_next: Float
    is_same: Float


def pair_facts(action: Float, state: Float, segments: Segments) -> PairFacts:
    """Compare actions (D, N) with states (D, N), both finite."""
    steps = np.minimum(segments.length, _MOST_STEPS)
    first = segments.first + (segments.length - steps) // 2
    counts = _moving(action, segments) & _moving(state, segments) & (segments.length >= _LEAST_STEPS)
    length = np.maximum(steps - (LAST_LAG - FIRST_LAG) - 1, 1)
    cross, own_size, sizes = _products(action, state, first, np.where(counts.any(axis=0), length, 0))
    changes = segments.differences(state)
    change_size = np.sqrt(segments.total(changes**2) * length / segments.length)[..., None]
    fits, change_fits = _fits(cross[..., :-1], own_size, sizes), _fits(np.diff(cross), own_size, change_size)
    mean, change_mean = _mean(fits, counts), _mean(change_fits, counts)
    best, change_best = mean.argmax(axis=1), change_mean.argmax(axis=1)
    rows = np.arange(len(segments))
    fit, change_fit = mean[rows, best], change_mean[rows, change_best]
    square, known = sizes[:, rows, best] ** 2, counts & (sizes[:, rows, best] > 0)
    slope = np.divide(cross[:, rows, best], square, out=np.full(square.shape, np.nan), where=known)
    sign = np.where(change_fit > fit, change_fits[:, rows, change_best], fits[:, rows, best])
    moves = counts.any(axis=0)
    return PairFacts(
        fit=np.where(moves, fit, np.nan),
        lag=np.where(moves, best + FIRST_LAG, np.nan),
        change_fit=np.where(moves, change_fit, np.nan),
        change_lag=np.where(moves, change_best + FIRST_LAG, np.nan),
        slope=slope.T.astype(np.float32),
        sign=np.where(counts, sign, np.nan).T.astype(np.float32),
        fits=mean.astype(np.float32),
        change_fits=change_mean.astype(np.float32),
        is_next=np.where(moves, _equal(action, state, segments, 1), np.nan),
        is_same=np.where(moves, _equal(action, state, segments, 0), np.nan),
    )


def _products(action: Float, state: Float, first: Int64, length: Int64) -> tuple[Float, Float, Float]:
    """Sums of products of actions with states, (D, E, K + 1) by shift, and roots of sums of squares.

    Args:
        action: (D, N), of which the mean is taken off.
        state: (D, N).
        first: (E,) where the windows of states begin.
        length: (E,) steps of a window; 0 for episodes that are left out.

    Returns:
        The sums; roots of sums of squares of actions, (D, E, 1); and of states about their mean, (D, E, K) by shift.
    """
    num = LAST_LAG - FIRST_LAG + 2
    cross, square = np.zeros((len(action), len(first), num)), np.zeros((len(action), len(first), 1))
    sizes = np.zeros((len(action), len(first), num - 1))
    for row, (start, steps) in enumerate(zip(first.tolist(), length.tolist(), strict=True)):
        if steps:
            inner = action[:, start - FIRST_LAG : start - FIRST_LAG + steps]
            inner = inner - inner.mean(axis=1, keepdims=True)
            other = state[:, start : start + steps + num - 1]
            other = other - other[:, :1]  # so that squares lose no digits far from 0
            windows = as_strided(other, (len(other), num, steps), (*other.strides, other.strides[1]))
            cross[:, row] = np.einsum("dt,dkt->dk", inner, windows)
            square[:, row, 0] = np.einsum("dt,dt->d", inner, inner)
            sizes[:, row] = _window_sizes(other, steps)
    return cross, np.sqrt(square), sizes


def _window_sizes(values: Float, length: int) -> Float:
    """(D, K) the root of the sum of squares about the mean, of the window of so many steps at each shift."""
    gone, come = values[:, : LAST_LAG - FIRST_LAG], values[:, length : length + LAST_LAG - FIRST_LAG]
    moved = np.zeros((2, len(values), LAST_LAG - FIRST_LAG + 1))
    moved[0, :, 0] = values[:, :length].sum(axis=1)
    moved[1, :, 0] = np.einsum("dt,dt->d", values[:, :length], values[:, :length])
    moved[0, :, 1:], moved[1, :, 1:] = come - gone, come**2 - gone**2
    total, square = np.cumsum(moved, axis=2)  # each window is the one before, moved by a step
    sizes: Float = np.sqrt(np.maximum(0.0, square - total**2 / length))
    return sizes


def _moving(values: Float, segments: Segments) -> Bool:
    """(D, E) dimensions that move, beside the one that moves most."""
    reach = segments.most(values) - segments.least(values)
    moving: Bool = (reach > _LEAST_SHARE * reach.max(axis=0)) & (reach > 0)
    return moving


def _fits(cross: Float, own: Float, other: Float) -> Float:
    """Correlations (D, E, K)."""
    size = own * other
    return np.divide(cross, size, out=np.zeros_like(cross), where=size > _NOTHING)


def _mean(fits: Float, counts: Bool) -> Float:
    """(E, K) over the dimensions that move."""
    mean: Float = np.einsum("dek,de->ek", fits, counts) / np.maximum(1, counts.sum(axis=0))[:, None]
    return mean


def _equal(action: Float, state: Float, segments: Segments, ahead: int) -> Float:
    """(E,) the share of some steps at which all dimensions of an action are those of the state some steps ahead."""
    every = max(1, int(segments.length.min()) // _COMPARED_STEPS)
    at = np.arange(0, segments.num_steps - ahead, every)
    episode = np.searchsorted(segments.first, at, side="right") - 1
    inside = at + ahead < segments.stop[episode]
    at, episode = at[inside], episode[inside]
    near = _EQUAL * (segments.most(state) - segments.least(state))
    is_equal = (np.abs(action[:, at] - state[:, at + ahead]) <= near[:, episode]).all(axis=0)
    found, all_of_it = (np.bincount(episode, one, len(segments)) for one in (is_equal, None))
    share: Float = found / np.maximum(1, all_of_it)
    return share
