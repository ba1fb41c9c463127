"""A process may open few files: however many shards a plan draws from, readers get along with them."""

import resource

import h5py
import numpy as np
import pytest

import epistream as es
from epistream.loader.open_files import most_open, raise_limit

NUM_SHARDS = 150


@pytest.fixture
def few_files():
    """A soft limit of 256 descriptors, for as long as the test runs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    yield hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_stream_of_more_shards_than_files_may_be_open_reads_every_window(tmp_path, few_files):
    for episode in range(NUM_SHARDS):
        with h5py.File(tmp_path / f"episode_{episode}.hdf5", "w") as file:
            file["action"] = np.full((2, 3), episode, np.float32)
            file["observations/qpos"] = np.zeros((2, 3), np.float32)
            file["observations/images/top"] = np.zeros((2, 8, 8, 3), np.uint8)
    stream = es.EpisodeStream(str(tmp_path), batch_size=NUM_SHARDS, image_size=(4, 4))
    assert stream.job.num_open_shards >= NUM_SHARDS
    with es.StreamingLoader(stream, num_workers=0) as loader:
        for _ in range(2):
            episodes = [episode for batch in loader for episode in batch["episode_index"].tolist()]
            assert sorted(episodes) == sorted(2 * list(range(NUM_SHARDS)))


def test_raise_limit_lets_readers_keep_more_open(few_files):
    assert most_open() == 16
    raise_limit()
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == (
        1 << 16 if few_files == resource.RLIM_INFINITY else min(few_files, 1 << 16)
    )
    assert most_open() > 16
