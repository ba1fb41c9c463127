"""When an epoch is taken, where a loop goes on, and what a state says: what trainers and hand-written loops rely on."""

import json
import pickle

import pytest
from torch.utils.data import DataLoader

import epistream as es
from epistream.errors import OptionError, StateError

WAYS = {
    "nothing": {"num_workers": 0, "num_threads": 0},
    "threads": {"num_workers": 0, "num_threads": 2},
    "processes": {"num_workers": 2},
}
both = pytest.mark.parametrize("way", WAYS)


def stream_of(shards, **options):
    return es.EpisodeStream(shards, **{"batch_size": 10, "features": ["action"], **options})


def loader_of(shards, way="threads", **options):
    return es.StreamingLoader(stream_of(shards, **options), **WAYS[way], timeout_s=60)


def windows_of(batches):
    return [list(zip(b["episode_index"].tolist(), b["step_index"].tolist(), strict=True)) for b in batches]


def at(state):
    return state["epoch"], state["position"], state.get("num_batches_given", 0)


@pytest.fixture(scope="module")
def epochs(aloha_shards):
    """The windows of each of the 14 batches of four epochs."""
    stream, epochs = stream_of(aloha_shards), []
    for epoch in range(4):
        stream.set_epoch(epoch)
        epochs.append(windows_of(stream))
    return epochs


@both
def test_iterators_that_are_never_asked_for_a_batch_spend_nothing(aloha_shards, epochs, way):
    with loader_of(aloha_shards, way) as loader:
        for _ in range(3):
            iter(loader)
        assert at(loader.state_dict()) == (0, 0, 0)
        assert windows_of(loader) == epochs[0]
        kept = [iter(loader) for _ in range(3)]
        assert at(loader.state_dict()) == (1, 0, 0)
        assert windows_of(loader) == epochs[1]
        assert len(kept) == 3


@both
def test_iterator_made_in_the_middle_of_a_loop_leaves_the_loop_alone(aloha_shards, epochs, way):
    with loader_of(aloha_shards, way) as loader:
        seen = []
        for batch in loader:
            seen += windows_of([batch])
            iter(loader)
            assert at(loader.state_dict()) == ((0, 10 * len(seen), len(seen)) if len(seen) < 14 else (1, 0, 0))
        assert seen == epochs[0]


@both
def test_epoch_set_between_iter_and_the_first_batch_is_followed(aloha_shards, epochs, way):
    with loader_of(aloha_shards, way) as loader:
        batches = iter(loader)
        loader.set_epoch(2)
        assert windows_of(batches) == epochs[2]
        batches = iter(loader)
        loader.sampler.set_epoch(1)
        assert windows_of(batches) == epochs[1]


