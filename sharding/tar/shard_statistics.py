"""Statistics of the arrays in a finished shard, in the order in which packing makes them."""

from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from epistream.sharding.format.features import Feature
from epistream.sharding.format.index import ShardIndex
from epistream.sharding.format.statistics import NotFinite, Summary, add_counts, count_not_finite, merge_all, summarize


def not_finite_in(path: Path, index: ShardIndex) -> dict[str, NotFinite]:
    """How many values of array features are not finite, over all episodes of a local shard."""
    arrays = [one for one in index.features.values() if one.kind == "array" and np.dtype(one.dtype).kind == "f"]
    with path.open("rb") as file:
        return add_counts(
            count_not_finite({feature.name: array_of(file, index, feature, episode) for feature in arrays})
            for episode in range(index.num_episodes)
        )


def statistics_of(path: Path, index: ShardIndex) -> dict[str, Summary]:
    """The summary of each array feature over all episodes of a local shard."""
    arrays = [feature for feature in index.features.values() if feature.kind == "array"]
    with path.open("rb") as file:
        return merge_all(
            {feature.name: summarize(array_of(file, index, feature, episode)) for feature in arrays}
            for episode in range(index.num_episodes)
        )


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
