"""What cannot be in the columns of a manifest, each thing as a sentence."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epistream.sharding.files.names import shard_name_problem
from epistream.sharding.manifest.manifest_columns import MORE_OF_EPISODES, MORE_OF_SHARDS, Int64, ManifestColumns

# Limits that keep every sum below within 64 bits.
_MAX_EPISODES = 1 << 28
_MAX_LENGTH = 1 << 34
_MAX_SHARD_BYTES = 1 << 40


def column_problems(columns: ManifestColumns, num_splits: int, num_tasks: int) -> Iterator[str]:
    """Everything in `columns` that cannot be, vectorised; later checks rely on the earlier ones."""
    num_shards, num_episodes = columns.num_shards, columns.num_episodes
    if not num_shards or not num_episodes or num_episodes > _MAX_EPISODES:
        yield f"{num_shards} shards and {num_episodes} episodes, wanted 1 or more of each"
    for name in ("shard_checksums", "index_checksums"):
        if getattr(columns, name).shape != (num_shards, 16):
            yield f"{name} of shape {getattr(columns, name).shape}, wanted {(num_shards, 16)}"
    for name in ("index_bytes", "shard_split", "names"):
        if len(getattr(columns, name)) != num_shards:
            yield f"{len(getattr(columns, name))} {name}, wanted {num_shards}"
    for name in ("episode_shard", "episode_in_shard"):
        if len(getattr(columns, name)) != num_episodes:
            yield f"{len(getattr(columns, name))} of {name}, wanted {num_episodes}"
    yield from out_of_range("shard_bytes", columns.shard_bytes, 1, _MAX_SHARD_BYTES)
    yield from out_of_range("index_bytes", columns.index_bytes, 1, _MAX_SHARD_BYTES)
    yield from out_of_range("shard_split", columns.shard_split, 0, num_splits - 1)
    yield from out_of_range("episode_length", columns.episode_length, 1, _MAX_LENGTH)
    yield from out_of_range("episode_shard", columns.episode_shard, 0, num_shards - 1)
    yield from _more_problems(columns, num_splits)
    yield from filter(None, map(shard_name_problem, columns.names))
    in_folders = len(set(zip(columns.group_of.tolist(), columns.names, strict=True)))
    if in_folders != num_shards:
        yield f"{in_folders} different shard names, wanted {num_shards}"
    yield from _position_problems(columns)
    yield from _ragged_problems("tasks", columns.task_offsets, len(columns.task_ids), num_episodes)
    yield from out_of_range("task_ids", columns.task_ids, 0, num_tasks - 1)
    if columns.range_offsets is not None and columns.ranges is not None:
        yield from _ragged_problems("valid ranges", columns.range_offsets, len(columns.ranges), num_episodes)
        yield from _range_problems(columns.range_offsets, columns.ranges, columns.episode_length)


def _more_problems(columns: ManifestColumns, num_splits: int) -> Iterator[str]:
    """What cannot be in the columns that only some datasets have."""
    highest = {"episode_split": num_splits - 1, "episode_edits": 7, "shard_num_episodes": _MAX_EPISODES}
    for names, wanted in ((MORE_OF_SHARDS, columns.num_shards), (MORE_OF_EPISODES, columns.num_episodes)):
        for name in names:
            values = getattr(columns, name)
            if values is not None and len(values) != wanted:
                yield f"{len(values)} of {name}, wanted {wanted}"
            if values is not None and name in highest:
                yield from out_of_range(name, values, 0, highest[name])


def out_of_range(name: str, values: NDArray[Any], low: int, high: int) -> Iterator[str]:
    """The first of `values` that is not from `low` to `high`, as a sentence."""
    if len(values) and (int(values.min()) < low or int(values.max()) > high):
        position = int(np.argmax((values < low) | (values > high)))
        yield f"{name}[{position}] is {values[position]}, wanted {low} to {high}"


def _position_problems(columns: ManifestColumns) -> Iterator[str]:
    """No place in a shard may be taken twice; all of them are, but of shards of which episodes were removed."""
    taken = np.bincount(columns.episode_shard, minlength=columns.num_shards)
    if int(taken.min()) == 0:
        yield f"shard {columns.names[int(np.argmin(taken))]} without episodes, wanted at least one"
    counts = columns.num_in_shard
    if int(counts.sum()) > _MAX_EPISODES:
        yield f"shards of {counts.sum()} episodes, wanted at most {_MAX_EPISODES}"
        return
    position = columns.episode_in_shard
    bad = (position < 0) | (position >= counts[columns.episode_shard])
    if bad.any():
        episode = int(np.argmax(bad))
        yield f"episode {episode} at position {position[episode]} of its shard, which has fewer episodes"
        return
    place = (np.cumsum(counts) - counts)[columns.episode_shard]
    place += position
    if (np.bincount(place) > 1).any():
        yield "two episodes at one position of a shard, wanted each position once"


def _ragged_problems(name: str, offsets: Int64, num_rows: int, num_episodes: int) -> Iterator[str]:
    if (
        len(offsets) != num_episodes + 1
        or int(offsets[0]) != 0
        or int(offsets[-1]) != num_rows
        or (offsets[1:] < offsets[:-1]).any()
    ):
        yield f"offsets of {name} that do not rise from 0 to {num_rows} in {num_episodes + 1} entries"


def _range_problems(offsets: Int64, ranges: Int64, length: Int64) -> Iterator[str]:
    if ranges.ndim != 2 or ranges.shape[1] != 2:
        yield f"valid ranges of shape {ranges.shape}, wanted (R, 2)"
        return
    episode = np.repeat(np.arange(len(length)), np.diff(offsets))
    start, stop = ranges[:, 0], ranges[:, 1]
    bad = (start < 0) | (stop <= start) | (stop > length[episode])
    same = episode[1:] == episode[:-1]
    bad[1:] |= same & (start[1:] < stop[:-1])
    if bad.any():
        row = int(np.argmax(bad))
        yield (
            f"episode {episode[row]}: valid range [{start[row]}, {stop[row]}), wanted ascending ranges within "
            f"its {length[episode[row]]} steps"
        )
