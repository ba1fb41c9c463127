"""What of a dataset is exported, and as what: which episodes, which features, what is copied and what is encoded."""

import logging
from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray

from epistream.errors import OptionError
from epistream.loader.exporting.dataset_source import DatasetSource
from epistream.loader.exporting.lerobot_sets import (
    carried_features,
    described,
    meta_files,
    robot_type,
    said_beside,
    sets_of,
)
from epistream.options import Range, check
from epistream.sharding.dataset_facts import facts_of
from epistream.sharding.format.feature_sets import choose_features
from epistream.sharding.format.features import Feature
from epistream.sharding.lerobot.episode import is_video
from epistream.sharding.lerobot_out.model import OutFeature
from epistream.sharding.lerobot_out.options import Version
from epistream.sharding.manifest.opened_dataset import Dataset
from epistream.sharding.selecting.facts import EpisodeFacts
from epistream.sharding.selecting.selection import Episodes, parse_selection

_log = logging.getLogger(__name__)

Pictures = Literal["video", "image"]
_COLOURS, _DEPTH = ("uint8", 3), ("uint16", 1)
_AXES = ["height", "width", "channels"]


@dataclass(frozen=True)
class Choice:
    """What of a dataset is exported, and as what.

    Args:
        features: names and patterns of what is exported; everything if None.
        split: the episodes of this split only; all if None.
        episodes: of these, the ones of a selection such as ``0:100``, ``success and length < 500`` or ``@FILE``; all if
            None. See ``docs/selecting.md``.
        fps: steps a second, where the source does not say it.
        task: instruction of episodes that have none; LeRobot's policies take an empty one otherwise.
        pictures: all cameras as videos, or as PNG in Parquet files; as they are if None: pictures of a LeRobot data set
            that are no video stay so, all others become videos.
        reencode: encode videos again instead of copying them.
        upright: turn pictures that were recorded upside down.

    Raises:
        OptionError: If any of these cannot work.
    """

    features: tuple[str, ...] | None = None
    split: str | None = None
    episodes: Episodes | None = None
    fps: Annotated[float, Range(gt=0, lt=1e6)] | None = None
    task: str = ""
    pictures: Pictures | None = None
    reencode: bool = False
    upright: bool = True

    def __post_init__(self) -> None:
        check(self)
        if self.episodes is not None:
            parse_selection(self.episodes)


def source_of(
    dataset: Dataset, choice: Choice, version: Version = "3.0", facts: EpisodeFacts | None = None
) -> DatasetSource:
    """What to export of a dataset.

    Args:
        dataset: The dataset.
        choice: Of it.
        version: Of LeRobot's format; 2.1 has neither depth nor what is said at a step.
        facts: What is known of its episodes; what is known of any dataset unless given.

    Raises:
        OptionError: If the rate is not known, there is no such split, or nothing is left to export.
        SourceError, FormatError: If what the chosen episodes are told by cannot be read.
    """
    sets = sets_of(dataset)
    said = described(dataset, sets)
    carried = {one.name: one for one in carried_features(sets, version)}
    wanted = choose_features(dict.fromkeys([*dataset.features, *carried]), choice.features)
    chosen = {name: one for name, one in dataset.features.items() if name in wanted}
    named: dict[str, Feature] = {}
    exported: list[OutFeature] = []
    copied: set[str] = set()
    for name, one in chosen.items():
        if reason := _reason_against(one, choice, version):
            _log.warning("%s: not exported: %s", name, reason)
            continue
        key = one.source_path if name in said else name
        dtype = one.dtype if one.kind == "array" else _kind_of_pictures(one, choice, of_lerobot=name in said)
        names, info = said.get(name, (None, None))
        is_copied = one.kind == "frames" and _is_copied(one, choice, dtype)
        if one.kind == "frames":
            names = _AXES
        exported.append(OutFeature(key, dtype, one.shape, names, info if is_copied and dtype == "video" else None))
        named[key] = one
        if is_copied:
            copied.add(key)
    texts = [one for name, one in carried.items() if name in wanted]
    if texts:
        _log.warning("exported as they are: %s", ", ".join(one.name for one in texts))
    if not exported and not texts:
        raise OptionError(f"{dataset.url}: no feature to export, wanted at least one. Choose others with features.")
    return DatasetSource(
        dataset=dataset,
        order=_order(dataset, choice, facts or facts_of(dataset)),
        named=named,
        features=[*exported, *texts],
        copied=frozenset(copied),
        fps=_rate(dataset, chosen.values(), choice.fps),
        robot_type=robot_type(sets),
        upright=choice.upright,
        task=choice.task,
        said=said_beside(sets, version),
        meta_files=meta_files(sets, named, version),
    )


def _reason_against(feature: Feature, choice: Choice, version: Version) -> str:
    """Why a feature cannot be exported; empty if it can."""
    if feature.kind != "frames":
        return ""
    looks = feature.dtype, feature.shape[-1]
    if looks == _COLOURS:
        return ""
    if looks == _DEPTH and is_video(feature):
        if version == "2.1":
            return "depth, which version 2.1 has not, wanted 3.0"
        return "depth as PNG, wanted the video" if choice.pictures == "image" else ""
    return f"pictures of {feature.dtype} {feature.shape}, wanted 3 channels of bytes"


def _kind_of_pictures(feature: Feature, choice: Choice, *, of_lerobot: bool) -> str:
    """LeRobot's dtype of a camera."""
    stays_png = choice.pictures is None and of_lerobot and feature.codec == "png"
    return "image" if choice.pictures == "image" or stays_png else "video"


def _is_copied(feature: Feature, choice: Choice, dtype: str) -> bool:
    """Whether pictures go as they are; what is turned does not. Depth is never encoded: it would not be the same."""
    if choice.upright and feature.rotate:
        return False
    if dtype == "image":
        return feature.codec == "png"
    return is_video(feature) and (not choice.reencode or feature.dtype == _DEPTH[0])


def _rate(dataset: Dataset, features: Collection[Feature], fps: float | None) -> float:
    known = next((one.fps for one in features if one.fps), None)
    if fps is not None and known is not None and fps != known:
        raise OptionError(f"{dataset.url}: {known:g} steps a second, fps is {fps:g}. Leave it out.")
    if fps is None and known is None:
        raise OptionError(
            f"{dataset.url}: the dataset does not say its rate, wanted steps a second, of which timestamps are made. "
            "Give it with fps= or --fps."
        )
    return float(fps or known or 0.0)


def _order(dataset: Dataset, choice: Choice, facts: EpisodeFacts) -> NDArray[np.int64]:
    """Episodes in the order of the dataset, one split after the other: LeRobot's splits are slices."""
    numbers, split = dataset.episode_split, choice.split
    if split is not None and split not in dataset.splits:
        raise OptionError(f"{dataset.url}: no split {split!r}, it has {', '.join(dataset.splits)}. Name one of these.")
    order = np.argsort(numbers, kind="stable")
    wanted = np.ones(dataset.num_episodes, np.bool_) if split is None else numbers == dataset.splits.index(split)
    if choice.episodes is not None:
        wanted = wanted & parse_selection(choice.episodes).rows(facts)
    chosen: NDArray[np.int64] = order[wanted[order]].astype(np.int64)
    if not len(chosen):
        which = "of those selected " if choice.episodes is not None else ""
        raise OptionError(
            f"{dataset.url}: no episode {which}in split {split!r}, wanted at least one. Name another split."
        )
    return chosen
