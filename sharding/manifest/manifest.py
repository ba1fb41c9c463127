"""The manifest: what a whole dataset holds."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from epistream._version import __version__
from epistream.errors import FormatError
from epistream.lazy import lazy
from epistream.sharding.format.features import Feature
from epistream.sharding.manifest.column_checks import column_problems, out_of_range
from epistream.sharding.manifest.dataset_statistics import NO_MORE, MoreStatistics, statistics_problem
from epistream.sharding.manifest.groups import ONE_GROUP, ShardGroup, group_problems
from epistream.sharding.manifest.history import NO_HISTORY, History
from epistream.sharding.manifest.manifest_columns import TASKS_EDITED, ManifestColumns, fingerprint
from epistream.sharding.manifest.sources import NO_SOURCES, Sources
from epistream.sharding.manifest.stored_records import NO_RECORDS, Records


@dataclass(frozen=True, eq=False)
class Manifest:
    """A whole dataset. Made by `ManifestBuilder` or `read_manifest`, not by hand.

    Args:
        features: By name.
        splits: Names; ("all",) when there is no split.
        columns: What is known of each shard and episode.
        tasks: Every instruction once.
        statistics: Of each array feature: count, mean, std, min, max, quantiles (see `dataset_statistics`).
        statistics_split: The split they were computed on.
        more: Their sketches, read on the first look, and how many values of all splits are not finite.
        sources: Files that episodes came from, and which of them each episode is of; read on the first look.
        records: What is known of each episode by itself, read on the first look; see `ManifestColumns.record_of`.
        groups: Where the shards are, and what they call their features; see `ManifestColumns.shard_group`.
        history: What was done since the dataset was packed, read on the first look; empty if nothing was.
        provenance: Layout, options, versions of libraries: whatever JSON can hold.
        writer: Name and version of the program that made the dataset.
    """

    features: dict[str, Feature]
    splits: tuple[str, ...]
    columns: ManifestColumns
    tasks: Sequence[str] = ()
    statistics: dict[str, dict[str, Any]] = field(default_factory=dict)
    statistics_split: str | None = None
    more: MoreStatistics = NO_MORE
    sources: Sources = NO_SOURCES
    records: Records = NO_RECORDS
    groups: tuple[ShardGroup, ...] = ONE_GROUP
    history: History = NO_HISTORY
    provenance: dict[str, Any] = field(default_factory=dict)
    writer: str = f"epistream {__version__}"

    @lazy
    def fingerprint(self) -> str:
        """See `manifest_columns.fingerprint`."""
        return fingerprint(self.features, self.splits, self.columns, self._edited())

    def _edited(self) -> list[bytes]:
        """What edits changed that decides what an epoch gives, and is not among features, splits and columns."""
        parts = []
        if any(group.renamed for group in self.groups):
            names = [sorted(group.renamed.items()) for group in self.groups]
            parts += [json.dumps(names).encode(), self.columns.group_of.tobytes()]
        rows = np.flatnonzero(self.columns.edits & TASKS_EDITED)
        if len(rows):
            told = [[self.tasks[task] for task in self.columns.tasks_of(row)] for row in rows.tolist()]
            parts += [rows.tobytes(), json.dumps(told).encode()]
        return parts

    def check(self, where: str) -> None:
        """Compare everything with everything.

        Raises:
            FormatError: At the first thing that cannot be.
        """
        problem = next(self._problems(), None)
        if problem:
            raise FormatError(
                f"{where}: {problem}. Re-create the manifest with 'epistream index URL --overwrite', or pack again."
            )

    def select(self, shards: Sequence[int]) -> "Manifest":
        """The same dataset with some of its shards only. Statistics stay those of the whole."""
        kept = np.isin(self.columns.episode_shard, shards)
        return replace(self, columns=self.columns.select(shards), sources=self.sources.select(kept))

    def _problems(self) -> Iterator[str]:
        """What cannot be; later checks rely on the earlier ones."""
        splits = self.splits
        if not 0 < len(splits) < 256 or len(set(splits)) != len(splits) or not all(splits):
            yield f"splits {list(splits)!r:.200}, wanted 1 to 255 different names"
        if self.statistics_split is not None and self.statistics_split not in splits:
            yield f"statistics of split {self.statistics_split!r:.80}, wanted one of {', '.join(splits)}"
        yield from column_problems(self.columns, len(splits), len(self.tasks))
        if problem := statistics_problem(self.statistics, self.features, self.more.not_finite):
            yield problem
        if not self.features:
            yield "no features, wanted at least one"
        yield from out_of_range("shard_group", self.columns.group_of, 0, len(self.groups) - 1)
        if self.records:
            yield from out_of_range("episode_record", self.columns.record_of, -1, len(self.records) - 1)
        yield from group_problems(self.groups, self.features)
