"""The manifest: what a whole dataset holds, and how a packing job puts it together from the indexes of its shards."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import natsort
import numpy as np

from epistream._version import __version__
from epistream.errors import FormatError
from epistream.sharding.format.checksums import checksum
from epistream.sharding.format.episode_meta import NO_SPLIT, EpisodeMeta
from epistream.sharding.format.features import Feature, describe_difference
from epistream.sharding.format.index import ShardIndex
from epistream.sharding.format.manifest_columns import (
    Int64,
    ManifestColumns,
    column_problems,
    default_ranges,
    fingerprint,
    hex_rows,
)
from epistream.sharding.format.statistics_schema import statistics_problem


@dataclass(frozen=True)
class Source:
    """A file that episodes came from: its path as given, size in bytes, and XXH3-128 (hexadecimal, or empty)."""

    path: str
    num_bytes: int = 0
    checksum: str = ""


@dataclass(frozen=True, eq=False)
class Manifest:
    """A whole dataset. Made by `ManifestBuilder` or `read_manifest`, not by hand.

    Args:
        features: By name.
        splits: Names; ("all",) when there is no split.
        columns: What is known of each shard and episode.
        tasks: Every instruction once.
        statistics: Of each array feature: count, mean, std, min, max, q01, q99 (see `statistics_schema`).
        statistics_split: The split they were computed on.
        sources: Files that episodes came from.
        provenance: Layout, options, versions of libraries: whatever JSON can hold.
        writer: Name and version of the program that made the dataset.
    """

    features: dict[str, Feature]
    splits: tuple[str, ...]
    columns: ManifestColumns
    tasks: tuple[str, ...] = ()
    statistics: dict[str, dict[str, Any]] = field(default_factory=dict)
    statistics_split: str | None = None
    sources: tuple[Source, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)
    writer: str = f"epistream {__version__}"

    @cached_property
    def fingerprint(self) -> str:
        """See `manifest_columns.fingerprint`."""
        return fingerprint(self.features, self.splits, self.columns)

    @property
    def num_steps(self) -> int:
        """Steps of all episodes."""
        return int(self.columns.episode_length.sum())

    def check(self, where: str) -> None:
        """Compare everything with everything.

        Raises:
            FormatError: At the first thing that cannot be.
        """
        problem = _splits_problem(self.splits, self.statistics_split)
        problem = problem or next(
            column_problems(self.columns, len(self.splits), len(self.tasks), len(self.sources)), None
        )
        problem = problem or statistics_problem(self.statistics, self.features)
        if problem or not self.features:
            raise FormatError(
                f"{where}: {problem or 'no features, wanted at least one'}. "
                "Re-create the manifest with 'epistream index URL', or pack again."
            )

    def select(self, shards: Sequence[int]) -> "Manifest":
        """The same dataset with some of its shards only. Statistics stay those of the whole."""
        parts = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return Manifest(**{**parts, "columns": self.columns.select(shards)})


def _splits_problem(splits: Sequence[str], statistics_split: str | None) -> str | None:
    if not 0 < len(splits) < 256 or len(set(splits)) != len(splits) or not all(splits):
        return f"splits {list(splits)!r:.200}, wanted 1 to 255 different names"
    if statistics_split is not None and statistics_split not in splits:
        return f"statistics of split {statistics_split!r:.80}, wanted one of {', '.join(splits)}"
    return None


class ManifestBuilder:
    """Collects the shards of a dataset, in any order, and makes the manifest. Single-threaded; does no I/O.

    Everything comes from the shards' indexes, so a job that resumes adds the shards it finds complete just as it
    adds those that it writes::

        builder = ManifestBuilder(features, splits=("train", "val"))
        for path in folder.glob("shard-*.index"):
            data = path.read_bytes()
            builder.add_shard(ShardIndex.parse(data, path.name), data)
        manifest = builder.build(statistics=statistics, statistics_split="train", sources=sources, provenance={...})
        write_manifest(manifest, "out/")
    """

    def __init__(self, features: Mapping[str, Feature], splits: Sequence[str] | None = (NO_SPLIT,)) -> None:
        """Start without shards.

        Args:
            features: That every shard must have.
            splits: Their names in order; None for those of the shards, ``train`` first.
        """
        self._features, self._splits = dict(features), None if splits is None else tuple(splits)
        self._shards: dict[str, _Shard] = {}

    def add_shard(self, index: ShardIndex, index_data: bytes) -> None:
        """Take a shard that is complete. Keeps nothing of the index but its episodes' descriptions.

        Args:
            index: Its index.
            index_data: The same as written to disk.

        Raises:
            FormatError: If its features are not the dataset's, its split is unknown, or its name was added before.
        """
        difference = describe_difference(self._features, index.features)
        if difference:
            raise FormatError(f"{index.shard_name}: {difference} in the dataset. Pack both with the same options.")
        split = index.episodes[0].split
        if self._splits is not None and split not in self._splits:
            raise FormatError(f"{index.shard_name}: split {split!r}, wanted one of {', '.join(self._splits)}.")
        if index.shard_name in self._shards:
            raise FormatError(f"{index.shard_name}: added twice, wanted each shard once.")
        self._shards[index.shard_name] = _Shard(
            name=index.shard_name,
            num_bytes=index.shard_bytes,
            checksum=index.shard_checksum,
            index_bytes=len(index_data),
            index_checksum=checksum(index_data),
            episodes=tuple(index.episodes),
        )

    def build(
        self,
        statistics: Mapping[str, Mapping[str, Any]] | None = None,
        statistics_split: str | None = None,
        sources: Sequence[Source] = (),
        provenance: Mapping[str, Any] | None = None,
        *,
        renumber: bool = False,
    ) -> Manifest:
        """The manifest of all shards added. Episodes are ordered by `EpisodeMeta.episode_index`.

        Args:
            statistics: Of each array feature.
            statistics_split: The split they were computed on; wanted with `statistics`.
            sources: Files that episodes came from, linked by `EpisodeMeta.source`.
            provenance: Whatever else is worth keeping, as JSON can hold it.
            renumber: If indexes of episodes collide, take the order in which shards were added.

        Raises:
            FormatError: If there is no shard, two episodes have one index, or the statistics do not fit.
        """
        if not self._shards:
            raise FormatError("manifest: no shards, wanted at least one.")
        numbers = _episode_numbers(list(self._shards.values()), renumber)
        shards = [self._shards[name] for name in natsort.natsorted(self._shards)]
        splits = self._splits or _splits_of(shards)
        source_number = {source.path: number for number, source in enumerate(sources)}
        columns, tasks = _columns(shards, numbers, splits, source_number)
        manifest = Manifest(
            features=self._features,
            splits=splits,
            columns=columns,
            tasks=tasks,
            statistics={name: dict(values) for name, values in (statistics or {}).items()},
            statistics_split=statistics_split,
            sources=tuple(sources),
            provenance=dict(provenance or {}),
        )
        manifest.check("manifest")
        return manifest


@dataclass(frozen=True)
class _Shard:
    """What the manifest keeps of a shard: an index is a thousand times larger, and there may be 1e5 of them."""

    name: str
    num_bytes: int
    checksum: str
    index_bytes: int
    index_checksum: str
    episodes: tuple[EpisodeMeta, ...]


def _splits_of(shards: Sequence[_Shard]) -> tuple[str, ...]:
    names = natsort.natsorted({shard.episodes[0].split for shard in shards})
    return tuple(sorted(names, key=lambda name: name != "train"))


def _episode_numbers(shards: Sequence[_Shard], renumber: bool) -> dict[str, Int64]:
    """Where the episodes of each shard stand in the dataset, but for gaps."""
    own = {shard.name: np.array([meta.episode_index for meta in shard.episodes], np.int64) for shard in shards}
    everything = np.sort(np.concatenate(list(own.values())))
    twice = np.flatnonzero(np.diff(everything) == 0)
    if not len(twice):
        return own
    if not renumber:
        raise FormatError(f"manifest: episode_index {everything[twice[0]]} in two episodes, wanted it once.")
    starts = np.cumsum([0] + [len(shard.episodes) for shard in shards])
    return {shard.name: start + np.arange(len(shard.episodes)) for shard, start in zip(shards, starts, strict=False)}


def _columns(
    shards: Sequence[_Shard], numbers: Mapping[str, Int64], splits: Sequence[str], source_number: Mapping[str, int]
) -> tuple[ManifestColumns, tuple[str, ...]]:
    """The columns, and the task table in the order of first use."""
    metas = [meta for shard in shards for meta in shard.episodes]
    counts = [len(shard.episodes) for shard in shards]
    order = np.argsort(np.concatenate([numbers[shard.name] for shard in shards]), kind="stable")
    ordered = [metas[row] for row in order]
    length = np.array([meta.length for meta in ordered], np.int64)
    task_number: dict[str, int] = {}
    task_ids = [task_number.setdefault(task, len(task_number)) for meta in ordered for task in meta.tasks]
    if all(meta.valid_ranges is None for meta in ordered):
        range_offsets, ranges = default_ranges(length)
    else:
        lists = [((0, meta.length),) if meta.valid_ranges is None else meta.valid_ranges for meta in ordered]
        range_offsets = _offsets([len(one) for one in lists])
        ranges = np.array([pair for one in lists for pair in one], np.int64).reshape(-1, 2)
    columns = ManifestColumns(
        names=tuple(shard.name for shard in shards),
        shard_bytes=np.array([shard.num_bytes for shard in shards], np.int64),
        shard_checksums=hex_rows([shard.checksum for shard in shards]),
        index_bytes=np.array([shard.index_bytes for shard in shards], np.int64),
        index_checksums=hex_rows([shard.index_checksum for shard in shards]),
        shard_split=np.array([splits.index(shard.episodes[0].split) for shard in shards], np.uint8),
        episode_shard=np.repeat(np.arange(len(shards)), counts)[order],
        episode_in_shard=np.concatenate([np.arange(count) for count in counts])[order],
        episode_length=length,
        range_offsets=range_offsets,
        ranges=ranges,
        task_offsets=_offsets([len(meta.tasks) for meta in ordered]),
        task_ids=np.array(task_ids, np.int64),
        episode_source=np.array([source_number.get(meta.source, -1) for meta in ordered], np.int64),
    )
    return columns, tuple(task_number)


def _offsets(counts: Sequence[int]) -> Int64:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
