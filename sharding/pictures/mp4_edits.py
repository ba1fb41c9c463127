"""Edit lists of an MP4: which frames of its track are shown, and when, as FFmpeg has it."""

import numpy as np

from epistream.errors import FormatError
from epistream.sharding.pictures.mp4_boxes import AGAIN, box_of, needed_box, numbers
from epistream.sharding.pictures.mp4_samples import Samples

_ONE = 1 << 16  # of speeds, in 16.16 bits
_MOST_EDIT = 1 << 61  # ticks; times of frames are less than 2**56
_HIDES = "an edit list that hides frames, wanted every frame to be shown"


def timescale(box: memoryview, where: str) -> int:
    """Ticks a second, of the inside of mdhd or mvhd.

    Raises:
        FormatError: If there are none.
    """
    (version,) = numbers(box, "B", 0, where)
    (scale,) = numbers(box, "I", 20 if version == 1 else 12, where)
    if not scale:
        raise FormatError(f"{where}: times in no unit, wanted ticks a second. {AGAIN}")
    return int(scale)


def shown_of(samples: Samples, moov: memoryview, track: memoryview, scale: int, where: str) -> tuple[Samples, int]:
    """The frames that the edit list leaves, and what to add to their times.

    As FFmpeg has it (its `mov_fix_index`): frames count from the last key frame that is shown where the edit begins or
    before it, up to the key frame behind its end. The first of them is shown at 0, or after the empty edit.

    Args:
        samples: Of the track, in the order of decoding.
        moov: The index.
        track: The track in it.
        scale: Ticks a second of the track.
        where: For messages.

    Raises:
        FormatError: If it hides frames that decoders need, or has several parts.
    """
    elst = box_of(track, b"edts/elst", where)
    edits = [] if elst is None else _edits(elst, where)
    if not edits:
        return samples, 0
    pause = edits.pop(0)[0] if edits[0][1] == -1 else 0
    if not edits:
        raise FormatError(f"{where}: {_HIDES}. {AGAIN}")
    (length, begin, speed), *others = edits
    if others or begin < 0 or speed != _ONE:
        raise FormatError(f"{where}: an edit list of several parts or another speed, wanted all frames once. {AGAIN}")
    per_second = timescale(needed_box(moov, b"mvhd", where), where)
    end = min(begin + _rescaled(length, scale, per_second), _MOST_EDIT)
    starts = np.flatnonzero(samples.is_key & (samples.time <= begin))
    shown = samples[int(starts[-1]) if len(starts) else 0 :]
    behind = np.flatnonzero(shown.is_key & (shown.time + shown.ticks >= end))
    num_behind = 2 if shown.is_shifted else 1  # frames behind the first key frame may be shown before it
    if len(behind) >= num_behind:
        shown = shown[: int(behind[num_behind - 1]) + 1]
    if (shown.time < begin).any() or (shown.time >= end).any():
        raise FormatError(f"{where}: {_HIDES}. {AGAIN}")
    start = min(_rescaled(pause, scale, per_second), _MOST_EDIT)
    return shown, start - int(shown.time.min())


def _edits(elst: memoryview, where: str) -> list[tuple[int, int, int]]:
    """Length in ticks of the file, begin in ticks of the track (-1 is a pause), and speed, of a few parts."""
    (version,) = numbers(elst, "B", 0, where)
    (count,) = numbers(elst, "I", 4, where)
    layout, size = ("Qqi", 20) if version == 1 else ("Iii", 12)
    if count > 2:
        raise FormatError(f"{where}: an edit list of {count:,} parts, wanted all frames. {AGAIN}")
    rows = [numbers(elst, layout, 8 + size * row, where) for row in range(count)]
    if any(abs(value) >= _MOST_EDIT for length, begin, _ in rows for value in (length, begin)):
        raise FormatError(f"{where}: an edit list without end, wanted all frames. {AGAIN}")
    return [(length, begin, speed) for length, begin, speed in rows]


def _rescaled(ticks: int, to: int, of: int) -> int:
    """To the nearest one, and up from the middle, as FFmpeg rounds."""
    return (2 * ticks * to + of) // (2 * of)
