"""torchdata's StatefulDataLoader over a stream: it resumes exactly, or says what it cannot."""

import json

import pytest
from torch.utils.data import default_collate
from torchdata.stateful_dataloader import StatefulDataLoader

import epistream as es
from epistream.errors import StateError

pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # torchdata 0.11 calls it

EVERYTHING = sorted((e, t) for e, length in enumerate([80, 60]) for t in range(length))


def windows_of(batches):
    return [list(zip(b["episode_index"].tolist(), b["step_index"].tolist(), strict=True)) for b in batches]


def loader_of(shards, num_workers, batch_size=20, world=None, **options):
    """7 batches of 20 windows on one rank."""
    stream = es.EpisodeStream(shards, batch_size=batch_size, features=["action"], world=world)
    return stream, StatefulDataLoader(stream, batch_size=None, num_workers=num_workers, **options)


@pytest.fixture(scope="module")
def epochs(aloha_shards):
    """The batches of two epochs, read without any loader."""
    stream, batches = es.EpisodeStream(aloha_shards, batch_size=20, features=["action"]), []
    for epoch in range(2):
        stream.set_epoch(epoch)
        batches.append(windows_of(stream))
    assert [len(each) for each in batches] == [7, 7]
    return batches


def state_after(loader, stop):
    """The loader's state after so many batches; after the end of the epoch, if they are more than there are."""
    batches = iter(loader)
    for _ in range(stop):
        next(batches, None)
    return loader.state_dict()


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_stateful_dataloader_resumes_at_every_batch_and_goes_on_with_the_next_epoch(aloha_shards, epochs, num_workers):
    for stop in (0, 1, 3, 6, 7):
        state = state_after(loader_of(aloha_shards, num_workers)[1], stop)
        stream, loader = loader_of(aloha_shards, num_workers)
        loader.load_state_dict(state)
        stream.set_epoch(0)
        assert windows_of(loader) == epochs[0][stop:]
        stream.set_epoch(1)
        assert windows_of(loader) == epochs[1]


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_stateful_dataloader_state_after_the_end_goes_on_with_the_next_epoch(
    aloha_shards, epochs, num_workers, persistent
):
    options = {"persistent_workers": persistent and num_workers > 0}
    state = state_after(loader_of(aloha_shards, num_workers, **options)[1], 8)
    stream, loader = loader_of(aloha_shards, num_workers, **options)
    loader.load_state_dict(state)
    stream.set_epoch(1)
    assert windows_of(loader) == epochs[1]
    stream.set_epoch(0)
    assert windows_of(loader) == epochs[0]


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_stateful_dataloader_state_after_the_end_needs_no_set_epoch_to_go_on(aloha_shards, epochs, num_workers):
    state = state_after(loader_of(aloha_shards, num_workers)[1], 8)
    _, loader = loader_of(aloha_shards, num_workers)
    loader.load_state_dict(state)
    assert windows_of(loader) == epochs[1]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_stateful_dataloader_state_of_a_resumed_epoch_resumes_again(aloha_shards, epochs, num_workers):
    state = state_after(loader_of(aloha_shards, num_workers)[1], 2)
    _, loader = loader_of(aloha_shards, num_workers)
    loader.load_state_dict(state)
    again = state_after(loader, 3)
    _, loader = loader_of(aloha_shards, num_workers)
    loader.load_state_dict(again)
    assert windows_of(loader) == epochs[0][5:]


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_stateful_dataloader_without_set_epoch_gives_whole_epochs_behind_a_resumed_one(
    aloha_shards, epochs, num_workers, persistent
):
    state = state_after(loader_of(aloha_shards, num_workers)[1], 3)
    _, loader = loader_of(aloha_shards, num_workers, persistent_workers=persistent and num_workers > 0)
    loader.load_state_dict(state)
    assert windows_of(loader) == epochs[0][3:]
    assert windows_of(loader) == epochs[0]


