"""What people know from other loaders: length, states, epochs, early ends, and what they do twice."""

import gc
import json

import numpy as np
import pytest
from torch.utils.data import DataLoader, IterableDataset

import epistream as es
from epistream.errors import OptionError, StateError

NUM_BATCHES = 7  # of 20 windows, of 140


def windows_of(batches):
    return [list(zip(b["episode_index"].tolist(), b["step_index"].tolist(), strict=True)) for b in batches]


@pytest.fixture(scope="module")
def epochs(aloha_shards):
    """The batches of three epochs, from a stream for each."""
    batches = []
    for epoch in range(3):
        stream = es.EpisodeStream(aloha_shards, batch_size=20, features=["action"])
        stream.set_epoch(epoch)
        batches.append(windows_of(stream))
    return batches


@pytest.fixture
def make_stream(aloha_shards):
    def make(**options):
        return es.EpisodeStream(aloha_shards, **{"batch_size": 20, "features": ["action"], **options})

    return make


WAYS = {
    "nothing": {"num_workers": 0, "num_threads": 0},
    "threads": {"num_workers": 0},
    "processes": {"num_workers": 2},
}


@pytest.fixture(params=WAYS)
def way(request):
    return WAYS[request.param]


@pytest.fixture
def make_loader(make_stream):
    made = []

    def make(num_workers=0, num_threads=None, **options):
        made.append(es.StreamingLoader(make_stream(**options), num_workers=num_workers, num_threads=num_threads))
        return made[-1]

    yield make
    for loader in made:
        loader.close()


# Length


def test_loader_has_the_length_that_it_gives_before_within_and_after_an_epoch_and_a_resume(make_loader, way):
    loader = make_loader(**way)
    lengths = [len(loader)]
    for batch in loader:
        lengths.append(len(loader))
        if len(lengths) == 4:
            state = loader.state_dict()
        del batch
    assert lengths == [NUM_BATCHES] * (NUM_BATCHES + 1)
    loader.load_state_dict(state)
    assert (len(loader), loader.num_batches) == (NUM_BATCHES, NUM_BATCHES - 3)
    assert sum(1 for _ in loader) == NUM_BATCHES - 3
    assert len(loader) == sum(1 for _ in loader)


@pytest.mark.parametrize(("remainder", "sizes"), [("drop", [60, 60]), ("pad", [60] * 3), ("uneven", [60, 60, 20])])
def test_loader_length_counts_what_the_remainder_leaves(make_loader, remainder, sizes):
    loader = make_loader(batch_size=60, remainder=remainder)
    assert len(loader) == len(sizes)
    assert [len(batch["step_index"]) for batch in loader] == sizes


def test_stream_is_an_iterable_data_set_without_a_length(make_stream):
    stream = make_stream()
    assert isinstance(stream, IterableDataset)
    with pytest.raises(TypeError):
        len(stream)
    assert sum(1 for _ in DataLoader(stream, batch_size=None)) == NUM_BATCHES


# States


@pytest.mark.parametrize("stop", [0, 1, 4, NUM_BATCHES])
def test_stream_state_follows_the_loop_over_it(make_stream, epochs, stop):
    stream = make_stream()
    batches = iter(stream)
    for _ in range(stop):
        next(batches)
    state = json.loads(json.dumps(stream.state_dict()))
    assert windows_of(batches) == epochs[0][stop:]
    other = make_stream()
    other.load_state_dict(state)
    assert other.state_dict() == state
    assert windows_of(other) == (epochs[0][stop:] or epochs[1])
    assert windows_of(other) == epochs[0 if stop < NUM_BATCHES else 1]


@pytest.mark.parametrize("stop", [0, 1, 4, NUM_BATCHES, NUM_BATCHES + 2])
def test_loader_state_gives_what_was_left_and_then_whole_epochs(make_loader, epochs, way, stop):
    loader = make_loader(**way)
    batches, given = iter(loader), []
    for _ in range(stop):
        batch = next(batches, None)
        if batch is None:
            batches = iter(loader)
            batch = next(batches)
        given += windows_of([batch])
    state = json.loads(json.dumps(loader.state_dict()))
    del batches
    other = make_loader(**way)
    other.load_state_dict(state)
    assert other.state_dict() == state
    if stop != NUM_BATCHES:
        given += windows_of(other)
    else:
        given += windows_of(other)[:0]
        other.load_state_dict(state)
    num_epochs = len(given) // NUM_BATCHES
    assert given == sum(epochs[:num_epochs], [])
    if num_epochs < 3:
        assert windows_of(other) == epochs[num_epochs]


