"""What one feature of a dataset is: its name, the shape of one step, and how its bytes are stored."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np

from epistream.errors import FormatError
from epistream.sharding.pictures.codec import Codec
from epistream.sharding.pictures.codecs import CODECS, codec_names

IMAGES = "observation.images."

Kind = Literal["frames", "array"]
Channels = Literal["rgb", "bgr"]

_KINDS_OF_NUMBERS = "int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64"
DTYPES = ("bool", *_KINDS_OF_NUMBERS.split())

# Lower case, because two tar members that differ in case only overwrite each other on some file systems.
# Not ending in a number as frames are numbered, which would make `a.000001.npy` mean two things.
_NAME = re.compile(r"(?!.*\.\d{6,}$)[a-z0-9_][a-z0-9_.\-]{0,79}")
_RESERVED = frozenset({"meta", "__key__", "__url__", "episode_index", "step_index", "task"})
# A step larger than this is nonsense or an attack: a 16,384 x 16,384 RGB frame of bytes is 0.8 GB.
MAX_STEP_BYTES = 1 << 30


@dataclass(frozen=True)
class Feature:
    """One named quantity that every step of every episode has.

    Args:
        name: LeRobot's name, for example ``observation.images.top``, ``observation.state`` or ``action``.
        kind: ``frames`` for camera pictures, ``array`` for everything stored as one array an episode.
        dtype: numpy name of what the source holds, one of `DTYPES`.
        shape: of one step: (H, W, C) for frames, any shape of at most four axes for arrays.
        codec: a name of `CODECS` for frames, ``npy`` for arrays.
        jpeg_channels: channel order in which to decode a JPEG to get back the array its writer had.
        rotate: degrees that turn the picture upright; recorded, and applied on request only.
        fps: steps per second, if known.
        units: of an array's values, if known.
        source_path: where in the source file the values were.
        group_steps: of a video, the steps of its longest groups of pictures, each of which begins with a frame that
            decodes alone.

    Raises:
        FormatError: If any of these, or their combination, cannot be.
    """

    name: str
    kind: Kind
    dtype: str
    shape: tuple[int, ...]
    codec: str
    jpeg_channels: Channels | None = None
    rotate: Literal[0, 180] = 0
    fps: float | None = None
    units: str | None = None
    source_path: str = ""
    group_steps: int | None = None

    def __post_init__(self) -> None:
        problem = next(_problems(self), None)
        if problem:
            raise FormatError(f"feature {self.name!r}: {problem}.")

    @property
    def step_bytes(self) -> int:
        """Bytes of one step, decoded."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON and msgpack."""
        values = {**asdict(self), "shape": list(self.shape)}
        if self.group_steps is None:  # as in releases that did not know it
            del values["group_steps"]
        return values


def can_be_name(name: str) -> bool:
    """Whether a feature can be called so."""
    return _NAME.fullmatch(name) is not None and name not in _RESERVED


def _problems(feature: Feature) -> Iterator[str]:
    """What is wrong with `feature`; the checks later in the list rely on the earlier ones."""
    if not isinstance(feature.name, str) or not can_be_name(feature.name):
        yield (
            "this name cannot be used, wanted at most 80 of a-z, 0-9, '_', '.', '-', the first no '.' or '-', "
            f"no number of 6 digits at the end, and none of {', '.join(sorted(_RESERVED))}. Rename it: pack with "
            "--rename, or correct the mapping of steps"
        )
    if feature.dtype not in DTYPES:
        yield f"dtype {feature.dtype!r}, wanted one of {', '.join(DTYPES)}"
    shape = feature.shape
    if (
        not isinstance(shape, tuple)
        or len(shape) > 4
        or not all(type(size) is int and 0 < size < 1 << 31 for size in shape)
        or feature.step_bytes > MAX_STEP_BYTES
    ):
        yield f"shape {shape!r} of {feature.dtype}, wanted at most 4 axes of at least 1 and 1 GiB a step"
    if feature.kind == "frames":
        yield from _frames_problems(feature)
    elif feature.kind != "array" or feature.codec != "npy":
        yield f"kind {feature.kind!r} with codec {feature.codec!r}, wanted frames, or array with npy"
    elif feature.jpeg_channels is not None or feature.rotate or feature.group_steps is not None:
        yield "jpeg_channels, rotate or group_steps on an array, wanted on frames only"
    fps = feature.fps
    if fps is not None and not (isinstance(fps, int | float) and 0 < fps < 1e9):
        yield f"fps {fps!r}, wanted a positive number or null"
    if not (feature.units is None or isinstance(feature.units, str)) or not isinstance(feature.source_path, str):
        yield "units or source_path that is no text"


