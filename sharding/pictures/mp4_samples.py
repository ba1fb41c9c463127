"""The tables of an MP4's video track (stbl) as arrays: one row a frame, in the order of decoding."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from epistream.errors import FormatError
from epistream.sharding.pictures.mp4_boxes import AGAIN, box_of, needed_box, numbers, table

# 90 hours at 50 frames a second. Tables of equal sizes and times are so short that nothing else bounds their rows.
_MOST_FRAMES = 1 << 24
# Longer ones are negative numbers in disguise, which players guess at.
_MOST_TICKS, _MOST_SHIFT = 1 << 31, 1 << 28


@dataclass(frozen=True, eq=False)
class Samples:
    """Frames in the order of decoding.

    Args:
        time: (N,) int64, of presentation, in ticks of the track, before its edit list.
        ticks: (N,) int64, how long each one is.
        is_key: (N,) bool.
        place: (N,) int64, byte of the file.
        size: (N,) int64, bytes.
        is_shifted: Whether times of presentation are other than those of decoding, even if by nothing.
    """

    time: NDArray[np.int64]
    ticks: NDArray[np.int64]
    is_key: NDArray[np.bool_]
    place: NDArray[np.int64]
    size: NDArray[np.int64]
    is_shifted: bool

    def __getitem__(self, rows: slice) -> "Samples":
        return Samples(
            self.time[rows], self.ticks[rows], self.is_key[rows], self.place[rows], self.size[rows], self.is_shifted
        )


def read_samples(stbl: memoryview, file_bytes: int, where: str, *, may_be_cut: bool = False) -> Samples:
    """What the tables say, every number compared with what is there.

    Args:
        stbl: Inside of the box.
        file_bytes: Of the whole file, in which every packet must lie.
        where: Names it in messages.
        may_be_cut: Let packets lie behind its end.

    Raises:
        FormatError: If they do not agree with each other or with the file, or there are no frames.
    """
    size = _sizes(stbl, file_bytes, where)
    num_frames = len(size)
    ticks = _runs(needed_box(stbl, b"stts", where), ">u4", num_frames, "times", where)
    if ticks.max() >= _MOST_TICKS:
        raise FormatError(f"{where}: a frame of {ticks.max():,} ticks, wanted less. {AGAIN}")
    time = np.cumsum(ticks) - ticks
    shifts = box_of(stbl, b"ctts", where)
    if shifts is not None:
        shift = _runs(shifts, ">i4", num_frames, "shifts of time", where)
        if np.abs(shift).max() >= _MOST_SHIFT:
            raise FormatError(f"{where}: a frame shifted by {np.abs(shift).max():,} ticks, wanted less. {AGAIN}")
        time += shift
    place = _places(stbl, size, where)
    if not may_be_cut and (place + size > file_bytes).any():
        end = (place + size).max()
        raise FormatError(
            f"{where}: {file_bytes:,} bytes, wanted {end:,} or more as its index says. The file is cut off: copy or "
            "record it again."
        )
    return Samples(time, ticks, _keys(stbl, num_frames, where), place, size, shifts is not None)


def _sizes(stbl: memoryview, file_bytes: int, where: str) -> NDArray[np.int64]:
    box = box_of(stbl, b"stsz", where)
    if box is None:
        found = _compact_sizes(needed_box(stbl, b"stz2", where), where)
    else:
        size, count = numbers(box, "II", 4, where)
        if size == 0:
            found = table(box, ">u4", 8, where)
        elif count > _MOST_FRAMES or count * size > file_bytes:
            raise FormatError(f"{where}: {count:,} frames of {size:,} bytes, wanted them in {file_bytes:,} bytes.")
        else:
            found = np.full(count, size)
    if not 0 < len(found) <= _MOST_FRAMES:
        raise FormatError(f"{where}: {len(found):,} frames, wanted 1 to {_MOST_FRAMES:,}.")
    if not found.all():
        raise FormatError(f"{where}: frames of no bytes, wanted a picture in each. {AGAIN}")
    return found.astype(np.int64)


def _compact_sizes(box: memoryview, where: str) -> NDArray[np.integer]:
    (bits,) = numbers(box, "B", 7, where)
    if bits in (8, 16):
        return table(box, f">u{bits // 8}", 8, where)
    (count,) = numbers(box, "I", 8, where)
    if bits != 4 or (count + 1) // 2 > len(box) - 12:
        raise FormatError(f"{where}: {count:,} sizes of {bits} bits in {len(box)} bytes. The file is damaged.")
    pairs = np.frombuffer(box, np.uint8, (count + 1) // 2, 12)
    return np.stack([pairs >> 4, pairs & 15], axis=1).reshape(-1)[:count]


def _runs(box: memoryview, dtype: str, num_frames: int, what: str, where: str) -> NDArray[np.int64]:
    """(num_frames,) values of a table that says how often each one comes."""
    rows = table(box, f">u4,{dtype}", 4, where)
    times = rows["f0"].astype(np.int64)
    if times.sum() != num_frames:
        raise FormatError(f"{where}: {times.sum():,} {what} for {num_frames:,} frames, wanted one each. {AGAIN}")
    return np.repeat(rows["f1"].astype(np.int64), times)


def _places(stbl: memoryview, size: NDArray[np.int64], where: str) -> NDArray[np.int64]:
    """Frames lie in chunks one behind the other; a table says how many are in each chunk from one on."""
    short = box_of(stbl, b"stco", where)
    chunks = (
        table(short, ">u4", 4, where) if short is not None else table(needed_box(stbl, b"co64", where), ">u8", 4, where)
    )
    if chunks.size and chunks.max() >= 1 << 62:
        raise FormatError(f"{where}: frames at byte {chunks.max():,}, wanted them in the file. The file is damaged.")
    rows = table(needed_box(stbl, b"stsc", where), ">u4,>u4,>u4", 4, where)
    first = np.append(rows["f0"].astype(np.int64), len(chunks) + 1)
    if first[0] != 1 or (np.diff(first) <= 0).any():
        raise FormatError(f"{where}: {len(chunks):,} parts that no table counts in order. The file is damaged.")
    if (rows["f2"] != rows["f2"][0]).any():
        raise FormatError(f"{where}: several sets of parameters, wanted one for all frames. {AGAIN}")
    each = np.repeat(rows["f1"].astype(np.int64), np.diff(first))
    if each.sum() != len(size):
        raise FormatError(f"{where}: {each.sum():,} frames in parts, {len(size):,} sizes, wanted as many. {AGAIN}")
    before = np.cumsum(size) - size
    starts = np.cumsum(each) - each
    within = before - np.repeat(before[np.minimum(starts, len(size) - 1)], each)
    place: NDArray[np.int64] = np.repeat(chunks.astype(np.int64), each) + within
    return place


def _keys(stbl: memoryview, num_frames: int, where: str) -> NDArray[np.bool_]:
    box = box_of(stbl, b"stss", where)
    if box is None:
        return np.ones(num_frames, np.bool_)
    rows = table(box, ">u4", 4, where).astype(np.int64) - 1
    if len(rows) and (rows.min() < 0 or rows.max() >= num_frames):
        raise FormatError(f"{where}: key frame {rows.max() + 1:,} of {num_frames:,}. The file is damaged.")
    is_key = np.zeros(num_frames, np.bool_)
    is_key[rows] = True
    return is_key
