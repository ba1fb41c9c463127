"""Copies of streams and loaders: pickled, copied, or given to a process, each goes through its epochs by itself."""

import copy
import multiprocessing
import os
import pickle
import subprocess
import sys

import pytest
from torch.utils.data import DataLoader

import epistream as es
from epistream.errors import OptionError

SPAWNED = """
import json, sys
import torch.multiprocessing as mp
import epistream as es

def rank(number, stream, out):
    with es.StreamingLoader(stream, num_workers=0, num_threads=0) as loader:
        first = next(iter(loader))
    with open(f"{out}-{number}", "w") as file:
        json.dump([first["episode_index"].tolist(), first["step_index"].tolist()], file)

if __name__ == "__main__":
    stream = es.EpisodeStream(sys.argv[1], batch_size=20, features=["action"], world=es.World())
    for turn in range(2):
        mp.spawn(rank, args=(stream, f"{sys.argv[2]}/turn-{turn}"), nprocs=1)
"""


def windows_of(batches):
    return [list(zip(b["episode_index"].tolist(), b["step_index"].tolist(), strict=True)) for b in batches]


@pytest.fixture
def stream(aloha_shards):
    """7 batches of 20 windows."""
    return es.EpisodeStream(aloha_shards, batch_size=20, features=["action"])


@pytest.fixture(scope="module")
def epochs(aloha_shards):
    stream, batches = es.EpisodeStream(aloha_shards, batch_size=20, features=["action"]), []
    for epoch in range(2):
        stream.set_epoch(epoch)
        batches.append(windows_of(stream))
    return batches


COPY = {
    "pickled": lambda whole: pickle.loads(pickle.dumps(whole)),
    "copied deeply": copy.deepcopy,
    "copied": copy.copy,
}


@pytest.mark.parametrize("way", COPY)
@pytest.mark.parametrize("num_workers", [0, 2])
def test_loader_copied_in_mid_epoch_goes_on_at_the_same_place_and_leaves_the_other_alone(
    stream, epochs, way, num_workers
):
    with es.StreamingLoader(stream, num_workers=num_workers) as loader:
        batches = iter(loader)
        given = windows_of([next(batches) for _ in range(2)])
        with COPY[way](loader) as other:
            assert other.worker_pids == []
            assert (len(other), other.num_batches) == (7, 5)
            assert other.state_dict() == loader.state_dict()
            assert given + windows_of(other) == epochs[0]
            assert windows_of(other) == epochs[1]
        assert given + windows_of(batches) == epochs[0]
        assert windows_of(loader) == epochs[1]


def test_loader_copy_takes_a_loaded_state_with_it(stream, epochs):
    with es.StreamingLoader(stream, num_workers=0) as loader:
        stream.set_epoch(0, 60)
        loader.load_state_dict(loader.state_dict())
        with pickle.loads(pickle.dumps(loader)) as other:
            other.set_epoch(0)  # as trainers do after they have loaded a state
            assert windows_of(other) == epochs[0][3:]


def as_it_is(batch):
    return batch


def test_loader_with_functions_that_a_module_holds_pickles_with_them(aloha_shards, epochs, monkeypatch):
    module = type(sys)("module_of_hooks")
    as_it_is.__module__, module.as_it_is = module.__name__, as_it_is
    monkeypatch.setitem(sys.modules, module.__name__, module)
    stream = es.EpisodeStream(aloha_shards, batch_size=20, features=["action"], transform=as_it_is)
    loader = es.StreamingLoader(stream, num_workers=0, device="cpu", on_device=as_it_is)
    with pickle.loads(pickle.dumps(loader)) as other:
        assert windows_of(other) == epochs[0]


@pytest.mark.parametrize("option", ["on_device", "transform", "sample_format", "transform of stream 1"])
def test_loader_with_a_lambda_says_which_option_does_not_pickle_and_copies_deeply(aloha_shards, option):
    def made(**options):
        return es.EpisodeStream(aloha_shards, batch_size=20, features=["action"], **options)

    def inner(batch):
        return batch

    on_device = inner if option == "on_device" else None
    if option.endswith("1"):
        stream = es.Mixture([made(), made(transform=inner)], [1, 1], batch_size=20)
    else:
        stream = made() if on_device else made(**{option: inner})
    with es.StreamingLoader(stream, num_workers=0, on_device=on_device) as loader:
        with pytest.raises(OptionError, match=f"{option} is .*inner of .*test_copies.py:[0-9]+, which does not pickle"):
            pickle.dumps(loader)
        with copy.deepcopy(loader) as other:
            assert other.num_batches == loader.num_batches


@pytest.mark.parametrize("way", COPY)
def test_stream_copy_has_an_epoch_of_its_own_that_its_workers_follow(stream, epochs, way):
    stream.set_epoch(1)
    other = COPY[way](stream)
    assert other.cursor == (1, 0)
    stream.set_epoch(5)
    assert other.cursor == (1, 0)
    loader = DataLoader(other, batch_size=None, num_workers=1, persistent_workers=True)
    assert windows_of(loader) == epochs[1]
    stream.set_epoch(3)
    assert windows_of(loader) == epochs[1]
    other.set_epoch(0)
    assert windows_of(loader) == epochs[0]
    assert stream.cursor == (3, 0)


def first_of(stream, answers):
    with es.StreamingLoader(stream, num_workers=0, num_threads=0) as loader:
        answers.put(windows_of([next(iter(loader))])[0])


def test_stream_in_forked_ranks_begins_in_each_at_the_same_epoch(stream, epochs):
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    for _ in range(2):  # one after the other: the first has taken its epoch when the second begins
        process = context.Process(target=first_of, args=(stream, answers))
        process.start()
        assert answers.get() == epochs[0][0]
        process.join()
    assert stream.cursor == (0, 0)


def test_stream_given_to_spawned_ranks_begins_in_each_at_the_same_epoch(aloha_shards, tmp_path):
    script = tmp_path / "spawned.py"
    script.write_text(SPAWNED)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, script, aloha_shards, tmp_path]
    job = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert job.returncode == 0, job.stderr
    assert (tmp_path / "turn-0-0").read_text() == (tmp_path / "turn-1-0").read_text()
