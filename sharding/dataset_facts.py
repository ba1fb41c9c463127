"""What selections ask of the episodes of an opened dataset: columns, indexes and attributes, read when it is asked."""

from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from epistream.errors import FormatError, SourceError
from epistream.file_systems import local_path
from epistream.lazy import lazy
from epistream.sharding.episodes.packed_attributes import packed_attributes
from epistream.sharding.files.names import EPISODE_MARK, is_episode_url, is_tar
from epistream.sharding.files.storage import read_bytes
from epistream.sharding.format.checksums import checksum
from epistream.sharding.format.index import ShardIndex
from epistream.sharding.manifest.opened_dataset import Dataset
from epistream.sharding.selecting.columns import Column, attribute_lists, flat_attributes
from epistream.sharding.selecting.facts import EpisodeFacts

if TYPE_CHECKING:  # the layouts read h5py, which shards do without
    from epistream.sharding.layouts.mapping import MappingLayout

    AnyLayout = str | PathLike[str] | MappingLayout

_AT_ONCE = 16  # requests
_REMEDY = "Open the dataset again; of shards, write it again: epistream index URL --overwrite"


def facts_of(dataset: Dataset, *, layout: "AnyLayout | None" = None, allow_outside_files: bool = False) -> EpisodeFacts:
    """What is known of the episodes of a dataset: shards, HDF5 files, LeRobot data sets, or several of these.

    Lengths, splits and instructions are at hand. Keys, sources and paths are in the indexes, and attributes in the
    shards, HDF5 files or metadata: these are read at the first question for one.

    Args:
        dataset: The dataset.
        layout: Of HDF5 files, as `open_dataset` was given it.
        allow_outside_files: Likewise.
    """
    return DatasetFacts(dataset, layout, allow_outside_files)


class _Told(NamedTuple):
    """What indexes say of an episode."""

    key: str
    source: str
    path: str


class _Index(NamedTuple):
    """The index of a shard, and the file that it is a view of."""

    rows: ShardIndex
    data: bytes


