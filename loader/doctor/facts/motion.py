"""When a robot moves: idle starts and ends, pauses, and what tells a motion from another."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from epistream.loader.doctor.facts.segments import Bool, Float, Int64, Segments

# Shares of a dimension's range in its episode. A value has left the place where it began beyond the first: encoders
# tremble by less, and motion of any use goes further. Within a second of rest it stays inside the second.
_LEFT, _RESTS = 0.02, 0.01
# Dimensions that move less than this share of the one that moves most tell nothing: their range is noise.
_LEAST_RANGE = 0.05
_REST_STEPS = 10


@dataclass(frozen=True, eq=False)
class MotionFacts:
    """Of states, or of actions. R episodes.

    Args:
        idle_start: (R,) steps before the first at which anything has moved; all where nothing does.
        idle_end: (R,) steps after the last at which anything still moves; all where nothing does.
        pause_first: (R,) step at which the longest rest begins.
        pause_steps: (R,) how long that is.
        moves: (R,) whether anything does.
    """

    idle_start: Int64
    idle_end: Int64
    pause_first: Int64
    pause_steps: Int64
    moves: Bool


def motion_facts(values: Float, segments: Segments, rest_steps: int) -> MotionFacts:
    """Measure motion.

    Args:
        values: (D, N) finite values.
        segments: The episodes.
        rest_steps: Steps of a rest: about a second.
    """
    low, high = segments.least(values), segments.most(values)
    reach = high - low
    counts = reach > _LEAST_RANGE * reach.max(axis=0, keepdims=True)
    scale = np.zeros_like(reach)  # 0 for what tells nothing
    np.divide(1.0, reach, out=scale, where=counts & (reach > 0))
    scaled = (values * segments.spread(scale)).astype(np.float32)  # of ranges of 1: enough for hundredths
    left = _moved(scaled, segments.spread(scaled[:, segments.first])) > _LEFT
    stays = _moved(scaled, segments.spread(scaled[:, segments.stop - 1])) > _LEFT
    rest = np.zeros(segments.num_steps, np.bool_)
    gap = min(rest_steps, max(1, segments.num_steps - 1))
    rest[:-gap] = _moved(scaled[:, gap:], scaled[:, :-gap]) < _RESTS
    place = np.arange(segments.num_steps) - segments.spread(segments.first)
    rest &= place + gap < segments.spread(segments.length)
    pause = segments.runs(rest)
    return MotionFacts(
        idle_start=segments.before(left),
        idle_end=segments.after(stays),
        pause_first=pause.first,
        pause_steps=np.where(pause.steps > 0, pause.steps + gap, 0),
        moves=(reach > 0).any(axis=0),
    )


def _moved(values: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N,) the largest distance of any dimension."""
    distance = np.subtract(values, others)
    np.abs(distance, out=distance)
    found: NDArray[np.float32] = distance.max(axis=0)
    return found


def rest_steps(fps: float | None) -> int:
    """Steps of about a second."""
    return _REST_STEPS if fps is None else max(2, round(fps))
