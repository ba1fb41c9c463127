"""Several datasets as one stream: weights, exactness, resume, and batches put together."""

from collections import Counter

import h5py
import numpy as np
import pytest
import torch

import epistream as es
from epistream.cache.node import NodeCache
from epistream.errors import OptionError, StateError

SIZES = {"big": (5, 60), "small": (2, 40)}  # episodes, steps


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Two datasets without cameras, with instructions of their own."""
    out = {}
    for number, (name, (num_episodes, length)) in enumerate(SIZES.items()):
        folder = tmp_path_factory.mktemp(name)
        with h5py.File(folder / "demos.hdf5", "w") as file:
            for episode in range(num_episodes):
                steps = np.arange(length, dtype=np.float64)[:, None] + np.zeros((1, 3))
                file[f"data/demo_{episode}/actions"] = 1e6 * number + 1000 * episode + steps
                file[f"data/demo_{episode}/obs/robot0_joint_pos"] = steps
                file[f"data/demo_{episode}"].attrs["ep_meta"] = f'{{"lang": "do {name}"}}'
        es.pack(folder, folder / "shards")
        out[name] = folder / "shards"
    return out


def streams(shards, **options):
    options = {"order": es.OrderOptions(lanes=4), **options}
    return [es.EpisodeStream(shards[name], **options) for name in SIZES]


def mixture(shards, **options):
    own = {"batch_size": 10, "stop": "all_exhausted", **options}
    return es.Mixture(streams(shards), [0.75, 0.25], **own)


def windows_of(batches):
    keys = ("dataset_index", "episode_index", "step_index")
    return [sorted(zip(*(batch[key].tolist() for key in keys), strict=True)) for batch in batches]


def test_mixture_batches_hold_the_windows_they_name_from_both_datasets(shards):
    for batch in mixture(shards):
        dataset, episode, step = (batch[f"{name}_index"] for name in ("dataset", "episode", "step"))
        expected = 1e6 * dataset + 1000 * episode + step
        assert torch.equal(batch["action"][:, 0, 0].double(), expected.double())
        assert batch["task"] == [["do big", "do small"][index] for index in dataset.tolist()]
        assert batch["action"].shape == (10, 1, 3)


def test_mixture_gives_each_dataset_its_weight_and_each_window_once_an_epoch_of_its_own(shards):
    stream = mixture(shards, stop=1200, batch_size=8)
    seen = [window for batch in windows_of(stream) for window in batch]
    assert len(seen) == 1200
    counts = Counter(dataset for dataset, _, _ in seen)
    assert abs(counts[0] - 900) <= 8  # 2 L windows
    assert abs(counts[1] - 300) <= 8
    # 300 windows an epoch for the big one, 80 for the small one: three epochs each and some.
    times = Counter(seen)
    assert {times[0, episode, step] for episode in range(5) for step in range(60)} <= {2, 3, 4}
    assert {times[1, episode, step] for episode in range(2) for step in range(40)} <= {3, 4}


def test_mixture_is_the_same_on_any_topology_and_in_any_way_of_running(shards):
    alone = windows_of(mixture(shards, batch_size=12))
    ranks = []
    for rank in range(3):
        with es.StreamingLoader(
            mixture(shards, batch_size=4, world=es.World.of(rank, 3, 3)), num_workers=0 if rank == 2 else 1 + rank
        ) as loader:
            ranks.append(windows_of(loader))
    assert [sorted(sum(parts, [])) for parts in zip(*ranks, strict=True)] == alone


def test_mixture_resumes_at_every_batch_and_the_next_epoch_goes_on_where_datasets_were(shards):
    stream = mixture(shards, batch_size=16)
    epochs = []
    for epoch in range(2):
        stream.set_epoch(epoch)
        epochs.append(windows_of(stream))
    assert epochs[0] != epochs[1]
    with es.StreamingLoader(mixture(shards, batch_size=16), num_workers=1) as loader:
        states = [loader.state_dict()]
        for _ in loader:
            states.append(loader.state_dict())
        for number, state in enumerate(states[:-1]):
            loader.load_state_dict(state)
            assert windows_of(loader) == epochs[0][number:]
            assert windows_of(loader) == epochs[1]
    assert states[1]["position"] == 16
    for ours, theirs in zip(stream.positions(1, 0), stream.positions(0, stream.num_windows), strict=True):
        assert ours == theirs


def test_mixture_of_one_stream_is_that_stream(shards):
    alone = es.EpisodeStream(shards["big"], batch_size=10, order=es.OrderOptions(lanes=4))
    mixed = es.Mixture(streams(shards)[:1], [1], batch_size=10)
    expected = [(b["episode_index"].tolist(), b["step_index"].tolist()) for b in alone]
    assert [(b["episode_index"].tolist(), b["step_index"].tolist()) for b in mixed] == expected


def test_mixture_normalises_each_dataset_with_its_own_statistics(shards):
    parts = streams(shards, normalize="mean_std")
    for batch in es.Mixture(parts, [1, 1], batch_size=20, stop="all_exhausted"):
        assert batch["action"].abs().max() < 3  # one dataset's actions lie a million above the other's


def test_mixture_refuses_a_state_of_other_weights(shards):
    state = mixture(shards).state_dict()
    other = es.Mixture(streams(shards), [0.5, 0.5], batch_size=10, stop="all_exhausted")
    with pytest.raises(StateError, match=r"weights\[0\] is '0.75', this stream has '0.5'; weights\[1\] is"):
        other.load_state_dict(state)


def test_mixture_refuses_what_does_not_fit_together(shards, aloha_shards):
    big = streams(shards)[0]
    with pytest.raises(OptionError, match="no streams"):
        es.Mixture([], [])
    with pytest.raises(OptionError, match="features"):
        es.Mixture([big, es.EpisodeStream(aloha_shards, order=es.OrderOptions(lanes=4))], [1, 1])
    with pytest.raises(OptionError, match="window"):
        es.Mixture([big, *streams(shards, window=es.Window(obs=[-1]))[1:]], [1, 1])
    with pytest.raises(OptionError, match="lanes"):
        es.Mixture([big, *streams(shards, order=es.OrderOptions(lanes=2))[1:]], [1, 1])
    with pytest.raises(OptionError, match="weights"):
        es.Mixture([big], [1, 2])


@pytest.mark.parametrize("changed", [0, 1])
def test_mixture_keeps_what_one_stream_alone_changes(shards, changed):
    def negate(batch):
        return {**batch, "action": -batch["action"]}

    parts = streams(shards)
    parts[changed] = es.EpisodeStream(shards[list(SIZES)[changed]], order=es.OrderOptions(lanes=4), transform=negate)
    for batch in es.Mixture(parts, [1, 1], batch_size=10, stop=40):
        dataset, episode, step = (batch[f"{name}_index"] for name in ("dataset", "episode", "step"))
        expected = (1e6 * dataset + 1000 * episode + step) * torch.where(dataset == changed, -1, 1)
        assert set(dataset.tolist()) == {0, 1}
        assert torch.equal(batch["action"][:, 0, 0].double(), expected.double())


def test_mixture_holds_no_dataset_while_another_one_waits(shards, tmp_path, monkeypatch):
    entries, held = [], []
    whole_open = NodeCache.open

    def watched_open(cache, entry, before_wait=None, **how):
        def waits():
            before_wait()
            held.append(sum(bool(opened.blobs) for opened in entries))

        entries.append(whole_open(cache, entry, waits, **how))
        return entries[-1]

    monkeypatch.setattr(NodeCache, "open", watched_open)
    cache = es.CacheOptions(mode="disk", directory=str(tmp_path))
    mixed = es.Mixture(streams(shards, cache=cache), [1, 1], batch_size=10, stop=40)
    for _ in mixed:
        pass
    mixed.job.cache.close()
    assert set(held) == {0}
    assert len(held) >= 2
