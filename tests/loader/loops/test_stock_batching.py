"""A DataLoader that would stack whole batches is refused, in workers too; one whose collator is the user's is not."""

import pytest
import torch
from torch.utils.data import ChainDataset, DataLoader, IterableDataset
from torchdata.stateful_dataloader import StatefulDataLoader

import epistream as es
from epistream.errors import OptionError

pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # torchdata 0.11 calls it

REFUSED = r"its batch_size stacks what is a batch of 20 windows already, wanted batch_size=None"


def made(shards, kind="stream"):
    stream = es.EpisodeStream(shards, batch_size=20, features=["action"])
    if kind == "mixture":
        return es.Mixture([stream, stream], [1, 1], batch_size=20)
    return ChainDataset([stream, stream]) if kind == "chained" else stream


class Unbatched(IterableDataset):
    """Of a user: gives windows one by one, which are to be put together."""

    def __init__(self, stream):
        self.stream = stream

    def __iter__(self):
        for batch in self.stream:
            yield from batch["action"]


def joined(batches):
    return {"action": torch.cat([batch["action"] for batch in batches])}


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("loader", [DataLoader, StatefulDataLoader])
@pytest.mark.parametrize("kind", ["stream", "mixture", "chained"])
def test_loader_that_stacks_whole_batches_is_refused(aloha_shards, kind, loader, num_workers):
    options = {"num_workers": num_workers, "timeout": 60 * num_workers}
    for batching in ({}, {"batch_size": 4}, {"batch_size": 2, "drop_last": True})[: 1 if num_workers else 3]:
        source = made(aloha_shards, kind)
        with pytest.raises(OptionError, match=REFUSED):
            next(iter(loader(source, **options, **batching)))


@pytest.mark.parametrize("loader", [DataLoader, StatefulDataLoader])
def test_refused_loader_leaves_the_stream_where_it_was(aloha_shards, loader):
    stream = made(aloha_shards)
    stream.set_epoch(1, 40)
    before = stream.state_dict()
    with pytest.raises(OptionError, match=REFUSED):
        next(iter(loader(stream)))
    assert stream.state_dict() == before
    assert sum(len(batch["action"]) for batch in loader(stream, batch_size=None)) == 100


@pytest.mark.parametrize("num_workers", [0, 1])
def test_collator_of_the_users_gets_whole_batches(aloha_shards, num_workers):
    options = {"num_workers": num_workers, "timeout": 60 * num_workers}
    batches = list(DataLoader(made(aloha_shards), batch_size=2, collate_fn=joined, **options))
    assert [len(batch["action"]) for batch in batches] == [40, 40, 40, 20]


def test_data_set_of_the_users_around_a_stream_is_batched_as_it_wishes(aloha_shards):
    batches = list(DataLoader(Unbatched(made(aloha_shards)), batch_size=35))
    assert [tuple(batch.shape) for batch in batches] == [(35, 1, 14)] * 4


def test_default_collators_of_transformers_are_refused_and_others_are_not(aloha_shards):
    def other(batches):
        return batches[0]

    def default_data_collator(batches):
        raise AssertionError("never called")

    class RemoveColumnsCollator:
        def __init__(self, data_collator):
            self.data_collator = data_collator

        def __call__(self, batches):
            return self.data_collator(batches)

    default_data_collator.__module__ = "transformers.data.data_collator"
    for collate in (default_data_collator, RemoveColumnsCollator(default_data_collator)):
        with pytest.raises(OptionError, match=REFUSED):
            next(iter(DataLoader(made(aloha_shards), batch_size=1, collate_fn=collate)))
    for collate in (other, RemoveColumnsCollator(other)):
        assert len(list(DataLoader(made(aloha_shards), batch_size=1, collate_fn=collate))) == 7
