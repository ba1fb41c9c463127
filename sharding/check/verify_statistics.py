"""Whether a manifest's statistics can be those of its values: extremes exactly, means within rounding."""

from collections.abc import Iterator, Sequence
from typing import BinaryIO

import numpy as np

from epistream.sharding.check.verify_report import Fault, Moments
from epistream.sharding.format.features import Feature
from epistream.sharding.format.index import ShardIndex
from epistream.sharding.format.manifest import Manifest
from epistream.sharding.format.manifest_file import FILE_NAME
from epistream.sharding.format.opened_dataset import Dataset
from epistream.sharding.tar.shard_statistics import array_of

# float32 sums of another order differ in the last digits; a wrong split or a stale manifest differs in the first.
_RELATIVE = 1e-4


def sum_up(file: BinaryIO, index: ShardIndex, feature: Feature) -> Moments:
    """Sums over all episodes of a shard."""
    episodes = range(index.num_episodes)
    values = np.concatenate([array_of(file, index, feature, episode).astype(np.float64) for episode in episodes])
    finite = np.isfinite(values)
    return Moments(
        count=finite.sum(axis=0),
        total=np.where(finite, values, 0).sum(axis=0),
        low=np.where(finite, values, np.inf).min(axis=0),
        high=np.where(finite, values, -np.inf).max(axis=0),
    )


def statistics_faults(
    dataset: Dataset, manifest: Manifest, shards: Sequence[tuple[int, dict[str, Moments]]]
) -> Iterator[Fault]:
    """Compare the manifest's statistics with the sums over the split they were computed on.

    Only for all of a manifest: the statistics of a part are those of the whole, and those of a list are merged.
    """
    if manifest.statistics_split is None:
        return
    split_of_shard = np.zeros(dataset.num_shards, np.int64)
    split_of_shard[dataset.episode_shard] = dataset.episode_split
    split = manifest.splits.index(manifest.statistics_split)
    num_steps = int(dataset.episode_length[dataset.episode_split == split].sum())
    chosen = [sums for shard, sums in shards if split_of_shard[shard] == split]
    for name, said in dataset.statistics.items():
        if said["count"] != num_steps:
            yield Fault(FILE_NAME, f"statistics of {name}", f"of {said['count']} steps", f"{num_steps}")
            continue
        parts = [sums[name] for sums in chosen if name in sums]
        if not parts:
            continue
        count = sum(part.count for part in parts)
        real = {
            "mean": sum(part.total for part in parts) / np.maximum(count, 1),
            "min": np.min([part.low for part in parts], axis=0),
            "max": np.max([part.high for part in parts], axis=0),
        }
        for moment, values in real.items():
            claimed = np.asarray(said[moment], np.float64)
            scale = np.maximum(np.abs(real["min"]), np.abs(real["max"]))
            bad = (count > 0) & ~(np.abs(claimed - values) <= _RELATIVE * scale + 1e-12)
            if bad.any():
                at = tuple(int(axis[0]) for axis in np.nonzero(np.atleast_1d(bad)))
                found, wanted = np.atleast_1d(claimed)[at], np.atleast_1d(values)[at]
                yield Fault(FILE_NAME, f"statistics of {name}", f"{moment}{list(at)} {found:g}", f"{wanted:g}")
