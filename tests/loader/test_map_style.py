"""A loader taken apart: batches by number, and a DataLoader that is made of the parts and begins later."""

import copy
from itertools import islice

import pytest
from torch.utils.data import DataLoader, IterableDataset

import epistream as es


class From:
    """A batch sampler that leaves out the first batches of another one, as Accelerate's does."""

    def __init__(self, batch_sampler, first):
        self.batch_sampler, self.first = batch_sampler, first

    def __iter__(self):
        return islice(iter(self.batch_sampler), self.first, None)


def loader_of(shards, **options):
    stream = es.EpisodeStream(shards, **{"batch_size": 10, "features": ["action"], **options})
    return es.StreamingLoader(stream, num_workers=0, timeout_s=60)


def remade(loader, first):
    """A DataLoader of the parts of `loader` that begins with batch `first`."""
    parts = {"collate_fn": loader.collate_fn, "prefetch_factor": loader.prefetch_factor}
    return DataLoader(loader.dataset, batch_sampler=From(loader.batch_sampler, first), **parts)


def windows_of(batches):
    return [list(zip(b["episode_index"].tolist(), b["step_index"].tolist(), strict=True)) for b in batches]


@pytest.fixture(scope="module")
def epochs(aloha_shards):
    """The windows of each of the 14 batches of four epochs, as the stream gives them by itself."""
    stream, epochs = es.EpisodeStream(aloha_shards, batch_size=10, features=["action"]), []
    for epoch in range(4):
        stream.set_epoch(epoch)
        epochs.append(windows_of(stream))
    return epochs


@pytest.mark.parametrize("first", [0, 1, 9, 13])
def test_loader_made_of_the_parts_begins_later_reads_nothing_in_vain_and_the_state_follows(aloha_shards, epochs, first):
    with loader_of(aloha_shards) as loader:
        other = remade(loader, first)
        loader.batch_sampler.set_epoch(2)
        batches = iter(other)
        assert windows_of(islice(batches, 1)) == epochs[2][first : first + 1]
        state = loader.state_dict()
        assert (state["epoch"], state["position"]) == ((2, 10 * (first + 1)) if first < 13 else (3, 0))
        assert windows_of(batches) == epochs[2][first + 1 :]
        assert loader.stats().num_windows == 140 - 10 * first
        assert windows_of(loader) == epochs[3]


def test_loader_made_of_the_parts_twice_takes_an_epoch_each_time(aloha_shards, epochs):
    with loader_of(aloha_shards) as loader:
        other = remade(loader, 3)
        assert [windows_of(islice(other, 2)), windows_of(other)] == [epochs[0][3:5], epochs[1][3:]]


def test_batches_skipped_after_a_state_was_loaded_are_not_skipped_twice(aloha_shards, epochs):
    with loader_of(aloha_shards) as loader:
        loader.set_epoch(1)
        list(islice(loader, 4))
        state = loader.state_dict()
    with loader_of(aloha_shards) as loader:
        loader.load_state_dict(state)
        loader.batch_sampler.set_epoch(1)
        assert windows_of(remade(loader, 4)) == epochs[1][4:]
    with loader_of(aloha_shards, batch_size=20) as loader:  # batches before the resume were of another size
        loader.load_state_dict(state)
        flat = [window for batch in epochs[1] for window in batch]
        rest = windows_of(remade(loader, 5))  # 4 of 10 windows were given, and 1 of 20 is skipped
        assert [sorted(batch) for batch in rest] == [sorted(flat[at : at + 20]) for at in (60, 80, 100, 120)]


def test_batch_is_found_by_its_number_and_none_behind_the_last(aloha_shards, epochs):
    with loader_of(aloha_shards) as loader:
        batches = loader.dataset
        assert windows_of(batches[number] for number in (3, 4, 5)) == epochs[0][3:6]
        assert windows_of([batches[2]]) == epochs[1][2:3]  # another pass
        for number in (-1, 14):
            with pytest.raises(IndexError, match=f"batch {number}: this rank has 14 in an epoch"):
                batches[number]


def test_dataset_has_what_the_stream_has_and_says_epoch_and_state_of_the_loader(aloha_shards, epochs):
    with loader_of(aloha_shards) as loader:
        batches = loader.dataset
        assert not isinstance(batches, IterableDataset)
        assert (len(batches), len(loader.batch_sampler), batches.num_windows) == (140, 14, 140)
        batches.set_epoch(1)
        assert windows_of(islice(loader, 2)) == epochs[1][:2]
        assert batches.state_dict() == loader.state_dict()
        assert batches.state_dict()["position"] == 20
        batches.load_state_dict({**batches.state_dict(), "position": 30, "num_batches_given": 3})
        assert windows_of(loader) == epochs[1][3:]
        with pytest.raises(AttributeError):
            batches.nonsense  # noqa: B018
        with pytest.raises(AttributeError):
            copy.copy(batches).__deepcopy__  # noqa: B018


def test_batches_by_number_are_refused_to_whoever_deals_them_to_ranks_again(aloha_shards):
    with loader_of(aloha_shards) as loader:
        batches = loader.dataset
        batches[0]
        with pytest.raises(es.EpistreamError, match="batch 2 after batch 0, wanted one after the other"):
            batches[2]
