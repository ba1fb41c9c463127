"""A process may open few files: however many shards a plan draws from, readers get along with them."""

import gc
import resource

import h5py
import numpy as np
import psutil
import pytest

import epistream as es
from epistream.loader.shards.open_files import most_open, raise_limit

NUM_SHARDS = 150
NAMES = ("dataset", "episode", "step")


@pytest.fixture
def few_files():
    """A soft limit of 256 descriptors beside those of the test session, for as long as the test runs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    gc.collect()
    resource.setrlimit(resource.RLIMIT_NOFILE, (256 + psutil.Process().num_fds(), hard))
    yield hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def files(tmp_path):
    """A file per episode of two steps."""
    for episode in range(NUM_SHARDS):
        with h5py.File(tmp_path / f"episode_{episode}.hdf5", "w") as file:
            file["action"] = np.full((2, 3), episode, np.float32)
            file["observations/qpos"] = np.zeros((2, 3), np.float32)
            file["observations/images/top"] = np.zeros((2, 8, 8, 3), np.uint8)
    return sorted(tmp_path.iterdir())


def test_stream_of_more_shards_than_files_may_be_open_reads_every_window(files, few_files):
    stream = es.EpisodeStream(files, batch_size=NUM_SHARDS, image_size=(4, 4))
    assert stream.job.num_open_shards >= NUM_SHARDS
    with es.StreamingLoader(stream, num_workers=0) as loader:
        for _ in range(2):
            episodes = [episode for batch in loader for episode in batch["episode_index"].tolist()]
            assert sorted(episodes) == sorted(2 * list(range(NUM_SHARDS)))


def test_mixture_of_more_shards_than_files_may_be_open_reads_every_window(files, few_files):
    parts = [es.EpisodeStream(files[first::3], features=["action"]) for first in range(3)]
    with es.StreamingLoader(es.Mixture(parts, [1, 1, 1], batch_size=60), num_workers=0) as loader:
        windows = [w for b in loader for w in zip(*(b[f"{name}_index"].tolist() for name in NAMES), strict=True)]
    assert len(windows) == len(set(windows)) == 240  # 96 of each, as lanes are 8, in whole batches


def test_raise_limit_lets_readers_keep_more_open(few_files):
    assert most_open(1) == resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 16
    before = most_open(1)
    raise_limit()
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == (
        1 << 16 if few_files == resource.RLIM_INFINITY else min(few_files, 1 << 16)
    )
    assert most_open(1) > before
