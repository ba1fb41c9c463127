"""Camera frames to bytes and back: JPEG, PNG and raw, each decoded into a buffer that the caller owns."""

import io
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from epistream.errors import FormatError, LayoutError
from epistream.sharding.format.features import Feature

Frame = NDArray[Any]
Encoded = bytes | memoryview

# Pillow's mode of a decoded PNG, by the frame's dtype and channels.
_PNG_MODES = {
    ("uint8", 1): ("L",),
    ("uint8", 2): ("LA",),
    ("uint8", 3): ("RGB",),
    ("uint8", 4): ("RGBA",),
    ("uint16", 1): ("I;16", "I;16L"),
}
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# On a rendered 480x640 frame level 6 takes 1.5 times as long as level 3 for 13 % fewer bytes, level 9 takes
# 5 times as long for 20 % fewer.
_PNG_COMPRESS_LEVEL = 6


def png_can_hold(dtype: str, num_channels: int) -> bool:
    """Whether a PNG keeps every bit of such a frame."""
    return (dtype, num_channels) in _PNG_MODES


def jpeg_can_hold(dtype: str, num_channels: int) -> bool:
    """Whether such a frame can become a JPEG at all."""
    return dtype == "uint8" and num_channels in (1, 3)


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


def decode_into(feature: Feature, data: Encoded, out: Frame, where: str) -> None:
    """Decode one frame into `out`.

    Args:
        feature: Says the codec, the shape and the channel order.
        data: The frame's bytes as stored.
        out: (H, W, C) of `feature.dtype`, C-contiguous and writable; every element is overwritten. The caller
            keeps it; after an error its content is undefined.
        where: Names the frame in messages.

    Raises:
        FormatError: If the bytes are no such frame. Size and colours are compared before anything is decoded,
            because a decoder given too small a buffer leaks or overruns it.
    """
    if out.shape != feature.shape or out.dtype != feature.dtype or not out.flags.c_contiguous:
        raise FormatError(
            f"{where}: a buffer of {out.dtype} {out.shape}, wanted contiguous {feature.dtype} {feature.shape}."
        )
    if feature.codec == "jpeg":
        _decode_jpeg(feature, data, out, where)
    elif feature.codec == "png":
        _decode_png(feature, data, out, where)
    elif feature.codec == "raw":
        _copy_raw(feature, data, out, where)
    else:
        raise FormatError(f"{where}: codec {feature.codec!r}, wanted jpeg, png or raw: this is no camera.")


def encode_frame(feature: Feature, frame: Frame, quality: int = 95) -> bytes:
    """The bytes that `decode_into` turns back into `frame` (about, for JPEG).

    The same frame gives the same bytes.

    Args:
        feature: Says the codec, the shape and the channel order.
        frame: (H, W, C) of `feature.dtype`.
        quality: Of a JPEG, 1 to 100; its colour planes are stored at half the resolution (4:2:0).

    Raises:
        LayoutError: If the frame is not what the feature says.
    """
    if frame.shape != feature.shape or frame.dtype != feature.dtype:
        raise LayoutError(
            f"{feature.name}: a frame of {frame.dtype} {frame.shape}, wanted {feature.dtype} {feature.shape}."
        )
    frame = np.ascontiguousarray(frame)
    if feature.codec == "jpeg":
        return _encode_jpeg(feature, frame, quality)
    if feature.codec == "png":
        return _encode_png(frame)
    return frame.astype(frame.dtype.newbyteorder("<"), copy=False).tobytes()


def _colorspace(feature: Feature) -> str:
    return "GRAY" if feature.shape[2] == 1 else (feature.jpeg_channels or "rgb").upper()


def _decode_jpeg(feature: Feature, data: Encoded, out: Frame, where: str) -> None:
    height, width, num_channels = jpeg_shape(data, where)
    # A grey JPEG decodes to three equal channels, as OpenCV does; a coloured one is never silently made grey.
    if (height, width) != feature.shape[:2] or num_channels > feature.shape[2]:
        raise FormatError(f"{where}: a JPEG of {(height, width, num_channels)}, wanted {feature.shape}.")
    try:
        simplejpeg.decode_jpeg(data, _colorspace(feature), buffer=out)
    except ValueError as error:
        raise FormatError(f"{where}: a JPEG that does not decode ({error}). Pack this episode again.") from error


def _encode_jpeg(feature: Feature, frame: Frame, quality: int) -> bytes:
    grey = feature.shape[2] == 1
    encoded: bytes = simplejpeg.encode_jpeg(
        frame,
        quality=quality,
        colorspace=_colorspace(feature),
        colorsubsampling="Gray" if grey else "420",
        fastdct=False,
    )
    return encoded


def _decode_png(feature: Feature, data: Encoded, out: Frame, where: str) -> None:
    # Width and height stand at fixed places, so that no decoder is asked about nonsense.
    head = bytes(data[:24])
    if len(head) < 24 or not head.startswith(_PNG_SIGNATURE):
        raise FormatError(f"{where}: {len(data)} bytes that are no PNG, wanted a PNG picture.")
    size = (int.from_bytes(head[20:24], "big"), int.from_bytes(head[16:20], "big"))
    if size != feature.shape[:2]:
        raise FormatError(f"{where}: a PNG of {size}, wanted {feature.shape[:2]}.")
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            modes = _PNG_MODES.get((feature.dtype, feature.shape[2]), ())
            if image.mode not in modes:
                raise FormatError(f"{where}: a PNG of mode {image.mode}, wanted {' or '.join(modes) or 'no PNG'}.")
            out[...] = np.asarray(image).reshape(feature.shape)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"{where}: a PNG that does not decode ({error}). Pack this episode again.") from error


def _encode_png(frame: Frame) -> bytes:
    target = io.BytesIO()
    picture = frame[:, :, 0] if frame.shape[2] == 1 else frame
    Image.fromarray(picture).save(target, format="PNG", compress_level=_PNG_COMPRESS_LEVEL)
    return target.getvalue()


def _copy_raw(feature: Feature, data: Encoded, out: Frame, where: str) -> None:
    if len(data) != feature.step_bytes:
        raise FormatError(f"{where}: {len(data):,} bytes, wanted {feature.step_bytes:,} for {feature.shape}.")
    out[...] = np.frombuffer(data, np.dtype(feature.dtype).newbyteorder("<")).reshape(feature.shape)
