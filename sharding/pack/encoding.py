"""Turns the fields of one source episode into what a shard holds, a slab at a time."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from epistream.errors import LayoutError
from epistream.sharding.format.codecs import decode_into, encode_frame
from epistream.sharding.layouts.reading import read_frames, read_jpegs
from epistream.sharding.pack.outputs import Output

_PEAK = 255.0


@dataclass
class Fidelity:
    """What lossy encoding did to one camera, measured on the first and the middle frame of every episode.

    Args:
        num_frames: Frames measured.
        squared_error: Sum over them of the mean squared error.
        worst: Largest mean squared error of one frame.
    """

    num_frames: int = 0
    squared_error: float = 0.0
    worst: float = 0.0

    def add(self, other: "Fidelity") -> None:
        """Take in the measurements of another process."""
        self.num_frames += other.num_frames
        self.squared_error += other.squared_error
        self.worst = max(self.worst, other.worst)

    @property
    def mean_psnr_db(self) -> float:
        """Of the mean squared error over all measured frames; infinite if nothing was lost."""
        return _psnr(self.squared_error / max(1, self.num_frames))

    @property
    def worst_psnr_db(self) -> float:
        """Of the frame that lost most."""
        return _psnr(self.worst)


@dataclass
class FrameSource:
    """Makes the frames of one camera, and measures what encoding cost them.

    Args:
        file: The open source.
        output: What is wanted.
        length: Steps.
        quality: Of JPEG.
    """

    file: h5py.File
    output: Output
    length: int
    quality: int
    fidelity: Fidelity = field(default_factory=Fidelity)

    def encoded(self) -> Iterator[bytes]:
        """The members of a camera that is stored as one file a frame."""
        if self.output.is_copy:
            yield from read_jpegs(self.file, self.output.source, self.length)
            return
        feature = self.output.feature
        for step, frame in enumerate(self.arrays()):
            data = encode_frame(feature, frame, self.quality)
            if feature.codec == "jpeg" and step in (0, self.length // 2):
                self._measure(frame, data)
            yield data

    def arrays(self) -> Iterator[NDArray[Any]]:
        """The frames as arrays of the output's shape, each valid until the next one is asked for."""
        source, feature = self.output.source, self.output.feature
        frames = self._decoded() if source.feature.codec == "jpeg" else read_frames(self.file, source, self.length)
        for frame in frames:
            yield frame if frame.shape == feature.shape else resize(frame, feature.shape)

    def _decoded(self) -> Iterator[NDArray[Any]]:
        source = self.output.source
        channels = self.output.feature.jpeg_channels or source.feature.jpeg_channels
        feature = replace(source.feature, jpeg_channels=channels)
        frame = np.empty(feature.shape, feature.dtype)
        for step, data in enumerate(read_jpegs(self.file, source, self.length)):
            try:
                decode_into(feature, data, frame, f"{source.path}, step {step}")
            except ValueError as error:
                raise LayoutError(str(error).rstrip(".")) from error
            yield frame

    def _measure(self, frame: NDArray[Any], data: bytes) -> None:
        decoded = np.empty_like(frame, order="C")
        decode_into(self.output.feature, data, decoded, self.output.feature.name)
        error = float(np.mean((decoded.astype(np.float32) - frame) ** 2))
        self.fidelity.add(Fidelity(1, error, error))


def resize(frame: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """A uint8 colour or grey frame at another size, filtered so that shrinking does not alias."""
    picture = Image.fromarray(frame[:, :, 0] if frame.shape[2] == 1 else frame)
    resized = picture.resize((shape[1], shape[0]), Image.Resampling.LANCZOS, reducing_gap=3.0)
    return np.asarray(resized).reshape(shape)


def _psnr(squared_error: float) -> float:
    return float(10 * np.log10(_PEAK**2 / squared_error)) if squared_error > 0 else float("inf")
