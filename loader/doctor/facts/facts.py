"""All that is known of the episodes that are judged: what the dataset says, and what was measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epistream.lazy import lazy
from epistream.loader.doctor.facts.motion import MotionFacts
from epistream.loader.doctor.facts.pairs import Pair, PairFacts
from epistream.loader.doctor.facts.pictures import CameraFacts
from epistream.loader.doctor.facts.segments import Int64
from epistream.loader.doctor.facts.tables import chained, joined
from epistream.loader.doctor.facts.times import TimeFacts
from epistream.loader.doctor.facts.values import ValueFacts
from epistream.sharding.format.features import Feature
from epistream.sharding.manifest.opened_dataset import Dataset

STATE, ACTION = "state", "action"


@dataclass(frozen=True, eq=False)
class Measured:
    """What was measured of R episodes that could be read.

    Args:
        episode: (R,) their positions in the dataset.
        key: What each is called in its shard.
        source: The file that each comes from.
        path: Where in that file.
        hash: (R,) uint64 of all values; 0 where there are none that tell episodes apart.
        sketch: (R, K) float32, states and actions at a few steps.
        values: By feature.
        motion: By `STATE` and `ACTION`, as far as there are such features.
        held_while_acting: (R,) whether actions go on while the state is held longest.
        pairs: Of actions and states.
        times: By feature.
        cameras: By feature, where pictures were looked at.
        success: (R,) what episodes say of whether they succeeded; None where they say nothing.
        unreadable: Why episodes could not be read, by their positions.
    """

    episode: Int64
    key: list[str]
    source: list[str]
    path: list[str]
    hash: NDArray[np.uint64]
    sketch: NDArray[np.float32]
    values: Mapping[str, ValueFacts]
    motion: Mapping[str, MotionFacts]
    held_while_acting: NDArray[np.bool_]
    pairs: Mapping[Pair, PairFacts]
    times: Mapping[str, TimeFacts]
    cameras: Mapping[str, CameraFacts]
    success: list[bool | None]
    unreadable: Mapping[int, str] = field(default_factory=dict)

    @staticmethod
    def join(parts: "Sequence[Measured]") -> "Measured":
        """One after the other. At least one part, all of the same features."""
        full = [part for part in parts if len(part.episode)] or list(parts[:1])
        tables: dict[str, Any] = {}
        for name in ("values", "motion", "pairs", "times", "cameras"):
            columns: list[Mapping[Any, Any]] = [getattr(part, name) for part in full]
            tables[name] = {key: joined([one[key] for one in columns]) for key in columns[0]}
        for name in ("key", "source", "path", "success"):
            tables[name] = chained(getattr(part, name) for part in full)
        for name in ("episode", "hash", "sketch", "held_while_acting"):
            tables[name] = np.concatenate([getattr(part, name) for part in full])
        unreadable = {number: why for part in parts for number, why in part.unreadable.items()}
        return Measured(**tables, unreadable=unreadable)


@dataclass(frozen=True, eq=False)
class Facts:
    """What checks judge.

    Args:
        dataset: All that was opened.
        measured: Of those of its episodes that could be read.
    """

    dataset: Dataset
    measured: Measured

    @property
    def num(self) -> int:
        """Episodes that could be read, R."""
        return len(self.measured.episode)

    @lazy
    def length(self) -> Int64:
        """(R,) steps."""
        return np.asarray(self.dataset.episode_length, np.int64)[self.measured.episode]

    @lazy
    def split(self) -> Int64:
        """(R,) position in the dataset's splits."""
        return self.dataset.episode_split[self.measured.episode].astype(np.int64)

    @property
    def features(self) -> Mapping[str, Feature]:
        """Of the dataset."""
        return self.dataset.features

    @property
    def fps(self) -> float | None:
        """Steps a second, if all features that say it say the same."""
        return fps_of(self.dataset.features)


def fps_of(features: Mapping[str, Feature]) -> float | None:
    """Steps a second, if all features that say it say the same."""
    said = {one.fps for one in features.values() if one.fps is not None}
    return said.pop() if len(said) == 1 else None
