"""Samples that only look like episodes: one step each, or one picture beside the numbers of one step."""

from collections.abc import Mapping

from epistream.errors import FormatError
from epistream.sharding.format.features import Feature
from epistream.sharding.tar.samples import STEPS, Sample

# Fewer rows and columns are no picture, but some table of bytes.
_LEAST_SIDE = 16


def refuse_doubtful(sample: Sample, features: Mapping[str, Feature], length: int, where: str) -> None:
    """Refuse a sample whose meta.json does not say that it is an episode, and that may be one step.

    A row of N numbers looks like N steps of one number, and a picture of (H, W, 3) like H steps. What has a camera
    with a frame a step, or rows of several numbers for several steps, is an episode.

    Args:
        sample: The members.
        features: What they were taken for.
        length: The steps.
        where: The tar and the sample, for messages.

    Raises:
        FormatError: With what was found, and how to say that it is an episode, if it is.
    """
    found = _doubt(features, length)
    if found:
        raise FormatError(
            f"{where}: {found}: this may be one step, wanted a whole episode, rows of shape (steps, ...) and numbered "
            "frames. If it is one, say so in its meta.json: "
            f'{sample.key}.meta.json with {{"length": {length}}}; if not, {STEPS}.'
        )


def refuse_lone_pictures(sample: Sample, features: Mapping[str, Feature], where: str) -> None:
    """Refuse a sample with pictures of which none has a number: rows have a picture a step, or none.

    Raises:
        FormatError: With the picture and the rows.
    """
    if sample.pictures and not any(feature.kind == "frames" for feature in features.values()):
        rows = ", ".join(sorted(features))
        raise FormatError(
            f"{where}: one picture, {sample.pictures[0].name}, beside {rows}: this may be one step, wanted a picture a "
            f"step, numbered as {sample.key}.top.000000.jpg, or none. Number them; or {STEPS}."
        )


def _doubt(features: Mapping[str, Feature], length: int) -> str:
    if length == 1:
        return f"{', '.join(features)} of length 1"
    picture = next((name for name, feature in features.items() if _is_picture(feature, length)), None)
    if picture:
        return f"{picture} of uint8 {(length, *features[picture].shape)}, which is the shape of one picture"
    if all(feature.kind == "array" and not feature.shape for feature in features.values()):
        return f"{', '.join(features)} of shape ({length},), which is one row of {length} numbers or {length} steps"
    return ""


def _is_picture(feature: Feature, length: int) -> bool:
    return (
        feature.kind == "array"
        and feature.dtype == "uint8"
        and len(feature.shape) == 2
        and min(length, feature.shape[0]) >= _LEAST_SIDE
        and feature.shape[1] in (1, 3, 4)
    )
