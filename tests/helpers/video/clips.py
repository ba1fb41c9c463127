"""Videos for tests: frames that show their number, encoders with any options, and boxes of MP4s changed."""

import contextlib
import io
import itertools
import os
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from epistream.sharding.pictures.video import VideoDecoder
from epistream.sharding.pictures.video_file import read_video_table

_BITS = 16
_HOLDERS = {b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts"}

# Closed groups of 8; `b` has frames that are shown in another order than they are decoded in.
OPTIONS = {
    "h264": ("libx264", {"x264-params": "keyint=8:min-keyint=8:scenecut=0:open-gop=0:bframes=0"}),
    "h264 b": ("libx264", {"x264-params": "keyint=8:min-keyint=8:scenecut=0:open-gop=0:bframes=3:b-adapt=0"}),
    "hevc": ("libx265", {"x265-params": "keyint=8:min-keyint=8:open-gop=0:log-level=none:pools=none:frame-threads=1"}),
    "av1": ("libsvtav1", {"svtav1-params": "keyint=8:lp=1", "preset": "12"}),
}
OPEN = ("libx264", {"x264-params": "keyint=8:min-keyint=8:scenecut=0:open-gop=1:bframes=3:b-adapt=0"})


def counted(number, height=64, width=64):
    """(height, width, 3) picture of a number: 16 squares, white where its bit is 1, on a ground that moves."""
    frame = np.full((height, width, 3), 96, np.uint8)
    frame[:, :, 2] = (np.arange(width) * 2 + 5 * number) % 128 + 64
    for bit in range(_BITS):
        rows, columns = _square(bit, height, width)
        frame[rows, columns] = 255 if number >> bit & 1 else 0
    return frame


def number_of(frame):
    """The number that a picture shows, by the middles of its squares."""
    number = 0
    for bit in range(_BITS):
        rows, columns = _square(bit, *frame.shape[:2])
        mean = frame[rows, columns].mean()
        assert mean < 80 or mean > 176, f"bit {bit} is {mean}"
        number |= int(mean > 128) << bit
    return number


def _square(bit, height, width):
    row, column = divmod(bit, 4)
    high, wide = height // 4, width // 4
    return slice(row * high + 2, (row + 1) * high - 2), slice(column * wide + 2, (column + 1) * wide - 2)


def encoded(name="h264", num_frames=24, size=(64, 64), pixels="yuv420p", marks=(None, None), times=None, muxer=None):
    """An MP4 of counted frames, by FFmpeg's encoders with `OPTIONS` or a pair of them.

    Args:
        name: A key of `OPTIONS`, or a pair of an encoder and its options.
        num_frames: How many.
        size: Height and width.
        pixels: What is encoded, by FFmpeg's name.
        marks: Colour matrix and range of the frames, and in the stream.
        times: Of the frames, in thirtieths of a second.
        muxer: Options of it.
    """
    if name == "av1" and times is None and muxer is None:
        return _kept_av1(num_frames, size, pixels, marks)
    return _encoded(name, num_frames, size, pixels, marks, times, muxer)


def _kept_av1(num_frames, size, pixels, marks):
    """As encoded once and kept beside this module: see `_no_real_time`. What is missing is encoded, and to be added."""
    words = [num_frames, *size, pixels, *(mark or 0 for mark in marks)]
    path = Path(__file__).parent / "av1" / f"{'-'.join(map(str, words))}.mp4"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(_encoded("av1", num_frames, size, pixels, marks, None, None))
    return path.read_bytes()


def _encoded(name, num_frames, size, pixels, marks, times, muxer):
    encoder, options = OPTIONS[name] if isinstance(name, str) else name
    matrix, value_range = marks
    target = io.BytesIO()
    with _no_real_time(), av.open(target, "w", format="mp4", options=muxer or {}) as container:
        stream = container.add_stream(encoder, rate=30)
        stream.height, stream.width = size
        stream.pix_fmt = pixels
        context = stream.codec_context
        context.thread_count, context.options, context.time_base = 1, dict(options), Fraction(1, 30)
        if matrix is not None:
            context.colorspace, context.color_range = matrix, value_range
        for number in range(num_frames):
            frame = av.VideoFrame.from_ndarray(counted(number, *size), format="rgb24")
            frame = frame.reformat(format=pixels, dst_colorspace=matrix, dst_color_range=value_range)
            if matrix is not None:
                frame.colorspace, frame.color_range = matrix, value_range
            frame.pts, frame.time_base = times[number] if times else number, Fraction(1, 30)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return target.getvalue()


@contextlib.contextmanager
def _no_real_time():
    """SVT-AV1 gives itself, and who calls it, the highest real-time priority if that is allowed, as it is to root.

    Nobody else would run from then on: not even the servers and workers that the tests wait for.
    """
    try:
        yield
    finally:
        for thread in Path("/proc/self/task").iterdir():
            with contextlib.suppress(OSError):  # it ended meanwhile
                os.sched_setscheduler(int(thread.name), os.SCHED_OTHER, os.sched_param(0))


def by_pyav(data):
    """(T, H, W, 3) frames as PyAV decodes the file itself, in order and with its container."""
    with av.open(io.BytesIO(data)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def table_of(data, where="clip"):
    """What our own reader says of the file."""
    return read_video_table(io.BytesIO(data), where)


def groups_of(data, table):
    """For each group its packets in the order of decoding: lists of (frame, bytes)."""
    keys = [*np.flatnonzero(table.back == 0).tolist(), len(table.back)]
    found = []
    for start, stop in itertools.pairwise(keys):
        rows = sorted(range(start, stop), key=lambda row: int(table.offset[row]))
        found.append([(row, data[int(table.offset[row]) :][: int(table.size[row])]) for row in rows])
    return found


def decoded(data, table=None, decoder=None):
    """Every frame by our decoder: a list of (H, W, 3)."""
    table = table or table_of(data)
    decoder = decoder or VideoDecoder((table.stream.height, table.stream.width, 3))
    found = {}
    for packets in groups_of(data, table):
        numbers = range(len(table.back))
        found |= {number: frame.copy() for number, frame in decoder.pictures(table.stream, packets, numbers, "clip")}
    return [found[number] for number in range(len(table.back))]


def changed_box(data, path, change):
    """The file with one box changed; its index must lie behind its pictures, as FFmpeg writes it.

    Args:
        data: An MP4.
        path: Of boxes from the outside, as in ``b"moov/trak/tkhd"``.
        change: From the bytes inside the box to others, which may be longer.
    """
    first, _, rest = path.partition(b"/")
    parts, at = [], 0
    while at < len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        inside = data[at + 8 : at + size]
        if kind == first:
            inside = changed_box(inside, rest, change) if rest else change(inside)
            first = b""  # the first one of its name only
        parts.append(struct.pack(">I4s", len(inside) + 8, kind) + inside)
        at += size
    assert not first, f"no box {path!r}"
    return b"".join(parts)


def box(kind, inside):
    """A box."""
    return struct.pack(">I4s", len(inside) + 8, kind) + inside


STBL = b"moov/trak/mdia/minf/stbl/"


def with_colours(data, matrix, is_full):
    """The file with a mark of its colours in the container alone."""
    mark = box(b"colr", b"nclx" + struct.pack(">HHHB", 1, 1, matrix, 128 if is_full else 0))

    def change(entries):
        size = struct.unpack_from(">I", entries, 8)[0]
        entry = struct.pack(">I", size + len(mark)) + entries[12 : 8 + size] + mark
        return entries[:8] + entry + entries[8 + size :]

    return changed_box(data, STBL + b"stsd", change)


def with_edit(data, media_time, duration=None):
    """The file with an edit list that begins at `media_time` of its own units."""

    def change(inside):
        version_flags, count, known, _, rate = struct.unpack(">IIIiI", inside)
        assert (version_flags, count) == (0, 1)
        return struct.pack(">IIIiI", 0, 1, known if duration is None else duration, media_time, rate)

    return changed_box(data, b"moov/trak/edts/elst", change)


def turned(data, matrix=(0, 1, -1, 0)):
    """The file with pictures that a player turns by 90 degrees, or as a matrix of two rows says."""
    a, b, c, d = (value << 16 for value in matrix)
    matrix = struct.pack(">9i", a, b, 0, c, d, 0, 64 << 16, 0, 1 << 30)
    return changed_box(data, b"moov/trak/tkhd", lambda inside: inside[:40] + matrix + inside[76:])


def with_two_entries(data, other):
    """The file with a second set of parameters, that of the file `other`, for all chunks but the first."""
    found = []
    changed_box(other, STBL + b"stsd", lambda inside: found.append(inside[8:]) or inside)
    data = changed_box(data, STBL + b"stsd", lambda inside: inside[:4] + struct.pack(">I", 2) + inside[8:] + found[0])

    def chunks(inside):
        count, *rows = struct.unpack(f">{(len(inside) - 4) // 4}I", inside[4:])
        samples = rows[1]
        assert count == 1
        return inside[:4] + struct.pack(">7I", 2, 1, samples // 2, 1, 2, samples - samples // 2, 2)

    def places(inside):
        count, start = struct.unpack(">2I", inside[4:12])
        assert count == 1
        return inside[:4] + struct.pack(">3I", 2, start, start + sum(sizes[: len(sizes) // 2]))

    sizes = []
    changed_box(
        data,
        STBL + b"stsz",
        lambda inside: sizes.extend(struct.unpack(f">{(len(inside) - 12) // 4}I", inside[12:])) or inside,
    )
    return changed_box(changed_box(data, STBL + b"stsc", chunks), STBL + b"stco", places)


def with_sound(data):
    """The file with a second of silence beside the video."""
    target = io.BytesIO()
    with av.open(io.BytesIO(data)) as source, av.open(target, "w", format="mp4") as container:
        stream = container.add_stream_from_template(source.streams.video[0], opaque=True)
        sound = container.add_stream("aac", rate=48_000, layout="mono")
        for number, packet in enumerate(source.demux(video=0)):
            if packet.size:
                packet.stream = stream
                container.mux(packet)
                silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
                silence.rate, silence.pts = 48_000, 1024 * number
                container.mux(sound.encode(silence))
        container.mux(sound.encode())
    return target.getvalue()


def with_two_videos(data):
    """The file with the same video twice."""
    target = io.BytesIO()
    with av.open(io.BytesIO(data)) as source, av.open(target, "w", format="mp4") as container:
        streams = [container.add_stream_from_template(source.streams.video[0], opaque=True) for _ in range(2)]
        for packet in source.demux(video=0):
            if packet.size:
                for stream in streams:
                    packet.stream = stream
                    container.mux(packet)
    return target.getvalue()
