"""States that an earlier release saved: they are loaded, to the letter, and go on with the very windows."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torchdata.stateful_dataloader import StatefulDataLoader

import epistream as es
from epistream.errors import StateError
from epistream.loader.order.plan import ORDER_VERSION

STATES = json.loads((Path(__file__).resolve().parent / "0.1.0" / "states.json").read_text())
RUNS = [name for name in STATES if name != "iterator"]
WAYS = {
    "nothing": {"num_workers": 0, "num_threads": 0},
    "threads": {"num_workers": 0, "num_threads": 3},
    "a process": {"num_workers": 1},
    "processes": {"num_workers": 3},
}


@pytest.fixture(autouse=True)
def _sources(stored, remote_demos, monkeypatch):
    monkeypatch.chdir(stored)


def open_run(name, batch_size=4, world=None):
    """The stream of which a state was saved, with what may differ when it is loaded."""
    run = STATES[name]
    streams = []
    for number, source in enumerate(run["sources"]):
        options = {"split": run["mixture"] and run["mixture"]["splits"][number], **run["options"]}
        options["window"] = es.Window(**options.get("window", {"obs": [0], "action": [0]}))
        if "order" in options:
            options["order"] = es.OrderOptions(**options["order"])
        streams.append(es.EpisodeStream(source, batch_size=batch_size, world=world, cache="off", **options))
    if run["mixture"] is None:
        return streams[0]
    weights, stop = run["mixture"]["weights"], run["mixture"]["stop"]
    return es.Mixture(streams, weights, batch_size=batch_size, stop=stop, world=world)


def windows(batches):
    """Batches as states.json has them: a row of indexes and the instruction for each window."""
    keys = ("dataset_index", "episode_index", "step_index")
    columns = [[*(batch[key].tolist() for key in keys if key in batch), batch["task"]] for batch in batches]
    return [[list(row) for row in zip(*batch, strict=True)] for batch in columns]


def all_after(name):
    """What the run gave after the state: the rest of its epoch, and the next one."""
    return STATES[name]["after"], STATES[name]["next_epoch"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", RUNS)
def test_stored_state_goes_on_with_the_windows_written_here(name, way):
    with es.StreamingLoader(open_run(name), **WAYS[way]) as loader:
        loader.load_state_dict(STATES[name]["state"])
        assert loader.state_dict() == STATES[name]["state"]
        assert (windows(loader), windows(loader)) == all_after(name)


@pytest.mark.parametrize("ranks_per_node", [1, 2])
@pytest.mark.parametrize("name", RUNS)
def test_stored_state_goes_on_with_the_same_global_batches_in_a_larger_world(name, ranks_per_node):
    ranks = []
    for rank in range(2):
        stream = open_run(name, batch_size=2, world=es.World.of(rank, 2, ranks_per_node))
        with es.StreamingLoader(stream, num_workers=2 * rank) as loader:
            loader.load_state_dict(STATES[name]["state"])
            ranks.append([*windows(loader), *windows(loader)])
    together = [sorted(first + second) for first, second in zip(*ranks, strict=True)]
    assert together == [sorted(batch) for part in all_after(name) for batch in part]


@pytest.mark.parametrize("name", RUNS)
def test_stored_state_deals_a_rank_the_windows_written_here(name):
    with es.StreamingLoader(open_run(name, batch_size=2, world=es.World.of(0, 2, 2)), num_workers=2) as loader:
        loader.load_state_dict(STATES[name]["state"])
        assert windows(loader) == STATES[name]["after_on_rank_0_of_2"]


@pytest.mark.parametrize("name", RUNS)
def test_stored_state_of_a_stream_without_a_loader_is_the_same(name):
    stream, run = open_run(name), STATES[name]
    stream.load_state_dict(run["state"])
    assert windows(stream) == run["after"]
    stream.set_epoch(run["state"]["epoch"], run["state"]["position"])
    assert stream.state_dict() == run["state"]


@pytest.mark.parametrize("name", RUNS)
def test_state_saved_now_is_the_stored_one_to_the_letter(name):
    run = STATES[name]
    with es.StreamingLoader(open_run(name), num_workers=1) as loader:
        loader.set_epoch(run["state"]["epoch"])
        batches = iter(loader)
        for _ in range(run["state"]["position"] // 4):
            next(batches)
        # As text, so that the order of the keys counts, and a number of another type. The last one is new since.
        state = {**run["state"], "num_batches_given": run["state"]["position"] // 4}
        assert json.dumps(loader.state_dict()) == json.dumps(state)


@pytest.mark.parametrize("name", RUNS)
def test_plan_describes_itself_to_the_letter(name):
    plans = open_run(name).job.plans
    assert json.dumps([plan.describe() for plan in plans]) == json.dumps(STATES[name]["describe"])
    assert [plan.fingerprint for plan in plans] == STATES[name]["fingerprint"]


def test_state_and_plan_of_a_known_run_are_those_written_here():
    state = {
        "version": 1,
        "epoch": 1,
        "position": 8,
        "dataset": "8d3a6b851347ba9a56898ddb396a5afb",
        "window": "obs [-1, 0], action [0..2], edge",
        "anchors": "472e3a8b5509d037",
        "order_version": 1,
        "windows_per_shard": "8684fc310e3f0ab064a1c55c342b9908",
        "windows_of_episodes": "472e3a8b5509d037",
        "num_windows": 35,
        "shuffle": True,
        "seed": 7,
        "lanes": 2,
        "resident_shards": 4,
        "reshuffle_lanes": False,
    }
    stream = open_run("shuffled")
    stream.set_epoch(1, 8)
    assert list(stream.state_dict().items()) == list(state.items())
    assert list(stream.job.part.plan.describe().items()) == list(state.items())[6:]
    assert stream.job.part.plan.fingerprint == "e9583a37f947feb2bc3d54f40dc42e17"
    assert ORDER_VERSION == 1


def test_state_of_a_known_mixture_is_the_one_written_here():
    stream = open_run("mixture_of_a_size")
    stream.set_epoch(4, 12)
    assert list(stream.state_dict().items()) == [
        ("version", 1),
        ("epoch", 4),
        ("position", 12),
        ("dataset", ["8d3a6b851347ba9a56898ddb396a5afb", "8d3a6b851347ba9a56898ddb396a5afb"]),
        ("window", ["obs [-1, 0], action [0..2], edge"] * 2),
        ("anchors", ["2c10e6893a56a47a", "8c7aaf4f957158e5"]),
        ("weights", ["0.75", "0.25"]),
        ("stop", 22),
        ("plans", ["129ebcfc55ea6eb520bda4ece4e9bb34", "6d8189a05955b8b5f504494ded7ab26c"]),
    ]


@pytest.mark.parametrize("name", RUNS)
def test_stored_state_of_another_order_is_refused_by_name(name):
    with pytest.raises(StateError, match="dataset is "):
        open_run(name).load_state_dict({**STATES[name]["state"], "dataset": "another"})


def test_stored_state_of_an_iterator_goes_on_with_the_windows_written_here():
    kept = STATES["iterator"]
    assert list(kept["state"].items()) == [("epoch", 1), ("start", 0), ("num_batches_done", 3), ("num_workers", 1)]
    batches = iter(open_run("shuffled"))
    batches.load_state_dict(kept["state"])
    assert batches.state_dict() == {**kept["state"], "batch_size": 4, "num_ranks": 1}
    assert windows(batches) == kept["after"]


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # torchdata 0.11 calls it
def test_state_of_a_stateful_data_loader_holds_the_iterator_state_written_here():
    stream = open_run("shuffled")
    stream.set_epoch(1)
    loader = StatefulDataLoader(stream, batch_size=None)
    batches = iter(loader)
    for _ in range(3):
        next(batches)
    # Earlier releases go on from what is behind the stored numbers, too: they do not look at it.
    stored = json.dumps(STATES["iterator"]["state"]).rstrip("}")
    assert f'{stored}, "batch_size": 4, "num_ranks": 1}}' in json.dumps(loader.state_dict())
    assert windows(batches) == STATES["iterator"]["after"]


def test_stored_normalizer_is_read_and_made_again_to_the_letter(stored):
    kept = json.loads((stored / "normalizer.json").read_text())
    assert json.dumps(es.Normalizer.from_dict(kept).to_dict()) == json.dumps(kept)
    made = es.Normalizer(es.open_dataset("jpeg").statistics, {name: one["mode"] for name, one in kept.items()})
    assert json.dumps(made.to_dict()) == json.dumps(kept)


def test_stored_normalizer_shifts_and_scales_as_it_says(stored):
    values, kept = np.load(stored / "values.npz"), json.loads((stored / "normalizer.json").read_text())
    rows = np.concatenate([values[f"{demo}/action"] for demo in ("demo_0", "demo_1", "demo_3")])
    assert list(kept["action"]) == ["mode", "shift", "scale"]
    found = es.Normalizer.from_dict(kept).normalize("action", torch.from_numpy(rows)).numpy()
    np.testing.assert_allclose(found, (rows - rows.mean(0)) / rows.std(0), rtol=1e-4, atol=1e-5)
