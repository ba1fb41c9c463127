"""What a layout adapter gives: episodes described in full, their pictures not read yet."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import h5py
import numpy as np

from epistream.errors import FormatError, LayoutError
from epistream.sharding.format.features import DTYPES, Channels, Feature
from epistream.sharding.layouts.jpeg_rows import row_bytes, true_end
from epistream.sharding.pictures.codecs import jpeg_shape

# Simulator models of 100 kB and more ride in attributes; they are named in `left_out` and not copied.
MAX_ATTRIBUTE_CHARS = 16_384
# What the frames of a camera are worth looking at for: smaller 4-axis arrays are heat maps or tokens.
_MIN_FRAME_SIDE = 4


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
    """

    feature: Feature
    path: str
    num_bytes: int
    first_row: int = 0
    lengths_path: str | None = None


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
        left_out: Paths in the source that are not packed.
    """

    group: str
    length: int
    fields: tuple[Field, ...]
    tasks: tuple[str, ...] = ()
    valid_ranges: tuple[tuple[int, int], ...] | None = None
    split: str | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()


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

    def episode(self, file: h5py.File, group: str) -> SourceEpisode:
        """Describe one.

        Raises:
            LayoutError: If it breaks the layout; the message begins with the path inside the file.
        """


def feature_name(text: str) -> str:
    """`text` as part of a feature's name: lower case, and an underscore for what tar members cannot have."""
    return re.sub(r"[^a-z0-9_.\-]", "_", text.lower()).strip("/")


def dataset(file: h5py.File, path: str) -> h5py.Dataset:
    """The dataset at `path`.

    Raises:
        LayoutError: If there is none, or it cannot be opened.
    """
    try:
        found = file[path]
    except KeyError as error:
        raise LayoutError(f"{path}: cannot be opened ({error}), wanted a dataset") from error
    if not isinstance(found, h5py.Dataset):
        raise LayoutError(f"{path}: is a group, wanted a dataset")
    return found


def datasets_in(group: h5py.Group) -> list[str]:
    """The paths of all datasets below `group`, in a fixed order."""
    found: list[str] = []

    def visit(path: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset):
            found.append(path)

    group.visititems(visit)
    return found


def array_field(file: h5py.File, path: str, name: str, *, fps: float | None = None) -> Field | None:
    """A field for the numbers at `path`, or None if they are no numbers that an array feature can hold."""
    found = dataset(file, path)
    if found.dtype.name not in DTYPES or not 1 <= found.ndim <= 5 or 0 in found.shape[1:]:
        return None
    feature = Feature(name, "array", found.dtype.name, tuple(found.shape[1:]), "npy", fps=fps)
    return Field(feature, path, found.nbytes)


def frames_field(
    file: h5py.File,
    path: str,
    name: str,
    *,
    jpeg_channels: Channels = "rgb",
    fps: float | None = None,
    lengths_path: str | None = None,
) -> Field:
    """A field for the camera at `path`: arrays, or rows that are JPEG files.

    Args:
        file: The source.
        path: Of the dataset: (T, H, W, C) or (T, H, W) arrays, (T, padded) uint8, or (T,) strings of bytes.
        name: Of the feature.
        jpeg_channels: What the layout's own reader decodes JPEG rows to.
        fps: Steps per second.
        lengths_path: Where the ends of the rows are announced.

    Raises:
        LayoutError: If it is no camera.
    """
    found = dataset(file, path)
    if found.ndim >= 3:
        shape = _frame_shape(found, path)
        feature = Feature(name, "frames", found.dtype.name, shape, "raw", fps=fps)
        return Field(feature, path, found.nbytes)
    is_bytes = found.dtype.kind in "SO" and found.ndim == 1
    if not is_bytes and not (found.dtype == np.uint8 and found.ndim == 2):
        raise LayoutError(
            f"{path}: {found.dtype} {found.shape}, wanted a camera: (T, H, W, C) arrays or rows of JPEG bytes"
        )
    if not len(found):
        raise LayoutError(f"{path}: no rows, wanted at least 1 step")
    row = row_bytes(found[0])
    where = f"{path}, step 0"
    try:
        height, width, _ = jpeg_shape(row[: true_end(row, (), where)], where)
        # Three channels even for a grey JPEG: that is what the readers of these files get from OpenCV.
        feature = Feature(name, "frames", "uint8", (height, width, 3), "jpeg", jpeg_channels, fps=fps)
    except FormatError as error:
        raise LayoutError(str(error)) from error
    # Rows of variable length are references of 16 bytes each; the first row stands for all.
    num_bytes = len(row) * len(found) if found.dtype.kind == "O" else found.nbytes
    return Field(feature, path, num_bytes, lengths_path=lengths_path)