@dataclass(frozen=True, eq=False)
class DatasetFacts:
    """`EpisodeFacts` of a dataset; `facts_of` makes it."""

    dataset: Dataset
    layout: "AnyLayout | None" = None
    allow_outside_files: bool = False

    @property
    def url(self) -> str:
        """Of the dataset."""
        return self.dataset.url

    @property
    def fingerprint(self) -> str:
        """Of the dataset: edits change it, and with it which episode has which number."""
        return self.dataset.fingerprint

    @property
    def num_episodes(self) -> int:
        """Of the dataset."""
        return self.dataset.num_episodes

    def column(self, name: str) -> Column:
        """As `EpisodeFacts.column`.

        Raises:
            SourceError, FetchError: If an index cannot be read.
            FormatError: If one is torn, or not that of the manifest.
        """
        dataset = self.dataset
        if name == "length":
            return Column.of_integers(dataset.episode_length)
        if name == "split":
            return Column(dataset.splits, dataset.episode_split.astype(np.int64), None, dataset.num_episodes)
        if name == "task":
            return Column.of_tasks(dataset.tasks, *dataset.episode_tasks)
        return self._told[name]

    def attributes(self, names: Collection[str]) -> Mapping[str, Column]:
        """As `EpisodeFacts.attributes`.

        Raises:
            SourceError, FetchError, FormatError, LayoutError: If what has them cannot be read.
        """
        return {name: self._attributes[name] for name in names if name in self._attributes}

    def attribute_names(self) -> Collection[str]:
        """As `EpisodeFacts.attribute_names`; errors are those of `attributes`."""
        return list(self._attributes)

    @lazy
    def _told(self) -> Mapping[str, Column]:
        told: list[_Told] = [_Told("", "", "")] * self.num_episodes
        for shard, read in self._indexes():
            url = self.dataset.shard_url[shard]
            for episode, position in self._episodes_of(shard):
                if read is None:
                    key = f"episode {self._lerobot_number(shard)}"
                    told[episode] = _Told(key, url, key)
                else:
                    meta = read.rows.episodes[position]
                    source = meta.source or ("" if is_tar(url) else url)
                    told[episode] = _Told(read.rows.keys[position], source, meta.source_path)
        columns = zip(*told, strict=True)
        return {name: Column.of(values) for name, values in zip(_Told._fields, columns, strict=True)}

    @lazy
    def _attributes(self) -> Mapping[str, Column]:
        records = self.dataset.episode_records
        if records is not None:
            return {name: Column.of(values) for name, values in records.attribute_columns().items()}
        found: list[Mapping[str, Any]] = [{}] * self.num_episodes
        for shard, read in self._indexes():
            episodes = self._episodes_of(shard)
            if read is None:
                found[episodes[0][0]] = self._of_lerobot(shard)
            else:
                positions = [position for _, position in episodes]
                for (episode, _), attributes in zip(episodes, self._of_shard(shard, read, positions), strict=True):
                    found[episode] = attributes
        flat = attribute_lists([flat_attributes(one) for one in found])
        return {name: Column.of(values) for name, values in flat.items()}

    def _of_shard(self, shard: int, read: "_Index", positions: list[int]) -> list[Mapping[str, Any]]:
        url, options = self.dataset.shard_url[shard], self.dataset.storage_options
        if is_tar(url):
            return packed_attributes(read.rows, url, options, positions)
        from epistream.sharding.hdf5.attributes import hdf5_attributes
        from epistream.sharding.hdf5.index import attributes_in
        from epistream.sharding.layouts.layout_file import chosen_layout

        kept = attributes_in(read.data, self.dataset.index_url[shard])
        if kept is not None and len(kept) == read.rows.num_episodes:
            return [kept[position] for position in positions]
        groups = [read.rows.episodes[position].source_path for position in positions]
        layout = chosen_layout(self.layout)
        return hdf5_attributes(url, groups, options, layout, allow_outside=self.allow_outside_files)

    def _lerobot_number(self, shard: int) -> int:
        from epistream.sharding.lerobot.dataset import episode_source

        source, position = episode_source(self.dataset.index_url[shard], self.dataset.storage_options)
        return int(source.meta.number[position])

    def _of_lerobot(self, shard: int) -> Mapping[str, Any]:
        from epistream.sharding.lerobot.dataset import episode_source
        from epistream.sharding.lerobot_meta.attributes import lerobot_attributes

        url = self.dataset.index_url[shard]
        source, position = episode_source(url, self.dataset.storage_options)
        name = url.rpartition(EPISODE_MARK)[0]
        if name not in self._sets:
            self._sets[name] = lerobot_attributes(source.meta, source.options)
        return self._sets[name][position]

    @lazy
    def _sets(self) -> dict[str, list[Mapping[str, Any]]]:
        """By the name of a LeRobot data set, the attributes of its episodes."""
        return {}

    @lazy
    def _by_shard(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Episodes in the order of the shards, and (S + 1,) where those of a shard begin."""
        shards = self.dataset.episode_shard
        order = np.argsort(shards, kind="stable")
        return order, np.searchsorted(shards[order], np.arange(self.dataset.num_shards + 1))

    def _episodes_of(self, shard: int) -> list[tuple[int, int]]:
        """The episodes of a shard, and their positions in its index."""
        order, begins = self._by_shard
        episodes = order[begins[shard] : begins[shard + 1]]
        return list(zip(episodes.tolist(), self.dataset.episode_in_shard[episodes].tolist(), strict=True))

    def _indexes(self) -> "Iterator[tuple[int, _Index | None]]":
        """Shards that have episodes, and their indexes; None of a LeRobot data set, of whose episodes none is made."""
        dataset = self.dataset
        shards = np.unique(dataset.episode_shard).tolist()
        is_remote = any(not is_episode_url(url) and local_path(url) is None for url in dataset.index_url)
        if not is_remote:
            for shard in shards:
                yield shard, self._index(shard)
            return
        with ThreadPoolExecutor(_AT_ONCE, "epistream-indexes") as pool:
            for start in range(0, len(shards), _AT_ONCE):  # few at a time: of large shards they are large as well
                some = shards[start : start + _AT_ONCE]
                yield from zip(some, pool.map(self._index, some), strict=True)

    def _index(self, shard: int) -> "_Index | None":
        dataset = self.dataset
        url = dataset.index_url[shard]
        if is_episode_url(url):
            return None
        data = read_bytes(url, dataset.storage_options, size=int(dataset.index_bytes[shard]))
        if data is None:
            raise SourceError(f"{url}: no such file, wanted the index of a shard. {_REMEDY}")
        wanted = dataset.index_checksum[shard]
        if checksum(data) != wanted:
            raise FormatError(f"{url}: checksum {checksum(data)}, the dataset says {wanted}. {_REMEDY}")
        index = ShardIndex.parse(data, url, validate=False)
        if any(position >= len(index.keys) for _, position in self._episodes_of(shard)):
            raise FormatError(f"{url}: {len(index.keys)} episodes, the dataset says more. {_REMEDY}")
        return _Index(index, data)
