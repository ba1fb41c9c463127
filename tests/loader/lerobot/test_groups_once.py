"""Row groups of hundreds of episodes: each of their bytes is fetched once per node, whoever reads what."""

import threading
from itertools import pairwise

import numpy as np
import pyarrow.parquet as pq
import pytest
from robots.lerobot_meta import numbers
from robots.lerobot_sets import RobotSet, image
from robots.reading import all_steps, steps_seen, stream_of
from web.faulty_server import put_folder, serve, times_asked

import epistream as es
from epistream.loader.shards import picture_columns
from epistream.loader.shards.shard_entry import shard_entry

NUM_EPISODES = 200
NUMBERS = {"action": numbers(14), "observation.state": numbers(14)}
# What is read to find where the columns are: the first bytes, and the end.
FOUND_BYTES = 512 + (64 << 10)
DEADLINE_S = 120


@pytest.fixture
def server():
    with serve() as state:
        yield state


def put(server, root):
    """Its URL; it was opened before, and a first picture of each camera looked at."""
    url = put_folder(server, root)
    es.open_dataset(url)
    server.requests.clear()
    return url


def refuse_twice(server, path):
    """See that each byte of a file was asked for once, but those that tell where the columns are."""
    count = times_asked(server, f"/set/{path}")
    assert len(count) > 4 * FOUND_BYTES
    assert (count[512:-FOUND_BYTES] == 1).mean() > 0.95, "columns that nobody reads"
    assert count[512:-FOUND_BYTES].max() == 1
    assert count.sum() <= len(count) + FOUND_BYTES


def epoch_of_two_ranks(url, spec, cache, *, num_workers):
    """How often each step comes, of two ranks at the same time."""
    seen, failed = [], []

    def run(rank):
        try:
            world = es.World.of(rank, 2, local_size=2)
            stream = stream_of(url, batch_size=64, shuffle=True, world=world, cache=cache)
            with es.StreamingLoader(stream, num_workers=num_workers) as loader:
                seen.append(steps_seen(loader, spec))
        except BaseException as error:
            failed.append(error)

    ranks = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(DEADLINE_S)
        assert not rank.is_alive()
    assert not failed, failed
    return seen[0] + seen[1]


def cache_of(tmp_path, mode="shm"):
    directory = f"/dev/shm/{tmp_path.parent.name}-{tmp_path.name}" if mode == "shm" else None
    return es.CacheOptions(mode=mode, directory=directory)


@pytest.mark.parametrize("mode", ["shm", "off"])
def test_rows_of_one_group_are_fetched_once_by_two_ranks_of_two_workers(server, tmp_path, mode):
    lengths = np.random.default_rng(1).integers(3, 40, NUM_EPISODES).tolist()
    spec = RobotSet(lengths=lengths, features=NUMBERS, rows_in_group=1 << 20)
    root = spec.write(tmp_path / "set")
    path = spec.data_path(0)
    assert pq.ParquetFile(root / path).metadata.num_row_groups == 1
    url = put(server, root)
    assert epoch_of_two_ranks(url, spec, cache_of(tmp_path, mode), num_workers=2) == all_steps(spec)
    refuse_twice(server, path)


@pytest.mark.parametrize("rows_in_group", [1 << 20, 90])
def test_pictures_of_groups_of_many_episodes_are_fetched_once_by_two_ranks(server, tmp_path, rows_in_group):
    lengths = np.random.default_rng(2).integers(1, 9, 60).tolist()
    features = {**NUMBERS, "front": image(), "side": image()}
    spec = RobotSet(noise=40, lengths=lengths, features=features, rows_in_group=rows_in_group)
    url = put(server, spec.write(tmp_path / "set"))
    for _ in range(2):
        assert epoch_of_two_ranks(url, spec, cache_of(tmp_path), num_workers=0) == all_steps(spec)
    refuse_twice(server, spec.data_path(0))


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_pictures_of_an_episode_are_fetched_once_for_its_index_and_its_bytes(server, tmp_path, version):
    spec = RobotSet(noise=40, version=version, lengths=(60, 45, 60), features={"front": image(96, 128)})
    url = put(server, spec.write(tmp_path / "set"))
    assert steps_seen(stream_of(url, cache=cache_of(tmp_path)), spec) == all_steps(spec)
    for path in {spec.data_path(episode) for episode in range(3)}:
        refuse_twice(server, path)


@pytest.mark.parametrize("lengths", [(40,), (7, 40, 3)])
def test_bytes_of_an_episode_over_many_groups_are_unpacked_once_however_they_are_cut(tmp_path, monkeypatch, lengths):
    spec = RobotSet(lengths=lengths, features={"front": image(), "side": image()}, rows_in_group=4)
    dataset = es.open_dataset(spec.write(tmp_path / "set"))
    episode = lengths.index(40)
    blob = shard_entry(dataset, episode).parts[0].supply.open()
    unpacked, real = [], picture_columns.group_pictures
    monkeypatch.setattr(picture_columns, "group_pictures", lambda *what: unpacked.append(what) or real(*what))
    wanted = b"".join(spec.picture_bytes(key, episode, step) for key in ("front", "side") for step in range(40))
    assert blob.size == len(wanted)
    cuts = [*range(0, len(wanted), 1000), len(wanted)]
    assert b"".join(bytes(blob.read(start, stop - start)) for start, stop in pairwise(cuts)) == wanted
    num_groups = 10 if episode == 0 else 11
    assert len(unpacked) == 2 * num_groups
    for start in (len(wanted) - 10, 17, len(wanted) // 3):
        assert bytes(blob.read(start, 10)) == wanted[start : start + 10]
    assert len(unpacked) <= 2 * num_groups + 3