def looks_like_frames(found: h5py.Dataset) -> bool:
    """Whether a dataset among low-dimensional ones is a camera: (T, H, W, 1 to 4)."""
    return bool(found.ndim == 4 and found.shape[3] <= 4 and min(found.shape[1:3]) >= _MIN_FRAME_SIDE)


def _frame_shape(found: h5py.Dataset, path: str) -> tuple[int, int, int]:
    shape = found.shape[1:] if found.ndim == 4 else (*found.shape[1:], 1)
    if found.ndim > 4 or found.dtype.name not in DTYPES:
        raise LayoutError(f"{path}: {found.dtype} {found.shape}, wanted (T, H, W, C) or (T, H, W) numbers")
    height, width, channels = shape
    if channels > 4 and height <= 4:
        raise LayoutError(f"{path}: frames of {shape}, wanted channels last. Transpose them first")
    return height, width, channels


def turned(field: Field, rotate: Literal[0, 180]) -> Field:
    """`field` with a record of how its pictures must be turned to be upright."""
    return replace(field, feature=replace(field.feature, rotate=rotate))


def check_lengths(file: h5py.File, fields: list[Field], length: int, what: str, spare: int = 0) -> None:
    """Compare the rows of every field with `length`; where others are shifted, `spare` rows more are left unused.

    Raises:
        LayoutError: At the first that has another number of rows, or if there are no steps at all.
    """
    if length < 1:
        raise LayoutError(f"{what}: no steps, wanted at least 1")
    for item in fields:
        rows = len(file[item.path]) - (spare or item.first_row)
        if rows != length:
            raise LayoutError(f"{item.path}: {rows} steps, wanted {length} as in {what}")


def finished(fields: list[Field], group: str) -> tuple[Field, ...]:
    """`fields`, once it is sure that no two have the same feature name; their source paths then begin at `group`.

    Otherwise the features of two episodes of one file would never be equal.

    Raises:
        LayoutError: If two do, for example because they differ in case only.
    """
    seen: dict[str, str] = {}
    for item in fields:
        other = seen.setdefault(item.feature.name, item.path)
        if other != item.path:
            raise LayoutError(
                f"{item.path}: would be named {item.feature.name!r}, and so would {other}. "
                "Lower-case names must differ: rename one in the source"
            )
    return tuple(
        replace(item, feature=replace(item.feature, source_path=item.path.removeprefix(group).strip("/")))
        for item in fields
    )


def read_attributes(*nodes: h5py.Group) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The attributes of `nodes` as JSON can hold them (later nodes win), and the paths of those too large to copy."""
    values: dict[str, Any] = {}
    left_out = []
    for node in nodes:
        for name in sorted(node.attrs):
            value = plain(_attribute(node, name))
            if value is None or len(json.dumps(value)) > MAX_ATTRIBUTE_CHARS:
                left_out.append(f"{node.name.rstrip('/')}/@{name}")
            else:
                values[name] = value
    return values, tuple(left_out)


def text_attribute(node: h5py.Group, name: str) -> str | None:
    """An attribute as text, or None if it is missing or no text."""
    value = plain(_attribute(node, name)) if name in node.attrs else None
    return value if isinstance(value, str) else None


def texts(value: Any) -> tuple[str, ...]:
    """Every text in a value from the source: a scalar, a list of bytes, or JSON that holds such a list."""
    value = plain(value)
    if isinstance(value, str):
        stripped = value.strip()
        if stripped[:1] in ('"', "["):
            try:
                return texts(json.loads(stripped))
            except ValueError:
                pass
        return (stripped.strip("\"'"),) if stripped.strip("\"'") else ()
    if isinstance(value, list):
        return tuple(text for item in value for text in texts(item))
    return ()


def plain(value: Any) -> Any:
    """A value of h5py or numpy as JSON can hold it; None if it cannot."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, np.ndarray):
        return [plain(item) for item in value.tolist()] if value.ndim else plain(value[()])
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        # JSON has no NaN; as text it survives.
        return value if np.isfinite(value) else str(value)
    return value if isinstance(value, str | bool | int) else None


def _attribute(node: h5py.Group, name: str) -> Any:
    try:
        return node.attrs[name]
    except (OSError, TypeError, KeyError):
        # Types that h5py cannot read; named among those left out.
        return None
