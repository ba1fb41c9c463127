"""What LeRobot data sets say and hold beside features, of those that are exported: it goes along where all agree."""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from epistream.errors import SourceError
from epistream.sharding.files.names import EPISODE_MARK, is_episode_url
from epistream.sharding.files.storage import join, read_bytes
from epistream.sharding.lerobot.carried import carried_schemas, read_carried
from epistream.sharding.lerobot.dataset import episode_source
from epistream.sharding.lerobot.episode import SetSource
from epistream.sharding.lerobot_meta.episode_statistics import EpisodeStatistics
from epistream.sharding.lerobot_out.model import OutFeature
from epistream.sharding.lerobot_out.options import Version
from epistream.sharding.manifest.opened_dataset import Dataset

_log = logging.getLogger(__name__)

# Texts that steps have by number: LeRobot 0.5 keeps them beside those of tasks.
_SUBTASKS, _SUBTASK_INDEX = "subtasks.parquet", "subtask_index"
_TOOLS = "tools"


@dataclass(frozen=True)
class EpisodeOfSet:
    """An episode of a LeRobot data set, for what its index does not have.

    Args:
        source: The data set.
        position: Among its episodes.
        known: Statistics of its episodes.
        carried: Columns that are carried over.
    """

    source: SetSource
    position: int
    known: EpisodeStatistics
    carried: Sequence[str]
    _columns: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def statistics(self, key: str) -> dict[str, Any] | None:
        """Those of a feature."""
        return self.known.of(key, self.position)

    def column(self, key: str) -> Any:
        """(T,) Arrow array; all that are carried are read with the first."""
        if not self._columns:
            self._columns.update(read_carried(self.source, self.position, self.carried))
        return self._columns[key]


def sets_of(dataset: Dataset) -> list[SetSource]:
    """The LeRobot data sets that a dataset is of, each once; none unless all of it is."""
    firsts: dict[str, str] = {}
    for url in dataset.index_url:
        if not is_episode_url(url):
            return []
        firsts.setdefault(url.rpartition(EPISODE_MARK)[0], url)
    return [episode_source(url, dataset.storage_options)[0] for url in firsts.values()]


def described(dataset: Dataset, sets: Sequence[SetSource]) -> dict[str, tuple[Any, Mapping[str, Any] | None]]:
    """By feature, what the first set's ``info.json`` says: names of dimensions, and what a video is."""
    if not sets:
        return {}
    columns = sets[0].meta.info.columns
    found: dict[str, tuple[Any, Mapping[str, Any] | None]] = {}
    for name, feature in dataset.features.items():
        column = columns.get(feature.source_path)
        if column is not None:
            found[name] = column.names, dict(column.info) or None
    return found


def robot_type(sets: Sequence[SetSource]) -> str | None:
    """The robot, if all say the same."""
    found = {one.meta.info.robot_type for one in sets}
    return found.pop() if len(found) == 1 else None


def carried_features(sets: Sequence[SetSource], version: Version) -> list[OutFeature]:
    """Columns that are carried over, where all sets have them in one type; v2.1 has no `language`."""
    if not sets:
        return []
    first, *others = [carried_schemas(one) for one in sets]
    found = []
    for key, schema in first.items():
        column = sets[0].meta.info.columns[key]
        if any(other.get(key) != schema for other in others):
            _log.warning("%s: not exported: not all data sets have it, or in another type", key)
        elif column.dtype == "language" and version == "2.1":
            _log.warning("%s: not exported: version 2.1 has no %s, wanted 3.0", key, column.dtype)
        else:
            found.append(OutFeature(key, column.dtype, (1,), column.names, stored=schema))
    return found


def said_beside(sets: Sequence[SetSource], version: Version) -> dict[str, Any]:
    """What ``info.json`` says of tools, if all say the same."""
    if not sets or version == "2.1":
        return {}
    found = [one.meta.info.plain.get(_TOOLS) for one in sets]
    if any(one != found[0] for one in found):
        _log.warning("%s of info.json: not exported: the data sets say different things", _TOOLS)
        return {}
    return {} if found[0] is None else {_TOOLS: found[0]}


def meta_files(sets: Sequence[SetSource], names: Collection[str], version: Version) -> dict[str, bytes]:
    """Texts of subtasks, where features tell their numbers, and these mean the same in all sets."""
    if not sets or version == "2.1" or _SUBTASK_INDEX not in names:
        return {}
    found = [_read(one, f"meta/{_SUBTASKS}") for one in sets]
    if found[0] is None or any(one != found[0] for one in found):
        if any(found):
            _log.warning("meta/%s: not exported: not the same in all data sets", _SUBTASKS)
        return {}
    return {_SUBTASKS: found[0]}


def _read(source: SetSource, name: str) -> bytes | None:
    try:
        return read_bytes(join(source.root, name), source.options)
    except SourceError:
        return None
