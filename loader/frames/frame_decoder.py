"""Stored frames of one camera into arrays of one size: single pictures, or runs of a video."""

from collections.abc import Container, Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epistream.lru import Lru
from epistream.sharding.format.features import Feature, codec_of
from epistream.sharding.pictures.codec import Encoded
from epistream.sharding.pictures.codecs import CODECS
from epistream.sharding.pictures.resizing import resized
from epistream.sharding.pictures.video import VideoDecoder, VideoStream

# Episodes that were recorded in other ways have streams of their own; a decoder holds a few pictures and parameters.
_MOST_STREAMS = 8
_PICTURES_KEPT = 4


class FrameDecoder:
    """Turns the stored bytes of one camera's frames into arrays of one size. Not shared between threads.

    Shrinking begins in the decoder where a codec can do that (`Codec.decode_reduced`), and goes on by filtering.

    Args:
        feature: of the stored frames.
        shape: (H, W, C) of the frames to make.
        as_planes: make planes of the stored size, of a video; see `sharding/pictures/planes.py`.

    Attributes:
        is_video: whether frames depend on each other: `pictures` makes them, else `decode`.
        is_copy: whether the stored bytes are the frame as it is wanted.
        num_bytes: of a frame as it is wanted.

    Raises:
        FormatError: no codec has this name.
    """

    def __init__(self, feature: Feature, shape: tuple[int, ...], *, as_planes: bool = False) -> None:
        self.feature = feature
        self.shape = shape
        self.is_video = feature.codec in CODECS and CODECS[feature.codec].storage == "video"
        self._codec = None if self.is_video else codec_of(feature)
        # Of each stream: what a decoder holds of one is of no use to another.
        self._videos: Lru[VideoStream, VideoDecoder] = Lru(_MOST_STREAMS)
        self._is_whole = feature.shape == shape
        self._as_planes = as_planes
        self.is_copy = self._is_whole and self._codec is not None and self._codec.storage == "array"
        self.num_bytes = replace(feature, shape=shape).step_bytes

    def decode(self, data: bytes | memoryview, out: NDArray[Any], where: str) -> None:
        """Make one frame.

        Args:
            data: as stored.
            out: (H, W, C), C-contiguous, of the feature's dtype; overwritten.
            where: names the frame in messages.

        Raises:
            FormatError: the bytes are no such frame, or only part of a video.
        """
        codec = self._codec or codec_of(self.feature)  # which refuses a video
        if self._is_whole:
            codec.decode(data, out, where)
        else:
            out[...] = resized(codec.decode_reduced(data, self.shape[0], self.shape[1], where), self.shape)

    def pictures(
        self, stream: VideoStream, packets: Iterable[tuple[int, Encoded]], wanted: Container[int], where: str
    ) -> Iterator[tuple[int, NDArray[Any]]]:
        """Make the wanted frames of a run of a video, see `VideoDecoder.pictures`.

        Yields:
            Number and (H, W, C) of each, in the order of presentation; valid until the next one.

        Raises:
            FormatError: a frame that does not decode.
            OptionError: PyAV is not installed.
        """
        video = self._videos.get(stream)
        if video is None:
            _let_pictures_stay(self.feature.step_bytes)
            video = VideoDecoder(self.feature.shape, as_planes=self._as_planes)
            self._videos.put(stream, video)
        pictures = video.pictures(stream, packets, wanted, where)
        if self._is_whole:
            return pictures
        return ((number, np.asarray(resized(picture, self.shape))) for number, picture in pictures)


def _let_pictures_stay(num_bytes: int) -> None:
    """Let glibc's allocator keep the memory of a few pictures of so many bytes, which come and go.

    By itself it returns them to the system, and each next one pays for fresh pages: 0.68 instead of 0.52 ms a frame of
    640x480 in groups of 2. It learns by what is freed (mallopt(3), M_MMAP_THRESHOLD), so it is given an array to free,
    which nobody has touched. It takes no lesson from more than 32 MiB.
    """
    np.empty(min(_PICTURES_KEPT * num_bytes, (32 << 20) - (64 << 10)), np.uint8)
