"""Turns the frames of one source episode into what a shard holds, a few at a time."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import h5py
import numpy as np
from numpy.typing import NDArray

from epistream.errors import LayoutError
from epistream.sharding.format.features import codec_of
from epistream.sharding.layouts.reading import read_frames, read_jpegs
from epistream.sharding.opening.source_bytes import SourceBytes
from epistream.sharding.pack.outputs import Output
from epistream.sharding.pictures.codec import Codec
from epistream.sharding.pictures.codecs import CODECS
from epistream.sharding.pictures.fidelity import Fidelity
from epistream.sharding.pictures.resizing import resized
from epistream.sharding.pictures.video_encoder import EncodedVideo, VideoEncoder, VideoQuality


class RecordedFrames(Protocol):
    """The frames of one camera and episode in a source."""

    def stored(self) -> Iterator[Any]:
        """As they are, as `ShardWriter.add` takes them; asked for where its codec stores no plain pixels."""

    def arrays(self) -> Iterator[NDArray[Any]]:
        """Each (H, W, C), valid until the next one is asked for."""


@dataclass(frozen=True)
class Hdf5Frames:
    """Those of an open HDF5 file.

    Args:
        file: The file.
        output: What is to be made of which field.
        length: How many there are.
        content: The bytes of the file, if they are at hand.
    """

    file: h5py.File
    output: Output
    length: int
    content: SourceBytes | None = None

    def stored(self) -> Iterator[bytes]:
        """As `RecordedFrames.stored`."""
        return read_jpegs(self.file, self.output.source, self.length, self.content)

    def arrays(self) -> Iterator[NDArray[Any]]:
        """As `RecordedFrames.arrays`."""
        source = self.output.source
        is_files = CODECS[source.feature.codec].storage == "members"
        return self._decoded() if is_files else read_frames(self.file, source, self.length)

    def _decoded(self) -> Iterator[NDArray[Any]]:
        source = self.output.source
        channels = self.output.feature.jpeg_channels or source.feature.jpeg_channels
        codec = codec_of(replace(source.feature, jpeg_channels=channels))
        frame = np.empty(codec.shape, codec.dtype)
        for step, data in enumerate(read_jpegs(self.file, source, self.length, self.content)):
            try:
                codec.decode_into(data, frame, f"{source.path}, step {step}")
            except ValueError as error:
                raise LayoutError(str(error).rstrip(".")) from error
            yield frame


@dataclass
class FrameSource:
    """Makes the frames of one camera, and measures what encoding cost them.

    Args:
        recorded: The frames of the source.
        output: What to make of them.
        length: Of the episode, in steps.
        quality: Of JPEG.
        video: Of H.264.
        report: Called as each frame is read; what it raises ends the work.
        fidelity: What was measured.
    """

    recorded: RecordedFrames
    output: Output
    length: int
    quality: int
    video: VideoQuality
    report: Callable[[], None] = lambda: None
    fidelity: Fidelity = field(default_factory=Fidelity)

    def frames(self) -> Iterator[Any]:
        """The frames as `ShardWriter.add` takes them, each valid until the next one is asked for."""
        storage = CODECS[self.output.feature.codec].storage
        if storage == "video":
            yield from self.recorded.stored() if self.output.is_copy else [self._encoded_video()]
            return
        for frame in self._encoded() if storage == "members" else self._arrays():
            self.report()
            yield frame

    def _encoded_video(self) -> EncodedVideo:
        """One video of all frames, of which a few are held at a time."""
        feature = self.output.feature
        encoder = VideoEncoder(feature.name, feature.shape, feature.fps, self.video)
        sample = {}
        for step, frame in enumerate(self._arrays()):
            self.report()
            encoder.add(frame)
            if step in (0, self.length // 2):
                sample[step] = np.array(frame)
        video = encoder.finish()
        for step, decoded in video.pictures(feature.shape, list(sample)):
            self.fidelity.compare(sample[step], decoded)
        return video

    def _encoded(self) -> Iterator[bytes]:
        if self.output.is_copy:
            yield from self.recorded.stored()
            return
        codec = codec_of(self.output.feature)
        for step, frame in enumerate(self._arrays()):
            data = codec.encode(frame, self.quality)
            if codec.is_lossy and step in (0, self.length // 2):
                self._measure(codec, frame, data)
            yield data

    def _arrays(self) -> Iterator[NDArray[Any]]:
        """The frames in the output's shape."""
        for frame in self.recorded.arrays():
            yield resized(frame, self.output.feature.shape)

    def _measure(self, codec: Codec, frame: NDArray[Any], data: bytes) -> None:
        decoded = np.empty_like(frame, order="C")
        codec.decode_into(data, decoded, codec.camera)
        self.fidelity.compare(frame, decoded)
