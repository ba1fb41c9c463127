"""What must not cut or double an epoch without a word: hooks that raise StopIteration, workers older than the group."""

import pytest
from torch.utils.data import DataLoader

import epistream as es
from epistream.errors import OptionError
from epistream.loader.order import launchers, world

WAYS = {"nothing": {"num_workers": 0, "num_threads": 0}, "threads": {"num_workers": 0}, "processes": {"num_workers": 1}}


def windows_of(batches):
    return [w for b in batches for w in zip(b["episode_index"].tolist(), b["step_index"].tolist(), strict=True)]


def failing_in(batch_number):
    """A function of the user that looks for something, in this batch in vain."""
    numbers = iter(range(batch_number))

    def hook(batch):
        next(numbers)
        return batch

    return hook


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("option", ["transform", "sample_format", "on_device"])
def test_function_that_raises_stopiteration_is_an_error_not_the_end_of_the_epoch(aloha_shards, way, option):
    given = {} if option == "on_device" else {option: failing_in(3)}
    on_device = failing_in(3) if option == "on_device" else None
    stream = es.EpisodeStream(aloha_shards, batch_size=20, features=["action"], **given)
    with es.StreamingLoader(stream, **WAYS[way], on_device=on_device) as loader:
        batches = iter(loader)
        assert len(windows_of(next(batches) for _ in range(3))) == 60
        with pytest.raises(RuntimeError, match="raised StopIteration"):
            next(batches)
        assert loader.state_dict()["position"] == 60


@pytest.mark.parametrize("num_workers", [0, 1])
def test_transform_that_raises_stopiteration_under_a_stock_dataloader_is_an_error(aloha_shards, num_workers):
    stream = es.EpisodeStream(aloha_shards, batch_size=20, features=["action"], transform=failing_in(3))
    with pytest.raises(RuntimeError, match="raised StopIteration"):
        list(DataLoader(stream, batch_size=None, num_workers=num_workers))


def test_workers_of_a_dataloader_over_a_loaders_batches_are_refused(aloha_shards):
    stream = es.EpisodeStream(aloha_shards, batch_size=20, features=["action"])
    with es.StreamingLoader(stream, num_workers=0, num_threads=0) as loader:
        parts = {"batch_sampler": loader.batch_sampler, "collate_fn": loader.collate_fn}
        with pytest.raises(OptionError, match=r"read by a worker of a DataLoader.*num_workers=0"):
            list(DataLoader(loader.dataset, num_workers=2, **parts))
        assert len(windows_of(DataLoader(loader.dataset, num_workers=0, **parts))) == 140


@pytest.mark.parametrize("kind", ["stream", "mixture"])
def test_workers_that_are_older_than_the_process_group_read_their_ranks_share(aloha_shards, kind, monkeypatch):
    def made(world=None):
        stream = es.EpisodeStream(aloha_shards, batch_size=10, features=["action"], world=world)
        return stream if kind == "stream" else es.Mixture([stream, stream], [1, 1], batch_size=10, world=world)

    stream, expected = made(), made(es.World(1, 2, node=1, num_nodes=2, uneven=True))
    loader = DataLoader(stream, batch_size=None, num_workers=1, persistent_workers=True)
    whole = windows_of(loader)
    for module in (world, launchers):  # a group of two, this being the second rank
        monkeypatch.setattr(module, "process_group", lambda: (1, 2))
    for epoch in (1, 2):
        stream.set_epoch(epoch)
        expected.set_epoch(epoch)
        share = windows_of(loader)
        assert share == windows_of(expected)
        assert len(share) < 0.6 * len(whole)
