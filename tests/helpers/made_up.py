"""Manifests that no file holds: shards of given numbers of windows, cut into episodes of about so many steps."""

from types import SimpleNamespace

import numpy as np

from epistream.loader.order.anchors import Anchors
from epistream.loader.order.options import OrderOptions
from epistream.loader.order.plan import Plan


def made_up(windows_per_shard, steps, shard_bytes=10**6):
    windows = np.asarray(windows_per_shard, np.int64)
    each = np.maximum(windows // steps, 1)
    shard = np.repeat(np.arange(len(windows)), each)
    place = np.arange(len(shard)) - (np.cumsum(each) - each)[shard]
    length = windows[shard] // each[shard] + (place < windows[shard] % each[shard])
    return SimpleNamespace(
        url="made up",
        shard_url=range(len(windows)),
        shard_bytes=np.full(len(windows), shard_bytes),
        index_bytes=np.full(len(windows), 0),
        episode_shard=shard,
        episode_in_shard=place,
        episode_length=length,
        episode_split=np.zeros(len(shard), np.uint8),
        splits=("all",),
        valid_ranges=(np.arange(len(shard) + 1), np.stack([length * 0, length], 1)),
    )


def plan_and_anchors(dataset, **options):
    anchors = Anchors(dataset, None, (0, 0), drop_incomplete=False)
    return Plan.of(anchors, dataset, OrderOptions(**options)), anchors
