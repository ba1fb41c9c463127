"""An MP4 as a table of packets: one row a frame, in the order of presentation. Nothing but a first picture is decoded.

What no table of groups can say is refused by name: open groups of H.264, edit lists that hide frames, several streams
or parameter sets, pictures that must be turned. Frames of uneven times are taken one a step, as they come.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, BinaryIO, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from epistream.errors import FormatError
from epistream.sharding.pictures.depth import Depth
from epistream.sharding.pictures.mp4_boxes import AGAIN
from epistream.sharding.pictures.video import MAX_PIXELS, UNMARKED, VideoStream, planes_of, pyav

_CODECS = ("h264", "hevc", "av1")


@dataclass(frozen=True, eq=False)
class VideoTable:
    """Where the frames of a video lie in its file.

    Args:
        stream: What a decoder must know.
        offset: (T,) uint64, byte of the file at which the packet of a frame begins.
        size: (T,) uint32, its bytes.
        back: (T,) uint32, steps back to the key frame of its group; 0 is a key frame. Packets lie in the file in the
            order of decoding; of HEVC the last ones of a group may lie behind the key frame of the next one.
        fps: Frames a second, None if the file does not say it.
    """

    stream: VideoStream
    offset: NDArray[np.uint64]
    size: NDArray[np.uint32]
    back: NDArray[np.uint32]
    fps: float | None

    @property
    def group_steps(self) -> int:
        """Frames of the longest group."""
        return int(self.back.max()) + 1


class WholeVideo(Protocol):
    """A whole MP4, and where its frames lie in it."""

    @property
    def table(self) -> VideoTable:
        """Of the MP4."""

    @property
    def num_bytes(self) -> int:
        """Of the MP4."""

    def pieces(self) -> Iterator[bytes | memoryview]:
        """The MP4, a piece after the other."""


def read_video_table(file: BinaryIO, where: str, depth: Depth | None = None) -> VideoTable:
    """The table of an MP4.

    Args:
        file: The MP4 alone, seekable, from its beginning.
        where: Names it in messages.
        depth: What its pixels stand for, if that is depth: no file says it.

    Raises:
        FormatError: If it is no whole MP4 with one video stream that can be read by groups; the message says why.
        OptionError: If PyAV is not installed.
    """
    av = pyav()
    # What tags say is of no use here, so their encoding may be wrong; PyAV 19 never minds.
    lenient = {"metadata_errors": "ignore"} if int(av.__version__.partition(".")[0]) < 19 else {}
    file.seek(0)
    try:
        with av.open(file, format="mp4", **lenient) as container:
            if len(container.streams.video) != 1:
                raise FormatError(
                    f"{where}: {len(container.streams.video)} video streams, wanted one a camera. Split it."
                )
            stream = container.streams.video[0]
            codec = _codec_of(stream, where)
            first, packets = _packets(container.demux(stream), file)
            problem = next(_problems(packets, codec), None)
            if problem:
                raise FormatError(f"{where}: {problem}. {AGAIN}")
            frame = first_picture(stream.codec_context, first)
            known = stream_of_picture(frame, codec, bytes(stream.codec_context.extradata or b""), where, depth)
            rate = stream.average_rate
    except (av.FFmpegError, EOFError, ValueError, OSError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"{where}: no MP4 that FFmpeg reads ({error}), wanted a whole one.") from error
    rows = np.argsort([packet.time for packet in packets], kind="stable")
    is_key = np.array([packet.is_key for packet in packets])[rows]
    steps = np.arange(len(rows))
    keys = np.maximum.accumulate(np.where(is_key, steps, 0))
    return VideoTable(
        known,
        np.array([packet.place for packet in packets], np.uint64)[rows],
        np.array([packet.size for packet in packets], np.uint32)[rows],
        (steps - keys).astype(np.uint32),
        float(rate) if rate else None,
    )


class _Packet(NamedTuple):
    """What is kept of one; `problem` is why it cannot be read."""

    time: int
    place: int
    size: int
    is_key: bool
    problem: str


def _packets(packets: Iterable[Any], file: BinaryIO) -> tuple[Any, list[_Packet]]:
    """The first packet, and what is to be known of all, in the order of decoding."""
    first, found = None, []
    for packet in packets:
        if packet.size:
            first = first or packet
            time, place = packet.pts or 0, packet.pos or 0
            found.append(_Packet(time, place, packet.size, packet.is_keyframe, _problem(packet, file)))
    return first, found


def _problem(packet: Any, file: BinaryIO) -> str:
    if packet.pts is None or packet.pos is None or packet.pos < 0:
        return "packets without a time or a place, wanted both"
    if packet.is_discard:
        return "an edit list that hides frames, wanted every frame to be shown"
    if packet.has_sidedata("new_extradata"):
        return "several sets of parameters, wanted one for all frames"
    if packet.is_corrupt:
        return "corrupt packets, wanted whole ones"
    # A table is read without the container: what lies at its places must be what the container gives.
    here = file.tell()
    file.seek(packet.pos)
    is_there = file.read(packet.size) == bytes(packet)
    file.seek(here)
    return "" if is_there else "packets that are not in the file as they are decoded, wanted them so"


def _codec_of(stream: Any, where: str) -> str:
    context = stream.codec_context  # None where the file does not say the codec
    name = context.codec.canonical_name if context else "an unknown codec"
    if name not in _CODECS:
        raise FormatError(f"{where}: a video as {name}, wanted {', '.join(_CODECS)}. {AGAIN}")
    return str(name)


def _problems(packets: Sequence[_Packet], codec: str) -> Iterator[str]:
    """Why the packets, in the order of decoding, cannot be read group by group."""
    if not packets:
        yield "no frames, wanted at least one"
        return
    yield from (packet.problem for packet in packets if packet.problem)
    if len({packet.time for packet in packets}) != len(packets):
        yield "two frames at the same time, wanted each at its own"
    if not packets[0].is_key:
        yield "no key frame at the beginning, wanted one"
    if any(after.place <= before.place for before, after in pairwise(packets)):
        yield "packets that do not lie in the order of decoding, wanted them so"
    if not _are_closed(packets, allows_leading=codec == "hevc"):
        yield "open groups of pictures (frames after a key frame that are shown before it), wanted closed ones"


def _are_closed(packets: Sequence[_Packet], *, allows_leading: bool) -> bool:
    """Whether every frame of a group is shown after its key frame, and before the next one.

    Leading frames of HEVC, which lie behind a key frame and are shown before it, count as the last ones of the group
    before; see `sharding/pictures/mp4_table.py`.
    """
    latest = first = before = packets[0].time
    for packet in packets:
        if packet.time < (latest if packet.is_key else before if allows_leading else first):
            return False
        if packet.is_key:
            before, first = first, packet.time
        latest = max(latest, packet.time)
    return True


def stream_of_picture(frame: Any, codec: str, extradata: bytes, where: str, depth: Depth | None = None) -> VideoStream:
    """What a first picture says of its stream.

    Args:
        frame: As `first_picture` gives it.
        codec: Of the stream.
        extradata: Likewise.
        where: Names the video in messages.
        depth: What its pixels stand for, if that is depth.

    Raises:
        FormatError: If there is none, or none that can be shown as it is.
    """
    if frame is None:
        raise FormatError(f"{where}: a first frame that does not decode, wanted a picture. {AGAIN}")
    if frame.side_data.get(pyav().sidedata.sidedata.Type.DISPLAYMATRIX):
        how = f"turned by {frame.rotation} degrees" if frame.rotation else "mirrored"
        raise FormatError(f"{where}: pictures to be {how}, wanted them upright. {AGAIN}")
    if frame.interlaced_frame:
        raise FormatError(f"{where}: interlaced pictures, wanted whole ones. {AGAIN}")
    try:
        return VideoStream(
            codec,
            extradata,
            frame.width,
            frame.height,
            planes_of(frame),
            int(frame.colorspace) if frame.colorspace else UNMARKED,
            int(frame.color_range) == _FULL_RANGE or frame.format.name.startswith("yuvj"),
            depth,
        )
    except FormatError as error:
        raise FormatError(f"{where}: {str(error).rstrip('.')}. {AGAIN}") from error


_FULL_RANGE = 2


def first_picture(context: Any, packet: Any) -> Any:
    """The first frame of a decoder that was not used yet, None if the packet has none."""
    context.thread_count = 1
    context.options = {"max_pixels": str(MAX_PIXELS)}
    frames = [*context.decode(packet), *context.decode(None)]
    return frames[0] if frames else None
