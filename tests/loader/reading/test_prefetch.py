"""Filling ahead: the cache is told of the right shards, and every shard is still fetched once."""

import os
from pathlib import Path

import pytest

import epistream as es
from epistream.cache.read_ahead import local_ranges
from epistream.cache.store.places import file_system_type, is_memory
from epistream.loader.reading.prefetch import ShardsAhead
from epistream.loader.shards.shard_entry import shard_entry


class Recorder:
    """A prefetcher that only takes notes."""

    def __init__(self, entries, ahead):
        self.entries, self.ahead, self.passed = entries, ahead, 0

    def start(self):
        pass

    def advance(self, num_passed):
        self.passed = num_passed

    def close(self):
        self.passed = None


@pytest.fixture(scope="module")
def shards(tmp_path_factory, shared_shape=(6, 400)):
    import h5py
    import numpy as np

    folder = tmp_path_factory.mktemp("source")
    with h5py.File(folder / "demos.hdf5", "w") as file:
        for number in range(shared_shape[0]):
            steps = np.arange(shared_shape[1], dtype=np.float64)[:, None] + np.zeros((1, 14))
            file[f"data/demo_{number}/actions"] = steps + 1000 * number
            file[f"data/demo_{number}/obs/robot0_joint_pos"] = steps
    out = tmp_path_factory.mktemp("packed") / "shards"
    es.pack(folder, out, shard_size="64KiB")
    return out


def test_shards_ahead_names_every_shard_in_the_order_of_use_over_epochs(shards, monkeypatch):
    stream = es.EpisodeStream(shards, batch_size=50, order=es.OrderOptions(lanes=2))
    made = []
    monkeypatch.setattr(
        type(stream.job.cache),
        "prefetcher",
        lambda self, plan, entries, ahead: made.append(Recorder(entries, ahead)) or made[-1],
    )
    following = ShardsAhead(stream.job, 0, 0)
    recorder = made[0]
    order = stream.job.part.plan.epoch(0)
    needed = list(order.uses_from(0))
    first = [Path(next(recorder.entries).parts[0].url).name for _ in range(len(needed) + 1)]
    assert first[:-1] == [f"shard-{use.shard:06d}.tar" for use in needed]
    assert first[-1] == f"shard-{next(iter(stream.job.part.plan.epoch(1).uses_from(0))).shard:06d}.tar"
    for position in range(0, 2400, 50):
        following.reach(0, position)
        gone = [use for use in needed if use.stop <= position]
        # Uses are passed in the order of need, so one that ends early waits for those before it.
        assert recorder.passed <= len(gone)
        assert all(use.stop <= position for use in needed[: recorder.passed])
    following.reach(1, 0)
    assert recorder.passed == len(needed)


@pytest.mark.parametrize("way", [{"num_workers": 2}, {"num_workers": 0, "num_threads": 2}])
def test_loader_over_shared_memory_fetches_each_byte_once_in_three_epochs(shards, way):
    directory = Path(f"/dev/shm/epistream-ahead-{os.getpid()}")
    cache = es.CacheOptions(mode="shm", directory=str(directory))
    stream = es.EpisodeStream(shards, batch_size=50, order=es.OrderOptions(lanes=2), cache=cache)
    with es.StreamingLoader(stream, **way) as loader:
        for _ in range(3):
            pairs = (zip(b["episode_index"].tolist(), b["step_index"].tolist(), strict=True) for b in loader)
            seen = [pair for batch in pairs for pair in batch]
            assert len(set(seen)) == 2400
        stats = loader.stats().cache
    dataset = es.open_dataset(shards)
    # Fills of the last moments may be missing from a worker's last message, but none may be counted twice.
    assert stats.fills <= dataset.num_shards
    assert stats.bytes_fetched <= int(dataset.shard_bytes.sum() + dataset.index_bytes.sum())
    assert not directory.exists()


def test_hdf5_file_on_a_disk_is_read_ahead_where_its_rows_lie(tmp_path, monkeypatch):
    import h5py
    import hdf5_world

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = hdf5_world.write_episode(tmp_path / "episode.hdf5")
    dataset = es.open_dataset(path)
    index, rows = local_ranges(shard_entry(dataset, 0))
    assert (index.path, index.first, index.stop) == (Path(dataset.index_url[0]), 0, int(dataset.index_bytes[0]))
    assert rows.path == path
    with h5py.File(path) as file:
        action = file["action"]
        assert action.chunks is None
        place = action.id.get_offset()
    assert 0 < rows.first <= place <= rows.stop <= path.stat().st_size


def test_index_that_is_gone_leaves_nothing_to_read_ahead(tmp_path, monkeypatch):
    import hdf5_world

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    dataset = es.open_dataset(hdf5_world.write_episode(tmp_path / "episode.hdf5"))
    entry = shard_entry(dataset, 0)
    Path(dataset.index_url[0]).unlink()
    assert [place.path for place in local_ranges(entry)] == [Path(dataset.index_url[0])], "who opens it finds out"


def test_ranks_of_a_node_meet_at_the_same_board_and_kept_shards_have_none(shards):
    def board(mode: str, seed: int, rank: int) -> Path | None:
        world, order = es.World.of(rank, 4, local_size=4), es.OrderOptions(lanes=2, resident_shards=4)
        return es.EpisodeStream(shards, batch_size=50, order=order, seed=seed, world=world, cache=mode).job.board()

    if is_memory(file_system_type(shards)):
        pytest.skip("the folder of the tests is in memory, wanted on a disk")
    boards = [{board("auto", seed, rank) for rank in range(4)} for seed in range(8)]
    assert [len(found) for found in boards] == [1] * 8
    assert all(next(iter(found)).suffix == ".index" for found in boards)
    assert len(set().union(*boards)) > 1, "other plans, other boards"
    assert board("off", 0, 0) in boards[0]