@pytest.mark.parametrize("stop", [1, 2, 3, 5, 6])
def test_stateful_dataloader_with_rare_snapshots_resumes_at_the_batch(aloha_shards, epochs, stop):
    state = state_after(loader_of(aloha_shards, 2, snapshot_every_n_steps=3)[1], stop)
    stream, loader = loader_of(aloha_shards, 2, snapshot_every_n_steps=3)
    loader.load_state_dict(state)
    assert windows_of(loader) == epochs[0][stop:]
    stream.set_epoch(1)
    assert windows_of(loader) == epochs[1]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_stateful_dataloader_state_is_json_and_says_what_it_is_for(aloha_shards, epochs, num_workers):
    stream, loader = loader_of(aloha_shards, num_workers)
    stream.set_epoch(1)
    state = json.loads(json.dumps(state_after(loader, 4)))
    own = state if num_workers == 0 else state["_snapshot"]["_worker_snapshots"]["worker_0"]
    iterator, dataset = own["fetcher_state"]["dataset_iter_state"], own["dataset_state"]
    assert {name: iterator[name] for name in ("epoch", "num_workers", "batch_size", "num_ranks")} == {
        **{"epoch": 1, "num_workers": max(1, num_workers), "batch_size": 20, "num_ranks": 1}
    }
    assert {"dataset", "window", "seed", "num_windows"} <= set(dataset)
    _, loader = loader_of(aloha_shards, num_workers)
    loader.load_state_dict(state)
    assert windows_of(loader) == epochs[1][4:]