def test_loader_state_is_not_ahead_of_the_loop_where_workers_are(make_loader):
    loader = make_loader(num_workers=2)
    positions = []
    for batch in loader:
        positions.append(loader.state_dict()["position"])
        del batch
    assert positions == [20, 40, 60, 80, 100, 120, 0]


def test_loader_state_of_a_resumed_epoch_resumes_again(make_loader, epochs, way):
    given, state = [], None
    for _ in range(NUM_BATCHES):
        loader = make_loader(**way)
        if state is not None:
            loader.load_state_dict(state)
        given += windows_of([next(iter(loader))])
        state = loader.state_dict()
    assert given == epochs[0]


def test_loader_saves_without_having_been_iterated_and_loads_its_own_state_at_any_time(make_loader, epochs):
    loader = make_loader()
    loader.load_state_dict(loader.state_dict())
    assert windows_of(loader) == epochs[0]
    loader.load_state_dict(loader.state_dict())
    batches = iter(loader)
    given = windows_of([next(batches), next(batches)])
    loader.load_state_dict(loader.state_dict())
    assert given + windows_of(loader) == epochs[1]


def test_loader_state_survives_a_change_of_workers_back_and_forth(make_loader, epochs):
    given, state = [], None
    for number, workers in enumerate([{"num_workers": 2}, {"num_workers": 0}, {"num_workers": 1}, {"num_workers": 2}]):
        loader = make_loader(**workers)
        if state is not None:
            loader.load_state_dict(state)
        batches = iter(loader)
        given += windows_of(next(batches) for _ in range(2 if number < 3 else 1))
        state = loader.state_dict()
    assert given == epochs[0]


def test_loader_state_from_two_ranks_goes_on_with_one_and_three_without_a_window_twice(make_loader):
    ranks, given = [make_loader(batch_size=10, world=es.World.of(rank, 2)) for rank in range(2)], []
    for loader in ranks:
        batches = iter(loader)
        given += sum(windows_of([next(batches), next(batches)]), [])
    state = ranks[0].state_dict()
    for number in (1, 3):
        rest = []
        for rank in range(number):
            loader = make_loader(batch_size=10, world=es.World.of(rank, number))
            loader.load_state_dict(state)
            rest += sum(windows_of(loader), [])
        assert len(set(given + rest)) == len(given + rest) == 40 + 100 // (10 * number) * 10 * number


@pytest.mark.parametrize("state", [None, {}, {"epoch": 1}, [1, 2], {"version": 9, "epoch": 0, "position": 0}])
def test_state_of_something_else_is_refused(make_loader, state):
    with pytest.raises(StateError, match="state: "):
        make_loader().load_state_dict(state)
    with pytest.raises(StateError, match="state: "):
        iter(make_loader().stream).load_state_dict(state)


# Epochs


def test_loader_epochs_have_the_same_windows_in_another_order_that_a_second_loader_repeats(make_loader, epochs, way):
    first, second = make_loader(**way), make_loader()
    orders = [windows_of(first) for _ in range(3)]
    assert orders == epochs == [windows_of(second) for _ in range(3)]
    assert len({str(order) for order in orders}) == 3
    assert len({str(sorted(sum(order, []))) for order in orders}) == 1


def test_loader_set_epoch_repeats_an_epoch_and_goes_on_behind_it(make_loader, epochs, way):
    loader = make_loader(**way)
    loader.set_epoch(1)
    assert windows_of(loader) == epochs[1]
    loader.set_epoch(1)
    assert windows_of(loader) == epochs[1]
    assert windows_of(loader) == epochs[2]
    for set_epoch in (loader.sampler.set_epoch, loader.dataset.set_epoch):
        set_epoch(0)
        assert windows_of(loader) == epochs[0]


def test_stream_repeats_its_epoch_until_set_epoch(make_stream, epochs):
    stream = make_stream()
    assert windows_of(stream) == windows_of(stream) == epochs[0]
    stream.set_epoch(2)
    assert windows_of(stream) == windows_of(stream) == epochs[2]
    with pytest.raises(OptionError, match="wanted integers of 0 or more"):
        stream.set_epoch(-1)


def test_stream_loaded_at_the_end_has_nothing_left_of_that_epoch_and_the_next_one_whole(make_stream, epochs):
    stream = make_stream()
    list(stream)
    stream.load_state_dict(stream.state_dict())
    stream.set_epoch(0)
    assert windows_of(stream) == []
    assert windows_of(stream) == epochs[0]
    stream.set_epoch(1)
    assert windows_of(stream) == epochs[1]


# Early ends, and two iterators


def test_loader_loop_that_breaks_off_has_spent_its_epoch_and_its_iterator_ends(make_loader, epochs, way):
    loader = make_loader(**way)
    for batch in loader:
        del batch
        break
    assert windows_of(loader) == epochs[1]


