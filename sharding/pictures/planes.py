"""Decoded video before it is colours: planes of brightness and of colour at half the resolution (I420).

They are half as many bytes as RGB. Turning them into RGB is most of what is left of decoding a picture: whoever shows a
picture once loses nothing by keeping planes.
"""

from typing import Any

import numpy as np

from epistream.sharding.pictures.codec import Frame
from epistream.sharding.pictures.video import VideoStream, pyav, rgb_of

# Whose planes all other ones are equal to, but for what the stream says of their range.
_FORMAT = "yuv420p"


def planes_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """(rows, columns) of bytes that hold the planes of a picture (H, W, 3), one after the other.

    Odd sides are coded with one row or column more.
    """
    height, width = shape[0] + shape[0] % 2, shape[1] + shape[1] % 2
    return height * 3 // 2, width


class Colours:
    """Makes RGB of planes, the same bits as `VideoDecoder` makes. Not shared between threads."""

    def __init__(self) -> None:
        self._converter: Any = None
        self._frame: Any = None

    def write(self, planes: Frame, stream: VideoStream, out: Frame) -> None:
        """Turn one picture into colours.

        Args:
            planes: Bytes of `planes_shape`, C-contiguous. They are copied first: swscale reads beyond the ends of
                planes, where FFmpeg leaves room behind those that it makes.
            stream: That they were decoded from.
            out: (H, W, 3) uint8; overwritten.

        Raises:
            OptionError: If PyAV is not installed.
        """
        av = pyav()
        height, width = planes.shape[0] * 2 // 3, planes.shape[1]
        if self._converter is None:
            self._converter = av.video.reformatter.VideoReformatter()
        if self._frame is None or (self._frame.height, self._frame.width) != (height, width):
            self._frame = av.VideoFrame(width, height, _FORMAT)
        flat, start = planes.reshape(-1), 0
        for plane in self._frame.planes:
            rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: plane.height, : plane.width]
            rows[...] = flat[start : start + rows.size].reshape(rows.shape)
            start += rows.size
        np.copyto(out, rgb_of(self._frame, stream, self._converter, out.shape))
