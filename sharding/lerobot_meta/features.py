"""Features of LeRobot data sets as ours: names, shapes and codecs of the columns of ``info.json``."""

import re
from collections.abc import Mapping

from epistream.errors import FormatError
from epistream.sharding.format.features import DTYPES, Feature, can_be_name, feature_order
from epistream.sharding.layouts.names import feature_name, usable_name
from epistream.sharding.lerobot_meta.info import Column, LeRobotInfo

# What follows from which step of which episode it is: a plan knows it, so none of them is a feature.
FOLLOWS = ("timestamp", "frame_index", "episode_index", "index", "task_index")
# LeRobot's writers make groups of two; of a video that was not looked at yet, this is the best guess.
USUAL_GROUP_STEPS = 2
_CODECS = (("av1", r"av1|av01|av1c"), ("h264", r"264|avc"), ("hevc", r"265|hevc|hev1|hvc1"))


def codec_of(column: Column) -> str | None:
    """The codec of a video by any of the names that encoders and containers have; None where nothing is said.

    >>> codec_of(Column("top", "video", (480, 640, 3), None, {"video.codec": "libsvtav1"}))
    'av1'
    """
    said = column.info.get("video.codec") or column.info.get("codec")
    if not isinstance(said, str):
        return None
    return next((name for name, marks in _CODECS if re.search(marks, said.lower())), said[:40])


def features_of(
    info: LeRobotInfo,
    group_steps: Mapping[str, int] | None = None,
    codecs: Mapping[str, str] | None = None,
) -> tuple[dict[str, Feature], list[str]]:
    """Our features of a data set, in our order, and what is left out, each with the reason in brackets.

    A key that no feature can be called by is changed as those of HDF5 files are; `source_path` has it as it is.

    Args:
        info: Of the data set.
        group_steps: By key of a video, the steps of its longest group; of others as LeRobot writes them.
        codecs: By key of a camera, its codec where it was seen; of other videos what ``info.json`` says, or AV1, of
            other pictures PNG.
    """
    features: list[Feature] = []
    left_out: list[str] = []
    taken: dict[str, str] = {}
    # Keys that are names as they are come first: no other key takes one of theirs.
    for key, column in sorted(info.columns.items(), key=lambda item: not can_be_name(item[0])):
        if key in FOLLOWS:
            continue
        name = key if can_be_name(key) else usable_name(feature_name(key), is_camera=column.is_picture)
        reason = f"called {name} like {taken[name]}" if name in taken else None
        if reason is None:
            usual = (codec_of(column) or "av1") if column.dtype == "video" else "png"
            codec = (codecs or {}).get(key) or usual
            made = _feature(column, name, info.fps, codec, (group_steps or {}).get(key, USUAL_GROUP_STEPS))
            if isinstance(made, Feature):
                features.append(made)
                taken[name] = key
                continue
            reason = made
        left_out.append(f"{key} ({reason})")
    return {feature.name: feature for feature in sorted(features, key=feature_order)}, left_out


def _feature(column: Column, name: str, fps: float, codec: str, group_steps: int) -> Feature | str:
    """One feature, or why there is none."""
    if column.dtype in ("string", "language"):
        return "text; wanted numbers or pictures"
    is_video = column.dtype == "video"
    if not column.is_picture and column.dtype not in DTYPES:
        return f"{column.dtype[:40]}; wanted numbers or pictures"
    try:
        # LeRobot's depth is in millimetres, in videos and in PNGs of 16 bits.
        pixels = "uint8" if column.depth is None else "uint16"
        return Feature(
            name=name,
            kind="frames" if column.is_picture else "array",
            dtype=pixels if column.is_picture else column.dtype,
            shape=column.picture_shape if column.is_picture else (() if column.shape == (1,) else column.shape),
            codec=codec if column.is_picture else "npy",
            fps=fps,
            source_path=column.key,
            group_steps=group_steps if is_video else None,
            jpeg_channels="rgb" if column.is_picture and codec == "jpeg" and column.picture_shape[-1] == 3 else None,
        )
    except FormatError as error:
        return str(error).partition(": ")[2].rstrip(".")
