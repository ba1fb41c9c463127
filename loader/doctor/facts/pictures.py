"""What the pictures of one camera look like in an episode, by a few of them made small."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epistream.errors import EpistreamError
from epistream.loader.doctor.facts.segments import Bool, Float, Int64

# Of the larger side. A cut, a turned picture or other colours are as plain in 64 pixels as in 640.
SMALL_PIXELS = 64
GRID = 8  # cells of a thumbnail in each direction

# Grey levels of 255. Sensors in the dark give about 16 in limited range, 0 to 4 in full range, and hardly any contrast.
_DARK, _BRIGHT, _FLAT = 20.0, 240.0, 3.0
_MOST_HALVINGS = 24
# A run of equal pictures is followed this far.
_MOST_HELD = 64

Frames = Mapping[int, NDArray[Any]]
Take = Callable[[Sequence[int]], Frames]


@dataclass(frozen=True, eq=False)
class CameraFacts:
    """Of one camera. R episodes, C channels. Grey levels are of 255, where pictures are bytes.

    Args:
        num: (R,) pictures that were looked at; none where they do not decode.
        thumb: (R, GRID, GRID, C) mean picture.
        level: (R,) its mean grey level.
        dark: (R,) pictures that are dark all over.
        bright: (R,) pictures that are white all over.
        flat: (R,) other pictures of one colour.
        blank_at: (R,) step of the first of any of these; -1 where there is none.
        is_still: (R,) whether all pictures are equal.
        cut_at: (R,) step at which the picture changes most; -1 where that was not looked for.
        cut: (R,) by how many grey levels, from one step to the next.
        drift: (R,) mean change of grey levels between neighbouring pictures of those looked at.
        held_first: (R,) step at which the longest run of equal pictures begins that was found.
        held_steps: (R,) pictures in it, 0 where there is none.
        bad_at: (R,) step of the first picture that does not decode; -1 where all do.
        error: (R,) what was wrong with it.
    """

    num: Int64
    thumb: NDArray[np.float32]
    level: Float
    dark: Int64
    bright: Int64
    flat: Int64
    blank_at: Int64
    is_still: Bool
    cut_at: Int64
    cut: Float
    drift: Float
    held_first: Int64
    held_steps: Int64
    bad_at: Int64
    error: list[str]


def small_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """(h, w, C) of pictures as they are looked at."""
    factor = max(1.0, max(shape[:2]) / SMALL_PIXELS)
    return max(1, round(shape[0] / factor)), max(1, round(shape[1] / factor)), shape[2]


def camera_facts(
    shape: tuple[int, ...], length: int, take: Take, num_samples: int, held: tuple[int, int] | None
) -> CameraFacts:
    """Look at one camera of one episode.

    Args:
        shape: (h, w, C) of the pictures that `take` makes.
        length: Steps.
        take: Makes pictures of steps, which ascend.
        num_samples: Pictures to look at, at least 2, evenly spaced; each with its neighbour.
        held: First step and number of the longest run of equal pictures, where stored bytes tell it; else it is looked
            for beside the samples.
    """
    steps = np.unique(np.linspace(0, length - 1, min(num_samples, length)).round().astype(np.int64)).tolist()
    beside = [] if held is not None else [step + 1 for step in steps if step + 1 < length]
    frames: dict[int, NDArray[Any]] = {}
    bad_at, error = -1, ""
    wanted = sorted({*steps, *beside})
    try:
        frames.update(take(wanted))
    except EpistreamError:
        bad_at, error = _each(take, wanted, frames)
    if held is None:
        held = _held_beside(frames, steps, length, take) if bad_at < 0 else (0, 0)
    there = [step for step in steps if step in frames]
    return _facts(shape, {step: frames[step] for step in there}, take, bad=(bad_at, error), held=held)


def _each(take: Take, steps: Sequence[int], frames: dict[int, NDArray[Any]]) -> tuple[int, str]:
    """Take pictures one by one; the first that fails, and why."""
    bad_at, error = -1, ""
    for step in steps:
        try:
            frames.update(take([step]))
        except EpistreamError as failed:
            if bad_at < 0:
                bad_at, error = step, str(failed)
    return bad_at, error


def _facts(
    shape: tuple[int, ...], frames: dict[int, NDArray[Any]], take: Take, bad: tuple[int, str], held: tuple[int, int]
) -> CameraFacts:
    steps = list(frames)
    thumbs = [_thumb(frames[step]) for step in steps]
    grey = [frames[step].astype(np.float64) for step in steps]
    levels = np.array([one.mean() for one in grey])
    contrast = np.array([one.std(axis=(0, 1)).max() for one in grey])
    flat = contrast < _FLAT
    dark = (levels < _DARK) & (contrast < 2 * _FLAT)
    bright = (levels > _BRIGHT) & (contrast < 2 * _FLAT)
    blank = flat | dark | bright
    changes = [_change(frames[one], frames[other]) for one, other in pairwise(steps)]
    cut_at, cut = _cut(frames, changes, take) if changes and bad[0] < 0 else (-1, 0.0)
    rest = sorted(changes)[:-1] if len(changes) > 2 else changes
    mean = np.mean(thumbs, axis=0) if thumbs else np.zeros((GRID, GRID, shape[2]))
    return CameraFacts(
        num=np.array([len(steps)]),
        thumb=mean[None].astype(np.float32),
        level=np.array([levels.mean() if len(levels) else np.nan]),
        dark=np.array([dark.sum()]),
        bright=np.array([(bright & ~dark).sum()]),
        flat=np.array([(flat & ~dark & ~bright).sum()]),
        blank_at=np.array([steps[int(blank.argmax())] if blank.any() else -1]),
        is_still=np.array([len(steps) > 1 and not any(changes)]),
        cut_at=np.array([cut_at]),
        cut=np.array([cut]),
        drift=np.array([float(np.mean(rest)) if rest else 0.0]),
        held_first=np.array([held[0]]),
        held_steps=np.array([held[1]]),
        bad_at=np.array([bad[0]]),
        error=[bad[1]],
    )


def _thumb(frame: NDArray[Any]) -> Float:
    """(GRID, GRID, C) means of the cells of a picture."""
    rows = np.linspace(0, frame.shape[0], GRID + 1).astype(int)[:-1]
    columns = np.linspace(0, frame.shape[1], GRID + 1).astype(int)[:-1]
    if min(frame.shape[:2]) < GRID:  # a cell of every pixel, some of them twice
        rows = np.arange(GRID) * frame.shape[0] // GRID
        columns = np.arange(GRID) * frame.shape[1] // GRID
        found: Float = frame[rows][:, columns].astype(np.float64)
        return found
    sums = np.add.reduceat(np.add.reduceat(frame.astype(np.float64), rows, axis=0), columns, axis=1)
    heights = np.diff(rows, append=frame.shape[0])[:, None, None]
    return sums / heights / np.diff(columns, append=frame.shape[1])[None, :, None]


def _change(one: NDArray[Any], other: NDArray[Any]) -> float:
    return float(np.abs(one.astype(np.float64) - other).mean())


def _cut(frames: Frames, changes: Sequence[float], take: Take) -> tuple[int, float]:
    """The step at which most changes between the two samples that differ most, found by halving."""
    steps = list(frames)
    at = int(np.argmax(changes))
    low, high = steps[at], steps[at + 1]
    first, last = frames[low], frames[high]
    try:
        for _ in range(_MOST_HALVINGS):
            if high - low <= 1:
                break
            middle = (low + high) // 2
            picture = take([middle])[middle]
            if _change(first, picture) >= _change(picture, last):
                high, last = middle, picture
            else:
                low, first = middle, picture
    except EpistreamError:
        return -1, 0.0
    return high, _change(first, last)


def _held_beside(frames: Frames, steps: Sequence[int], length: int, take: Take) -> tuple[int, int]:
    """The longest run of equal pictures that holds a sample and the one after it: its first step and how many."""
    found = (0, 0)
    for step in steps:
        if step + 1 not in frames or not np.array_equal(frames[step], frames[step + 1]):
            continue
        if found[0] <= step < found[0] + found[1]:
            continue
        first, stop = step, step + 2
        with suppress(EpistreamError):
            while stop < min(length, step + _MOST_HELD) and np.array_equal(take([stop])[stop], frames[step]):
                stop += 1
            while first > max(0, step - _MOST_HELD) and np.array_equal(take([first - 1])[first - 1], frames[step]):
                first -= 1
        if stop - first > found[1]:
            found = (first, stop - first)
    return found
