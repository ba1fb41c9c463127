"""What time stamps say: whether they rise, and by how much from step to step."""

from dataclasses import dataclass

import numpy as np

from epistream.loader.doctor.facts.segments import Float, Int64, Segments


@dataclass(frozen=True, eq=False)
class TimeFacts:
    """Of one feature, in its own unit. R episodes; episodes of one step have NaN.

    Args:
        num_back: (R,) steps that are not later than the one before.
        back_at: (R,) the first of these.
        usual: (R,) median of the time from step to step.
        longest: (R,) largest such time.
        longest_at: (R,) step after it.
        uneven: (R,) share of such times that are off the median by more than half of it.
        sum: (R,) from the first step to the last.
    """

    num_back: Int64
    back_at: Int64
    usual: Float
    longest: Float
    longest_at: Int64
    uneven: Float
    sum: Float


def time_facts(values: Float, segments: Segments) -> TimeFacts:
    """Measure time stamps (N,), finite."""
    num = len(segments)
    plain = np.full((4, num), np.nan)
    places = np.zeros((3, num), np.int64)
    for row, part in enumerate(segments.slices()):
        gaps = np.diff(values[part])
        if not len(gaps):
            continue
        back = gaps <= 0
        usual = float(np.median(gaps))
        uneven = float((np.abs(gaps - usual) > 0.5 * abs(usual)).mean())
        plain[:, row] = usual, gaps.max(), uneven, gaps.sum()
        places[:, row] = back.sum(), back.argmax() + 1, gaps.argmax() + 1
    return TimeFacts(
        num_back=places[0],
        back_at=places[1],
        usual=plain[0],
        longest=plain[1],
        longest_at=places[2],
        uneven=plain[2],
        sum=plain[3],
    )
