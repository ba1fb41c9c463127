"""The frames of an MP4 as a table, from its index (moov) alone: no frame is read, and no FFmpeg is needed.

It says what FFmpeg says of the same file, and refuses what `sharding/pictures/video_file.py` refuses; fragments and
edit lists of several parts too, which FFmpeg puts together. Open groups of HEVC, as LeRobot has them, are read.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from epistream.errors import FormatError
from epistream.sharding.pictures.depth import Depth
from epistream.sharding.pictures.mp4_boxes import (
    AGAIN,
    Read,
    box_of,
    boxes,
    needed_box,
    numbers,
    read_moov,
    refuse_fragments,
)
from epistream.sharding.pictures.mp4_edits import shown_of, timescale
from epistream.sharding.pictures.mp4_samples import Samples, read_samples
from epistream.sharding.pictures.video import DECODERS, UNMARKED, VideoStream, pyav
from epistream.sharding.pictures.video_file import first_picture, stream_of_picture

# Sample entries, and the box in them that holds the parameter sets.
_CODECS = {
    b"avc1": ("h264", b"avcC"),
    b"avc3": ("h264", b"avcC"),
    b"hvc1": ("hevc", b"hvcC"),
    b"hev1": ("hevc", b"hvcC"),
    b"av01": ("av1", b"av1C"),
}
_ENTRY_HEAD = 78  # bytes of a visual sample entry before the boxes in it
_FULL_RANGE = 0x80
_MOST_PACKET = 1 << 28  # the largest pictures without compression are of half as much
# AVColorRange.
_LIMITED, _FULL = 1, 2
_ONE = 1 << 16  # in numbers of 16.16 bits
_KNOWN_MATRICES = range(18)


@dataclass(frozen=True, eq=False)
class Mp4Table:
    """Where the frames of a video lie in its file, and when they are shown.

    Args:
        codec: h264, hevc or av1.
        extradata: Parameter sets: what is in avcC, hvcC or av1C.
        width: In pixels, as the index says.
        height: Likewise.
        matrix: Colour matrix by its number in ISO/IEC 23091-2, as the index says; 2 where it says nothing.
        is_full_range: Whether the index says that luma reaches from 0 to 255.
        time: (T,) float64, seconds of presentation after the edit list, ascending: rows are in this order.
        offset: (T,) uint64, byte of the file at which the packet of a frame begins.
        size: (T,) uint32, its bytes.
        back: (T,) uint32, steps back to the key frame of its group; 0 is a key frame. Packets lie in the file in the
            order of decoding; of HEVC the last ones of a group may lie behind the key frame of the next one, and need
            it too.
        fps: Frames a second on average, None if they take no time.
    """

    codec: str
    extradata: bytes
    width: int
    height: int
    matrix: int
    is_full_range: bool
    time: NDArray[np.float64]
    offset: NDArray[np.uint64]
    size: NDArray[np.uint32]
    back: NDArray[np.uint32]
    fps: float | None

    @property
    def group_steps(self) -> int:
        """Frames of the longest group."""
        return int(self.back.max()) + 1


def read_mp4_table(read: Read, file_bytes: int, where: str, *, may_be_cut: bool = False) -> Mp4Table:
    """The table of an MP4.

    Args:
        read: Bytes of the file: offset, size. It is called one to three times for what is commonly written: the first
            4 KiB, the end of the file if the index lies there, and the rest of an index above 1 MiB.
        file_bytes: Of the whole file.
        where: Names it in messages.
        may_be_cut: Take frames that lie behind the end of the file too; whoever reads these has to compare.

    Raises:
        FormatError: If it is no whole MP4 with one video stream that can be read by groups; the message says why.
    """
    moov = read_moov(read, file_bytes, where)
    refuse_fragments(moov, where)
    track = _only_video(moov, where)
    _refuse_turned(moov, track, where)
    entry = _entry(needed_box(track, b"mdia/minf/stbl/stsd", where), where)
    samples = read_samples(needed_box(track, b"mdia/minf/stbl", where), file_bytes, where, may_be_cut=may_be_cut)
    scale = timescale(needed_box(track, b"mdia/mdhd", where), where)
    length = int(samples.ticks.sum())
    shown, start = shown_of(samples, moov, track, scale, where)
    _refuse_open(shown, where, allows_leading=entry.codec == "hevc")
    rows = np.argsort(shown.time, kind="stable")
    steps = np.arange(len(rows))
    keys = np.maximum.accumulate(np.where(shown.is_key[rows], steps, 0))
    return Mp4Table(
        *entry,
        (shown.time[rows] + start) / scale,
        shown.place[rows].astype(np.uint64),
        shown.size[rows].astype(np.uint32),
        (steps - keys).astype(np.uint32),
        scale * len(samples.time) / length if length else None,
    )


def stream_of(table: Mp4Table, read: Read, where: str, depth: Depth | None = None) -> VideoStream:
    """What a decoder must know, by decoding the first picture.

    Args:
        table: Of the file.
        read: As for `read_mp4_table`; called once.
        where: Names the file in messages.
        depth: What its pixels stand for, if that is depth: no file says it.

    Raises:
        FormatError: If it does not decode, or is none that can be shown as it is.
        OptionError: If PyAV is not installed.
    """
    offset, size = int(table.offset[0]), int(table.size[0])
    if size > _MOST_PACKET:
        raise FormatError(f"{where}: a first frame of {size:,} bytes, wanted at most {_MOST_PACKET:,}. {AGAIN}")
    data = read(offset, size)
    if len(data) != size:
        raise FormatError(f"{where}: {len(data):,} bytes at byte {offset:,}, wanted {size:,}. The file is cut off.")
    av = pyav()
    try:
        context = av.CodecContext.create(DECODERS[table.codec], "r")
        context.extradata = table.extradata or None
        # Decoders put in their place what the stream itself says.
        context.colorspace = table.matrix
        context.color_range = _FULL if table.is_full_range else _LIMITED
        frame = first_picture(context, av.Packet(data))
    except (av.FFmpegError, EOFError, ValueError) as error:
        raise FormatError(
            f"{where}: a first frame that does not decode ({error}), wanted a picture. {AGAIN}"
        ) from error
    return stream_of_picture(frame, table.codec, table.extradata, where, depth)


def _only_video(moov: memoryview, where: str) -> memoryview:
    tracks = [box for kind, box in boxes(moov, where) if kind == b"trak"]
    handlers = [needed_box(track, b"mdia/hdlr", where) for track in tracks]
    videos = [track for track, handler in zip(tracks, handlers, strict=True) if bytes(handler[8:12]) == b"vide"]
    if len(videos) != 1:
        raise FormatError(f"{where}: {len(videos)} video streams, wanted one a camera. Split it.")
    return videos[0]


def _refuse_turned(moov: memoryview, track: memoryview, where: str) -> None:
    """The matrices of the file and of the track, one after the other, must leave pictures as they are."""
    found = np.eye(3)
    for holder, name, at in ((track, b"tkhd", (40, 52)), (moov, b"mvhd", (36, 48))):
        box = needed_box(holder, name, where)
        values = np.reshape(numbers(box, "9i", at[numbers(box, "B", 0, where)[0] == 1], where), (3, 3))
        found @= values / (_ONE, _ONE, 1 << 30)
    if not np.array_equal(found, np.eye(3)):
        (a, b), (c, d) = found[:2, :2]
        degrees = round(math.degrees(math.atan2(b * math.hypot(a, c), a * math.hypot(b, d))))
        how = f"turned by {degrees} degrees" if degrees else "mirrored, moved or stretched"
        raise FormatError(f"{where}: pictures to be {how}, wanted them upright. {AGAIN}")


class _Entry(NamedTuple):
    """The first fields of `Mp4Table`."""

    codec: str
    extradata: bytes
    width: int
    height: int
    matrix: int
    is_full_range: bool


def _entry(stsd: memoryview, where: str) -> _Entry:
    """What the one sample entry says."""
    entries = list(boxes(stsd[8:], where))
    if len(entries) != 1:
        raise FormatError(f"{where}: {len(entries)} sets of parameters, wanted one for all frames. {AGAIN}")
    kind, entry = entries[0]
    if kind == b"encv" or box_of(entry[_ENTRY_HEAD:], b"sinf", where) is not None:
        raise FormatError(f"{where}: an encrypted video, wanted a plain one.")
    if kind not in _CODECS:
        found, wanted = kind.decode("latin-1"), ", ".join(dict.fromkeys(codec for codec, _ in _CODECS.values()))
        raise FormatError(f"{where}: a video as {found!r}, wanted {wanted}. {AGAIN}")
    codec, name = _CODECS[kind]
    width, height = numbers(entry, "HH", 24, where)
    parameters = needed_box(entry[_ENTRY_HEAD:], name, f"{where}, {kind.decode()}")
    return _Entry(codec, bytes(parameters), width, height, *_colours(entry, where))


def _colours(entry: memoryview, where: str) -> tuple[int, bool]:
    """Matrix and full range, by the box colr."""
    colr = box_of(entry[_ENTRY_HEAD:], b"colr", where)
    if colr is None or bytes(colr[:4]) not in (b"nclx", b"nclc"):
        return UNMARKED, False
    (matrix,) = numbers(colr, "H", 8, where)
    is_full = bytes(colr[:4]) == b"nclx" and bool(numbers(colr, "B", 10, where)[0] & _FULL_RANGE)
    return matrix if matrix in _KNOWN_MATRICES else UNMARKED, is_full


def _refuse_open(samples: Samples, where: str, *, allows_leading: bool) -> None:
    """What no table of whole groups can say, of frames in the order of decoding.

    Frames behind a key frame that are shown before it, which HEVC calls leading, count as the last ones of the group
    before, and need that group's frames and the key frame that they lie behind: nothing else, by H.265 8.3.2. The open
    groups of H.264 promise less.
    """
    time, is_key = samples.time, samples.is_key
    problem = ""
    if len(np.unique(time)) != len(time):
        problem = "two frames at the same time, wanted each at its own"
    elif not is_key[0]:
        problem = "no key frame at the beginning, wanted one"
    elif (samples.place[1:] < samples.place[:-1] + samples.size[:-1]).any():
        problem = "packets that do not lie in the order of decoding, wanted them so"
    else:
        keys = np.flatnonzero(is_key)
        group = np.cumsum(is_key) - 1
        first = time[keys[np.maximum(group - 1, 0) if allows_leading else group]]
        if (time < np.where(is_key, np.maximum.accumulate(time), first)).any():
            problem = "open groups of pictures (frames after a key frame that are shown before it), wanted closed ones"
    if problem:
        raise FormatError(f"{where}: {problem}. {AGAIN}")
