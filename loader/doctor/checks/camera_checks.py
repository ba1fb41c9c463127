"""Checks of pictures: blank and frozen cameras, cuts, colours and views that are unlike those of other episodes."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epistream.loader.doctor.checks.check import Check, Level, Place
from epistream.loader.doctor.checks.robust import LEAST_EPISODES, Bool, Float, sigma, usual
from epistream.loader.doctor.facts.facts import STATE, Facts
from epistream.loader.doctor.facts.pictures import CameraFacts

_LEAST_STEPS = 10
_HELD_STEPS, _HELD_SECONDS = 5, 0.25
# Grey levels of 255, as all below.
_CUT, _CUT_TIMES = 12.0, 6.0
# Colours tell their order where red and blue differ by so much; grey pictures have none.
_COLOURED = 4.0
# Another order, or place, fits an episode by so much better than its own, and nearly as well as the others are alike.
_BETTER, _ALIKE_TIMES, _ALIKE = 0.6, 3.0, 3.0
_VIEW = 6.0
_BRIGHTNESS, _SIGMAS = 30.0, 6.0
_COPY = 0.5
_OTHER_VIEW, _OTHER_TIMES = 40.0, 5.0
_CHANNELS = 3


def _undecodable(facts: Facts) -> Iterator[Place]:
    for name, found in facts.measured.cameras.items():
        for row in np.flatnonzero(found.bad_at >= 0).tolist():
            step = int(found.bad_at[row])
            why = found.error[row].partition(f"{name}: ")[2] or found.error[row]
            yield Place(f"step {step}: {why}".rstrip("."), _episode(facts, row), name, steps=(step, step + 1))


def _blank(facts: Facts) -> Iterator[tuple[int, str, CameraFacts, list[str]]]:
    for name, found in facts.measured.cameras.items():
        if facts.features[name].dtype != "uint8":
            continue
        for row in np.flatnonzero(found.dark + found.bright + found.flat).tolist():
            words = [word for word in ("dark", "bright", "flat") if getattr(found, word)[row]]
            yield row, name, found, words


_COLOUR = {"dark": "black", "bright": "white", "flat": "of one colour"}


def _blank_camera(facts: Facts) -> Iterator[Place]:
    for row, name, found, words in _blank(facts):
        if int(found.dark[row] + found.bright[row] + found.flat[row]) == int(found.num[row]):
            what = " or ".join(_COLOUR[word] for word in words)
            yield Place(f"all {int(found.num[row])} pictures looked at are {what}", _episode(facts, row), name)


def _blank_frames(facts: Facts) -> Iterator[Place]:
    for row, name, found, words in _blank(facts):
        count = sum(int(getattr(found, word)[row]) for word in words)
        num, step = int(found.num[row]), int(found.blank_at[row])
        if count < num:
            are = f"{'is' if count == 1 else 'are'} {' or '.join(_COLOUR[word] for word in words)}"
            text = f"{count} of {num} pictures looked at {are}, the first at step {step}"
            yield Place(text, _episode(facts, row), name, steps=(step, step + 1))


def _moves(facts: Facts) -> Bool:
    motion = facts.measured.motion.get(STATE)
    return np.ones(facts.num, np.bool_) if motion is None else motion.moves


def _is_blank(found: CameraFacts) -> Bool:
    blank: Bool = found.dark + found.bright + found.flat > 0
    return blank


def _frozen(facts: Facts) -> Iterator[Place]:
    for name, found in facts.measured.cameras.items():
        still = found.is_still & _moves(facts) & (facts.length >= _LEAST_STEPS) & ~_is_blank(found)
        for row in np.flatnonzero(still).tolist():
            text = f"all {int(found.num[row])} pictures looked at are equal while the robot moves"
            yield Place(text, _episode(facts, row), name)


def _held(facts: Facts) -> Iterator[Place]:
    fps = facts.fps
    least = max(_HELD_STEPS, round(_HELD_SECONDS * fps)) if fps else _HELD_STEPS
    motion = facts.measured.motion.get(STATE)
    for name, found in facts.measured.cameras.items():
        for row in np.flatnonzero((found.held_steps >= least) & ~found.is_still & ~_is_blank(found)).tolist():
            first, stop = int(found.held_first[row]), int(found.held_first[row] + found.held_steps[row])
            if motion is not None and _rests(facts, row, first, stop):
                continue
            text = f"{stop - first} equal pictures from step {first} on while the robot moves"
            yield Place(text, _episode(facts, row), name, steps=(first, stop))


def _rests(facts: Facts, row: int, first: int, stop: int) -> bool:
    """Whether a robot may be at rest while a picture stays the same, as a simulator renders it."""
    motion, length = facts.measured.motion[STATE], int(facts.length[row])
    rests = [
        (0, int(motion.idle_start[row])),
        (length - int(motion.idle_end[row]), length),
        (int(motion.pause_first[row]), int(motion.pause_first[row] + motion.pause_steps[row])),
    ]
    least = max(first, 0), min(stop, length)
    return any(min(least[1], end) - max(least[0], begin) > 0.5 * (least[1] - least[0]) for begin, end in rests)


def _cuts(facts: Facts) -> Iterator[Place]:
    for name, found in facts.measured.cameras.items():
        if facts.features[name].dtype != "uint8":
            continue
        is_cut = (found.cut > _CUT) & (found.cut > _CUT_TIMES * found.drift) & ~_is_blank(found)
        if facts.num >= LEAST_EPISODES:
            is_cut &= found.cut > 2 * usual(found.cut[:, None])[0]
        for row in np.flatnonzero(is_cut).tolist():
            step = int(found.cut_at[row])
            text = f"the picture changes by {found.cut[row]:.0f} grey levels at step {step}, all at once"
            yield Place(text, _episode(facts, row), name, steps=(step, step + 1))


def _distance(one: NDArray[Any], other: NDArray[Any]) -> Float:
    """(R,) mean difference of thumbnails (R, GRID, GRID, C)."""
    distance: Float = np.abs(one.astype(np.float64) - other).mean(axis=(1, 2, 3))
    return distance


def _alike(own: Float) -> float:
    """A distance that episodes may have from what is usual."""
    return _ALIKE_TIMES * float(np.median(own)) + _ALIKE


def _known(facts: Facts) -> Iterator[tuple[str, CameraFacts, Float]]:
    """Colour and grey cameras with their usual thumbnail, where there are enough episodes."""
    for name, found in facts.measured.cameras.items():
        seen = (found.num > 0) & ~_is_blank(found)
        if seen.sum() >= LEAST_EPISODES and facts.features[name].dtype == "uint8":
            yield name, found, np.median(found.thumb[seen].astype(np.float64), axis=0)


def _colours(facts: Facts) -> Iterator[Place]:
    for name, found, common in _known(facts):
        if common.shape[-1] != _CHANNELS or np.abs(common[..., 0] - common[..., 2]).mean() < _COLOURED:
            continue
        own, swapped = _distance(found.thumb, common), _distance(found.thumb[..., ::-1], common)
        off = (swapped < _BETTER * own) & (own - swapped > 1) & (swapped < _alike(own)) & ~_is_blank(found)
        for row in np.flatnonzero(off).tolist():
            yield Place("red and blue are the other way round than in the other episodes", _episode(facts, row), name)


def _turned(facts: Facts) -> Iterator[Place]:
    ways: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
        "upside down": lambda thumb: thumb[:, ::-1, ::-1],
        "mirrored left to right": lambda thumb: thumb[:, :, ::-1],
        "mirrored top to bottom": lambda thumb: thumb[:, ::-1],
    }
    for name, found, common in _known(facts):
        own = _distance(found.thumb, common)
        best = {way: _distance(turn(found.thumb), common) for way, turn in ways.items()}
        # A view that looks the same either way says nothing.
        best = {way: one for way, one in best.items() if _distance(ways[way](common[None]), common)[0] > _VIEW}
        for row in np.flatnonzero((own > _VIEW) & ~_is_blank(found)).tolist():
            way = min(best, key=lambda one: float(best[one][row]), default=None)
            if way is not None and best[way][row] < min(_BETTER * own[row], _alike(own)):
                yield Place(f"pictures are {way} beside the other episodes", _episode(facts, row), name)


def _swapped(facts: Facts) -> Iterator[Place]:
    known = {name: (found, common) for name, found, common in _known(facts)}
    names = list(known)
    for number, one in enumerate(names):
        for other in names[number + 1 :]:
            (mine, common), (theirs, their_common) = known[one], known[other]
            if common.shape != their_common.shape:
                continue
            own = _distance(mine.thumb, common) + _distance(theirs.thumb, their_common)
            cross = _distance(mine.thumb, their_common) + _distance(theirs.thumb, common)
            for row in np.flatnonzero((cross < _BETTER * own) & (own > _VIEW) & (cross < _alike(own))).tolist():
                text = f"shows what {other} shows in the other episodes, and the other way round"
                yield Place(text, _episode(facts, row), one)


def _copies(facts: Facts) -> Iterator[Place]:
    names = list(facts.measured.cameras)
    for number, one in enumerate(names):
        for other in names[number + 1 :]:
            mine, theirs = facts.measured.cameras[one], facts.measured.cameras[other]
            if mine.thumb.shape != theirs.thumb.shape:
                continue
            same = _distance(mine.thumb, theirs.thumb) < _COPY
            for row in np.flatnonzero(same & ~_is_blank(mine) & (mine.num > 0) & (theirs.num > 0)).tolist():
                yield Place(f"shows the same as {other}", _episode(facts, row), one)


def _brightness(facts: Facts) -> Iterator[Place]:
    for name, found, _ in _known(facts):
        level = found.level[:, None]
        off = np.abs(level - usual(level))[:, 0]
        far = (off > _BRIGHTNESS) & (off > _SIGMAS * sigma(level)[0]) & ~_is_blank(found)
        for row in np.flatnonzero(far).tolist():
            text = f"mean grey level {found.level[row]:.0f}, usually {usual(level)[0]:.0f}"
            yield Place(text, _episode(facts, row), name)


def _views(facts: Facts) -> Iterator[Place]:
    explained = {
        (place.episode, place.feature) for find in (_colours, _turned, _swapped, _brightness) for place in find(facts)
    }
    swapped = {place.episode for place in _swapped(facts)}
    for name, found, common in _known(facts):
        own = _distance(found.thumb, common)
        middle = float(np.median(own))
        far = (own > _OTHER_VIEW) & (own > _OTHER_TIMES * middle) & ~_is_blank(found) & (found.num > 0)
        for row in np.flatnonzero(far).tolist():
            episode = _episode(facts, row)
            if (episode, name) not in explained and episode not in swapped:
                yield Place(f"{own[row]:.0f} grey levels from the usual picture, others {middle:.0f}", episode, name)


def _shapes(facts: Facts) -> Iterator[Place]:
    shapes = {name: one.shape for name, one in facts.features.items() if one.kind == "frames"}
    wide = [name for name, shape in shapes.items() if shape[1] > shape[0]]
    for name, shape in shapes.items():
        if shape[0] > shape[1] and len(wide) > len(shapes) / 2:
            text = f"pictures are {shape[1]}x{shape[0]} (width x height), taller than wide; those of {wide[0]} are not"
            yield Place(text, feature=name)
        elif shape[0] > 2 * shape[1] or shape[1] > 3 * shape[0]:
            text = f"pictures are {shape[1]}x{shape[0]} (width x height)"
            yield Place(text, feature=name)


def _episode(facts: Facts, row: int) -> int:
    return int(facts.measured.episode[row])


def _check(code: str, level: Level, sentence: str, advice: str, find: Callable[[Facts], Iterator[Place]]) -> Check:
    return Check(code, level, sentence, advice, find, needs_frames=True)


CHECKS = (
    _check(
        "undecodable-frame",
        "error",
        "pictures that do not decode",
        "Copy the file again; remove the episode if its recording is torn.",
        _undecodable,
    ),
    _check(
        "blank-camera",
        "error",
        "a camera that is black, white or of one colour in a whole episode",
        "Remove the episode, or leave the camera out.",
        _blank_camera,
    ),
    _check(
        "blank-frames",
        "warning",
        "some pictures that are black, white or of one colour",
        "Trim the episode: cameras often begin black, or lose their light.",
        _blank_frames,
    ),
    _check(
        "frozen-camera",
        "error",
        "a camera that shows one picture all along while the robot moves",
        "Remove the episode: the camera hung.",
        _frozen,
    ),
    _check(
        "repeated-frames",
        "warning",
        "a run of equal pictures while the robot moves",
        "Trim the episode, or remove it: the camera lost pictures.",
        _held,
    ),
    _check(
        "picture-cut",
        "warning",
        "a picture that changes all at once in the middle of an episode",
        "Look at the step: two recordings in one file, or somebody moved the camera.",
        _cuts,
    ),
    _check(
        "colour-order",
        "error",
        "red and blue that are swapped beside the other episodes",
        "Correct the order of channels where the episode is recorded or packed.",
        _colours,
    ),
    _check(
        "turned-view",
        "warning",
        "pictures that are upside down or mirrored beside the other episodes",
        "Turn them, or remove the episode.",
        _turned,
    ),
    _check(
        "cameras-swapped",
        "error",
        "two cameras that have changed their names",
        "Swap the two names in this episode.",
        _swapped,
    ),
    _check(
        "camera-copy",
        "warning",
        "two cameras that show the same pictures",
        "Leave one of them out; see which device the recorder opened.",
        _copies,
    ),
    _check(
        "brightness",
        "warning",
        "pictures far brighter or darker than in the other episodes",
        "See whether the light or the exposure changed, and whether that is wanted.",
        _brightness,
    ),
    _check(
        "other-view",
        "warning",
        "pictures that are quite unlike those of the other episodes",
        "Look whether the camera was moved or replaced.",
        _views,
    ),
    Check(
        "picture-shape",
        "info",
        "cameras with pictures of an unusual shape",
        "See whether height and width were exchanged.",
        _shapes,
    ),
)
