"""An opened dataset: one read-only table of shards and episodes, wherever they are; several of them as one."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np
import xxhash

from epistream.access import Access
from epistream.hints import in_short
from epistream.lazy import lazy
from epistream.sharding.files.names import EPISODE_MARK, index_name, is_episode_url
from epistream.sharding.files.storage import join, parent_and_name
from epistream.sharding.format.episode_meta import NO_SPLIT
from epistream.sharding.format.feature_sets import Wanted, agreed
from epistream.sharding.format.features import Feature
from epistream.sharding.format.statistics import NotFinite
from epistream.sharding.format.texts import Texts
from epistream.sharding.manifest.dataset_statistics import (
    NO_MORE,
    JoinedStatistics,
    MoreStatistics,
    StatisticsPart,
    joined_more,
)
from epistream.sharding.manifest.episode_records import EpisodeRecords
from epistream.sharding.manifest.groups import ONE_GROUP, ShardGroup
from epistream.sharding.manifest.manifest import Manifest
from epistream.sharding.manifest.manifest_columns import (
    Int64,
    ManifestColumns,
    Mapped,
    UInt8,
    join_columns,
    row_hex,
    without_records,
)
from epistream.sharding.manifest.stored_records import NO_RECORDS, Records
from epistream.shown_urls import shown
from epistream.units import count_text

T_co = TypeVar("T_co", covariant=True)


class _Property(Protocol[T_co]):
    """What a type checker should know of a property: what it gives."""

    def __get__(self, dataset: object, owner: type | None = None, /) -> T_co: ...


def _column(read: Callable[[ManifestColumns], T_co], doc: str) -> _Property[T_co]:
    """A property of a dataset that its columns answer."""
    return property(lambda dataset: read(dataset.columns), doc=doc)


@dataclass(frozen=True, eq=False)
class Dataset:
    """S shards and E episodes, E in dataset order: an episode's position here is its `episode_index`.

    Args:
        url: What was opened, for messages; no URL here has a query, user or password.
        features: By name.
        shard_url: (S,) tars, or HDF5 files; one that makes several shards is named several times.
        index_url: (S,) their indexes.
        columns: What is known of each shard and episode. Read-only where they are views of a manifest's file.
        splits: Names; ("all",) when there is no split.
        tasks: Every instruction once; each is made when somebody looks.
        statistics: By array feature: count, mean, std, min, max, q01, q10, q50, q90, q99 of the finite values, and
            `finite`, how many there are of each dimension, where that is not `count`.
        fingerprint: Of all that decides which bytes an epoch reads.
        storage_options: For fsspec, by protocol; and what opens the URLs. Its `repr` shows neither.
        skipped: Why each file or folder was left out, by its path; see `open_dataset`.
        more: What else is known of the values, read when somebody looks.
        records: What is known of each episode by itself, read when somebody looks; see `episode_records`.
        groups: Of shards, what they call features otherwise; see `ManifestColumns.shard_group`.

    Pickles, so that workers need not read again.
    """

    url: str
    features: dict[str, Feature]
    shard_url: Sequence[str]
    index_url: Sequence[str]
    columns: ManifestColumns
    splits: tuple[str, ...]
    tasks: Sequence[str]
    statistics: Mapping[str, Mapping[str, Any]]
    fingerprint: str
    storage_options: Access = field(default_factory=Access)
    skipped: dict[str, str] = field(default_factory=dict)
    more: MoreStatistics = field(default=NO_MORE, repr=False)
    records: Records = field(default=NO_RECORDS, repr=False)
    groups: tuple[ShardGroup, ...] = ONE_GROUP

    num_shards = _column(lambda columns: columns.num_shards, "Shards, S.")
    num_episodes = _column(lambda columns: columns.num_episodes, "Episodes, E.")
    num_steps = _column(lambda columns: columns.num_steps, "Steps of all episodes.")
    shard_bytes = _column(lambda columns: columns.shard_bytes, "(S,) int64 sizes of the tars.")
    index_bytes = _column(lambda columns: columns.index_bytes, "(S,) int64 sizes of the indexes.")
    shard_checksum = _column(lambda columns: Mapped(row_hex, columns.shard_checksums), "(S,) XXH3-128, hexadecimal.")
    index_checksum = _column(lambda columns: Mapped(row_hex, columns.index_checksums), "(S,) XXH3-128, hexadecimal.")
    episode_shard = _column(lambda columns: columns.episode_shard, "(E,) int64 position of the episode's shard.")
    episode_in_shard = _column(lambda columns: columns.episode_in_shard, "(E,) int64 position in its shard's index.")
    episode_length = _column(lambda columns: columns.episode_length, "(E,) int64 steps.")
    valid_ranges = _column(
        lambda columns: columns.valid_ranges,
        "Offsets (E + 1,) into half-open step ranges (R, 2), both int64: where anchors may be.",
    )
    episode_tasks = _column(
        lambda columns: (columns.task_offsets, columns.task_ids),
        "Offsets (E + 1,) into flat positions in `tasks`, both int64.",
    )

    def __repr__(self) -> str:
        """What it holds, in a line or two."""
        counts = (
            f"{count_text(self.num_episodes, 'episode')}, {count_text(self.num_steps, 'step')}, "
            f"{count_text(self.num_shards, 'shard')}"
        )
        left_out = f", {count_text(len(self.skipped), 'path')} left out" if self.skipped else ""
        return f"Dataset({in_short(shown(self.url))}: {counts}{left_out}; {in_short(list(self.features))})"

    @property
    def not_finite(self) -> Mapping[str, NotFinite]:
        """How many values of each array feature are NaN or infinite, in all splits; only of those that have any."""
        return self.more.not_finite

    def shard_label(self, shard: int) -> str:
        """What reports call a shard: its URL; with its number if it is one of many episodes of a file."""
        mark, number = self.index_url[shard].rpartition(EPISODE_MARK)[1:]
        return f"{self.shard_url[shard]}{mark}{number}" if mark else self.shard_url[shard]

    def group_of(self, shard: int) -> ShardGroup:
        """The group of a shard."""
        groups = self.columns.shard_group
        return self.groups[0 if groups is None else int(groups[shard])]

    def names_in(self, shard: int) -> Mapping[str, str]:
        """Name of a feature -> its name in a shard, of those that differ; what `ShardIndex.called` takes."""
        return self.group_of(shard).renamed

    @lazy
    def episode_records(self) -> EpisodeRecords | None:
        """(E,) what is known of each episode; None if of some it is not, as in what earlier releases packed.

        Raises:
            FormatError: If a file of records is missing or damaged.
        """
        return self.records.of_episodes(self.columns.record_of)

    @lazy
    def episode_split(self) -> UInt8:
        """(E,) uint8 position in `splits`."""
        return self.columns.split_of


def dataset_of(manifest: Manifest, url: str, options: Access, index_url: Sequence[str] | None = None) -> Dataset:
    """The dataset that a manifest describes.

    Args:
        manifest: Of tars in the folder `url`.
        url: Their folder.
        options: For fsspec.
        index_url: Where their indexes are, if not beside them.
    """
    return Dataset(
        url=url,
        features=manifest.features,
        shard_url=_in_folders(manifest, url),
        index_url=index_url or Mapped(_index_url, _in_folders(manifest, url)),
        columns=manifest.columns,
        splits=manifest.splits,
        tasks=manifest.tasks,
        statistics=manifest.statistics,
        fingerprint=manifest.fingerprint,
        storage_options=options,
        more=manifest.more,
        records=manifest.records,
        groups=manifest.groups,
    )


def valid_in(dataset: Dataset, shard: int, split: int | None = None) -> dict[int, tuple[tuple[int, int], ...]]:
    """The valid ranges of the episodes that a dataset has of a shard, or of those of one split, by their position."""
    is_here = dataset.episode_shard == shard
    if split is not None:
        is_here = is_here & (dataset.episode_split == split)
    rows = np.flatnonzero(is_here)
    rows = rows[np.argsort(dataset.episode_in_shard[rows])]
    ranges = [dataset.columns.ranges_of(row).tolist() for row in rows.tolist()]
    places = dataset.episode_in_shard[rows].tolist()
    return {place: tuple((start, stop) for start, stop in one) for place, one in zip(places, ranges, strict=True)}


def _in_folders(manifest: Manifest, url: str) -> Sequence[str]:
    """The URL of each shard."""
    columns, folders = manifest.columns, [group.folder(url) for group in manifest.groups]
    if columns.shard_group is None:
        return Mapped(partial(join, folders[0]), columns.names)
    return Mapped(partial(_url_in, folders, columns.names, columns.shard_group), np.arange(columns.num_shards))


def _url_in(folders: Sequence[str], names: Sequence[str], groups: Int64, shard: int) -> str:
    return join(folders[int(groups[shard])], names[shard])


def _index_url(shard_url: str) -> str:
    folder, name = parent_and_name(shard_url)
    return join(folder, index_name(name))


def _is_lerobot(dataset: Dataset) -> bool:
    return dataset.num_shards > 0 and is_episode_url(dataset.index_url[0])


def concatenate(parts: Sequence[Dataset], wanted: Wanted | None = None) -> Dataset:
    """One dataset after the other, with the features that all have. Its fingerprint is XXH3-128 of theirs, in order.

    Args:
        parts: At least one.
        wanted: Names and patterns of the features in which they must agree; in all if None.

    Raises:
        FormatError: If they do not agree.
    """
    first = parts[0]
    features = first.features
    for part in parts[1:]:
        features = agreed(features, first.url, part.features, part.url, wanted)
    # A part without a split is for training where another part says what is not.
    has_train = any("train" in part.splits for part in parts)
    named = [("train",) if has_train and part.splits == (NO_SPLIT,) else part.splits for part in parts]
    splits = tuple(dict.fromkeys(itertools.chain.from_iterable(named)))
    tasks = {task: number for number, task in enumerate(dict.fromkeys(t for p in parts for t in p.tasks))}
    groups = tuple(itertools.chain.from_iterable(part.groups for part in parts))
    is_plain = not any(group.renamed or group.dropped for group in groups)
    records = [part.records for part in parts]
    more = joined_more([part.more for part in parts], features)
    return Dataset(
        url=", ".join(part.url for part in parts),
        features=features,
        shard_url=tuple(itertools.chain.from_iterable(part.shard_url for part in parts)),
        index_url=tuple(itertools.chain.from_iterable(part.index_url for part in parts)),
        columns=join_columns(
            [part.columns if part.records else without_records(part.columns) for part in parts],
            [np.array([splits.index(name) for name in names], np.uint8) for names in named],
            [np.array([tasks[task] for task in part.tasks], np.int64) for part in parts],
            None if is_plain else np.cumsum([0] + [len(part.groups) for part in parts])[:-1].tolist(),
            np.cumsum([0] + [len(part.records) for part in parts])[:-1].tolist() if any(records) else None,
        ),
        splits=splits,
        tasks=Texts.of(tasks, "tasks"),
        statistics=JoinedStatistics(
            [StatisticsPart(one.url, one.statistics, one.more, _is_lerobot(one)) for one in parts],
            more,
            features,
        ),
        fingerprint=xxhash.xxh3_128_hexdigest(" ".join(part.fingerprint for part in parts).encode()),
        storage_options=first.storage_options,
        skipped={url: reason for part in parts for url, reason in part.skipped.items()},
        more=more,
        records=Records.join(records),
        groups=ONE_GROUP if is_plain else groups,
    )