@both
def test_state_loaded_between_iter_and_the_first_batch_is_followed(aloha_shards, epochs, way):
    with loader_of(aloha_shards, way) as loader:
        list(zip(range(5), loader, strict=False))
        state = loader.state_dict()
    with loader_of(aloha_shards, way) as loader:
        batches = iter(loader)
        loader.load_state_dict(state)
        assert windows_of(batches) == epochs[0][at(state)[1] // 10 :]


def test_loop_that_was_broken_off_goes_on_from_its_state_until_the_next_one_is_made(aloha_shards, epochs):
    with loader_of(aloha_shards) as loader:
        for number, _ in enumerate(loader, 1):
            if number == 4:
                break
        assert at(loader.state_dict()) == (0, 40, 4)
        batches = iter(loader)  # who saves before its first batch is in the next epoch
        assert at(loader.state_dict()) == (1, 0, 0)
        assert windows_of([next(batches)]) == epochs[1][:1]
        assert at(loader.state_dict()) == (1, 10, 1)


def test_loader_has_the_length_of_a_whole_epoch_wherever_it_is(aloha_shards):
    with loader_of(aloha_shards) as loader:
        assert len(loader) == loader.num_batches == 14
        lengths = [(len(loader), len(windows_of([batch]))) for batch in loader]
        assert lengths == [(14, 1)] * 14
        loader.stream.set_epoch(1, 50)
        assert (len(loader), loader.num_batches) == (14, 9)
        assert len(list(loader)) == 9
    assert [len(loader_of(aloha_shards, world=es.World.of(rank, 2))) for rank in range(2)] == [7, 7]
    assert len(loader_of(aloha_shards, batch_size=150, remainder="pad")) == 1
    assert not hasattr(stream_of(aloha_shards), "__len__")


@both
def test_set_epoch_keeps_the_position_that_was_loaded_in_that_epoch(aloha_shards, epochs, way):
    with loader_of(aloha_shards, way) as loader:
        loader.set_epoch(1)
        for number, _ in enumerate(loader, 1):
            if number == 6:
                state = loader.state_dict()
    for set_epoch in ("loader", "sampler", "stream", "dataset"):
        with loader_of(aloha_shards, way) as loader:
            loader.load_state_dict(state)
            where = {"loader": loader, "sampler": loader.sampler, "stream": loader.stream, "dataset": loader.dataset}
            where[set_epoch].set_epoch(1)
            where[set_epoch].set_epoch(1)  # trainers do it more than once
            assert windows_of(loader) == epochs[1][6:]
            where[set_epoch].set_epoch(2)
            assert windows_of(loader) == epochs[2]
            where[set_epoch].set_epoch(2)  # nothing is loaded now: the epoch again
            assert windows_of(loader) == epochs[2]


@pytest.mark.parametrize("kind", ["loader", "stream"])
def test_hand_written_loop_resumes_exactly_from_every_batch_although_its_count_is_behind(aloha_shards, epochs, kind):
    """The loop that everybody writes: the epoch's number and the state are saved after a batch, also after the last."""

    def run(first_epoch, state, stop):
        source = loader_of(aloha_shards, "nothing") if kind == "loader" else stream_of(aloha_shards)
        if state is not None:
            source.load_state_dict(json.loads(json.dumps(state)))
        seen = []
        for epoch in range(first_epoch, 3):
            source.set_epoch(epoch)
            for batch in source:
                seen += windows_of([batch])
                if len(seen) == stop:
                    return seen, epoch, source.state_dict()
        return seen, None, None

    whole = sum(epochs[:3], [])
    assert run(0, None, None)[0] == whole
    for stop in (1, 13, 14, 15, 28, 41):
        before, epoch, state = run(0, None, stop)
        middle, epoch, state = run(epoch, state, 1)
        after, *_ = run(epoch, state, None)
        assert before + middle + after == whole, stop


def test_state_of_the_end_of_an_epoch_goes_on_with_the_next_one(aloha_shards, epochs):
    with loader_of(aloha_shards) as loader:
        list(loader)
        state = loader.state_dict()
    assert at(state) == (1, 0, 0)
    stream = stream_of(aloha_shards)
    list(stream)
    assert stream.state_dict() == state
    for source in (loader_of(aloha_shards), stream_of(aloha_shards)):
        source.load_state_dict(state)
        assert windows_of(source) == epochs[1]


def test_sampler_lets_a_loaded_state_stand_that_is_farther_than_the_trainer_counts(aloha_shards, epochs):
    stream = stream_of(aloha_shards)
    stream.set_epoch(1, 30)
    state = stream.state_dict()
    with loader_of(aloha_shards) as loader:
        loader.load_state_dict(state)
        loader.sampler.set_epoch(0)
        assert windows_of(loader) == epochs[1][3:]
        loader.load_state_dict(state)
        loader.sampler.set_epoch(2)
        assert windows_of(loader) == epochs[2]
        loader.sampler.set_epoch(0)
        assert windows_of(loader) == epochs[0]


def test_stream_can_be_rewound_after_a_state_was_loaded(aloha_shards, epochs):
    stream = stream_of(aloha_shards)
    stream.set_epoch(0, 30)
    state = stream.state_dict()
    stream.load_state_dict(state)
    stream.set_epoch(0, 0)
    assert windows_of(stream) == epochs[0]
    with pytest.raises(OptionError, match="position -1"):
        stream.set_epoch(0, -1)


def test_streams_own_state_follows_the_loop_over_it(aloha_shards, epochs):
    stream = stream_of(aloha_shards)
    assert at(stream.state_dict()) == (0, 0, 0)
    for number, _ in enumerate(stream, 1):
        state = stream.state_dict()
        assert at(state) == ((0, 10 * number, number) if number < 14 else (1, 0, 0))
        other = stream_of(aloha_shards)
        other.load_state_dict(state)
        first = next(iter(other))
        assert windows_of([first]) == (epochs[0][number : number + 1] or epochs[1][:1])
    stream.set_epoch(3)
    assert at(stream.state_dict()) == (3, 0, 0)


def test_streams_state_goes_on_counting_after_a_resume_and_with_other_batches(aloha_shards, epochs):
    stream = stream_of(aloha_shards)
    list(zip(range(3), stream, strict=False))
    state = stream.state_dict()
    assert at(state)[1:] == (30, 3)
    smaller = stream_of(aloha_shards, batch_size=5)
    smaller.load_state_dict(state)
    list(zip(range(2), smaller, strict=False))
    assert at(smaller.state_dict())[1:] == (40, 5)
    assert sum(windows_of(smaller), []) == sum(epochs[0], [])[30:]  # iter() goes on from what was loaded


def test_loaded_rest_that_ran_out_is_followed_by_a_whole_epoch(aloha_shards, epochs):
    stream = stream_of(aloha_shards)
    stream.set_epoch(1, 90)
    stream.load_state_dict(stream.state_dict())
    assert [windows_of(stream), windows_of(stream)] == [epochs[1][9:], epochs[1]]
    stream.set_epoch(0, 140)  # nothing is left
    assert [windows_of(stream), windows_of(stream)] == [[], epochs[0]]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_state_of_a_stream_that_dataloader_workers_read_is_refused(aloha_shards, epochs, num_workers):
    stream = stream_of(aloha_shards)
    loader = DataLoader(stream, batch_size=None, num_workers=num_workers)
    batches = iter(loader)
    next(batches)
    if num_workers == 0:
        assert at(stream.state_dict()) == (0, 10, 1)
        return
    with pytest.raises(StateError, match="2 workers of a DataLoader read this stream ahead"):
        stream.state_dict()
    list(batches)
    stream.set_epoch(1)
    state = stream.state_dict()
    assert at(state) == (1, 0, 0)
    stream.load_state_dict(state)
    assert windows_of(loader) == epochs[1]


@pytest.mark.parametrize("name", ["epoch", "position", "num_batches_given"])
@pytest.mark.parametrize("value", [-1, 1 << 63, "many", 1.5, None])
def test_state_with_an_impossible_number_is_refused(aloha_shards, name, value):
    stream = stream_of(aloha_shards)
    stream.set_epoch(0, 10)
    with pytest.raises(StateError, match=f"{name} is {value!r}"):
        stream.load_state_dict({**stream.state_dict(), name: value})


def test_states_hold_plain_values_only(aloha_shards):
    with loader_of(aloha_shards) as loader:
        list(zip(range(3), loader, strict=False))
        state = loader.state_dict()
    assert {type(value) for value in state.values()} <= {int, str, bool}
    assert len(pickle.dumps(state)) < 1024
