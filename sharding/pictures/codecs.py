"""Camera frames to bytes and back: one class a codec.

Whoever wants to know something of a codec asks its class, and nobody compares names: a new codec of single pictures is
one class more in this file, and its place in the table `CODECS`.
"""

import io
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image

from epistream.errors import FormatError
from epistream.sharding.pictures.codec import Codec, Encoded, Frame
from epistream.sharding.pictures.headers import png_size, webp_size
from epistream.sharding.pictures.video_codecs import Av1, Hevc, Video
from epistream.units import picture_size

REMEDY = "Pack, record or download this episode again."

# Pillow's modes of a decoded PNG, by the frame's dtype and channels. What a PNG announces is the first.
_PNG_MODES = {
    ("uint8", 1): ("L",),
    ("uint8", 2): ("LA",),
    ("uint8", 3): ("RGB",),
    ("uint8", 4): ("RGBA",),
    ("uint16", 1): ("I;16", "I;16L"),
}
_PNG_ANNOUNCED = {modes[0]: kind for kind, modes in _PNG_MODES.items()}
# On a rendered 480x640 frame level 6 takes 1.5 times as long as level 3 for 13 % fewer bytes, level 9 takes
# 5 times as long for 20 % fewer.
_PNG_COMPRESS_LEVEL = 6


class Jpeg(Codec):
    """Colour or grey pictures of bytes; colour planes are stored at half the resolution (4:2:0)."""

    name = "jpeg"
    suffixes = (".jpg", ".jpeg")
    library = "simplejpeg"
    ratios = ((75, 0.05), (90, 0.08), (100, 0.12))
    holds = frozenset({("uint8", 1), ("uint8", 3)})
    is_lossy = True
    has_channel_order = True

    def __init__(self, camera: str, dtype: str, shape: tuple[int, ...], channels: str | None) -> None:
        super().__init__(camera, dtype, shape, channels)
        height, width, num_channels = shape
        self._colorspace = "GRAY" if num_channels == 1 else (self.channels or "rgb").upper()
        # A grey JPEG decodes to three equal channels, as OpenCV does; a coloured one is never silently made grey.
        self._accepted = {(height, width, n) for n in range(1, num_channels + 1)}

    @classmethod
    def problem(cls, dtype: str, shape: tuple[int, ...]) -> str | None:
        """Frames that cannot be encoded."""
        return None if cls.can_hold(dtype, shape[2]) else f"{dtype} {shape} as JPEG, wanted uint8 with 1 or 3 channels"

    @staticmethod
    def announced(data: Encoded, where: str) -> tuple[str, tuple[int, int, int]]:
        """As `jpeg_shape`."""
        return "uint8", jpeg_shape(data, where)

    def decode(self, data: Encoded, out: Frame, where: str) -> None:
        """In the channel order of the feature."""
        self._check(data, where)
        try:
            simplejpeg.decode_jpeg(data, self._colorspace, buffer=out)
        except ValueError as error:
            raise FormatError(f"{where}: a JPEG that does not decode ({error}). {REMEDY}") from error

    def decode_reduced(self, data: Encoded, height: int, width: int, where: str) -> Frame:
        """At the smallest of libjpeg's scales (eighths) that will do.

        Against filtering the whole picture this takes 2.5 to 10 times less and differs by 46 dB or more (simplejpeg
        1.9, 640x480 frames of a simulated ALOHA to 224x224, 320x240, 480x360 and 128x128), which is less than what
        JPEG itself changes.
        """
        self._check(data, where)
        try:
            frame: Frame = simplejpeg.decode_jpeg(data, self._colorspace, min_height=height, min_width=width)
        except ValueError as error:
            raise FormatError(f"{where}: a JPEG that does not decode ({error}). {REMEDY}") from error
        return frame

    def _check(self, data: Encoded, where: str) -> None:
        if (found := jpeg_shape(data, where)) not in self._accepted:
            raise FormatError(f"{where}: a JPEG of {picture_size(found)}, wanted {picture_size(self.shape)}. {REMEDY}")

    def _encode(self, frame: Frame, quality: int) -> bytes:
        encoded: bytes = simplejpeg.encode_jpeg(
            frame,
            quality=quality,
            colorspace=self._colorspace,
            colorsubsampling="Gray" if self.shape[2] == 1 else "420",
            fastdct=False,
        )
        return encoded


