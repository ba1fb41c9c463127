"""Frames of an episode into an MP4 that is cheap to decode: closed groups of one length, no B-frames.

``tune=fastdecode`` leaves out CABAC and deblocking: a frame decodes about twice as fast for 6 to 9 % more bytes
(640x480, crf 18). One thread, and x264 leaves aside what a processor can, so that the same frames give the same bytes.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from epistream.errors import LayoutError
from epistream.sharding.pictures.codec import Frame
from epistream.sharding.pictures.video import VideoDecoder, pyav
from epistream.sharding.pictures.video_file import VideoTable, read_video_table

# Of x264, but for "placebo", which takes for ever and gives nothing.
PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow")
_DEFAULT_FPS = 30.0
_MOST = 1001  # of a denominator: 30000/1001 is what 29.97 stands for
# BT.601 and limited range, which players assume as well where nothing is said.
_MATRIX, _LIMITED = 5, 1


@dataclass(frozen=True)
class VideoQuality:
    """How much to lose, and how to divide.

    Args:
        crf: Of x264, 0 to 51: less is better and larger.
        gop: Frames of a group, of which the first decodes alone.
        preset: Of x264: slower ones make smaller files.
    """

    crf: int = 18
    gop: int = 30
    preset: str = "medium"

    @property
    def growth(self) -> float:
        """Bytes beside those at the default, about: they double with every 6 less."""
        return float(2 ** ((VideoQuality.crf - self.crf) / 6))


@dataclass(frozen=True)
class EncodedVideo:
    """A whole MP4, and where its frames lie in it."""

    data: bytes
    table: VideoTable

    @property
    def num_bytes(self) -> int:
        """Of the MP4."""
        return len(self.data)

    def pieces(self) -> Iterator[bytes]:
        """The MP4, in one piece."""
        yield self.data

    def pictures(self, shape: tuple[int, ...], steps: Sequence[int]) -> Iterator[tuple[int, Frame]]:
        """Some frames decoded again: step and (H, W, 3) of each, valid until the next one."""
        decoder, table, data = VideoDecoder(shape), self.table, memoryview(self.data)
        for step in steps:
            group = range(step - int(table.back[step]), step + 1)  # without B-frames, in the order of decoding
            packets = ((row, data[int(table.offset[row]) :][: int(table.size[row])]) for row in group)
            yield from decoder.pictures(table.stream, packets, {step}, f"frame {step}")


def library_versions() -> dict[str, str]:
    """Versions of what decides the bytes of a video, by name.

    Raises:
        OptionError: If PyAV is not installed.
    """
    av = pyav()
    return {"av": av.__version__, "libavcodec": ".".join(map(str, av.library_versions["libavcodec"]))}


class VideoEncoder:
    """Takes the frames of one camera and episode in order, and gives an MP4.

    Args:
        camera: For messages.
        shape: (H, W, 3) of the frames, of bytes, RGB. Odd sides are coded with one row or column more, a copy of the
            last one.
        fps: Steps a second, if known: what players show; nothing else depends on it but x264's choices.
        quality: See `VideoQuality`.

    Raises:
        OptionError: If PyAV is not installed.
    """

    def __init__(self, camera: str, shape: tuple[int, ...], fps: float | None, quality: VideoQuality) -> None:
        av = pyav()
        self._camera, self._shape = camera, shape
        height, width, _ = shape
        self._padding = ((0, height % 2), (0, width % 2), (0, 0))
        self._is_odd = bool(height % 2 or width % 2)
        self._target = io.BytesIO()
        self._container = av.open(self._target, "w", format="mp4", options={"fflags": "+bitexact"})
        rate = Fraction(fps or _DEFAULT_FPS).limit_denominator(_MOST) or Fraction(1, _MOST)
        self._stream = self._container.add_stream("libx264", rate=rate)
        self._stream.width, self._stream.height = width + width % 2, height + height % 2
        self._stream.pix_fmt = "yuv420p"
        context = self._stream.codec_context
        context.thread_count = 1
        context.options = {"crf": str(quality.crf), "preset": quality.preset, "tune": "fastdecode"}
        context.options |= {"x264-params": _parameters(quality.gop)}
        self._converter = av.video.reformatter.VideoReformatter()
        self._num_frames = 0

    def add(self, frame: Frame) -> None:
        """Encode a frame.

        Raises:
            LayoutError: If it is not of the camera's shape, or not of bytes.
        """
        if frame.shape != self._shape or frame.dtype != np.uint8:
            raise LayoutError(f"{self._camera}: a frame of {frame.dtype} {frame.shape}, wanted uint8 {self._shape}.")
        av = pyav()
        padded = np.pad(frame, self._padding, mode="edge") if self._is_odd else frame
        whole = np.ascontiguousarray(padded)
        picture = av.VideoFrame.from_ndarray(whole, format="rgb24")
        planes = self._converter.reformat(
            picture, format="yuv420p", dst_colorspace=_MATRIX, dst_color_range=_LIMITED, threads=1
        )
        planes.pts = self._num_frames
        self._num_frames += 1
        self._container.mux(self._stream.encode(planes))

    def finish(self) -> EncodedVideo:
        """The MP4 of all frames that were added.

        Raises:
            LayoutError: If there were none.
        """
        if not self._num_frames:
            raise LayoutError(f"{self._camera}: no frames, wanted at least one.")
        self._container.mux(self._stream.encode())
        self._container.close()
        return EncodedVideo(self._target.getvalue(), read_video_table(self._target, self._camera))


def _parameters(gop: int) -> str:
    values = {
        "keyint": gop,
        "min-keyint": gop,
        "scenecut": 0,
        "bframes": 0,
        "open-gop": 0,
        "lookahead-threads": 1,
        "cpu-independent": 1,
        "colormatrix": "smpte170m",
    }
    return ":".join(f"{name}={value}" for name, value in values.items())
