"""Cameras whose stored frames have other axes than (H, W, C), as PyTorch's (C, H, W)."""

from typing import Literal

import h5py

from epistream.errors import LayoutError
from epistream.sharding.format.features import Feature
from epistream.sharding.layouts.base import Field
from epistream.sharding.layouts.judging import why_no_numbers, why_too_large
from epistream.sharding.layouts.values import dataset

# How the axes of a stored frame may follow each other.
StoredAxes = Literal["chw", "cwh", "whc", "wch", "hcw"]
_MAX_CHANNELS = 4


def transposed_field(file: h5py.File, path: str, name: str, *, stored: str, fps: float | None) -> Field:
    """A field for the camera at `path`, whose frames become (H, W, C) as they are read.

    Args:
        file: The source.
        path: Of the dataset, four axes, steps first.
        name: Of the feature.
        stored: One of `StoredAxes`.
        fps: Steps per second.

    Raises:
        LayoutError: If it is no such camera.
    """
    found = dataset(file, path)
    axes = tuple(stored.index(axis) for axis in "hwc")
    wanted = f"(T, {', '.join(stored.upper())}) arrays of numbers, as 'transpose: {stored}' says"
    why = why_no_numbers(found) or ("" if found.ndim == 4 else f"{found.dtype} {found.shape}")
    if why:
        raise LayoutError(f"{path}: {why}, wanted {wanted}")
    too_large = why_too_large(found, "frames")
    if too_large:
        raise LayoutError(f"{path}: {too_large}")
    height, width, channels = (found.shape[1 + axis] for axis in axes)
    if channels > _MAX_CHANNELS and min(height, width) <= _MAX_CHANNELS:
        raise LayoutError(
            f"{path}: {found.shape}, of which {channels} would be channels, wanted {wanted}. Correct 'transpose' in "
            "the layout file, or leave it out if channels are last"
        )
    feature = Feature(name, "frames", found.dtype.name, (height, width, channels), "raw", fps=fps)
    return Field(feature, path, found.nbytes, num_rows=found.shape[0], axes=axes)