class Png(Codec):
    """Pictures of bytes with up to four channels, or of 16 bits with one, every bit kept."""

    name = "png"
    suffixes = (".png",)
    library = "pillow"
    ratios = ((100, 0.5),)
    holds = frozenset(_PNG_MODES)

    @classmethod
    def problem(cls, dtype: str, shape: tuple[int, ...]) -> str | None:
        """Values that no PNG has."""
        return None if dtype in ("uint8", "uint16") else f"{dtype} as PNG, wanted uint8 or uint16"

    @staticmethod
    def announced(data: Encoded, where: str) -> tuple[str, tuple[int, int, int]]:
        """Colours by Pillow."""
        height, width = png_size(data, where)
        try:
            with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
                dtype, channels = _PNG_ANNOUNCED[image.mode]
                return dtype, (height, width, channels)
        except KeyError as error:
            raise FormatError(f"{where}: a PNG in mode {error}, wanted {', '.join(_PNG_ANNOUNCED)}.") from error
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise FormatError(f"{where}: no PNG ({error}), wanted one.") from error

    def decode(self, data: Encoded, out: Frame, where: str) -> None:
        """By Pillow, once the size is known to be right."""
        size = png_size(data, where)
        if size != self.shape[:2]:
            raise FormatError(f"{where}: a PNG of {picture_size(size)}, wanted {picture_size(self.shape[:2])}.")
        try:
            with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
                modes = _PNG_MODES.get((self.dtype, self.shape[2]), ())
                if image.mode not in modes:
                    raise FormatError(f"{where}: a PNG of mode {image.mode}, wanted {' or '.join(modes) or 'no PNG'}.")
                out[...] = np.asarray(image).reshape(self.shape)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            if isinstance(error, FormatError):
                raise
            raise FormatError(f"{where}: a PNG that does not decode ({error}). {REMEDY}") from error

    def _encode(self, frame: Frame, quality: int) -> bytes:
        picture = frame[:, :, 0] if frame.shape[2] == 1 else frame
        return _saved(picture, format="PNG", compress_level=_PNG_COMPRESS_LEVEL)


def _saved(picture: Frame, **options: Any) -> bytes:
    target = io.BytesIO()
    Image.fromarray(picture).save(target, **options)
    return target.getvalue()


class Raw(Codec):
    """Frames of any numbers as they are, little endian."""

    name = "raw"
    suffixes = (".npy",)
    storage = "array"
    library = "numpy"
    ratios = ((100, 1.0),)

    def decode(self, data: Encoded, out: Frame, where: str) -> None:
        """A copy."""
        dtype = np.dtype(self.dtype).newbyteorder("<")
        wanted = math.prod(self.shape) * dtype.itemsize
        if len(data) != wanted:
            raise FormatError(f"{where}: {len(data):,} bytes, wanted {wanted:,} for {self.shape}.")
        out[...] = np.frombuffer(data, dtype).reshape(self.shape)

    def _encode(self, frame: Frame, quality: int) -> bytes:
        return frame.astype(frame.dtype.newbyteorder("<"), copy=False).tobytes()


