"""What the bound of videos decodes: what the run's own batches need of each group, or whole groups in order."""

import numpy as np
import pytest
from counting.videos import CAMERAS, counter_of, encoded, write_shard
from handmade import publish

import epistream as es
from epistream.loader.measuring import bound
from epistream.sharding.format.index import ShardIndex
from epistream.sharding.pictures.video import VideoDecoder


@pytest.fixture
def job(tmp_path):
    write_shard(tmp_path, [encoded(range(100 * episode, 100 * episode + 40), 8) for episode in range(2)])
    data = (tmp_path / "shard-000000.index").read_bytes()
    publish(tmp_path, {"shard-000000.tar": (ShardIndex.parse(data, "index"), data)})
    return es.EpisodeStream(tmp_path, batch_size=5, window=es.Window(obs=[-3, 0], action=[0]), decode="per_read").job


def frames_of(sample):
    """The counters of all wanted frames of all pieces."""
    counters = []
    for piece in sample.pieces:
        decoder = VideoDecoder(piece.feature.shape)
        found = list(decoder.pictures(piece.stream, piece.packets, piece.wanted, "piece"))
        counters += [counter_of(picture) for _, picture in found]
    return counters


def test_bound_at_random_decodes_the_frames_of_each_batch_once_and_no_group_further_than_needed(job):
    sample = bound._sample(job)
    schedule, order = job.schedule(0, 0), job.part.plan.epoch(0)
    wanted = []
    for number in range(schedule.num_batches):
        windows = job.part.windows(order, schedule, number)
        steps = windows.step[:, None] + np.array([-3, 0])
        rows = 100 * windows.episode_index[:, None] + steps.clip(0)
        wanted += np.unique(rows).tolist()
    assert frames_of(sample) == wanted
    assert sample.num_windows == 80
    for piece in sample.pieces:
        assert piece.packets[0][0] % 8 == 0
        assert piece.packets[-1][0] in piece.wanted


def test_bound_in_order_decodes_whole_groups_each_frame_once(job):
    sample = bound._sample_in_order(job)
    assert {len(piece.packets) for piece in sample.pieces} == {8}
    counters = frames_of(sample)
    assert len(counters) == len(set(counters)) == sample.num_windows == 80
    assert sample.pieces[0].feature.name == CAMERAS[0]
