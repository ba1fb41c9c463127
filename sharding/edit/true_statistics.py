"""Statistics of an edited dataset from the records of its episodes: no shard is read, but of those without a record."""

from dataclasses import replace

import numpy as np

from epistream.sharding.edit.changes import Rows
from epistream.sharding.edit.revision import Revision
from epistream.sharding.episodes.shard_records import records_from_shards
from epistream.sharding.manifest.dataset_statistics import MoreStatistics
from epistream.sharding.manifest.manifest import Manifest
from epistream.sharding.manifest.opened_dataset import dataset_of
from epistream.sharding.manifest.record_statistics import not_finite_in, statistics_of


def with_statistics(revision: Revision, manifest: Manifest, made_anew: Rows | None = None) -> Manifest:
    """A changed manifest with the statistics that it would have if it had been packed so.

    Args:
        revision: The dataset whose manifest it was, and what opens its shards.
        manifest: Changed in all but that.
        made_anew: (E,) whose records are of other steps than these have now.

    Raises:
        SourceError, FormatError: If the records, or shards of episodes without one, cannot be read.
    """
    columns, records = manifest.columns, manifest.records
    record_of = columns.record_of.copy() if records else np.full(columns.num_episodes, -1)
    missing = record_of < 0
    if made_anew is not None:
        missing |= made_anew
    if missing.any():
        rows = np.flatnonzero(missing)
        # Their attributes are what they were: only values are read.
        is_known = bool((record_of[rows] >= 0).all())
        described = records.table.described.select(record_of[rows]) if is_known else None
        made = records_from_shards(dataset_of(manifest, revision.url, revision.access), rows, described=described)
        record_of[rows] = len(records) + np.arange(len(rows))
        records = records.and_more(made)
    is_plain = np.array_equal(record_of, np.arange(len(records)))
    columns = replace(columns, episode_record=None if is_plain else record_of)
    table = records.table.only(list(manifest.features))
    split = manifest.splits.index("train") if "train" in manifest.splits else 0
    known = statistics_of(table, record_of[columns.split_of == split])
    return replace(
        manifest,
        columns=columns,
        records=records,
        statistics=known.statistics,
        statistics_split=manifest.splits[split] if known.statistics else None,
        more=MoreStatistics(lambda: (known.sketches, {}), not_finite_in(table, record_of)),
    )
