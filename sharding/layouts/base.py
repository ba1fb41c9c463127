"""What a layout adapter gives: episodes described in full, their pictures not read yet."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import h5py
import numpy as np

from epistream.errors import FormatError, LayoutError
from epistream.sharding.format.features import Channels, Feature
from epistream.sharding.layouts.jpeg_rows import row_bytes, true_end
from epistream.sharding.layouts.judging import why_no_numbers, why_no_rows, why_too_large
from epistream.sharding.layouts.values import dataset, first_line
from epistream.sharding.opening.walking import CANNOT_OPEN
from epistream.sharding.pictures.codecs import jpeg_shape

# What the frames of a camera are worth looking at for: smaller 4-axis arrays are heat maps or tokens.
_MIN_FRAME_SIDE = 4


class NotPackableError(LayoutError):
    """A dataset that is whole, but nothing that a feature can hold."""


@dataclass(frozen=True)
class Field:
    """One dataset of an episode.

    Args:
        feature: What a reader of the source gets; its source path begins at the episode's group. Codec ``jpeg`` says
            that the rows are JPEG files, ``raw`` that they are arrays.
        path: Of the dataset, from the root of the file.
        num_bytes: As stored in the source, padding included.
        first_row: Row of step 0, for datasets that are shifted against the others.
        lengths_path: Dataset that announces where each padded JPEG ends, if there is one.
        spare_rows: Rows that may follow the last step, such as an observation after the last action.
        num_rows: Rows of the dataset.
        knows_channels: Whether the layout says in which channel order its JPEG is decoded; else RGB is assumed.
        axes: Those of a stored frame that are its height, width and channels; empty if it has them in this order.
    """

    feature: Feature
    path: str
    num_bytes: int
    first_row: int = 0
    lengths_path: str | None = None
    spare_rows: int = 0
    num_rows: int = 0
    axes: tuple[int, ...] = ()
    knows_channels: bool = False


@dataclass(frozen=True)
class Candidate:
    """What a layout takes for a feature, before anything of it is looked at.

    Args:
        name: Of the feature it would be.
        path: Of the dataset, from the episode's group.
        is_camera: Whether its rows are pictures.
        reason: Why it is not packed, if that is known.
    """

    name: str
    path: str
    is_camera: bool
    reason: str = ""


class Choice(Protocol):
    """What of an episode is wanted, and under which names. It is asked before anything is judged."""

    def takes(self, candidate: Candidate) -> bool:
        """Whether it is wanted."""

    def names(self, candidates: Sequence[Candidate]) -> list[str]:
        """What they are to be called."""


@dataclass(frozen=True)
class SourceEpisode:
    """One episode of a source file, as its layout adapter describes it.

    Args:
        group: Where in the file, ``/`` or for example ``/data/demo_2``.
        length: Steps.
        fields: What it holds.
        tasks: Its instructions.
        valid_ranges: Half-open step ranges that may be anchors; None is all.
        split: Where the file's own masks put it, or None.
        attributes: Whatever else the source says, as JSON can hold it.
        left_out: Paths in the source that are not packed, each with ``(reason)`` where it could have been a feature.
        refused: What could have been a feature, and why it is none.
        dropped: What `Choice` did not want.
    """

    group: str
    length: int
    fields: tuple[Field, ...]
    tasks: tuple[str, ...] = ()
    valid_ranges: tuple[tuple[int, int], ...] | None = None
    split: str | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    refused: tuple[Candidate, ...] = ()
    dropped: tuple[Candidate, ...] = ()


class Layout(Protocol):
    """One way in which people lay out episodes in HDF5. Adapters keep no state and open no files."""

    @property
    def name(self) -> str:
        """What ``--layout`` calls it."""

    @property
    def looks_for(self) -> str:
        """What a file must hold, for the message about a file that fits none."""

    def matches(self, file: h5py.File) -> bool:
        """Whether `file` is of this layout."""

    def groups(self, file: h5py.File) -> list[str]:
        """The episodes of `file`, in order."""

    def episode(self, file: h5py.File, group: str, choice: Choice | None = None) -> SourceEpisode:
        """Describe one; without a choice, all of it.

        Raises:
            LayoutError: If it breaks the layout; the message begins with the path inside the file.
        """


def group_at(file: h5py.File, path: str) -> h5py.Group:
    """The group at `path`.

    Raises:
        LayoutError: If there is none, or it cannot be opened.
    """
    try:
        found = file[path]
    except CANNOT_OPEN as error:
        raise LayoutError(f"{path}: cannot be opened ({first_line(error)}), wanted a group") from error
    if not isinstance(found, h5py.Group):
        raise LayoutError(f"{path}: is no group, wanted one")
    return found


def array_field(file: h5py.File, path: str, name: str, *, fps: float | None = None) -> Field:
    """A field for the numbers at `path`.

    Raises:
        NotPackableError: If they are no numbers that an array feature can hold.
        LayoutError: If they cannot be opened, or cannot be as many as the file says.
    """
    found = dataset(file, path)
    why = why_no_numbers(found)
    if why:
        raise NotPackableError(f"{path}: {why}, wanted numbers")
    _check_size(found, path, "array")
    feature = Feature(name, "array", found.dtype.name, tuple(found.shape[1:]), "npy", fps=fps)
    return Field(feature, path, found.nbytes, num_rows=found.shape[0])


def frames_field(
    file: h5py.File,
    path: str,
    name: str,
    *,
    jpeg_channels: Channels | None = None,
    fps: float | None = None,
    lengths_path: str | None = None,
) -> Field:
    """A field for the camera at `path`: arrays, or rows that are JPEG files.

    Args:
        file: The source.
        path: Of the dataset: (T, H, W, C) or (T, H, W) arrays, (T, padded) uint8, or (T,) strings of bytes.
        name: Of the feature.
        jpeg_channels: What the layout's own reader decodes JPEG rows to; RGB is assumed where it does not know.
        fps: Steps per second.
        lengths_path: Where the ends of the rows are announced.

    Raises:
        LayoutError: If it is no camera.
    """
    found = dataset(file, path)
    is_bytes = why_no_rows(found) is None and found.dtype.kind in "SO" and found.ndim == 1
    is_bytes = is_bytes and not h5py.check_ref_dtype(found.dtype)
    why = None if is_bytes else why_no_numbers(found)
    if why or not (is_bytes or found.ndim >= 3 or (found.dtype == np.uint8 and found.ndim == 2)):
        why = why or f"{found.dtype} {found.shape}"
        raise NotPackableError(f"{path}: {why}, wanted a camera: (T, H, W, C) arrays or rows of JPEG bytes")
    _check_size(found, path, "frames")
    if found.ndim >= 3:
        shape = _frame_shape(found, path)
        feature = Feature(name, "frames", found.dtype.name, shape, "raw", fps=fps)
        return Field(feature, path, found.nbytes, num_rows=found.shape[0])
    if not len(found):
        raise LayoutError(f"{path}: no rows, wanted at least 1 step")
    row = row_bytes(found[0])
    where = f"{path}, step 0"
    try:
        height, width, _ = jpeg_shape(row[: true_end(row, (), where)], where)
        # Three channels even for a grey JPEG: that is what the readers of these files get from OpenCV.
        channels = jpeg_channels or "rgb"
        feature = Feature(name, "frames", "uint8", (height, width, 3), "jpeg", channels, fps=fps)
    except FormatError as error:
        raise LayoutError(str(error)) from error
    # Rows of variable length are references of 16 bytes each; the first row stands for all.
    num_bytes = len(row) * len(found) if found.dtype.kind == "O" else found.nbytes
    return Field(
        feature,
        path,
        num_bytes,
        lengths_path=lengths_path,
        num_rows=found.shape[0],
        knows_channels=jpeg_channels is not None,
    )


def looks_like_frames(file: h5py.File, path: str) -> bool:
    """Whether a dataset among low-dimensional ones is a camera: (T, H, W, 1 to 4)."""
    try:
        shape: tuple[int, ...] = dataset(file, path).shape or ()
    except LayoutError:
        return False
    return len(shape) == 4 and shape[3] <= 4 and min(shape[1:3]) >= _MIN_FRAME_SIDE


def _check_size(found: h5py.Dataset, path: str, kind: Literal["array", "frames"]) -> None:
    why = why_too_large(found, kind)
    if why:
        raise LayoutError(f"{path}: {why}")


def _frame_shape(found: h5py.Dataset, path: str) -> tuple[int, int, int]:
    shape = found.shape[1:] if found.ndim == 4 else (*found.shape[1:], 1)
    if found.ndim > 4:
        raise LayoutError(f"{path}: {found.dtype} {found.shape}, wanted (T, H, W, C) or (T, H, W) numbers")
    height, width, channels = shape
    if channels > 4 and height <= 4:
        raise LayoutError(
            f"{path}: frames of {shape}, wanted channels last. In a layout file, 'transpose: chw' reads them"
        )
    return height, width, channels


def turned(field: Field, rotate: Literal[0, 180]) -> Field:
    """`field` with a record of how its pictures must be turned to be upright."""
    return replace(field, feature=replace(field.feature, rotate=rotate))
