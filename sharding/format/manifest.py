"""The manifest: what a whole dataset holds, and how a packing job puts it together from the indexes of its shards."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import natsort
import numpy as np

from epistream._version import __version__
from epistream.errors import FormatError
from epistream.sharding.format.episode_meta import NO_SPLIT
from epistream.sharding.format.features import Feature, describe_difference
from epistream.sharding.format.index import ShardIndex
from epistream.sharding.format.manifest_columns import (
    Int64,
    ManifestColumns,
    column_problems,
    fingerprint,
    out_of_range,
)
from epistream.sharding.format.shard_summary import ShardSummary, join_shards, splits_of
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
        episode_source: (E,) int64, position in `sources`, -1 for none.
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
    episode_source: Int64
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

    def check(self, where: str) -> None:
        """Compare everything with everything.

        Raises:
            FormatError: At the first thing that cannot be.
        """
        problem = _splits_problem(self.splits, self.statistics_split)
        problem = problem or next(column_problems(self.columns, len(self.splits), len(self.tasks)), None)
        problem = problem or self._source_problem() or statistics_problem(self.statistics, self.features)
        if problem or not self.features:
            raise FormatError(
                f"{where}: {problem or 'no features, wanted at least one'}. "
                "Re-create the manifest with 'epistream index URL', or pack again."
            )

    def select(self, shards: Sequence[int]) -> "Manifest":
        """The same dataset with some of its shards only. Statistics stay those of the whole."""
        kept = np.isin(self.columns.episode_shard, shards)
        return replace(self, columns=self.columns.select(shards), episode_source=self.episode_source[kept])

    def _source_problem(self) -> str | None:
        if len(self.episode_source) != self.columns.num_episodes:
            return f"{len(self.episode_source)} of episode_source, wanted {self.columns.num_episodes}"
        return next(out_of_range("episode_source", self.episode_source, -1, len(self.sources) - 1), None)


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
        self._shards: dict[str, ShardSummary] = {}

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
        self._shards[index.shard_name] = ShardSummary.of(index, index_data)

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
        numbered = _numbered(list(self._shards.values()), renumber)
        shards = natsort.natsorted(numbered, key=lambda shard: shard.name)
        splits = self._splits or splits_of(shards)
        columns, tasks, ordered = join_shards(shards, splits)
        source_number = {source.path: number for number, source in enumerate(sources)}
        manifest = Manifest(
            features=self._features,
            splits=splits,
            columns=columns,
            episode_source=np.array([source_number.get(meta.source, -1) for meta in ordered], np.int64),
            tasks=tasks,
            statistics={name: dict(values) for name, values in (statistics or {}).items()},
            statistics_split=statistics_split,
            sources=tuple(sources),
            provenance=dict(provenance or {}),
        )
        manifest.check("manifest")
        return manifest


def _numbered(shards: Sequence[ShardSummary], renumber: bool) -> Sequence[ShardSummary]:
    """The shards with every number of an episode once."""
    everything = np.sort(np.concatenate([shard.numbers for shard in shards]))
    twice = np.flatnonzero(np.diff(everything) == 0)
    if not len(twice):
        return shards
    if not renumber:
        raise FormatError(f"manifest: episode_index {everything[twice[0]]} in two episodes, wanted it once.")
    starts = np.cumsum([0] + [len(shard.episodes) for shard in shards])
    return [
        replace(shard, numbers=start + np.arange(len(shard.episodes)))
        for shard, start in zip(shards, starts[:-1], strict=True)
    ]
