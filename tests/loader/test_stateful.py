"""torchdata's StatefulDataLoader over a stream."""

import pytest
from torchdata.stateful_dataloader import StatefulDataLoader

import epistream as es

pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # torchdata 0.11 calls it


def windows_of(batches):
    return [list(zip(b["episode_index"].tolist(), b["step_index"].tolist(), strict=True)) for b in batches]


def loader_of(shards, num_workers):
    stream = es.EpisodeStream(shards, batch_size=20, features=["action"])
    return stream, StatefulDataLoader(stream, batch_size=None, num_workers=num_workers)


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_stateful_dataloader_resumes_at_every_batch_and_goes_on_with_the_next_epoch(aloha_shards, num_workers):
    stream, loader = loader_of(aloha_shards, num_workers)
    epochs = []
    for epoch in range(2):
        stream.set_epoch(epoch)
        epochs.append(windows_of(loader))
    assert [len(batches) for batches in epochs] == [7, 7]

    for stop in (1, 3, 6):
        stream, loader = loader_of(aloha_shards, num_workers)
        batches = iter(loader)
        for _ in range(stop):
            next(batches)
        state = loader.state_dict()
        stream, loader = loader_of(aloha_shards, num_workers)
        loader.load_state_dict(state)
        assert windows_of(loader) == epochs[0][stop:]
        stream.set_epoch(1)
        assert windows_of(loader) == epochs[1]
