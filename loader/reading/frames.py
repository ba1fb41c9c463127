"""Frames as a batch holds them: decoded, and resized where the user asked for another size."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from epistream.errors import FormatError, OptionError
from epistream.sharding.format.codecs import decode_into, jpeg_shape
from epistream.sharding.format.features import Feature

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

    Shrinking a JPEG begins in its decoder: it is decoded at the smallest of libjpeg's scales (eighths) that is not
    smaller than what is wanted, and filtered from there. Against filtering the whole picture this takes 2.5 to 10
    times less and differs by 46 dB or more (simplejpeg 1.9, 480x640 frames of a simulated ALOHA to 224x224, 240x320,
    360x480 and 128x128), which is less than what JPEG itself changes.

    Args:
        feature: of the stored frames.
        shape: (H, W, C) of the frames to make.
    """

    def __init__(self, feature: Feature, shape: tuple[int, ...]) -> None:
        self.feature = feature
        self.shape = shape
        self._whole = feature.shape == shape
        self._dtype = np.dtype(feature.dtype)
        self._colorspace = "GRAY" if feature.shape[2] == 1 else (feature.jpeg_channels or "rgb").upper()
        height, width, num_channels = feature.shape
        # A grey JPEG decodes to three equal channels; a coloured one is never silently made grey.
        self._accepted = {(height, width, n) for n in range(1, num_channels + 1)}
        self._source: NDArray[Any] | None = None

    @property
    def is_copy(self) -> bool:
        """Whether the stored bytes are the frame as it is wanted."""
        return self._whole and self.feature.codec == "raw"

    def decode(self, data: bytes | memoryview, out: NDArray[Any], where: str) -> None:
        """Make one frame.

        Args:
            data: as stored.
            out: (H, W, C), C-contiguous, of the feature's dtype; overwritten.
            where: names the frame in messages.

        Raises:
            FormatError: the bytes are no such frame.
        """
        if self.feature.codec == "jpeg":
            if (found := jpeg_shape(data, where)) not in self._accepted:
                wanted = self.feature.shape
                raise FormatError(f"{where}: a JPEG of {found}, wanted {wanted}. Pack this episode again.")
            try:
                if self._whole:
                    # What decode_into does, without its checks of `out`, which cost a tenth of decoding a small frame.
                    simplejpeg.decode_jpeg(data, self._colorspace, buffer=out)
                    return
                height, width = self.shape[:2]
                frame = simplejpeg.decode_jpeg(data, self._colorspace, min_height=height, min_width=width)
            except ValueError as error:
                raise FormatError(
                    f"{where}: a JPEG that does not decode ({error}). Pack this episode again."
                ) from error
            resize_into(frame, out)
        elif self._whole:
            decode_into(self.feature, data, out, where)
        else:
            if self._source is None:
                self._source = np.empty(self.feature.shape, self._dtype)
            decode_into(self.feature, data, self._source, where)
            resize_into(self._source, out)


def resize_into(frame: NDArray[Any], out: NDArray[Any]) -> None:
    """Fill `out` (h, w, C) with `frame` (H, W, C) at its size; see `FrameOptions.image_size` for the filters."""
    if frame.shape == out.shape:
        out[...] = frame
        return
    height, width, num_channels = out.shape
    if frame.dtype == np.uint8 and num_channels in (1, 3):
        picture = Image.fromarray(frame[:, :, 0] if num_channels == 1 else frame)
        resized = picture.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)
        out[...] = np.asarray(resized).reshape(out.shape)
    else:
        out[...] = frame[_nearest(frame.shape[0], height)[:, None], _nearest(frame.shape[1], width)]


def _nearest(size: int, wanted: int) -> NDArray[np.int64]:
    """Which of `size` pixels lies under the middle of each of `wanted`."""
    return (np.arange(wanted, dtype=np.int64) * 2 + 1) * size // (2 * wanted)
