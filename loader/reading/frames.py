"""Frames as a batch holds them: decoded, and resized where the user asked for another size."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from numpy.typing import NDArray

from epistream.errors import OptionError
from epistream.sharding.format.features import Feature, codec_of
from epistream.sharding.format.resizing import resized

logger = logging.getLogger(__name__)

Decode = Literal["auto", "once", "per_read"]


@dataclass(frozen=True)
class FrameOptions:
    """How a stream's camera frames are made.

    Args:
        image_size: (height, width) in pixels of all cameras; None leaves them as they are stored. Colour and grey
            cameras of bytes are filtered (Lanczos), so that shrinking does not alias; of everything else, depth
            above all, whose values must not be mixed, the nearest pixel is taken.
        decode: "per_read" decodes a frame whenever a window shows it; "once" decodes whole episodes, once per node,
            and keeps them in the cache as far as its budget goes; "auto" is "once" where all of them fit.

    Raises:
        OptionError: sizes below 1, or an unknown `decode`.
    """

    image_size: tuple[int, int] | None = None
    decode: Decode = "auto"

    def __post_init__(self) -> None:
        if self.decode not in get_args(Decode):
            raise OptionError(f"decode: {self.decode!r}, wanted one of {', '.join(get_args(Decode))}.")
        size = self.image_size
        if size is not None:
            pair = isinstance(size, tuple | list) and len(size) == 2
            if not pair or not all(isinstance(n, int) and 0 < n < 1 << 15 for n in size):
                raise OptionError(f"image_size: {size!r}, wanted (height, width) in pixels, for example (224, 224).")
            object.__setattr__(self, "image_size", tuple(size))

    def shown(self, feature: Feature) -> Feature:
        """The feature as batches hold it: the same, in another size if one was asked for."""
        if feature.kind != "frames" or self.image_size is None:
            return feature
        return replace(feature, shape=(*self.image_size, feature.shape[2]))

    def all_shown(self, features: Mapping[str, Feature]) -> dict[str, Feature]:
        """`shown` of each feature."""
        return {name: self.shown(feature) for name, feature in features.items()}


class FrameDecoder:
    """Turns the stored bytes of one camera's frames into arrays of one size. Not shared between threads.

    Shrinking begins in the decoder where a codec can do that (`Codec.decode_reduced`), and goes on by filtering.

    Args:
        feature: of the stored frames.
        shape: (H, W, C) of the frames to make.

    Attributes:
        is_copy: whether the stored bytes are the frame as it is wanted.

    Raises:
        FormatError: frames of this codec cannot be decoded one by one.
    """

    def __init__(self, feature: Feature, shape: tuple[int, ...]) -> None:
        self.feature = feature
        self.shape = shape
        self._codec = codec_of(feature)
        self._is_whole = feature.shape == shape
        self.is_copy = self._is_whole and self._codec.storage == "array"

    def decode(self, data: bytes | memoryview, out: NDArray[Any], where: str) -> None:
        """Make one frame.

        Args:
            data: as stored.
            out: (H, W, C), C-contiguous, of the feature's dtype; overwritten.
            where: names the frame in messages.

        Raises:
            FormatError: the bytes are no such frame.
        """
        if self._is_whole:
            self._codec.decode(data, out, where)
        else:
            out[...] = resized(self._codec.decode_reduced(data, self.shape[0], self.shape[1], where), self.shape)
