"""Video as packets: what a decoder must know of a stream, and runs of packets from a key frame on into pictures.

No container is parsed here: packets come from a table (`sharding/pictures/video_file.py` makes it). The conversion to
RGB is swscale's with the matrix and range that the stream says, or BT.601 and limited range where it says none, as
FFmpeg's tools, torchcodec and LeRobot do: the bits depend on nothing that is installed beside.
"""

import importlib
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from epistream.errors import FormatError, OptionError
from epistream.sharding.pictures.codec import Encoded, Frame
from epistream.sharding.pictures.depth import DEPTH_PIXELS, Depth
from epistream.units import picture_size

# The decoder of each codec: of one thread, the same for every user.
DECODERS = {"h264": "h264", "hevc": "hevc", "av1": "libdav1d"}
# Numbers of ISO/IEC 23091-2 (as decoders say them), and what swscale calls the same matrix. Without a mark: BT.601.
_MATRICES = {1: 1, 2: 5, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9}
UNMARKED = 2
PIXEL_FORMATS = frozenset(("yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "gray", "gray10le"))
# FFmpeg's older names for the same planes of full range: a decoder says them or not as the container marks the range.
_PLANES = {"yuvj420p": "yuv420p", "yuvj422p": "yuv422p", "yuvj444p": "yuv444p"}
# The highest levels of H.264, H.265 and AV1 end at 35.7 million pixels.
MAX_PIXELS = 1 << 26
# swscale's own numbers of limited and full range.
_LIMITED, _FULL = 1, 2
# Decoders count whole blocks, and lines as long as their instructions like them.
_MORE_COLUMNS, _MORE_ROWS = 256, 128
# A picture that lost something is an error, never patched up from its neighbours.
_STRICT = {"err_detect": "explode", "ec": "0"}


def pyav() -> Any:
    """The package ``av``, imported by whom needs it.

    Raises:
        OptionError: If it is not installed.
    """
    try:
        return importlib.import_module("av")
    except ImportError as error:
        raise OptionError(
            f"video: {error}, wanted PyAV, which decodes and encodes it. Run: pip install 'epistream[video]'."
        ) from error


@dataclass(frozen=True)
class VideoStream:
    """What the packets of a video do not say of themselves.

    Args:
        codec: h264, hevc or av1.
        extradata: Parameter sets, as an MP4 holds them (avcC, hvcC, av1C).
        width: Of the pictures as they are coded, in pixels.
        height: Likewise.
        pixel_format: FFmpeg's name, one of `PIXEL_FORMATS`.
        matrix: Colour matrix by its number in ISO/IEC 23091-2; 2 where nothing says it, which is taken for BT.601.
        is_full_range: Whether luma reaches from 0 to 255, not from 16 to 235.
        depth: What the pixels stand for if they are no colours but depth; they are `DEPTH_PIXELS` then.

    Raises:
        FormatError: If any of these cannot be.
    """

    codec: str
    extradata: bytes
    width: int
    height: int
    pixel_format: str
    matrix: int = UNMARKED
    is_full_range: bool = False
    depth: Depth | None = None

    def __post_init__(self) -> None:
        if self.codec not in DECODERS:
            raise FormatError(f"a video as {self.codec!r}, wanted {', '.join(DECODERS)}")
        if not isinstance(self.extradata, bytes) or len(self.extradata) > 1 << 20:
            raise FormatError("a video whose parameter sets are no bytes of less than 1 MiB")
        if not all(type(side) is int and 0 < side <= 1 << 15 for side in (self.width, self.height)):
            raise FormatError(
                f"a video of width {self.width!r} and height {self.height!r}, wanted 1 to 32,768 pixels each"
            )
        if self.width * self.height > MAX_PIXELS:
            size = picture_size((self.height, self.width))
            raise FormatError(f"a video of {size}, wanted at most {MAX_PIXELS:,} pixels in all")
        if not (self.depth is None or isinstance(self.depth, Depth)):
            raise FormatError(f"a video of depth as {self.depth!r:.80}, wanted a description")
        known = PIXEL_FORMATS if self.depth is None else {DEPTH_PIXELS}
        if self.pixel_format not in known:
            wanted = ", ".join(sorted(known))
            raise FormatError(f"a video of pixels {self.pixel_format!r}, wanted one of {wanted}. Convert it first")
        if type(self.matrix) is not int or self.matrix not in _MATRICES:
            raise FormatError(f"a video with colour matrix {self.matrix!r}, wanted one of {sorted(_MATRICES)}")
        if type(self.is_full_range) is not bool:
            raise FormatError(f"a video with is_full_range {self.is_full_range!r}, wanted true or false")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for msgpack and JSON."""
        values = {**asdict(self), "extradata": self.extradata.hex()}
        if self.depth is None:  # as in releases that did not know it
            del values["depth"]
        return values

    @classmethod
    def from_dict(cls, value: object) -> "VideoStream":
        """The inverse of `to_dict`, for values from a file.

        Raises:
            FormatError: If it is no such thing.
        """
        if not isinstance(value, Mapping):
            raise FormatError(f"a video stream is {value!r:.80}, wanted a map")
        try:
            depth = {"depth": Depth.from_dict(value["depth"])} if value.get("depth") is not None else {}
            return cls(**{**value, "extradata": bytes.fromhex(value["extradata"]), **depth})
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, FormatError):
                raise
            raise FormatError(f"a video stream of {sorted(map(str, value))}, wanted {error}") from error


class VideoDecoder:
    """Turns runs of packets into pictures; keeps the decoder of the last stream. Not shared between threads.

    Args:
        shape: (H, W, 3) of the camera's frames, (H, W, 1) of depth maps; pictures are coded with up to one row and
            column more, because H.264 halves the sides of its colour planes.
        as_planes: Give planes as they are decoded, see `sharding/pictures/planes.py`, in place of RGB.
    """

    def __init__(self, shape: tuple[int, ...], *, as_planes: bool = False) -> None:
        self._shape = shape
        self._as_planes = as_planes
        self._stream: VideoStream | None = None
        self._context: Any = None
        self._converter: Any = None

    def pictures(
        self, stream: VideoStream, packets: Iterable[tuple[int, Encoded]], wanted: Container[int], where: str
    ) -> Iterator[tuple[int, Frame]]:
        """Decode a run, and make pictures of the frames that are wanted.

        Args:
            stream: Of the packets.
            packets: Number and bytes of each frame from a key frame on, in the order of decoding.
            wanted: Numbers.
            where: Names the run in messages.

        Yields:
            Number and (H, W, 3) uint8 of each wanted frame, in the order of presentation; valid until the next one.
            Of depth maps (H, W, 1) uint16, millimetres.

        Raises:
            FormatError: If a frame does not decode, or is not what the stream says.
            OptionError: If PyAV is not installed.
        """
        context = self._opened(stream, where)
        self._context = None  # unless all goes well: what it holds of this run must not reach another one
        missing: set[int] = set()
        last = -1
        for frame in self._frames(context, packets, missing, where):
            number = frame.pts
            # A picture of another packet, or swapped packets: decoders put pictures in order by what these say.
            if number not in missing or number < last or (last < 0 and not frame.key_frame):
                raise FormatError(f"{where}: frame {number} comes as none of its packets says. {_REMEDY}")
            missing.remove(number)
            last = number
            self._check(frame, stream, where, number)
            if number in wanted:
                yield number, self._made(frame, stream, where)
        if missing:
            raise FormatError(f"{where}: frame {min(missing)} does not decode, wanted every frame. {_REMEDY}")
        context.flush_buffers()
        self._context, self._stream = context, stream

    def _frames(
        self, context: Any, packets: Iterable[tuple[int, Encoded]], missing: set[int], where: str
    ) -> Iterator[Any]:
        av = pyav()
        number = -1
        try:
            for number, data in packets:
                packet = av.Packet(data)
                packet.pts = packet.dts = number
                missing.add(number)
                yield from context.decode(packet)
            yield from context.decode(None)
        except (av.FFmpegError, EOFError) as error:
            raise FormatError(f"{where}: frame {number} does not decode ({_text(error)}). {_REMEDY}") from error

    def _opened(self, stream: VideoStream, where: str) -> Any:
        if self._context is None or self._stream != stream:
            av = pyav()
            with _refused(where):
                context = av.CodecContext.create(DECODERS[stream.codec], "r")
                context.extradata = stream.extradata or None
                context.thread_count = 1
                # What the bytes say must not decide how much is allocated.
                most = (stream.width + _MORE_COLUMNS) * (stream.height + _MORE_ROWS)
                context.options = {**_STRICT, "max_pixels": str(most)}
                context.open()
            self._context = context
            self._converter = av.video.reformatter.VideoReformatter()
        return self._context

    def _check(self, frame: Any, stream: VideoStream, where: str, number: int) -> None:
        found = (frame.height, frame.width, planes_of(frame))
        wanted = (stream.height, stream.width, stream.pixel_format)
        if found != wanted or frame.is_corrupt:
            is_other = found != wanted
            state = f"of {found[2]} {picture_size(found[:2])}" if is_other else "corrupt"
            raise FormatError(
                f"{where}: frame {number} is {state}, wanted {wanted[2]} {picture_size(wanted[:2])}. {_REMEDY}"
            )

    def _made(self, frame: Any, stream: VideoStream, where: str) -> Frame:
        if (self._shape[2] == 1) != (stream.depth is not None):
            found = "colours" if stream.depth is None else "depth"
            raise FormatError(f"{where}: a video of {found}, wanted frames of {self._shape}. {_REMEDY}")
        if stream.depth is not None and not self._as_planes:
            return stream.depth.millimetres(frame, self._shape)
        if not self._as_planes:
            return rgb_of(frame, stream, self._converter, self._shape)
        if stream.pixel_format != "yuv420p" or stream.width % 2 or stream.height % 2:
            raise FormatError(
                f"{where}: pixels as {stream.pixel_format}, wanted yuv420p to be kept as planes. "
                "Encode them again so, or show two steps at a time, for which colours are kept."
            )
        planes: Frame = frame.to_ndarray()
        return planes


_REMEDY = "Pack, record or download this episode again."


def rgb_of(frame: Any, stream: VideoStream, converter: Any, shape: tuple[int, ...]) -> Frame:
    """A decoded frame as (H, W, 3) uint8 by a reformatter of PyAV's; valid until it is used again."""
    picture = converter.reformat(
        frame,
        format="rgb24",
        src_colorspace=_MATRICES[stream.matrix],
        src_color_range=_FULL if stream.is_full_range else _LIMITED,
        threads=1,
    )
    plane = picture.planes[0]
    rows = np.frombuffer(plane, np.uint8).reshape(picture.height, plane.line_size)
    height, width, num_channels = shape
    pixels: Frame = rows[:height, : width * num_channels].reshape(height, width, num_channels)
    return pixels


def planes_of(frame: Any) -> str:
    """The pixel format of a decoded frame, whatever its range."""
    name = str(frame.format.name)
    return _PLANES.get(name, name)


@contextmanager
def _refused(where: str) -> Iterator[None]:
    """What FFmpeg refuses, as a `FormatError`."""
    av = pyav()
    try:
        yield
    except (av.FFmpegError, ValueError) as error:
        raise FormatError(f"{where}: a video that no decoder takes ({_text(error)}), wanted a whole one.") from error


def _text(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
