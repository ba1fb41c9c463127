"""torchdata.nodes over a stream and over a StreamingLoader: the state is of what the loop got, not of what was read."""

from contextlib import closing
from itertools import islice

import pytest
from torchdata import nodes

import epistream as es
from epistream.errors import StateError

NUM_BATCHES = 7  # of 20 windows, of 140


def windows_of(batches):
    return [list(zip(b["episode_index"].tolist(), b["step_index"].tolist(), strict=True)) for b in batches]


@pytest.fixture(scope="module")
def epochs(aloha_shards):
    """The batches of three epochs, read without any loader."""
    stream, batches = es.EpisodeStream(aloha_shards, batch_size=20, features=["action"]), []
    for epoch in range(3):
        stream.set_epoch(epoch)
        batches.append(windows_of(stream))
    assert [len(each) for each in batches] == [NUM_BATCHES] * 3
    return batches


WRAPPED = {
    "wrapped": nodes.IterableWrapper,
    "prefetched": lambda source: nodes.Prefetcher(nodes.IterableWrapper(source), prefetch_factor=3),
    "prefetched, few snapshots": lambda source: nodes.Prefetcher(
        nodes.IterableWrapper(source), prefetch_factor=3, snapshot_frequency=3
    ),
    "mapped in threads": lambda source: nodes.ParallelMapper(
        nodes.IterableWrapper(source), lambda batch: batch, num_workers=2, method="thread"
    ),
}


@pytest.fixture(params=WRAPPED)
def wrap(request):
    return WRAPPED[request.param]


@pytest.fixture
def make(aloha_shards, wrap):
    """Makes a stream or a StreamingLoader, and a loader of nodes over it; ends the workers afterwards."""
    made = []

    def make_one(num_workers=None, batch_size=20):
        source = es.EpisodeStream(aloha_shards, batch_size=batch_size, features=["action"])
        if num_workers is not None:
            source = es.StreamingLoader(source, num_workers=num_workers)
            made.append(source)
        loader = nodes.Loader(wrap(source))
        return source, loader

    yield make_one
    for loader in made:
        loader.close()


@pytest.mark.parametrize("stop", [0, 1, 4, 6])
@pytest.mark.parametrize("num_workers", [None, 0, 2])
def test_nodes_resume_at_the_batch_that_the_loop_got_and_go_on_with_whole_epochs(make, epochs, num_workers, stop):
    source, loader = make(num_workers)
    batches = iter(loader)
    for _ in range(stop):
        next(batches)
    state = loader.state_dict()

    source, loader = make(num_workers)
    loader.load_state_dict(state)
    assert windows_of(loader) == epochs[0][stop:]
    # A loader counts epochs by itself, a stream stays in its own.
    assert windows_of(loader) == epochs[0 if num_workers is None else 1]
    source.set_epoch(2)
    assert windows_of(loader) == epochs[2]


@pytest.mark.parametrize("stop", [NUM_BATCHES, NUM_BATCHES + 1])
@pytest.mark.parametrize("num_workers", [None, 0, 2])
def test_nodes_go_on_with_the_next_epoch_after_a_state_at_the_end(make, epochs, num_workers, stop):
    source, loader = make(num_workers)
    batches = iter(loader)
    for _ in range(stop):
        next(batches, None)
    state = loader.state_dict()

    source, loader = make(num_workers)
    loader.load_state_dict(state)
    # Where snapshots are rare, nodes go on before the end and read to it: a stream is then still in its epoch.
    is_replayed = num_workers is None and "steps_since_snapshot': 1" in str(state)
    assert windows_of(loader) == epochs[0 if is_replayed else 1]
    source.set_epoch(2)
    assert windows_of(loader) == epochs[2]


@pytest.mark.parametrize("num_workers", [None, 2])
def test_nodes_begin_anew_after_a_loop_that_broke_off(make, epochs, num_workers):
    source, loader = make(num_workers)
    assert windows_of(islice(loader, 3)) == epochs[0][:3]
    source.set_epoch(1)
    batches = iter(loader)
    given = windows_of([next(batches)])
    state = loader.state_dict()
    assert given + windows_of(batches) == epochs[1]
    _, loader = make(num_workers)
    loader.load_state_dict(state)
    assert given + windows_of(loader) == epochs[1]


@pytest.mark.parametrize("num_workers", [None, 2])
def test_nodes_loader_loads_states_of_its_own_again_and_again(make, epochs, num_workers):
    _, loader = make(num_workers)
    start = loader.state_dict()
    batches = iter(loader)
    given = windows_of([next(batches) for _ in range(2)])
    middle = loader.state_dict()
    for _ in range(2):
        loader.load_state_dict(middle)
        assert given + windows_of(loader) == epochs[0]
    loader.load_state_dict(start)
    assert windows_of(loader) == epochs[0]


@pytest.mark.parametrize("num_workers", [None, 2])
def test_nodes_state_fits_another_batch_size_to_the_window(aloha_shards, epochs, num_workers):
    def made(batch_size):
        source = es.EpisodeStream(aloha_shards, batch_size=batch_size, features=["action"])
        source = source if num_workers is None else es.StreamingLoader(source, num_workers=num_workers)
        return source, nodes.Loader(nodes.Prefetcher(nodes.IterableWrapper(source), prefetch_factor=3))

    source, loader = made(20)
    batches = iter(loader)
    given = sum(windows_of([next(batches) for _ in range(3)]), [])
    state = loader.state_dict()
    other, loader = made(10)
    loader.load_state_dict(state)
    rest = sum(windows_of(loader), [])
    assert sorted(given + rest) == sorted(sum(epochs[0], []))
    for each in (source, other):
        if num_workers is not None:
            each.close()


def test_nodes_refuse_the_state_of_another_seed(aloha_shards, epochs):
    loader = nodes.Loader(nodes.IterableWrapper(es.EpisodeStream(aloha_shards, batch_size=20, features=["action"])))
    next(iter(loader))
    state = loader.state_dict()
    stream = es.EpisodeStream(aloha_shards, batch_size=20, features=["action"], seed=5)
    loader = nodes.Loader(nodes.IterableWrapper(stream))
    loader.load_state_dict(state)
    with pytest.raises(StateError, match="seed is 0, this stream has 5"):
        iter(loader)


def test_nodes_prefetched_batches_of_a_loader_do_not_change_while_they_wait(aloha_shards, epochs):
    stream = es.EpisodeStream(aloha_shards, batch_size=20, features=["action"])
    with closing(es.StreamingLoader(stream, num_workers=1, prefetch=1)) as source:
        loader = nodes.Loader(nodes.Prefetcher(nodes.IterableWrapper(source), prefetch_factor=6))
        batches = iter(loader)
        kept = [next(batches) for _ in range(NUM_BATCHES)]
        assert windows_of(kept) == epochs[0]
