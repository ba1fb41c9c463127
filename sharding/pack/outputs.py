"""What becomes of each field of a source: its name, its codec, whether its bytes are copied or encoded again."""

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass, replace

from epistream.errors import FormatError, LayoutError
from epistream.sharding.format.features import IMAGES, Feature, feature_order
from epistream.sharding.layouts.base import Field, SourceEpisode, feature_name
from epistream.sharding.pack.options import PackOptions
from epistream.sharding.pictures.codec import Codec
from epistream.sharding.pictures.codecs import CODECS, DEFAULT_CODEC

# Cameras of which a lossy codec would make nonsense, whatever their type.
_EXACT = ("depth", "segmentation", "mask", "label")
# A tar header and half a block of padding.
_MEMBER_BYTES = 768


@dataclass(frozen=True)
class Output:
    """One feature to be written.

    Args:
        source: Where its values come from.
        feature: What it will be.
        is_copy: The stored bytes are copied; otherwise frames are decoded and encoded again.
        estimated_bytes: In the shard, for deciding which episodes share one.
    """

    source: Field
    feature: Feature
    is_copy: bool
    estimated_bytes: int


def outputs_of(episode: SourceEpisode, options: PackOptions) -> tuple[Output, ...]:
    """The features to be written of one episode, in their order: cameras, state, other observations, actions, rest.

    Raises:
        LayoutError: If a camera that was asked for is missing, or a name cannot be used.
    """
    chosen = _choose_cameras(episode.fields, options)
    try:
        outputs = [_output(field, episode.length, options) for field in chosen]
    except FormatError as error:
        raise LayoutError(f"{episode.group}: {error}") from error
    outputs = [
        output
        for output in outputs
        if not any(fnmatch.fnmatchcase(output.feature.name, pattern) for pattern in options.drop)
    ]
    if not outputs:
        raise LayoutError(f"{episode.group}: no feature is left after --drop {' '.join(options.drop)}")
    names = [output.feature.name for output in outputs]
    for output in outputs:
        if names.count(output.feature.name) > 1:
            raise LayoutError(f"{output.source.path}: {output.feature.name!r} is the name of another feature too")
    return tuple(sorted(outputs, key=lambda output: feature_order(output.feature)))


def applied_options(episode: SourceEpisode, outputs: Sequence[Output], options: PackOptions) -> frozenset[str]:
    """What of the options an episode has something for: patterns of ``drop``, and ``quality`` if a loss is made."""
    names = [_rename(field, options) for field in episode.fields]
    applied = {pattern for pattern in options.drop if any(fnmatch.fnmatchcase(name, pattern) for name in names)}
    cameras = (output for output in outputs if output.feature.kind == "frames")
    if any(CODECS[camera.feature.codec].is_lossy and not camera.is_copy for camera in cameras):
        applied.add("quality")
    return frozenset(applied)


def _choose_cameras(fields: Sequence[Field], options: PackOptions) -> list[Field]:
    if not options.cameras:
        return list(fields)
    cameras = [field for field in fields if field.feature.kind == "frames"]
    for wanted in options.cameras:
        if not any(wanted in _names_of(field, options) for field in cameras):
            found = ", ".join(field.feature.name.removeprefix(IMAGES) for field in cameras) or "none"
            raise LayoutError(f"no camera {wanted!r}: found {found}")
    return [
        field for field in fields if field.feature.kind != "frames" or set(options.cameras) & _names_of(field, options)
    ]


def _names_of(field: Field, options: PackOptions) -> set[str]:
    """Everything by which a person may call a field."""
    new = _rename(field, options)
    path = field.feature.source_path
    names = {field.feature.name, new, path, f"/{path}", field.path, path.rsplit("/", 1)[-1]}
    return names | {name.removeprefix(IMAGES) for name in (field.feature.name, new)}


def _rename(field: Field, options: PackOptions) -> str:
    name = field.feature.name
    short = name.removeprefix(IMAGES)
    path = field.feature.source_path
    for old, new in options.rename:
        if old in (name, path, f"/{path}"):
            return new
        if field.feature.kind == "frames" and old == short:
            # A camera renamed to a bare word stays a camera.
            return new if "." in new else IMAGES + feature_name(new)
    return name


def _output(field: Field, length: int, options: PackOptions) -> Output:
    fps = options.fps or field.feature.fps
    feature = replace(field.feature, name=_rename(field, options), fps=fps)
    if feature.kind == "array":
        return Output(field, feature, True, length * feature.step_bytes + 2 * _MEMBER_BYTES)
    recorded = CODECS[field.feature.codec]
    exact = _must_be_exact(field.feature, recorded)
    shape = feature.shape
    if options.image_size and not exact:
        width, height = options.image_size
        shape = (height, width, shape[2])
    resized = shape != feature.shape
    if recorded.storage == "members" and not resized and options.codec in (None, recorded.name):
        channels = options.color_order or feature.jpeg_channels
        feature = replace(feature, jpeg_channels=channels)
        return Output(field, feature, True, field.num_bytes + length * _MEMBER_BYTES)
    codec = _codec(feature, options, exact)
    is_grey = shape[2] == 1
    channels = options.color_order or feature.jpeg_channels or "rgb"
    channels = channels if codec.has_channel_order and not is_grey else None
    feature = replace(feature, shape=shape, codec=codec.name, jpeg_channels=channels)
    # Not what the source takes: a JPEG that is decoded for --codec raw grows by 20.
    frame_bytes = feature.step_bytes * codec.ratio(options.quality)
    estimate = int(length * (frame_bytes + (_MEMBER_BYTES if codec.storage == "members" else 0)))
    return Output(field, feature, codec is recorded and not resized, estimate)


def _must_be_exact(feature: Feature, recorded: type[Codec]) -> bool:
    named = any(word in feature.source_path.lower() for word in _EXACT)
    return not recorded.is_lossy and (named or not DEFAULT_CODEC.can_hold(feature.dtype, feature.shape[2]))


def _codec(feature: Feature, options: PackOptions, exact: bool) -> type[Codec]:
    """What was asked for, or the first without loss where that would harm the frames or cannot hold them."""
    wanted = CODECS[options.codec] if options.codec else DEFAULT_CODEC
    lossless = [codec for codec in CODECS.values() if not codec.is_lossy]
    candidates = lossless if exact and wanted.is_lossy else [wanted, *lossless]
    return next(codec for codec in candidates if codec.can_hold(feature.dtype, feature.shape[2]))
