"""Small batches that share a slot of the ring: the same batches, in the same order, none overwritten."""

import tempfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import epistream as es
from epistream.cache.admin import resize
from epistream.cache.node import NodeCache
from epistream.errors import StateError
from epistream.loader.workers.slots import Slots

LOW = ["action", "observation.state"]


def stream_of(shards, **options):
    return es.EpisodeStream(shards, batch_size=2, features=LOW, window=es.Window(action=range(3)), **options)


def places(batch):
    return list(zip(batch["episode_index"].tolist(), batch["step_index"].tolist(), strict=True))


def expected(stream, epoch=0, start=0):
    """What the batches of an epoch must be, from the schedule alone."""
    job = stream.job
    order, schedule = job.part.plan.epoch(epoch), job.schedule(epoch, start)
    for batch_index in range(schedule.num_batches):
        windows = job.part.windows(order, schedule, batch_index)
        yield list(zip(windows.episode_index.tolist(), windows.step.tolist(), strict=True))


def test_slots_of_a_long_epoch_hold_several_small_batches_and_one_large(aloha_shards):
    stream = stream_of(aloha_shards)
    num_batches = stream.num_batches
    assert Slots.plan(stream.job, 2, 4).batches_per_slot == min(32, num_batches // 8) > 1
    with_cameras = es.EpisodeStream(aloha_shards, batch_size=16)
    assert Slots.plan(with_cameras.job, 2, 4).batches_per_slot == 1


@pytest.fixture(scope="module")
def many_shards(tmp_path_factory):
    """24 shards of some 50 kB, and the bytes of all."""
    out = tmp_path_factory.mktemp("many")
    with h5py.File(out / "demos.hdf5", "w") as file:
        for number in range(24):
            file[f"data/demo_{number}/actions"] = np.zeros((100, 60), np.float32)
            file[f"data/demo_{number}/obs/robot0_joint_pos"] = np.zeros((100, 60), np.float32)
    es.pack(out / "demos.hdf5", out / "shards", shard_size="64KiB")
    dataset = es.open_dataset(out / "shards")
    assert dataset.num_shards == 24
    return out / "shards", int(dataset.shard_bytes.sum() + dataset.index_bytes.sum())


@pytest.fixture
def cache_folder():
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="slots-") as folder:
        yield Path(folder)


def together(shards, **options):
    order = es.OrderOptions(lanes=2, resident_shards=4)
    stream = es.EpisodeStream(shards, batch_size=2, order=order, cache=es.CacheOptions(**options))
    return Slots.plan(stream.job, 2, 4).batches_per_slot


def test_slots_hold_fewer_batches_where_the_budget_cannot_hold_what_they_draw_from(many_shards, cache_folder):
    shards, size = many_shards
    options = {"mode": "shm", "directory": str(cache_folder / "cache")}
    assert together(shards, **options) == together(shards, **options, budget_bytes=size) == 32
    assert 1 <= together(shards, **options, budget_bytes=size // 3) < 32
    assert together(shards, **options, budget_bytes=1) == 1, "nothing would help"
    assert list(cache_folder.iterdir()) == [], "planning makes nothing"


def test_slots_hold_fewer_batches_where_the_cap_in_force_is_small(many_shards, cache_folder):
    shards, size = many_shards
    options = {"mode": "shm", "directory": str(cache_folder / "cache")}
    with NodeCache(es.CacheOptions(**options)) as node:
        node.budget()
        resize(cache_folder / "cache", size // 3)
        assert 1 <= together(shards, **options) < 32


def test_slots_hold_fewer_batches_where_memory_is_small(many_shards, cache_folder, monkeypatch):
    shards, size = many_shards
    options = {"mode": "shm", "directory": str(cache_folder / "cache")}
    monkeypatch.setattr("epistream.cache.store.budget.available_bytes", lambda system: size)
    assert 1 <= together(shards, **options) < 32
    assert together(shards) == 32, "read in place"


def test_groups_deal_every_batch_once_and_in_order():
    slots = Slots(layout=None, batch_size=2, batches_per_slot=3)
    assert list(slots.groups(10, 2)) == [range(0, 1), range(1, 2), range(2, 5), range(5, 8), range(8, 10)]
    assert list(slots.groups(2, 3)) == [range(0, 1), range(1, 2)]
    assert list(slots.groups(0, 3)) == []


@pytest.mark.parametrize("options", [{"num_workers": 2}, {"num_workers": 0, "num_threads": 3}])
@pytest.mark.parametrize("remainder", ["drop", "pad", "uneven"])
def test_batches_that_share_slots_are_those_of_the_schedule(aloha_shards, options, remainder):
    stream = stream_of(aloha_shards, remainder=remainder)
    with es.StreamingLoader(stream, **options) as loader:
        for epoch in range(2):
            assert [places(batch) for batch in loader] == list(expected(stream, epoch))
        assert loader.stats().num_batches == 2 * stream.num_batches


def test_resume_in_the_middle_of_a_slot_goes_on_with_the_next_batch(aloha_shards):
    stream = stream_of(aloha_shards)
    with es.StreamingLoader(stream, num_workers=2) as loader:
        assert loader._crew.slots.batches_per_slot > 2
        batches = iter(loader)
        for _ in range(2):
            next(batches)
        state = loader.state_dict()
    resumed = stream_of(aloha_shards)
    with es.StreamingLoader(resumed, num_workers=1) as loader:
        loader.load_state_dict(state)
        assert [places(batch) for batch in loader] == list(expected(stream))[2:]


def test_batches_kept_from_every_slot_stay_as_they_are_and_are_counted_as_copies(aloha_shards):
    stream = stream_of(aloha_shards)
    with es.StreamingLoader(stream, num_workers=2, prefetch=1) as loader:
        kept = [(batch, {name: torch.clone(batch[name]) for name in LOW}) for batch in loader]
        copied = loader.stats().num_copied_batches
    assert [places(batch) for batch, _ in kept] == list(expected(stream))
    for batch, clones in kept:
        for name in LOW:
            assert np.array_equal(batch[name].numpy(), clones[name].numpy())
    # Each of two workers has three slots, of which two may be held: one batch in the first, more in the second.
    assert copied == stream.num_batches - 2 * (1 + loader._crew.slots.batches_per_slot)
    copies = [batch["action"] for batch, _ in kept[-2:]]
    assert len({tensor.untyped_storage().data_ptr() for tensor in copies}) == 2, "each in memory of its own"


def test_iteration_that_was_replaced_ends_at_once_though_its_slot_has_more(aloha_shards):
    with es.StreamingLoader(stream_of(aloha_shards), num_workers=1) as loader:
        old = iter(loader)
        next(old)
        next(iter(loader))
        with pytest.raises(StateError, match="ended by a later"):
            next(old)
