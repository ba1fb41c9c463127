"""Compacting: the only edit that writes shards, of the episodes that are left, and removes what nothing needs."""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from epistream.errors import OptionError
from epistream.sharding.edit.as_packed import noted
from epistream.sharding.edit.copying_episodes import CopiedEpisode, CopyTask, OldShard, copy_shard
from epistream.sharding.edit.operations import opened
from epistream.sharding.edit.pruning import Pruned, prune
from epistream.sharding.edit.revision import EditReport, Revision
from epistream.sharding.edit.true_statistics import with_statistics
from epistream.sharding.files.hdf5_sources import AnyPath
from epistream.sharding.files.names import index_name
from epistream.sharding.files.storage import Options, list_names
from epistream.sharding.format.fill_shards import fill_shards
from epistream.sharding.format.index import ShardIndex
from epistream.sharding.manifest.groups import ONE_GROUP
from epistream.sharding.manifest.history import Edit
from epistream.sharding.manifest.manifest import Manifest
from epistream.sharding.manifest.manifest_builder import ManifestBuilder
from epistream.sharding.manifest.manifest_columns import RANGES_EDITED, TASKS_EDITED
from epistream.sharding.manifest.opened_dataset import Dataset
from epistream.sharding.manifest.stored_records import Records
from epistream.sharding.tasks.engine import EngineOptions, make_engine
from epistream.units import count_text, parse_size, size_text

_SHARD = re.compile(r"shard-(?:r(?P<number>\d+)-)?\d+\.(?:tar|index)")
Advance = Callable[[int, int], None]


def compact(
    url: AnyPath,
    *,
    shard_size: int | str = "128MiB",
    prune_to: int | None = None,
    engine: EngineOptions | None = None,
    storage_options: Options = None,
    progress: Advance = lambda num_done, num_total: None,
) -> EditReport:
    """Write the episodes that are left into new shards of one folder, as if they had been packed at once.

    Frames and values are copied, none is encoded again. Earlier fingerprints still open, unless they are pruned.

    Args:
        url: Of the dataset.
        shard_size: Target bytes of a shard.
        prune_to: Keep so many of the manifests before this one, and remove the files that none of these and this one
            needs; None removes nothing. Whoever reads the dataset under a fingerprint that is pruned fails.
        engine: What copies; this process alone if None.
        storage_options: For fsspec.
        progress: Called with the episodes copied so far, and their number.

    Raises:
        EditConflictError: If somebody else edited the dataset meanwhile; nothing but new shards is left then.
        FormatError, SourceError, PackError, WorkerError: If a shard cannot be read or written; then the dataset is as
            it was.
    """
    began = time.monotonic()
    if prune_to is not None and prune_to < 0:
        raise OptionError(f"prune_to: {prune_to}, wanted how many earlier manifests to keep, 0 or more.")
    revision = Revision.read(url, storage_options)
    notes: list[str] = []
    if _is_compact(revision):
        report = _unchanged(revision)
        notes.append("compact already: nothing was written")
    else:
        manifest = _copied(revision, parse_size(shard_size, "shard_size"), engine or EngineOptions(), progress)
        what = f"compacted into {count_text(manifest.columns.num_shards, 'shard')}"
        command = "compact" if prune_to is None else f"compact --prune {prune_to}"
        report = revision.commit(manifest, Edit("", what=what, command=command, before=len(revision.history) - 1))
    if prune_to is not None:
        notes.append(_told(prune(report.url, prune_to, storage_options=revision.access)))
    return replace(report, seconds=time.monotonic() - began, notes=tuple(notes))


def _told(pruned: Pruned) -> str:
    return (
        f"pruned {count_text(pruned.num_manifests, 'earlier manifest')}: {count_text(pruned.num_files, 'file')}, "
        f"{size_text(pruned.num_bytes)}"
    )


def _is_compact(revision: Revision) -> bool:
    columns = revision.manifest.columns
    edited = (columns.shard_num_episodes, columns.episode_split, columns.episode_edits)
    return revision.manifest.groups == ONE_GROUP and all(one is None for one in edited)


def _unchanged(revision: Revision) -> EditReport:
    columns, splits = revision.manifest.columns, revision.manifest.splits
    counts = np.bincount(columns.split_of, minlength=len(splits)).tolist()
    known = revision.manifest.fingerprint
    return EditReport(
        revision.url, "", known, known, columns.num_episodes, columns.num_steps, columns.num_shards,
        dict(zip(splits, counts, strict=True)),
    )  # fmt: skip


