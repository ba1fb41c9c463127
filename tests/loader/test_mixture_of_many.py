"""Mixtures of many datasets: what each costs in descriptors, state and work, and that nothing else changes."""

import json
import os
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import pytest

import epistream as es
from epistream.cache.node import NodeCache
from epistream.errors import StateError
from epistream.loader.reading.reader import EpisodeReader

NUM = 50


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Datasets of two short episodes each, told apart by their values."""
    root = tmp_path_factory.mktemp("many")
    for number in range(NUM):
        folder = root / str(number)
        folder.mkdir()
        with h5py.File(folder / "demos.hdf5", "w") as file:
            for episode in range(2):
                steps = np.arange(20, dtype=np.float64)[:, None] + np.zeros((1, 3))
                file[f"data/demo_{episode}/actions"] = 1000 * number + 100 * episode + steps
                file[f"data/demo_{episode}/obs/robot0_joint_pos"] = steps
        es.pack(folder, folder / "shards")
    return [root / str(number) / "shards" for number in range(NUM)]


def mixture(folders, num=NUM, **options):
    streams = [es.EpisodeStream(folder, order=es.OrderOptions(lanes=2)) for folder in folders[:num]]
    return es.Mixture(streams, [1] * num, batch_size=16, **options)


def num_descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


def seen(batches):
    """(dataset, episode, step) of each window, and whether its action is the one recorded there."""
    found = []
    for batch in batches:
        columns = (batch[key].tolist() for key in ("dataset_index", "episode_index", "step_index"))
        for (dataset, episode, step), action in zip(zip(*columns, strict=True), batch["action"], strict=True):
            assert action.flatten().tolist() == [1000 * dataset + 100 * episode + step] * 3
            found.append((dataset, episode, step))
    return found


def test_mixture_of_many_gives_each_window_once(folders):
    found = Counter(seen(mixture(folders, remainder="uneven", stop="all_exhausted")))
    assert sorted(found) == [(d, e, t) for d in range(NUM) for e in range(2) for t in range(20)]
    # Equal weights hold to within 2 L windows: the others begin their second epoch before the last one ends its first.
    assert sum(found.values()) - len(found) <= 4 * NUM


def test_mixture_of_many_holds_few_descriptors(folders):
    before = num_descriptors()
    stream = mixture(folders)
    batches = iter(stream)
    most = 0
    for _ in range(stream.num_batches):
        next(batches)
        most = max(most, num_descriptors())
    # A shard and its table, which is a lease and a mapping: three for each dataset, and the cache's own.
    assert most - before <= 3 * NUM + 20


def test_mixture_of_many_releases_only_what_a_batch_drew_from(folders, monkeypatch):
    released = []
    monkeypatch.setattr(EpisodeReader, "release", lambda reader, **how: released.append(reader))
    batches = iter(mixture(folders))
    released.clear()
    for number, _ in enumerate(batches):
        assert len(released) <= 16 // 2, number  # 16 windows are 8 blocks of 2 lanes, each of one dataset
        released.clear()


def test_tables_stay_open_between_batches_where_no_shard_goes_through_the_cache(folders, monkeypatch, tmp_path):
    opened = []
    open_made = NodeCache.open_made

    def counted(cache, entry, *args, **how):
        opened.append(entry.key)
        return open_made(cache, entry, *args, **how)

    monkeypatch.setattr(NodeCache, "open_made", counted)
    stream = mixture(folders, num=4)
    seen(stream)
    assert len(opened) == len(set(opened)) == 4
    opened.clear()
    cached = [
        es.EpisodeStream(folder, order=es.OrderOptions(lanes=2), cache=es.CacheOptions(mode="disk", directory=tmp_path))
        for folder in folders[:4]
    ]
    seen(es.Mixture(cached, [1] * 4, batch_size=16))
    assert not opened  # mapped shards need no tables


@pytest.mark.parametrize("num", [10, NUM])
def test_state_of_many_is_small_and_resumes(folders, num):
    stream = mixture(folders, num)
    with es.StreamingLoader(stream, num_workers=0) as loader:
        whole = [batch["action"].tolist() for batch in loader]
        loader.set_epoch(0)
        batches = iter(loader)
        for _ in range(3):
            next(batches)
        state = loader.state_dict()
        assert len(json.dumps(state)) <= 100 * num
        loader.load_state_dict(json.loads(json.dumps(state)))
        assert [batch["action"].tolist() for batch in loader] == whole[3:]


def test_state_of_many_as_earlier_releases_saved_it_is_read(folders):
    stream = mixture(folders)
    old = {"version": 1, "epoch": 2, "position": 32, **stream.job.identity}
    assert len(old["window"]) == len(old["plans"]) == NUM
    assert len(old["plans"][0]) == 32
    stream.load_state_dict(old)
    assert stream.cursor == (2, 32)


def test_state_of_many_names_what_differs(folders):
    state = mixture(folders).state_dict()
    other = mixture([folders[1], folders[0], *folders[2:]])
    with pytest.raises(StateError, match=r"state: dataset\[0\] is .* this stream has .*; dataset\[1\] is [^;]*\. Make"):
        other.load_state_dict(state)
    weighted = es.Mixture(
        [es.EpisodeStream(folder, order=es.OrderOptions(lanes=2)) for folder in folders], [2, *[1] * (NUM - 1)]
    )
    with pytest.raises(StateError, match=r"state: weights\[0\] is '1', this stream has '2'\. Make"):
        weighted.load_state_dict(state)
    streams = [es.EpisodeStream(folder, order=es.OrderOptions(lanes=2), seed=9) for folder in folders]
    seeds = es.Mixture(streams, [1] * NUM)
    with pytest.raises(StateError, match=rf"plans\[2\] is [^;]*; and {NUM - 3} more of plans"):
        seeds.load_state_dict(state)
    fewer = mixture(folders, 10)
    many = f"state: dataset is a mixture of {NUM}, this stream has"
    with pytest.raises(StateError, match=f"{many} a mixture of 10. Make"):
        fewer.load_state_dict(state)
    with pytest.raises(StateError, match=f"{many} '[0-9a-f]+'. Make"):
        es.EpisodeStream(folders[0]).load_state_dict(state)
    with pytest.raises(StateError, match="reads versions 1 and 2"):
        weighted.load_state_dict({**state, "version": 3})


def test_streams_have_positions_of_their_own_and_share_a_descriptor(folders):
    before = num_descriptors()
    streams = [es.EpisodeStream(folders[0]) for _ in range(130)]
    for number, stream in enumerate(streams):
        stream.set_epoch(number, number % 5)
    assert [stream.cursor for stream in streams] == [(number, number % 5) for number in range(130)]
    assert num_descriptors() - before <= 3


def test_streams_made_after_a_fork_do_not_share_positions(folders):
    first = es.EpisodeStream(folders[0])
    child = os.fork()
    if child == 0:
        mine = es.EpisodeStream(folders[0])
        mine.set_epoch(7)
        os._exit(0 if first.cursor == (0, 0) else 1)
    other = es.EpisodeStream(folders[0])
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert other.cursor == (0, 0)
