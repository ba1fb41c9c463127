"""Several datasets as one: their shards stay where they are, and one manifest names them all."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from epistream.errors import FormatError
from epistream.sharding.format.episode_meta import NO_SPLIT
from epistream.sharding.format.feature_sets import describe_difference, with_longest_groups
from epistream.sharding.format.texts import Texts
from epistream.sharding.manifest.groups import ShardGroup
from epistream.sharding.manifest.manifest import Manifest
from epistream.sharding.manifest.manifest_columns import Int64, join_columns, without_records
from epistream.sharding.manifest.sources import Sources, SourceTable
from epistream.sharding.manifest.stored_records import Records


class Part(NamedTuple):
    """A dataset that becomes part of another: what messages call it, its manifest, and the folders of its groups."""

    name: str
    manifest: Manifest
    groups: tuple[ShardGroup, ...]


def joined(parts: Sequence[Part]) -> Manifest:
    """One manifest of all episodes, those of the first part first. It has the provenance and no history of the first.

    Raises:
        FormatError: If features differ; the message names the differences.
    """
    first = parts[0]
    features = first.manifest.features
    for part in parts[1:]:
        features = with_longest_groups(features, part.manifest.features)
        difference = describe_difference(part.manifest.features, features)
        if difference:
            raise FormatError(
                f"{part.name}: {difference}, wanted the features of {first.name}. Rename or drop features there "
                "('epistream edit rename', 'epistream edit drop'), or pack with the same options."
            )
    manifests = [part.manifest for part in parts]
    has_train = any("train" in one.splits for one in manifests)
    # A part without a split is for training where another part says what is not.
    named = [("train",) if has_train and one.splits == (NO_SPLIT,) else one.splits for one in manifests]
    splits = tuple(dict.fromkeys(itertools.chain.from_iterable(named)))
    tasks = {task: number for number, task in enumerate(dict.fromkeys(t for one in manifests for t in one.tasks))}
    groups, group_of = _without_doubles([group for part in parts for group in part.groups])
    starts = np.cumsum([0] + [len(part.groups) for part in parts])[:-1].tolist()
    columns = join_columns(
        [one.columns if one.records else without_records(one.columns) for one in manifests],
        [np.array([splits.index(name) for name in names], np.uint8) for names in named],
        [np.array([tasks[task] for task in one.tasks], np.int64) for one in manifests],
        starts,
        np.cumsum([0] + [len(one.records) for one in manifests])[:-1].tolist(),
    )
    columns = replace(columns, shard_group=group_of[columns.group_of])
    return replace(
        first.manifest,
        features=features,
        splits=splits,
        columns=columns if len(groups) > 1 else replace(columns, shard_group=None),
        tasks=Texts.of(tasks, "tasks"),
        groups=groups,
        sources=_join_sources([one.sources for one in manifests], [one.columns.num_episodes for one in manifests]),
        # Those of other folders are copied: they are small, and edits of those datasets may remove theirs.
        records=Records([replace(one, url="") for part in manifests for one in part.records.files]),
    )


def _without_doubles(groups: Sequence[ShardGroup]) -> tuple[tuple[ShardGroup, ...], Int64]:
    """The groups, each once, and the position of each of those given among them."""
    known: list[ShardGroup] = []
    position = []
    for group in groups:
        if group not in known:
            known.append(group)
        position.append(known.index(group))
    return tuple(known), np.array(position, np.int64)


def _join_sources(parts: Sequence[Sources], num_episodes: Sequence[int]) -> Sources:
    if not any(len(one) for one in parts):
        return parts[0]
    starts = np.cumsum([0] + [len(one) for one in parts])[:-1].tolist()
    links = []
    for one, start, count in zip(parts, starts, num_episodes, strict=True):
        found = one.table.episode_source if len(one) else np.full(count, -1, np.int64)
        links.append(np.where(found < 0, -1, found + start))
    table = SourceTable(
        Texts.join([one.table.paths for one in parts]),
        np.concatenate([one.table.num_bytes for one in parts]),
        np.concatenate([one.table.checksums for one in parts]),
        np.concatenate(links),
    )
    return Sources(lambda: table)
