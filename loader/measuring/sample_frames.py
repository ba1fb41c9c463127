"""Frames of a run's own, as they are stored: what to try codecs on."""

import itertools
from collections.abc import Iterator

import numpy as np

from epistream.loader.reading.job import ReadJob
from epistream.loader.reading.reader import shard_entry
from epistream.sharding.format.features import Feature
from epistream.sharding.format.index import ShardIndex


def own_frames(job: ReadJob, number: int) -> list[tuple[Feature, bytes]]:
    """Up to `number` frames of the job's first batches, taken from all cameras in turn."""
    return list(itertools.islice(_frames(job), number))


def _frames(job: ReadJob) -> Iterator[tuple[Feature, bytes]]:
    cameras = [feature for feature in job.features.values() if feature.kind == "frames"]
    schedule, order = job.schedule(0, 0), job.plan.epoch(0)
    for batch_index in range(schedule.num_batches if cameras else 0):
        windows = job.windows(order, schedule, batch_index)
        for shard in np.unique(windows.shard).tolist():
            rows = np.flatnonzero(windows.shard == shard)
            with job.cache.open(shard_entry(job.dataset, shard)) as entry:
                tar, index_blob = entry.blobs
                index = ShardIndex.parse(bytes(index_blob.read(0, index_blob.size)), job.dataset.index_url[shard])
                frames = index.first_row[windows.episode_in_shard[rows]] + windows.step[rows]
                for frame, feature in itertools.product(np.unique(frames).tolist(), cameras):
                    start, size = index.frame_offset[feature.name][frame], index.frame_size[feature.name][frame]
                    yield feature, bytes(tar.read(int(start), int(size)))