def test_loader_iterator_that_is_made_and_not_used_costs_nothing(make_loader, epochs, way):
    loader = make_loader(**way)
    for _ in range(3):
        iter(loader)
    assert windows_of(loader) == epochs[0]
    batches = iter(loader)
    given = windows_of([next(batches)])
    iter(loader)
    assert given + windows_of(batches) == epochs[1]


def test_loader_later_iterator_ends_the_earlier_one_with_a_sentence(make_loader, epochs, way):
    loader = make_loader(**way)
    first = iter(loader)
    next(first)
    second = iter(loader)
    given = windows_of([next(second)])
    with pytest.raises(StateError, match="ended by a later"):
        next(first)
    assert given + windows_of(second) == epochs[1]


def test_stream_has_as_many_iterators_as_one_likes(make_stream, epochs):
    stream = make_stream()
    assert [windows_of(pair) for pair in zip(stream, stream, strict=True)] == [[each, each] for each in epochs[0]]


def test_ended_iterators_stay_ended(make_loader, make_stream, way):
    for batches in (iter(make_loader(**way)), iter(make_stream())):
        assert sum(1 for _ in batches) == NUM_BATCHES
        assert next(batches, None) is None
        assert next(batches, None) is None


def test_loader_that_is_dropped_in_mid_epoch_ends_its_workers(make_stream):
    loader = es.StreamingLoader(make_stream(), num_workers=2)
    next(iter(loader))
    pids = loader.worker_pids
    assert len(pids) == 2
    del loader
    gc.collect()
    import psutil

    assert not any(psutil.pid_exists(pid) and psutil.Process(pid).ppid() == psutil.Process().pid for pid in pids)


def test_two_loaders_over_two_data_sets_of_the_same_shards_do_not_disturb_each_other(make_loader, epochs):
    train, validation = make_loader(num_workers=1), make_loader(num_workers=1, shuffle=False)
    steps = []
    for batch in train:
        steps += windows_of([batch])
        if len(steps) == 3:
            rows = sum(windows_of(validation), [])
    assert steps == epochs[0]
    assert rows == sorted(rows)
    assert len(rows) == 140


# The stock DataLoader


@pytest.mark.parametrize("options", [{"persistent_workers": True}, {"prefetch_factor": 5}, {"num_workers": 1}, {}])
def test_stock_loader_gives_the_epochs_that_are_set(make_stream, epochs, options):
    stream = make_stream()
    loader = DataLoader(stream, batch_size=None, **{"num_workers": 2, **options})
    for epoch in (0, 2, 1):
        stream.set_epoch(epoch)
        assert windows_of(loader) == epochs[epoch]


def test_stock_loader_out_of_order_gives_each_window_once(make_stream, epochs):
    stream = make_stream()
    loader = DataLoader(stream, batch_size=None, num_workers=2, in_order=False)
    for epoch in range(2):
        stream.set_epoch(epoch)
        assert sorted(windows_of(loader)) == sorted(epochs[epoch])


def test_stock_loader_that_breaks_off_begins_anew(make_stream, epochs):
    stream = make_stream()
    for num_workers in (0, 2):
        loader = DataLoader(stream, batch_size=None, num_workers=num_workers)
        assert windows_of([next(iter(loader))]) == epochs[0][:1]
        assert windows_of(loader) == epochs[0]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_stream_state_is_refused_where_only_workers_know_it(make_stream, num_workers):
    stream = make_stream()
    for batch in DataLoader(stream, batch_size=None, num_workers=num_workers):
        del batch
        with pytest.raises(StateError, match=f"state_dict: {num_workers} workers of a DataLoader read this stream"):
            stream.state_dict()
    stream.set_epoch(1)
    assert (stream.state_dict()["epoch"], stream.state_dict()["position"]) == (1, 0)


def test_stream_state_follows_a_stock_loader_without_workers(make_stream, epochs):
    stream = make_stream()
    batches = iter(DataLoader(stream, batch_size=None))
    given = windows_of([next(batches), next(batches)])
    state = stream.state_dict()
    other = make_stream()
    other.load_state_dict(state)
    other.set_epoch(0)
    assert given + windows_of(DataLoader(other, batch_size=None, num_workers=2)) == epochs[0]


def test_batches_are_writable_and_the_callers_own(make_loader, make_stream, way):
    for source in (make_loader(**way), DataLoader(make_stream(), batch_size=None)):
        kept = []
        for batch in source:
            assert np.asarray(batch["action"]).flags.writeable
            batch["action"] += 1
            kept.append(batch)
        again = list(make_stream())
        for batch, other in zip(kept, again, strict=True):
            np.testing.assert_array_equal(batch["action"].numpy(), other["action"].numpy() + 1)
