"""Frames at another size: pictures filtered, everything else by its nearest pixels."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def resized(frame: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """`frame` (H, W, C) as `shape` (h, w, C).

    Colour and grey frames of bytes are filtered (Lanczos), so that shrinking does not alias; of everything else, depth
    above all, whose values must not be mixed, the nearest pixel is taken.

    Returns:
        `frame` itself if it has that shape already, otherwise a new array that may be read-only.
    """
    if frame.shape == shape:
        return frame
    height, width, num_channels = shape
    if frame.dtype == np.uint8 and num_channels in (1, 3):
        picture = Image.fromarray(frame[:, :, 0] if num_channels == 1 else frame)
        filtered = picture.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)
        return np.asarray(filtered).reshape(shape)
    return frame[_nearest(frame.shape[0], height)[:, None], _nearest(frame.shape[1], width)]


def _nearest(size: int, wanted: int) -> NDArray[np.int64]:
    """Which of `size` pixels lies under the middle of each of `wanted`."""
    return (np.arange(wanted, dtype=np.int64) * 2 + 1) * size // (2 * wanted)