class Webp(Codec):
    """Colour pictures of bytes, with or without transparency: of any kind when read, every bit kept when written."""

    name = "webp"
    suffixes = (".webp",)
    library = "pillow"
    ratios = ((100, 0.4),)
    holds = frozenset({("uint8", 3), ("uint8", 4)})

    @classmethod
    def problem(cls, dtype: str, shape: tuple[int, ...]) -> str | None:
        """Frames that cannot be encoded."""
        return None if cls.can_hold(dtype, shape[2]) else f"{dtype} {shape} as WebP, wanted uint8 with 3 or 4 channels"

    @staticmethod
    def announced(data: Encoded, where: str) -> tuple[str, tuple[int, int, int]]:
        """By Pillow, which has read no more than the header until somebody asks for pixels."""
        with _still_webp(data, where) as image:
            return "uint8", _webp_shape(image)

    def decode(self, data: Encoded, out: Frame, where: str) -> None:
        """By Pillow, once the size is known to be right."""
        # Before Pillow, which makes room for two pictures when it opens one.
        if (size := webp_size(data, where)) != self.shape[:2]:
            raise FormatError(
                f"{where}: a WebP of {picture_size(size)}, wanted {picture_size(self.shape[:2])}. {REMEDY}"
            )
        with _still_webp(data, where) as image:
            if (found := _webp_shape(image)) != self.shape:
                raise FormatError(
                    f"{where}: a WebP of {picture_size(found)}, wanted {picture_size(self.shape)}. {REMEDY}"
                )
            try:
                out[...] = np.asarray(image)
            except (OSError, SyntaxError) as error:
                raise FormatError(f"{where}: a WebP that does not decode ({error}). {REMEDY}") from error

    def _encode(self, frame: Frame, quality: int) -> bytes:
        return _saved(frame, format="WEBP", lossless=True, exact=True)


def _still_webp(data: Encoded, where: str) -> Image.Image:
    """An open WebP of one picture, of which no more than the header was read; the caller closes it."""
    try:
        image = Image.open(io.BytesIO(data), formats=["WEBP"])
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise FormatError(f"{where}: {len(data)} bytes that are no WebP ({error}), wanted one.") from error
    if getattr(image, "is_animated", False):
        image.close()
        raise FormatError(f"{where}: a WebP that moves, wanted one picture. Store each as a frame.")
    return image


def _webp_shape(image: Image.Image) -> tuple[int, int, int]:
    return image.height, image.width, len(image.getbands())


# Where a camera must be kept exactly, packing takes the first of those without loss that can hold it.
CODECS: dict[str, type[Codec]] = {codec.name: codec for codec in (Jpeg, Png, Raw, Webp, Video, Hevc, Av1)}


class _Written(Mapping[str, type[Codec]]):
    """Those of `CODECS` that packing encodes, as that table is when somebody asks."""

    def __getitem__(self, name: str) -> type[Codec]:
        codec = CODECS[name]
        if not codec.is_written:
            raise KeyError(name)
        return codec

    def __iter__(self) -> Iterator[str]:
        return (name for name, codec in CODECS.items() if codec.is_written)

    def __len__(self) -> int:
        return sum(codec.is_written for codec in CODECS.values())


WRITTEN = _Written()
# What packing makes of pictures that are arrays in the source.
DEFAULT_CODEC: type[Codec] = Jpeg


def codec_of_suffix(suffix: str) -> type[Codec] | None:
    """The codec of tar members whose names end so (``.jpg``); None if none writes them."""
    return next((codec for codec in CODECS.values() if suffix in codec.suffixes), None)


def codec_names() -> str:
    """All names for a message: jpeg, png, raw or webp."""
    *names, last = CODECS
    return f"{', '.join(names)} or {last}"


def jpeg_shape(data: Encoded, where: str) -> tuple[int, int, int]:
    """Height, width and channels that a JPEG's header announces.

    Raises:
        FormatError: If the header cannot be read, or announces colours that have no RGB.
    """
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError as error:
        raise FormatError(f"{where}: {len(data)} bytes that are no JPEG ({error}), wanted a JPEG picture.") from error
    if colorspace not in ("YCbCr", "RGB", "Gray"):
        raise FormatError(f"{where}: a JPEG in {colorspace}, wanted YCbCr, RGB or Gray. Convert it first.")
    return height, width, 1 if colorspace == "Gray" else 3
