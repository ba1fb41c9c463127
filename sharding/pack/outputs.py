"""What becomes of each field of a source: its name, its codec, whether its bytes are copied or encoded again."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from epistream.errors import FormatError, LayoutError
from epistream.sharding.format.features import IMAGES, Feature, feature_order
from epistream.sharding.layouts.base import Field, SourceEpisode
from epistream.sharding.pack.choice import PackChoice, candidate_of
from epistream.sharding.pack.options import PackOptions
from epistream.sharding.pictures.codec import Codec
from epistream.sharding.pictures.codecs import CODECS, DEFAULT_CODEC

# Cameras of which a lossy codec would make nonsense, whatever their type.
_EXACT = ("depth", "segmentation", "mask", "label")
# What the index of an MP4 takes for a frame.
_ROW_BYTES = 12
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

    Args:
        episode: As the `PackChoice` of the options left it.
        options: Of the job.

    Raises:
        LayoutError: If a camera that was asked for is missing, or a name cannot be used.
    """
    choice = PackChoice(options)
    _check_cameras(episode, options, choice)
    names = choice.names([candidate_of(field) for field in episode.fields])
    try:
        outputs = [
            _output(field, name, episode.length, options) for field, name in zip(episode.fields, names, strict=True)
        ]
    except FormatError as error:
        raise LayoutError(f"{episode.group}: {error}") from error
    return tuple(sorted(outputs, key=lambda output: feature_order(output.feature)))


# Options that only say how to encode video.
OF_VIDEO = ("crf", "gop", "preset")


def applied_options(episode: SourceEpisode, outputs: Sequence[Output], options: PackOptions) -> frozenset[str]:
    """What of the options an episode has something for: patterns of ``drop``, and what says how to make a loss."""
    choice = PackChoice(options)
    applied = {
        pattern for pattern in options.drop if any(choice.is_dropped_by(pattern, one) for one in episode.dropped)
    }
    encoded = (output for output in outputs if output.feature.kind == "frames" and not output.is_copy)
    for codec in (CODECS[output.feature.codec] for output in encoded):
        if codec.is_lossy:
            applied |= set(OF_VIDEO) if codec.storage == "video" else {"quality"}
    return frozenset(applied)


def _check_cameras(episode: SourceEpisode, options: PackOptions, choice: PackChoice) -> None:
    cameras = [*map(candidate_of, episode.fields), *episode.dropped, *episode.refused]
    for wanted in options.cameras:
        if not any(choice.is_camera_called(wanted, camera) for camera in cameras):
            found = ", ".join(camera.name.removeprefix(IMAGES) for camera in cameras if camera.is_camera) or "none"
            raise LayoutError(f"no camera {wanted!r}: found {found}")


def _output(field: Field, name: str, length: int, options: PackOptions) -> Output:
    fps = options.fps or field.feature.fps
    feature = replace(field.feature, name=name, fps=fps)
    if feature.kind == "array":
        return Output(field, feature, True, length * feature.step_bytes + 2 * _MEMBER_BYTES)
    recorded = CODECS[field.feature.codec]
    _check_colours(field, options)
    exact = _must_be_exact(field.feature, recorded)
    shape = feature.shape
    if options.image_size and not exact:
        width, height = options.image_size
        shape = (height, width, shape[2])
    resized = shape != feature.shape
    if recorded.storage == "members" and not resized and options.codec in (None, recorded.name):
        channels = options.color_order or feature.jpeg_channels
        feature = replace(feature, jpeg_channels=channels if recorded.has_channel_order else None)
        return Output(field, feature, True, field.num_bytes + length * _MEMBER_BYTES)
    if recorded.storage == "video" and not resized and options.codec is None:
        return Output(field, feature, True, field.num_bytes + length * _ROW_BYTES)
    codec = _codec(feature, options, exact)
    is_grey = shape[2] == 1
    channels = options.color_order or feature.jpeg_channels or "rgb"
    channels = channels if codec.has_channel_order and not is_grey else None
    group_steps = options.gop if codec.storage == "video" else None
    feature = replace(feature, shape=shape, codec=codec.name, jpeg_channels=channels, group_steps=group_steps)
    # Not what the source takes: a JPEG that is decoded for --codec raw grows by 20.
    frame_bytes = feature.step_bytes * codec.ratio(options.quality)
    frame_bytes *= options.video.growth if codec.storage == "video" else 1
    estimate = int(length * (frame_bytes + (_MEMBER_BYTES if codec.storage == "members" else 0)))
    is_copy = codec is recorded and not resized and codec.storage != "video"
    return Output(field, feature, is_copy, estimate)


def _check_colours(field: Field, options: PackOptions) -> None:
    """Refuse an order that the layout says is wrong: red and blue would be swapped, and nothing else would show it."""
    known, wanted = field.feature.jpeg_channels, options.color_order
    if field.knows_channels and wanted not in (None, known) and not options.force_color_order:
        raise LayoutError(
            f"{field.path}: the layout says that its JPEG is {known}, --color-order is {wanted}, which would swap red "
            f"and blue. Leave it out or give --color-order {known}; if the pictures show that the layout is wrong, add "
            "--force-color-order"
        )


def _must_be_exact(feature: Feature, recorded: type[Codec]) -> bool:
    named = any(word in feature.source_path.lower() for word in _EXACT)
    return not recorded.is_lossy and (named or not DEFAULT_CODEC.can_hold(feature.dtype, feature.shape[2]))


def _codec(feature: Feature, options: PackOptions, exact: bool) -> type[Codec]:
    """What was asked for, or the first without loss where that would harm the frames or cannot hold them."""
    recorded = CODECS[feature.codec]
    usual = {"members": recorded, "video": CODECS["h264"], "array": DEFAULT_CODEC}[recorded.storage]
    wanted = CODECS[options.codec] if options.codec else usual
    lossless = [codec for codec in CODECS.values() if not codec.is_lossy]
    candidates = lossless if exact and wanted.is_lossy else [wanted, *lossless]
    return next(codec for codec in candidates if codec.can_hold(feature.dtype, feature.shape[2]))
