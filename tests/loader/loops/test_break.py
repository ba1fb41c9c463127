"""What a `break` leaves: each `for` is a full pass, and `resume` before the next one goes on where the last stopped."""

import logging
from itertools import islice

import pytest
import torch
from torch.utils.data import DataLoader

import epistream as es
from epistream.errors import StateError

WAYS = {
    "nothing": {"num_workers": 0, "num_threads": 0},
    "threads": {"num_workers": 0, "num_threads": 2},
    "processes": {"num_workers": 2},
}
each_way = pytest.mark.parametrize("way", WAYS)


def stream_of(shards, **options):
    return es.EpisodeStream(shards, **{"batch_size": 5, "features": ["action"], **options})


def loader_of(shards, way="threads", **options):
    return es.StreamingLoader(stream_of(shards, **options), **WAYS[way], timeout_s=60)


def windows_of(batches):
    return [w for b in batches for w in zip(b["episode_index"].tolist(), b["step_index"].tolist(), strict=True)]


def some(batches, number):
    """The windows of so many batches of a loop that breaks off behind them."""
    seen = []
    for count, batch in enumerate(batches, 1):
        seen += windows_of([batch])
        if count == number:
            break
    return seen


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if "full pass" in record.getMessage()]


@pytest.fixture(scope="module")
def epochs(aloha_shards):
    """The 140 windows of each of three epochs: 28 batches of 5."""
    stream, epochs = stream_of(aloha_shards), []
    for epoch in range(3):
        stream.set_epoch(epoch)
        epochs.append(windows_of(stream))
    return epochs


@each_way
def test_three_loops_of_ten_batches_with_resume_see_every_window_once(aloha_shards, epochs, way):
    with loader_of(aloha_shards, way) as loader:
        seen = []
        for _ in range(3):
            loader.resume()  # before the first loop, too
            seen += some(loader, 10)
        assert seen == epochs[0]  # 28 batches: the third loop has 8
        loader.resume()  # at the end of the epoch
        assert windows_of(loader) == epochs[1]


@each_way
def test_without_resume_each_loop_is_a_full_pass_and_says_once_what_was_left(aloha_shards, epochs, way, caplog):
    with loader_of(aloha_shards, way) as loader:
        assert some(loader, 10) == epochs[0][:50]
        assert not warnings_of(caplog)  # nothing is lost yet
        assert windows_of(loader) == epochs[1]
        some(loader, 3)
        assert len(windows_of(loader)) == 140
    [text] = warnings_of(caplog)
    assert "epoch 0 was left after 10 of 28 batches; this loop begins epoch 1, as each `for`" in text
    assert "loader.resume()" in text


@each_way
def test_state_saved_at_the_break_goes_on_with_it(aloha_shards, epochs, way):
    with loader_of(aloha_shards, way) as loader:
        some(loader, 10)
        state = loader.state_dict()
    with loader_of(aloha_shards, "nothing", batch_size=10) as other:
        other.load_state_dict(state)
        assert windows_of(other) == epochs[0][50:]


@each_way
def test_resume_goes_on_behind_an_exception_in_the_loop(aloha_shards, epochs, way):
    with loader_of(aloha_shards, way) as loader:
        seen = []
        try:
            for batch in loader:
                seen += windows_of([batch])
                if len(seen) == 20:
                    raise RuntimeError
        except RuntimeError:
            loader.resume()
            loader.resume()  # twice is once
            assert loader.num_batches == 24
            assert len(loader) == 28
            seen += windows_of(loader)
        assert seen == epochs[0]


def test_resume_gives_again_the_batch_that_a_transform_failed_on(aloha_shards, epochs):
    calls = []

    def transform(batch):
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError
        return batch

    for made in (stream_of(aloha_shards, transform=transform), loader_of(aloha_shards, transform=transform)):
        calls.clear()
        seen = []
        batches = iter(made)
        for _ in range(3):
            seen += windows_of([next(batches)])
        with pytest.raises(RuntimeError):
            next(batches)
        made.resume()
        assert seen + windows_of(made) == epochs[0]


def test_resume_goes_on_after_close_and_behind_an_iterator_that_gave_nothing(aloha_shards, epochs):
    with loader_of(aloha_shards) as loader:
        seen = some(loader, 3)
    loader.resume()
    seen += windows_of(islice(loader, 4))
    iter(loader)
    loader.resume()
    assert seen + windows_of(loader) == epochs[0]
    loader.close()


