"""Statistics of each episode as a LeRobot data set has them: who copies its videos need not decode them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epistream.lazy import lazy
from epistream.sharding.files.storage import Options
from epistream.sharding.format.features import DTYPES
from epistream.sharding.lerobot_meta.features import FOLLOWS
from epistream.sharding.lerobot_meta.info import Column
from epistream.sharding.lerobot_meta.meta_files import look_at, version_now
from epistream.sharding.lerobot_meta.metadata import LeRobotMeta
from epistream.sharding.lerobot_meta.statistics import EPISODES_STATS, of_lines, of_tables

# Under which attribute packed episodes have those of their pictures, by LeRobot's key: in ``<key>.meta.json``.
ATTRIBUTE = "lerobot_statistics"
# By LeRobot's key and the name of a statistic: (E, D) of D numbers, (E, 3, 1, 1) of pictures; counts (E, 1).
ByEpisode = Mapping[str, Mapping[str, NDArray[Any]]]


class EpisodeStatistics:
    """Those of all episodes of a data set, read at the first question: of 100,000 that takes seconds.

    Args:
        meta: Of the data set.
        options: For fsspec.
    """

    def __init__(self, meta: LeRobotMeta, options: Options) -> None:
        self._meta, self._options = meta, options

    def of(self, key: str, episode: int) -> dict[str, NDArray[Any]] | None:
        """Those of a feature in an episode, by its position, as LeRobot has them; `count` is (1,).

        None where there are none, and of numbers with several axes, of which versions have their own.
        """
        found = self._all.get(key)
        return None if found is None else {name: values[episode] for name, values in found.items()}

    @lazy
    def _all(self) -> ByEpisode:
        return episode_statistics(self._meta, self._options)


def episode_statistics(meta: LeRobotMeta, options: Options) -> ByEpisode:
    """Those of all episodes; of v2.0, which has none of each episode, nothing.

    Raises:
        SourceError: If a file cannot be read.
        FormatError: If one is torn, or says what cannot be.
    """
    columns = [one for one in meta.info.columns.values() if one.is_picture or _is_plain(one)]
    if meta.info.version == (2, 0) or not columns:
        return {}
    everything = np.ones(meta.num_episodes, np.bool_)
    files = look_at(meta.root, options)
    if meta.info.version == (2, 1) and version_now(files.url(EPISODES_STATS), options)[0] is None:
        return {}
    if meta.info.version == (2, 1):
        return of_lines(files, columns, everything)
    return of_tables(files, files.episode_files(), columns, everything)


def _is_plain(column: Column) -> bool:
    """Whether it is of one number or a row of them, and no place in the plan."""
    return column.dtype in DTYPES and len(column.shape) <= 1 and column.key not in FOLLOWS


def told_plainly(statistics: Mapping[str, NDArray[Any]]) -> dict[str, list[float]] | None:
    """Those of a camera in an episode as JSON can hold them; None if it cannot: they are not all finite."""
    if not all(np.isfinite(values).all() for values in statistics.values()):
        return None
    return {name: values.ravel().tolist() for name, values in statistics.items()}


def told_by(attributes: Mapping[str, Any], key: str) -> dict[str, NDArray[Any]] | None:
    """The inverse: what an episode's attributes say of a camera; None if that is nothing, or no lists of numbers."""
    said = attributes.get(ATTRIBUTE)
    said = said.get(key) if isinstance(said, dict) else None
    if not isinstance(said, dict):
        return None
    found = {}
    for name, values in said.items():
        is_plain = isinstance(values, list) and all(type(value) in (int, float) for value in values)
        if not is_plain or not all(abs(value) < 1 << 53 for value in values):
            return None
        found[name] = np.array(values, np.int64 if name == "count" else np.float64)
    return found