def _frames_problems(feature: Feature) -> Iterator[str]:
    codec = CODECS.get(feature.codec) if isinstance(feature.codec, str) else None
    if codec is None:
        yield f"codec {feature.codec!r} of frames, wanted {codec_names()}"
        return
    if len(feature.shape) != 3:
        yield f"shape {feature.shape} of frames, wanted (height, width, channels)"
    if problem := codec.problem(feature.dtype, feature.shape):
        yield problem
    if feature.jpeg_channels not in (None, *get_args(Channels)):
        yield f"jpeg_channels {feature.jpeg_channels!r}, wanted rgb, bgr or null"
    if codec.has_channel_order and feature.shape[2] == 3 and feature.jpeg_channels is None:
        yield f"no jpeg_channels, wanted rgb or bgr: a {codec.name.upper()} does not say which array its writer had"
    if feature.rotate not in (0, 180):
        yield f"rotate {feature.rotate!r:.80}, wanted 0 or 180"
    known, is_video = feature.group_steps, codec.storage == "video"
    if is_video != (known is not None) or (known is not None and (type(known) is not int or not 0 < known < 1 << 31)):
        wanted = "the steps of a group" if is_video else "none: these are single pictures"
        yield f"group_steps {known!r}, wanted {wanted}"


def codec_of(feature: Feature) -> Codec:
    """What turns single frames of a camera into bytes and back.

    Raises:
        FormatError: If the feature is no camera, or its frames cannot be encoded and decoded one by one.
    """
    codec = CODECS.get(feature.codec)
    if codec is None:
        raise FormatError(f"{feature.name}: codec {feature.codec!r}, wanted {codec_names()}: this is no camera.")
    if not codec.frames_are_independent:
        raise FormatError(
            f"{feature.name}: {codec.name} frames depend on each other, wanted frames that decode alone. "
            "Pack the source with another codec."
        )
    return codec(feature.name, feature.dtype, feature.shape, feature.jpeg_channels)


def feature_from_dict(value: object, where: str) -> Feature:
    """The inverse of `Feature.to_dict`, for values from a file.

    Unknown keys are an error: a later release that adds one raises the format's version.

    Raises:
        FormatError: If `value` does not describe a feature; the message begins with `where`.
    """
    if not isinstance(value, Mapping) or not isinstance(value.get("shape"), list | tuple):
        raise FormatError(f"{where}: a feature is {value!r:.200}, wanted a map with name, kind, dtype, shape, codec.")
    try:
        return Feature(**{**value, "shape": tuple(value["shape"])})
    except (FormatError, TypeError, ValueError) as error:
        raise FormatError(f"{where}: {error}") from error


def features_from_list(values: object, where: str) -> dict[str, Feature]:
    """Features by name, in the order of `values`.

    Raises:
        FormatError: If one is wrong, or two have the same name.
    """
    if not isinstance(values, list | tuple):
        raise FormatError(f"{where}: features are a {type(values).__name__}, wanted a list of maps.")
    features = [feature_from_dict(value, where) for value in values]
    by_name = {feature.name: feature for feature in features}
    if len(by_name) != len(features):
        raise FormatError(f"{where}: {len(features)} features with {len(by_name)} names, wanted each name once.")
    return by_name


def feature_order(feature: Feature) -> tuple[int, str]:
    """Sorts the features of a dataset."""
    if feature.kind == "frames":
        return 0, feature.name
    if feature.name == "observation.state":
        return 1, feature.name
    if feature.name.startswith("observation."):
        return 2, feature.name
    return (3 if feature.name == "action" else 4), feature.name
