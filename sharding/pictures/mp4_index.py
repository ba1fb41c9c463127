"""What an MP4 of one video holds beside its packets, written: bytes that follow from the frames alone."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from epistream.errors import FormatError
from epistream.sharding.pictures.video import UNMARKED, VideoStream

# As FFmpeg names them: parameter sets may also stand in the packets (hev1), which are copied as they are.
_ENTRIES = {"h264": (b"avc1", b"avcC"), "hevc": (b"hev1", b"hvcC"), "av1": (b"av01", b"av1C")}
_BRANDS = {"h264": b"avc1", "hevc": b"iso6", "av1": b"av01"}
# Of ticks a second, as FFmpeg has it: other programs put sound or text of finer times beside.
_LEAST_TICKS = 10_000
_MOST = 1 << 32
_ONE = 1 << 16  # in numbers of 16.16 bits
_UPRIGHT = struct.pack(">9i", _ONE, 0, 0, 0, _ONE, 0, 0, 0, 1 << 30)
_NO_LANGUAGE = 0x55C4  # "und", in three times five bits


@dataclass(frozen=True, eq=False)
class WrittenFrames:
    """Frames as they lie in a file, in the order of decoding.

    Args:
        step: (N,) int64, place in the order of presentation; each from 0 to N - 1 once.
        is_key: (N,) bool.
        size: (N,) int64, bytes.
        start: (C,) int64, byte of the file at which each chunk begins.
        num_frames: (C,) int64, of each chunk; at least one. They lie one behind the other.
    """

    step: NDArray[np.int64]
    is_key: NDArray[np.bool_]
    size: NDArray[np.int64]
    start: NDArray[np.int64]
    num_frames: NDArray[np.int64]


def ticks_of(fps: Fraction) -> tuple[int, int]:
    """Ticks a second, and ticks of a frame, in which every frame begins at its exact time.

    >>> ticks_of(Fraction(50)), ticks_of(Fraction(30_000, 1001))
    ((12800, 256), (30000, 1001))

    Raises:
        FormatError: If the format has no numbers for it.
    """
    if fps <= 0 or max(fps.numerator, fps.denominator) >= _MOST // 2:
        raise FormatError(f"{fps} frames a second, wanted a positive ratio of numbers below 2,147,483,648")
    scale, ticks = fps.numerator, fps.denominator
    while scale < _LEAST_TICKS and ticks < _MOST // 4:
        scale, ticks = 2 * scale, 2 * ticks
    return scale, ticks


def head_bytes(stream: VideoStream) -> bytes:
    """What a file begins with."""
    return _box(b"ftyp", b"isom" + _number(0x200) + b"isomiso2mp41" + _BRANDS[stream.codec])


def index_bytes(stream: VideoStream, fps: Fraction, frames: WrittenFrames) -> bytes:
    """The whole box.

    Frames that are decoded before others that are shown first are shifted behind, and an edit list takes that back:
    the first frame is shown at 0.

    Args:
        stream: Of all frames.
        fps: Frames a second.
        frames: At least one.

    Raises:
        FormatError: If the video is longer than the format has numbers for.
    """
    scale, ticks = ticks_of(fps)
    num_frames = len(frames.step)
    order = np.arange(num_frames)
    delay = int((order - frames.step).max())
    length = num_frames * ticks
    if length + delay * ticks >= _MOST or int(frames.size.max()) >= _MOST:
        raise FormatError(f"{num_frames:,} frames of {ticks:,} ticks, wanted less than {_MOST:,} ticks in all")
    tables = [
        _box(b"stsd", struct.pack(">II", 0, 1) + _entry(stream)),
        _full(b"stts", [1, num_frames, ticks]),
        *([] if frames.is_key.all() else [_table(b"stss", np.flatnonzero(frames.is_key) + 1)]),
        *([_shifts((frames.step + delay - order) * ticks)] if delay else []),
        _chunks(frames.num_frames),
        _box(b"stsz", struct.pack(">III", 0, 0, num_frames) + frames.size.astype(">u4").tobytes()),
        _box(b"co64", struct.pack(">II", 0, len(frames.start)) + frames.start.astype(">u8").tobytes()),
    ]
    data_here = _box(b"dref", struct.pack(">II", 0, 1) + _full(b"url ", [], flags=1))
    media = [
        _full(b"mdhd", [0, 0, scale, length, _NO_LANGUAGE << 16]),
        _box(b"hdlr", struct.pack(">II4s12x", 0, 0, b"vide") + b"VideoHandler\0"),
        _box(
            b"minf",
            _full(b"vmhd", [0, 0], flags=1) + _box(b"dinf", data_here) + _box(b"stbl", b"".join(tables)),
        ),
    ]
    size = struct.pack(">II", stream.width * _ONE, stream.height * _ONE)
    track = [
        _full(b"tkhd", [0, 0, 1, 0, length, 0, 0, 0, 0], flags=3, end=_UPRIGHT + size),
        *([_box(b"edts", _full(b"elst", [1, length, delay * ticks, _ONE]))] if delay else []),
        _box(b"mdia", b"".join(media)),
    ]
    header = _full(b"mvhd", [0, 0, scale, length, _ONE, 0x0100 << 16, 0, 0], end=_UPRIGHT + bytes(24) + _number(2))
    return _box(b"moov", header + _box(b"trak", b"".join(track)))


def _entry(stream: VideoStream) -> bytes:
    name, parameters = _ENTRIES[stream.codec]
    head = struct.pack(">6xH16xHHIIIH32xHh", 1, stream.width, stream.height, 72 * _ONE, 72 * _ONE, 0, 1, 24, -1)
    inside = [head, _box(parameters, stream.extradata)]
    if stream.matrix != UNMARKED or stream.is_full_range:  # where the pictures say it themselves, they count
        marks = struct.pack(">4sHHHB", b"nclx", UNMARKED, UNMARKED, stream.matrix, stream.is_full_range << 7)
        inside.append(_box(b"colr", marks))
    return _box(name, b"".join(inside))


def _shifts(shift: NDArray[np.int64]) -> bytes:
    """How long after it is decoded each frame is shown, frames of the same shift together."""
    first = np.flatnonzero(np.diff(shift, prepend=-1))
    count = np.diff(first, append=len(shift))
    return _table(b"ctts", np.stack([count, shift[first]], axis=1))


def _chunks(num_frames: NDArray[np.int64]) -> bytes:
    """How many frames the chunks have, from each one on that has another number than the one before."""
    first = np.flatnonzero(np.diff(num_frames, prepend=-1))
    return _table(b"stsc", np.stack([first + 1, num_frames[first], np.ones_like(first)], axis=1))


def _table(kind: bytes, rows: NDArray[np.int64]) -> bytes:
    return _box(kind, struct.pack(">II", 0, len(rows)) + rows.astype(">u4").tobytes())


def _full(kind: bytes, numbers: Sequence[int], *, flags: int = 0, end: bytes = b"") -> bytes:
    """A box of version 0 with numbers of 32 bits."""
    return _box(kind, struct.pack(f">{1 + len(numbers)}I", flags, *numbers) + end)


def _number(value: int) -> bytes:
    return struct.pack(">I", value)


def _box(kind: bytes, inside: bytes) -> bytes:
    return struct.pack(">I4s", len(inside) + 8, kind) + inside