def test_what_was_said_behind_the_loop_wins_over_resume(aloha_shards, epochs, caplog):
    with loader_of(aloha_shards, "nothing") as loader:
        some(loader, 5)
        state = loader.state_dict()
        some(loader, 3)
        loader.set_epoch(2)
        loader.resume()
        assert some(loader, 28) == epochs[2]
        loader.load_state_dict(state)
        loader.resume()
        assert some(loader, 3) == epochs[0][25:40]
        loader.resume()
        loader.set_epoch(0)  # as loops do that set it in every turn: the place stays
        assert windows_of(loader) == epochs[0][40:]
    assert len(warnings_of(caplog)) == 1  # of the first break; a set_epoch says what is wanted


def test_loops_that_set_the_epoch_are_not_warned(aloha_shards, epochs, caplog):
    with loader_of(aloha_shards, "nothing") as loader:
        for epoch in range(3):
            loader.set_epoch(epoch)
            assert some(loader, 2) == epochs[epoch][:10]
    assert not warnings_of(caplog)


@pytest.mark.parametrize("remainder", ["drop", "pad", "uneven"])
def test_resume_on_ranks_loses_no_window(aloha_shards, remainder):
    worlds = [es.World.of(rank, 2) for rank in range(2)]
    loaders = [loader_of(aloha_shards, batch_size=9, remainder=remainder, world=world) for world in worlds]
    seen = []
    for loader in loaders:
        with loader:
            for _ in range(3):  # 7 or 8 batches
                seen += some(loader, 3)
                loader.resume()
    assert len(set(seen)) == (126 if remainder == "drop" else 140)
    assert len(seen) == {"drop": 126, "pad": 144, "uneven": 140}[remainder]


def test_resume_of_a_mixture_is_its_own_order(aloha_shards):
    def mixture():
        return es.Mixture([stream_of(aloha_shards), stream_of(aloha_shards, seed=1)], [2, 1], batch_size=6)

    whole = windows_of(mixture())
    for made in (mixture(), es.StreamingLoader(mixture(), num_workers=0, num_threads=1)):
        seen = some(made, 4)
        made.resume()
        assert seen + windows_of(made) == whole


@pytest.mark.parametrize("wrap", [lambda stream: stream, lambda stream: DataLoader(stream, batch_size=None)])
def test_stream_goes_on_by_resume_and_else_begins_its_epoch_again(aloha_shards, epochs, wrap, caplog):
    stream = stream_of(aloha_shards)
    loop = wrap(stream)
    stream.resume()
    assert some(loop, 4) == epochs[0][:20]
    assert some(loop, 4) == epochs[0][:20]
    assert some(loop, 4) == epochs[0][:20]
    [text] = warnings_of(caplog)
    assert "epoch 0 was left after 4 of 28 batches; this loop begins epoch 0" in text
    assert "stream.resume()" in text
    stream.resume()
    stream.resume()
    assert some(loop, 30) == epochs[0][20:]
    stream.resume()
    assert windows_of(loop) == epochs[1]


def test_stream_that_workers_read_ahead_refuses_to_resume(aloha_shards):
    stream = stream_of(aloha_shards)
    some(DataLoader(stream, batch_size=None, num_workers=1), 2)
    with pytest.raises(StateError, match=r"^resume: 1 workers of a DataLoader read .*StreamingLoader"):
        stream.resume()
    stream.set_epoch(1)
    stream.resume()  # the loop has said where to begin


def test_resume_loses_no_batch_that_was_moved_ahead(aloha_shards, epochs, monkeypatch):
    # What is done on a device is stood for by one that moves a batch ahead as the CUDA one does.
    from contextlib import contextmanager, nullcontext
    from types import SimpleNamespace

    from epistream.loader import loader as module
    from epistream.loader.device import DeviceFeed

    done = SimpleNamespace(query=lambda: True, synchronize=lambda: None)
    mover = SimpleNamespace(aside=nullcontext, copy=torch.clone, mark=lambda: done, adopt=lambda event, batch: None)

    @contextmanager
    def ahead(batches, device, hook, ring):
        yield DeviceFeed(batches, mover, hook)

    monkeypatch.setattr(module, "move_ahead", ahead)
    with loader_of(aloha_shards) as loader:
        seen = some(loader, 10)
        loader.resume()
        assert seen + windows_of(loader) == epochs[0]


def test_only_the_first_rank_tells(aloha_shards, caplog):
    caplog.set_level(logging.INFO)
    stream = stream_of(aloha_shards, world=es.World.of(1, 2))
    some(stream, 2)
    some(stream, 2)
    assert not warnings_of(caplog)
