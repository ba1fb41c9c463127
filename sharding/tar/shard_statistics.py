"""Statistics of the arrays in a finished shard, in the order in which packing makes them."""

from pathlib import Path

import numpy as np

from epistream.sharding.format.index import ShardIndex
from epistream.sharding.format.statistics import Summary, merge_all, summarize


def statistics_of(path: Path, index: ShardIndex) -> dict[str, Summary]:
    """The summary of each array feature over all episodes of a local shard."""
    arrays = [feature for feature in index.features.values() if feature.kind == "array"]
    parts: list[dict[str, Summary]] = []
    with path.open("rb") as file:
        for episode, length in enumerate(index.length.tolist()):
            part = {}
            for feature in arrays:
                file.seek(int(index.array_offset[feature.name][episode]))
                data = file.read(length * feature.step_bytes)
                values = np.frombuffer(data, np.dtype(feature.dtype).newbyteorder("<"))
                part[feature.name] = summarize(values.reshape(length, *feature.shape))
            parts.append(part)
    return merge_all(parts)