@pytest.mark.parametrize(("batch_size", "ranks"), [(10, 1), (35, 1), (20, 2), (7, 3)])
@pytest.mark.parametrize("stop", [0, 3, 7, 8])
def test_stateful_dataloader_without_workers_resumes_with_other_batches_and_ranks_to_the_window(
    aloha_shards, epochs, batch_size, ranks, stop
):
    state, seen = state_after(loader_of(aloha_shards, 0)[1], stop), []
    for rank in range(ranks):
        world = es.World.of(rank, ranks)
        stream, loader = loader_of(aloha_shards, 0, batch_size, world)
        loader.load_state_dict(state)
        given = windows_of(loader)
        # As if the stream itself had been set there.
        other = loader_of(aloha_shards, 0, batch_size, world)[0]
        other.set_epoch(stop // 8, 20 * stop % 160)
        assert given == windows_of(other)
        seen += sum(given, [])
        stream.set_epoch(1)
        assert len(windows_of(loader)) == 140 // (batch_size * ranks)
    before = set(sum(epochs[0][:stop], [])) if stop < 8 else set()
    assert len(seen) == len(set(seen))
    assert not before & set(seen)


def test_stateful_dataloader_without_workers_does_not_give_what_an_ended_epoch_had_dropped(aloha_shards):
    state = state_after(loader_of(aloha_shards, 0, batch_size=30)[1], 4)  # 120 of 140; the epoch is over
    _, loader = loader_of(aloha_shards, 0, batch_size=5)
    loader.load_state_dict(state)
    assert windows_of(loader) == []


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize(
    ("batch_size", "ranks", "says"), [(10, 1, "batch_size 20, this loader has 10"), (20, 2, "num_ranks 1, this .* 2")]
)
def test_stateful_dataloader_with_workers_refuses_other_batches_and_ranks_in_a_sentence(
    aloha_shards, num_workers, batch_size, ranks, says
):
    state = state_after(loader_of(aloha_shards, num_workers)[1], 3)
    _, loader = loader_of(aloha_shards, num_workers, batch_size, es.World.of(0, ranks))
    loader.load_state_dict(state)
    with pytest.raises(StateError, match=says):
        iter(loader)


@pytest.mark.parametrize(("saved", "now"), [(1, 2), (2, 1)])
def test_stateful_dataloader_refuses_another_number_of_workers_and_names_both(aloha_shards, saved, now):
    state = state_after(loader_of(aloha_shards, saved)[1], 3)
    _, loader = loader_of(aloha_shards, now)
    loader.load_state_dict(state)
    with pytest.raises(StateError, match=f"num_workers {saved}, this loader has {now}"):
        iter(loader)


@pytest.mark.parametrize(("saved", "now"), [(0, 2), (2, 0)])
def test_stateful_dataloader_refuses_by_itself_to_go_on_with_workers_where_there_were_none(aloha_shards, saved, now):
    state = state_after(loader_of(aloha_shards, saved)[1], 3)
    _, loader = loader_of(aloha_shards, now)
    loader.load_state_dict(state)
    with pytest.raises(AssertionError, match="State doesn't contain key"):
        iter(loader)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_stateful_dataloader_refuses_the_state_of_another_seed(aloha_shards, num_workers):
    state = state_after(loader_of(aloha_shards, num_workers)[1], 3)
    stream = es.EpisodeStream(aloha_shards, batch_size=20, features=["action"], seed=5)
    loader = StatefulDataLoader(stream, batch_size=None, num_workers=num_workers)
    loader.load_state_dict(state)
    with pytest.raises(StateError, match="seed is 0, this stream has 5"):
        iter(loader)


def without_what_is_new(state):
    """A state as releases saved it that did not say batch size and ranks."""
    if isinstance(state, dict):
        new = {"batch_size", "num_ranks", "num_batches_given"}
        return {name: without_what_is_new(value) for name, value in state.items() if name not in new}
    return state


@pytest.mark.parametrize("num_workers", [0, 2])
def test_stateful_dataloader_reads_states_that_do_not_say_batch_size_and_ranks(aloha_shards, epochs, num_workers):
    state = without_what_is_new(state_after(loader_of(aloha_shards, num_workers)[1], 3))
    assert "batch_size" not in json.dumps(state)
    _, loader = loader_of(aloha_shards, num_workers)
    loader.load_state_dict(state)
    assert windows_of(loader) == epochs[0][3:]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_stateful_dataloader_over_a_mixture_resumes(aloha_shards, num_workers):
    def made():
        streams = [es.EpisodeStream(aloha_shards, features=["action"], seed=seed) for seed in (1, 2)]
        mixture = es.Mixture(streams, [3, 1], batch_size=20)
        return mixture, StatefulDataLoader(mixture, batch_size=None, num_workers=num_workers)

    mixture, loader = made()
    everything = []
    for epoch in range(2):
        mixture.set_epoch(epoch)
        everything.append(windows_of(loader))
    for stop in (1, 4, len(everything[0])):
        mixture, loader = made()
        state = state_after(loader, stop)
        mixture, loader = made()
        loader.load_state_dict(state)
        assert windows_of(loader) == everything[0][stop:]
        mixture.set_epoch(1)
        assert windows_of(loader) == everything[1]


def stack(batches):
    """Of a user who wants whole batches stacked."""
    return default_collate(batches)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_stateful_dataloader_whose_collator_stacks_whole_batches_resumes(aloha_shards, epochs, num_workers):
    def made():
        stream = es.EpisodeStream(aloha_shards, batch_size=20, features=["action"])
        return StatefulDataLoader(stream, batch_size=2, num_workers=num_workers, collate_fn=stack)

    def stacked(batches):
        return [
            list(zip(*(b[key].flatten().tolist() for key in ("episode_index", "step_index")), strict=True))
            for b in batches
        ]

    assert tuple(next(iter(made()))["action"].shape) == (2, 20, 1, 14)
    everything = stacked(made())
    assert sorted(sum(everything, [])) == EVERYTHING
    state = state_after(made(), 2)
    loader = made()
    loader.load_state_dict(state)
    assert stacked(loader) == everything[2:]


def test_stateful_dataloader_loads_a_state_in_the_middle_of_another_iteration(aloha_shards, epochs):
    for num_workers in (0, 2):
        stream, loader = loader_of(aloha_shards, num_workers)
        start = loader.state_dict()
        batches = iter(loader)
        next(batches)
        state = loader.state_dict()
        next(batches)
        loader.load_state_dict(state)
        assert windows_of(loader) == epochs[0][1:]
        loader.load_state_dict(start)
        assert windows_of(loader) == epochs[0]
        stream.set_epoch(1)
        assert windows_of(loader) == epochs[1]
