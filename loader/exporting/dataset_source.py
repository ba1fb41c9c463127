"""Any dataset as what a LeRobot data set is written from: shards, HDF5 files, LeRobot data sets, or several of them."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import numpy as np
import xxhash
from numpy.typing import NDArray

from epistream.lazy import lazy
from epistream.loader.exporting.lerobot_sets import EpisodeOfSet
from epistream.loader.exporting.opened_episode import OpenedEpisode
from epistream.loader.exporting.opened_shard import KnownShards
from epistream.loader.shards.shard_entry import data_version
from epistream.sharding.files.names import is_episode_url
from epistream.sharding.format.features import Feature
from epistream.sharding.lerobot.dataset import episode_source
from epistream.sharding.lerobot_meta.episode_statistics import EpisodeStatistics
from epistream.sharding.lerobot_out.model import OutFeature
from epistream.sharding.manifest.opened_dataset import Dataset

_log = logging.getLogger(__name__)

Pictures = Literal["video", "image"]
_BYTE, _COLOURS = "uint8", 3


@dataclass(frozen=True, eq=False)
class DatasetSource:
    """A dataset to be exported; `epistream.sharding.lerobot_out.model.Source` says what it has. Picklable.

    Args:
        dataset: What is exported.
        order: (E,) `episode_index` of the exported episodes, in their order: a split after the other.
        named: By the name that they are exported by.
        features: As ``info.json`` will have them.
        copied: Cameras whose videos or PNGs are copied.
        fps: Steps a second.
        robot_type: If known.
        upright: Whether pictures that were recorded upside down are turned.
        task: The instruction of episodes that have none.
        said: What ``info.json`` says beside all that.
        meta_files: What lies in ``meta/`` beside what every set has.
    """

    dataset: Dataset
    order: NDArray[np.int64]
    named: dict[str, Feature]
    features: Sequence[OutFeature]
    copied: frozenset[str]
    fps: float
    robot_type: str | None
    upright: bool = True
    task: str = ""
    said: Mapping[str, Any] = field(default_factory=dict)
    meta_files: Mapping[str, bytes] = field(default_factory=dict)
    lengths: NDArray[np.int64] = field(init=False)
    splits: Mapping[str, tuple[int, int]] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "lengths", np.asarray(self.dataset.episode_length[self.order], np.int64))
        split = self.dataset.episode_split[self.order]
        cuts = {name: np.flatnonzero(split == number) for number, name in enumerate(self.dataset.splits)}
        named = {name: (int(rows[0]), int(rows[-1]) + 1) for name, rows in cuts.items() if len(rows)}
        if len(named) == 1:  # LeRobot knows no data set without a split
            named = {"train": (0, len(self.order))}
        object.__setattr__(self, "splits", named)

    @lazy
    def tasks(self) -> Sequence[str]:
        """Those of the dataset, and last that of episodes that have none, if there are any and it is another."""
        offsets, _ = self.dataset.episode_tasks
        has_none = (np.diff(offsets)[self.order] == 0).any()
        return [*self.dataset.tasks, *([self.task] if has_none and self.task not in self.dataset.tasks else [])]

    @lazy
    def identity(self) -> str:
        """Changes when anything that is exported does."""
        told = [self.dataset.fingerprint, data_version(self.dataset), repr(self.upright), self.task]
        told += [repr(one) for one in (*self.features, sorted(self.copied), self.fps, self.said, self.meta_files)]
        return xxhash.xxh3_128_hexdigest("\0".join(told).encode() + self.order.tobytes())

    @contextmanager
    def episode(self, number: int) -> Iterator[OpenedEpisode]:
        """As `Source.episode`."""
        episode = int(self.order[number])
        shard = int(self.dataset.episode_shard[episode])
        with ExitStack() as held:
            yield OpenedEpisode(
                dataset=self.dataset,
                number=episode,
                shard=self._shards.of(shard),
                features=self.named,
                upright=self.upright,
                no_task=self._no_task,
                place=self._place(self.dataset.index_url[shard]),
                held=held,
            )

    @lazy
    def _no_task(self) -> int:
        """The number of the task of episodes that have none."""
        return self.tasks.index(self.task) if self.task in self.tasks else len(self.tasks)

    def _place(self, index_url: str) -> EpisodeOfSet | None:
        if not is_episode_url(index_url):
            return None
        source, position = episode_source(index_url, self.dataset.storage_options)
        known = self._statistics.setdefault(source.root, EpisodeStatistics(source.meta, source.options))
        return EpisodeOfSet(source, position, known, [one.name for one in self.features if one.is_carried])

    @lazy
    def _statistics(self) -> dict[str, EpisodeStatistics]:
        return {}

    @lazy
    def _shards(self) -> KnownShards:
        return KnownShards(self.dataset)

    def __getstate__(self) -> dict[str, Any]:
        known = {item.name for item in fields(self)}
        return {name: value for name, value in self.__dict__.items() if name in known}
