"""Statistics of the arrays in a finished shard, in the order in which packing makes them."""

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from epistream.sharding.format.features import Feature
from epistream.sharding.format.index import ShardIndex
from epistream.sharding.format.statistics import NotFinite, Summary, add_counts, count_not_finite, merge_all, summarize
from epistream.sharding.manifest.record_making import Counted, RecordRules, count_episode, valid_steps

Valid = Mapping[int, tuple[tuple[int, int], ...] | None]


def not_finite_in(path: Path, index: ShardIndex, of: Valid | None = None) -> dict[str, NotFinite]:
    """How many values of array features are not finite, in the valid ranges of episodes of a local shard.

    Args:
        path: The tar.
        index: Its index.
        of: The valid ranges of those episodes that count, by their position; those of the index of all if None.
    """
    floats = [name for name, one in index.features.items() if one.kind == "array" and np.dtype(one.dtype).kind == "f"]
    return add_counts(map(count_not_finite, _valid(path, index, floats, of)))


def statistics_of(path: Path, index: ShardIndex, of: Valid | None = None) -> dict[str, Summary]:
    """The summary of each array feature over the valid ranges of episodes of a local shard, as `not_finite_in`."""
    arrays = [name for name, one in index.features.items() if one.kind == "array"]
    valid = _valid(path, index, arrays, of)
    return merge_all({name: summarize(values) for name, values in one.items()} for one in valid)


def counted_in(path: Path, index: ShardIndex, rules: RecordRules) -> Iterator[Counted]:
    """What is known of the values of each episode of a shard, which need not be there if its index holds them."""
    arrays = [name for name, one in index.features.items() if one.kind == "array"]
    for meta, values in zip(index.episodes, _arrays(path, index, arrays, range(index.num_episodes)), strict=True):
        yield count_episode(values, meta, rules)


def _valid(path: Path, index: ShardIndex, names: Sequence[str], of: Valid | None) -> Iterator[dict[str, NDArray[Any]]]:
    chosen = {number: meta.valid_ranges for number, meta in enumerate(index.episodes)} if of is None else of
    for ranges, arrays in zip(chosen.values(), _arrays(path, index, names, list(chosen)), strict=True):
        yield {name: valid_steps(values, ranges) for name, values in arrays.items()}


def _arrays(
    path: Path, index: ShardIndex, names: Sequence[str], episodes: Sequence[int]
) -> Iterator[dict[str, NDArray[Any]]]:
    """The values of some features of some episodes."""
    is_read = any(name not in index.values for name in names)
    with path.open("rb") if is_read else io.BytesIO() as file:
        for episode in episodes:
            yield {name: array_of(file, index, index.features[name], episode) for name in names}


def counts_of_values(index: ShardIndex) -> dict[str, NotFinite]:
    """As `not_finite_in`, of values that all stand in an index."""
    arrays = [index.features[name] for name in index.values]
    floats = [one for one in arrays if np.dtype(one.dtype).kind == "f"]
    return count_not_finite({one.name: _values_of(index, one) for one in floats})


def statistics_of_values(index: ShardIndex) -> dict[str, Summary]:
    """As `statistics_of`, likewise."""
    return {name: summarize(_values_of(index, index.features[name])) for name in index.values}


def _values_of(index: ShardIndex, feature: Feature) -> NDArray[Any]:
    rows = np.ascontiguousarray(index.values[feature.name])
    values: NDArray[Any] = rows.view(np.dtype(feature.dtype).newbyteorder("<"))
    return values.reshape(len(rows), *feature.shape)


def array_of(file: BinaryIO, index: ShardIndex, feature: Feature, episode: int) -> NDArray[Any]:
    """The values (length, ...) of an array feature in one episode, straight from the tar's bytes or the index's."""
    length = int(index.length[episode])
    if feature.name in index.values:
        first = int(index.first_row[episode])
        rows = index.values[feature.name][first : first + length]
        values: NDArray[Any] = rows.view(np.dtype(feature.dtype).newbyteorder("<"))
        return values.reshape(length, *feature.shape)
    file.seek(int(index.array_offset[feature.name][episode]))
    data = file.read(length * feature.step_bytes)
    return np.frombuffer(data, np.dtype(feature.dtype).newbyteorder("<")).reshape(length, *feature.shape)
