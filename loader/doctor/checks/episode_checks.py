"""Checks of episodes as wholes: their lengths, copies of each other, and the steps that may be drawn."""

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from epistream.loader.doctor.checks.check import Check, Place
from epistream.loader.doctor.checks.robust import LEAST_EPISODES, sigma, usual
from epistream.loader.doctor.facts.facts import Facts
from epistream.loader.doctor.facts.segments import Int64

# A window of a policy takes 8 to 100 actions.
_SHORT_STEPS = 10
_TIMES, _SIGMAS = 3.0, 5.0
_LEAST_VALID = 0.1
# Of a dimension's range over the dataset: copies that were rounded, or recorded once more from the same motion, stay
# within; two people's demonstrations do not, nor do two of one person.
_NEAR = 2e-3
_NEAR_LENGTH = 2
# Copies that differ by that lie in one cell of a grid with 5 % of chances to be parted a column and grid.
_CELL, _GRIDS, _GRID_COLUMNS = 20 * _NEAR, 4, 6
# Where the sketches of a dataset lie closer together than this, it is a simulator that repeats itself.
_MOST_COPIES = 0.5


def _short(facts: Facts) -> Iterator[Place]:
    for row in np.flatnonzero(facts.length < _SHORT_STEPS).tolist():
        count = int(facts.length[row])
        yield Place(f"{count} step{'s' if count > 1 else ''}", _episode(facts, row))


def _lengths(facts: Facts) -> Iterator[Place]:
    if facts.num < LEAST_EPISODES:
        return
    log = np.log(facts.length.astype(np.float64))[:, None]
    middle = usual(log)[0]
    far = np.abs(log[:, 0] - middle) > max(np.log(_TIMES), _SIGMAS * sigma(log)[0])
    for row in np.flatnonzero(far & (facts.length >= _SHORT_STEPS)).tolist():
        text = f"{int(facts.length[row]):,} steps, usually {round(np.exp(middle)):,}"
        yield Place(text, _episode(facts, row))


def _ranges(facts: Facts) -> Iterator[Place]:
    offsets, ranges = facts.dataset.valid_ranges
    sizes = np.append(0, np.cumsum(ranges[:, 1] - ranges[:, 0]))
    valid = (sizes[offsets[1:]] - sizes[offsets[:-1]])[facts.measured.episode]
    for row in np.flatnonzero(valid < _LEAST_VALID * facts.length).tolist():
        text = f"{int(valid[row])} of {int(facts.length[row])} steps may be drawn"
        yield Place(text, _episode(facts, row))


def exact_copies(facts: Facts) -> dict[int, int]:
    """Rows whose values are those of an earlier row, to the last bit, and that row."""
    first: dict[tuple[int, int], int] = {}
    copies = {}
    for row, key in enumerate(zip(facts.measured.hash.tolist(), facts.length.tolist(), strict=True)):
        if key[0] and first.setdefault(key, row) != row:
            copies[row] = first[key]
    return copies


def near_copies(facts: Facts) -> dict[int, int]:
    """Rows whose motion is that of an earlier row but for rounding, and that row; exact copies are not among them."""
    sketch = facts.measured.sketch.astype(np.float64)
    moving = [one.moves for one in facts.measured.motion.values()]
    if not sketch.shape[1] or not moving or facts.num < 2:
        return {}
    reach = sketch.max(axis=0) - sketch.min(axis=0)
    scaled = np.divide(sketch, reach, out=np.zeros_like(sketch), where=reach > 0)[:, reach > 0]
    rows = np.flatnonzero(np.any(moving, axis=0) & (facts.length >= _SHORT_STEPS))
    exact = exact_copies(facts)
    found: dict[int, int] = {}
    for row, other in _neighbours(scaled, rows):
        later, earlier = max(row, other), min(row, other)
        close = abs(int(facts.length[row]) - int(facts.length[other])) <= _NEAR_LENGTH
        if close and later not in exact and np.abs(scaled[row] - scaled[other]).max(initial=0.0) < _NEAR:
            found[later] = min(earlier, found.get(later, earlier))
    return found if len(found) <= _MOST_COPIES * facts.num or facts.num == 2 else {}


def _neighbours(scaled: NDArray[np.float64], rows: Int64) -> Iterator[tuple[int, int]]:
    """Pairs of rows that may be close: those that share a cell of one of some grids over a few columns."""
    if not len(rows):
        return
    columns = np.argsort(-scaled[rows].std(axis=0), kind="stable")[:_GRID_COLUMNS]
    few, random = scaled[rows][:, columns], np.random.default_rng(0)
    for shift in np.arange(_GRIDS) / _GRIDS:
        cells = np.floor(few / _CELL + shift).astype(np.int64)
        keys = cells @ random.integers(1, 1 << 40, cells.shape[1])
        order = np.argsort(keys, kind="stable")
        same = keys[order][1:] == keys[order][:-1]
        first = order[0]
        for place in np.flatnonzero(same).tolist():
            if place == 0 or not same[place - 1]:
                first = order[place]
            for other in {int(order[place]), int(first)}:
                yield int(rows[other]), int(rows[order[place + 1]])


def _exact(facts: Facts) -> Iterator[Place]:
    groups: dict[int, list[int]] = defaultdict(list)
    for row, first in exact_copies(facts).items():
        groups[first].append(row)
    for first, rows in groups.items():
        for row in rows:
            other = _episode(facts, first)
            yield Place(f"the same values as episode {other}, to the last bit", _episode(facts, row), others=(other,))


def _near(facts: Facts) -> Iterator[Place]:
    for row, first in sorted(near_copies(facts).items()):
        other = _episode(facts, first)
        yield Place(f"nearly the same motion as episode {other}", _episode(facts, row), others=(other,))


def _leaks(facts: Facts) -> Iterator[Place]:
    splits = facts.dataset.splits
    if len(splits) < 2:
        return
    for row, first in sorted({**near_copies(facts), **exact_copies(facts)}.items()):
        one, other = int(facts.split[row]), int(facts.split[first])
        if one != other:
            text = f"of split {splits[one]}, and a copy of episode {_episode(facts, first)} of split {splits[other]}"
            yield Place(text, _episode(facts, row), others=(_episode(facts, first),))


def _episode(facts: Facts, row: int) -> int:
    return int(facts.measured.episode[row])


CHECKS = (
    Check(
        "short-episode",
        "warning",
        "episodes of fewer than ten steps",
        "Remove the episode: a recording that was begun by mistake. Most of a window would be padding.",
        _short,
    ),
    Check(
        "odd-length",
        "warning",
        "episodes far longer or shorter than the others",
        "Look at the episode: a recording that was not stopped, or broke off.",
        _lengths,
    ),
    Check(
        "few-valid-steps",
        "warning",
        "episodes of which hardly any step may be drawn",
        "Correct the valid ranges, or remove the episode.",
        _ranges,
    ),
    Check(
        "duplicate-episode",
        "error",
        "episodes with the same values, to the last bit",
        "Remove the copy: it counts twice in training.",
        _exact,
    ),
    Check(
        "near-duplicate",
        "warning",
        "episodes with the same motion but for rounding",
        "Remove the copy, unless its pictures differ on purpose.",
        _near,
    ),
    Check(
        "split-leak",
        "error",
        "copies of an episode in different splits",
        "Remove one of them: validation would see what was trained on.",
        _leaks,
    ),
)
