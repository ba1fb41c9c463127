"""What an edit makes of a manifest: functions that read nothing and write nothing."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from epistream.errors import EditError, OptionError
from epistream.hints import did_you_mean
from epistream.sharding.format.features import Feature, can_be_name
from epistream.sharding.format.texts import Texts
from epistream.sharding.manifest.groups import ShardGroup
from epistream.sharding.manifest.manifest import Manifest
from epistream.sharding.manifest.manifest_columns import (
    RANGES_EDITED,
    SPLIT_EDITED,
    TASKS_EDITED,
    UInt8,
    default_ranges,
    offsets_of,
)

Rows = NDArray[np.bool_]
Int64 = NDArray[np.int64]
_ORDER = {"train": 0, "val": 1, "test": 2}


def without(manifest: Manifest, episodes: Rows) -> Manifest:
    """The dataset without some episodes, (E,) whether each goes. Shards that have no other go too.

    Raises:
        EditError: If none would be left.
    """
    if episodes.all():
        raise EditError(
            f"all {len(episodes):,} episodes would be removed, wanted to keep one. Remove the folder instead."
        )
    columns = manifest.columns.keep(~episodes)
    left = replace(manifest, columns=columns, sources=manifest.sources.select(~episodes))
    return with_splits(left, [manifest.splits[number] for number in columns.split_of.tolist()])


def with_splits(manifest: Manifest, names: Sequence[str]) -> Manifest:
    """The dataset with the split of each episode named, (E,). Those that no episode is of are none any more."""
    splits = tuple(sorted(set(names), key=lambda name: (_ORDER.get(name, 3), name)))
    number = {name: position for position, name in enumerate(splits)}
    wanted = np.array([number[name] for name in names], np.uint8)
    columns = manifest.columns
    of_shard = np.zeros(columns.num_shards, np.uint8)
    was = [manifest.splits[position] for position in columns.shard_split.tolist()]
    # A shard keeps the split that it was packed with, where there still is one of that name.
    for shard, name in enumerate(was):
        of_shard[shard] = number.get(name, 0)
    is_same = (of_shard[columns.episode_shard] == wanted).all()
    columns = replace(columns, shard_split=of_shard, episode_split=None if is_same else wanted)
    return replace(manifest, splits=splits, columns=columns)


def in_split(manifest: Manifest, episodes: Rows, names: Sequence[str]) -> Manifest:
    """The dataset with other splits of some episodes: (E,) whether each changes, and the names of all, (E,)."""
    old = [manifest.splits[position] for position in manifest.columns.split_of.tolist()]
    chosen = [new if wanted else was for new, was, wanted in zip(names, old, episodes.tolist(), strict=True)]
    return with_splits(_marked(manifest, episodes, SPLIT_EDITED), chosen)


def trimmed(manifest: Manifest, keep: Mapping[int, tuple[int, int]]) -> Manifest:
    """The dataset with fewer steps that may be anchors: of some episodes only those of [start, stop).

    Raises:
        EditError: If an episode would have none.
    """
    columns = manifest.columns
    offsets, ranges = columns.valid_ranges
    _, whole = default_ranges(columns.episode_length)
    rows, bounds = np.array(list(keep), np.int64), whole.copy()
    bounds[rows] = np.array(list(keep.values()), np.int64).reshape(-1, 2)
    episode_of = np.repeat(np.arange(columns.num_episodes), np.diff(offsets))
    cut = np.clip(ranges, bounds[episode_of, :1], bounds[episode_of, 1:])
    is_left = cut[:, 0] < cut[:, 1]
    new, counts = cut[is_left], np.bincount(episode_of[is_left], minlength=columns.num_episodes)
    empty = next((row for row in keep if not counts[row]), None)
    if empty is not None:
        start, stop = keep[empty]
        raise EditError(
            f"episode {empty}: no step of its {columns.episode_length[empty]:,} would be left in "
            f"[{start}, {stop}), wanted one. Remove it instead."
        )
    episodes = np.zeros(columns.num_episodes, np.bool_)
    episodes[rows] = True
    is_default = len(new) == len(whole) and (counts == 1).all() and np.array_equal(new, whole)
    columns = replace(
        columns, range_offsets=None if is_default else offsets_of(counts), ranges=None if is_default else new
    )
    return _marked(replace(manifest, columns=columns), episodes, RANGES_EDITED)


def with_tasks(manifest: Manifest, tasks: Mapping[int, Sequence[str]]) -> Manifest:
    """The dataset with other instructions of some episodes, each of all of its steps."""
    columns = manifest.columns
    lists = [tuple(manifest.tasks[task] for task in columns.tasks_of(row)) for row in range(columns.num_episodes)]
    for episode, texts in tasks.items():
        lists[episode] = tuple(texts)
    number: dict[str, int] = {}
    ids = [number.setdefault(text, len(number)) for text in itertools.chain.from_iterable(lists)]
    episodes = np.zeros(columns.num_episodes, np.bool_)
    episodes[list(tasks)] = True
    columns = replace(
        columns, task_offsets=offsets_of([len(one) for one in lists]), task_ids=np.array(ids, np.int64).reshape(-1)
    )
    told = replace(manifest, columns=columns, tasks=Texts.of(number, "tasks"))
    return _marked(told, episodes, TASKS_EDITED)


def renamed(manifest: Manifest, names: Mapping[str, str]) -> Manifest:
    """The dataset with other names of features, by their names so far.

    Raises:
        OptionError: If there is no such feature, or two would have one name.
    """
    for name, new in names.items():
        _see_that_there(name, manifest.features)
        if not can_be_name(new):
            raise OptionError(f"rename {name}={new}: cannot be a name, wanted at most 80 of a-z, 0-9, '_', '.', '-'.")
    new_names = [names.get(name, name) for name in manifest.features]
    twice = next((name for name in new_names if new_names.count(name) > 1), None)
    if twice is not None:
        raise OptionError(f"rename: two features would be {twice!r}, wanted one of each name. Drop the other first.")
    features = {
        names.get(name, name): replace(one, name=names.get(name, name)) for name, one in manifest.features.items()
    }
    groups = tuple(_regrouped(group, manifest.features, names) for group in manifest.groups)
    statistics = {names.get(name, name): values for name, values in manifest.statistics.items()}
    known = {new: old for old, new in names.items()}
    records = manifest.records.renamed(known)
    return replace(manifest, features=features, groups=groups, statistics=statistics, records=records)


def _regrouped(group: ShardGroup, features: Mapping[str, Feature], names: Mapping[str, str]) -> ShardGroup:
    stored = {names.get(name, name): group.renamed.get(name, name) for name in features}
    return replace(group, renamed={name: was for name, was in stored.items() if name != was})


def dropped(manifest: Manifest, names: Sequence[str]) -> Manifest:
    """The dataset without some features.

    Raises:
        OptionError: If there is no such feature.
        EditError: If none would be left.
    """
    for name in names:
        _see_that_there(name, manifest.features)
    features = {name: one for name, one in manifest.features.items() if name not in names}
    if not features:
        raise EditError("drop: no feature would be left, wanted one.")
    groups = tuple(
        replace(
            group,
            renamed={name: was for name, was in group.renamed.items() if name in features},
            dropped=(*group.dropped, *(group.renamed.get(name, name) for name in names)),
        )
        for group in manifest.groups
    )
    statistics = {name: values for name, values in manifest.statistics.items() if name in features}
    return replace(manifest, features=features, groups=groups, statistics=statistics)


def _see_that_there(name: str, features: Mapping[str, Feature]) -> None:
    if name not in features:
        raise OptionError(
            f"{name!r}: no such feature, the dataset has {', '.join(features)}. "
            + did_you_mean(name, features, "Name one of these.")
        )


def _marked(manifest: Manifest, episodes: Rows, edit: int) -> Manifest:
    """Note what was edited of some episodes: their shards say otherwise from now on."""
    edits: UInt8 = manifest.columns.edits | np.where(episodes, edit, 0).astype(np.uint8)
    return replace(manifest, columns=replace(manifest.columns, episode_edits=edits if edits.any() else None))
