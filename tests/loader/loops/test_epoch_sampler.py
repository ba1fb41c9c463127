"""What trainers do with ``loader.sampler``: say the epoch, ask for its batches and whether they are shuffled."""

import logging

import pytest
from torch.utils.data import SequentialSampler

import epistream as es

# 140 windows are 14 batches of 10.
NOBODY = {"num_workers": 0, "num_threads": 0}


def loader_of(shards, **options):
    given = {"batch_size": 10, "features": ["action"], **options}
    return es.StreamingLoader(es.EpisodeStream(shards, **given), **NOBODY)


def windows_of(batches):
    return [list(zip(b["episode_index"].tolist(), b["step_index"].tolist(), strict=True)) for b in batches]


def state_after(shards, num_batches, epoch=0, **options):
    """The state of a loop of which this many batches of an epoch were taken."""
    with loader_of(shards, **options) as loader:
        loader.set_epoch(epoch)
        batches = iter(loader)
        for _ in range(num_batches):
            next(batches)
        return loader.state_dict()


@pytest.fixture(scope="module")
def epochs(aloha_shards):
    with loader_of(aloha_shards) as loader:
        return [windows_of(loader) for _ in range(3)]


def test_epoch_that_a_loaded_state_has_ended_gives_nothing_more_and_the_next_is_whole(aloha_shards, epochs):
    with loader_of(aloha_shards) as loader:
        loader.load_state_dict(state_after(aloha_shards, 14))
        loader.sampler.set_epoch(0)
        assert windows_of(loader) == []
        assert windows_of(loader) == epochs[1]
        loader.load_state_dict(state_after(aloha_shards, 14))
        loader.sampler.set_epoch(0)
        loader.sampler.set_epoch(1)
        assert windows_of(loader) == epochs[1]


def test_lap_that_a_loaded_state_is_in_goes_on_though_the_trainer_counts_an_earlier_epoch(aloha_shards, epochs):
    with loader_of(aloha_shards) as loader:
        loader.load_state_dict(state_after(aloha_shards, 3, epoch=2))
        loader.sampler.set_epoch(0)
        assert windows_of(loader) == epochs[2][3:]


@pytest.mark.parametrize(("batch_size", "is_warned"), [(10, False), (5, True), (20, True)])
def test_epoch_set_amid_batches_of_another_size_is_warned_of(aloha_shards, caplog, batch_size, is_warned):
    with loader_of(aloha_shards, batch_size=batch_size) as loader, caplog.at_level(logging.WARNING):
        loader.load_state_dict(state_after(aloha_shards, 4))
        loader.sampler.set_epoch(0)
        assert sum(len(batch) for batch in windows_of(loader)) == 100
    told = f"epoch 0 goes on at window 40, after 4 batches, with batches of {batch_size} windows over all ranks"
    assert [told in record.getMessage() for record in caplog.records] == [True] * is_warned


def test_loop_without_a_trainer_is_not_warned_of_batches_of_another_size(aloha_shards, caplog):
    with loader_of(aloha_shards, batch_size=5) as loader, caplog.at_level(logging.WARNING):
        loader.load_state_dict(state_after(aloha_shards, 4))
        assert len(windows_of(loader)) == 20
    assert not caplog.records


def test_sampler_numbers_the_batches_of_an_epoch(aloha_shards):
    loader = loader_of(aloha_shards)
    loader.load_state_dict(state_after(aloha_shards, 4))
    assert len(loader.sampler) == 14
    assert list(loader.sampler) == list(range(14))


def test_sampler_is_torchs_of_fixed_order_only_where_every_epoch_is_the_same(aloha_shards):
    ordered, shuffled = loader_of(aloha_shards, shuffle=False), loader_of(aloha_shards)
    mixture = es.Mixture([ordered.stream, ordered.stream], [1, 1], batch_size=10)
    loaders = [ordered, shuffled, es.StreamingLoader(mixture, **NOBODY)]
    assert [isinstance(loader.sampler, SequentialSampler) for loader in loaders] == [True, False, False]


@pytest.mark.parametrize(("num_taken", "is_warned"), [(1, True), (2, False), (14, False)])
def test_epoch_that_a_trainer_ends_after_one_batch_of_a_resume_is_warned_of(aloha_shards, caplog, num_taken, is_warned):
    stream = es.EpisodeStream(aloha_shards, batch_size=10, features=["action"])
    stream.set_epoch(1)
    with es.StreamingLoader(stream, num_workers=0) as loader:
        loader.load_state_dict(loader.state_dict())
        loader.sampler.set_epoch(1)
        batches = iter(loader)
        for _ in range(num_taken):
            next(batches)
        loader.sampler.set_epoch(2)
        assert ("epoch 1 was ended after 1 of its 14 batches" in caplog.text) is is_warned
        next(iter(loader))
        loader.sampler.set_epoch(3)  # nothing was resumed now
        assert "epoch 2" not in caplog.text