def _copied(revision: Revision, shard_bytes: int, options: EngineOptions, progress: Advance) -> Manifest:
    """The manifest of new shards of all episodes."""
    manifest, dataset = revision.manifest, opened(revision)
    tasks = _tasks(revision, dataset, shard_bytes)
    builder = ManifestBuilder(manifest.features, manifest.splits)
    total = manifest.columns.num_episodes
    with make_engine(options, revision.url) as engine:
        made = engine.map(copy_shard, tasks, lambda num_episodes, num_bytes: progress(num_episodes, total))
        for task, data in zip(tasks, made, strict=True):
            builder.add_shard(ShardIndex.parse(data, index_name(task.name)), data)
    built = builder.build()
    # Records of episodes that are gone, or of other steps, go too.
    records = manifest.records.of_episodes(manifest.columns.record_of)
    columns = replace(built.columns, episode_record=manifest.columns.episode_record if records is None else None)
    whole = replace(
        manifest,
        features=built.features,
        columns=columns,
        tasks=built.tasks,
        groups=ONE_GROUP,
        records=manifest.records if records is None else Records.of(records),
        provenance=noted(manifest),
    )
    return with_statistics(revision, whole)


def _tasks(revision: Revision, dataset: Dataset, shard_bytes: int) -> list[CopyTask]:
    """A task for each new shard; episodes stay in their order, those of a split together."""
    manifest, columns = revision.manifest, revision.manifest.columns
    sizes = _sizes(dataset)
    splits = [manifest.splits[number] for number in columns.split_of.tolist()]
    groups = fill_shards(zip(range(columns.num_episodes), splits, sizes, strict=True), shard_bytes)
    keys = _keys(revision, dataset)
    prefix = _free_prefix(list_names(revision.url, revision.access) or ())
    return [
        CopyTask(
            name=f"{prefix}{number:06d}.tar",
            url=revision.url,
            shards=_old_shards(manifest, dataset, list(episodes), keys),
            features=manifest.features,
            options=revision.access,
        )
        for number, episodes in enumerate(groups)
    ]


def _sizes(dataset: Dataset) -> list[int]:
    """About how many bytes each episode takes: its share of its shard, by its steps."""
    columns = dataset.columns
    steps = np.bincount(columns.episode_shard, columns.episode_length, minlength=columns.num_shards)
    share = columns.episode_length / steps[columns.episode_shard]
    left = np.bincount(columns.episode_shard, minlength=columns.num_shards) / columns.num_in_shard
    sizes: list[int] = (
        (columns.shard_bytes[columns.episode_shard] * share * left[columns.episode_shard]).astype(int).tolist()
    )
    return sizes


def _keys(revision: Revision, dataset: Dataset) -> list[str]:
    """What each episode is called in its shard."""
    from epistream.sharding.dataset_facts import facts_of

    column = facts_of(dataset).column("key")
    return [str(key) for key in column.of_each()]


def _old_shards(
    manifest: Manifest, dataset: Dataset, episodes: Sequence[int], keys: Sequence[str]
) -> tuple[OldShard, ...]:
    """Where the episodes of a new shard are copied from, in their order."""
    columns = manifest.columns
    found: list[tuple[int, list[CopiedEpisode]]] = []
    for episode in episodes:
        shard, edits = int(columns.episode_shard[episode]), int(columns.edits[episode])
        tasks = tuple(manifest.tasks[task] for task in columns.tasks_of(episode))
        ranges = tuple((start, stop) for start, stop in columns.ranges_of(episode).tolist())
        one = CopiedEpisode(
            key=keys[episode],
            number=episode,
            split=manifest.splits[int(columns.split_of[episode])],
            tasks=tasks if edits & TASKS_EDITED else None,
            valid_ranges=ranges if edits & RANGES_EDITED else None,
        )
        if found and found[-1][0] == shard:
            found[-1][1].append(one)
        else:
            found.append((shard, [one]))
    return tuple(OldShard(dataset.shard_url[shard], tuple(ones), dataset.names_in(shard)) for shard, ones in found)


def _free_prefix(names: Sequence[str]) -> str:
    """What no shard in a folder begins with."""
    taken = [match for name in names if (match := _SHARD.fullmatch(name))]
    numbers = [int(match["number"] or 0) for match in taken]
    return f"shard-r{max(numbers, default=0) + 1}-"
