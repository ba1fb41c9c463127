"""The loader: the same batches in every way of running, memory that is never overwritten, state, and death."""

import gc
import os
import signal
from multiprocessing.context import ForkProcess
from pathlib import Path

import psutil
import pytest
import torch

import epistream as es
from epistream.errors import EpistreamError, FormatError, OptionError, StateError, WorkerError
from epistream.loader.reading.feed import Feed

WAYS = {
    "synchronous": {"num_workers": 0, "num_threads": 0},
    "one thread": {"num_workers": 0, "num_threads": 1},
    "three threads": {"num_workers": 0, "num_threads": 3},
    "one process": {"num_workers": 1},
    "three processes": {"num_workers": 3},
    "spawned processes": {"num_workers": 2, "start_method": "spawn"},
    "forkserver processes": {"num_workers": 2, "start_method": "forkserver"},
}
LOW = ["action", "observation.state"]


def stream_of(shards, **options) -> es.EpisodeStream:
    return es.EpisodeStream(
        shards, **{"batch_size": 10, "features": LOW, "window": es.Window(action=range(8)), **options}
    )


def windows_of(batches) -> list[list[tuple[int, int]]]:
    return [list(zip(b["episode_index"].tolist(), b["step_index"].tolist(), strict=True)) for b in batches]


@pytest.fixture(scope="module")
def epochs(aloha_shards) -> list[list[list[tuple[int, int]]]]:
    """The windows of each batch of three epochs."""
    stream, epochs = stream_of(aloha_shards), []
    for epoch in range(3):
        stream.set_epoch(epoch)
        epochs.append(windows_of(stream))
    return epochs


@pytest.mark.parametrize("way", WAYS)
def test_loader_gives_the_plan_in_order_over_epochs(aloha_shards, epochs, way):
    with es.StreamingLoader(stream_of(aloha_shards), **WAYS[way]) as loader:
        assert [windows_of(loader) for _ in range(3)] == epochs
        assert loader.stats().num_windows == 3 * 140


@pytest.mark.parametrize("way", ["two threads", "two processes"])
def test_loader_batches_equal_the_stream(aloha_shards, way):
    options = {"num_workers": 0, "num_threads": 2} if way == "two threads" else {"num_workers": 2}
    stream = stream_of(aloha_shards, features=None, batch_size=6)
    expected = list(stream)
    with es.StreamingLoader(stream, **options) as loader:
        for batch, other in zip(loader, expected, strict=True):
            assert batch.keys() == other.keys()
            for key, value in other.items():
                assert batch[key] == value if key == "task" else torch.equal(batch[key], value), key


@pytest.mark.parametrize("way", ["one thread", "three processes"])
def test_loader_batches_kept_in_a_list_are_all_correct_and_distinct(aloha_shards, way):
    stream = stream_of(aloha_shards)
    expected = list(stream)
    with es.StreamingLoader(stream, **WAYS[way]) as loader:
        kept = list(loader)
        assert all(torch.equal(a["action"], b["action"]) for a, b in zip(kept, expected, strict=True))
        assert len({batch["action"].data_ptr() for batch in kept}) == len(kept)
        assert loader.stats().num_copied_batches > 0
    # Also after the workers are gone.
    assert all(torch.equal(a["action"], b["action"]) for a, b in zip(kept, expected, strict=True))


def test_loader_that_is_consumed_batch_by_batch_copies_nothing(aloha_shards):
    with es.StreamingLoader(stream_of(aloha_shards), num_workers=2) as loader:
        for batch in loader:
            del batch
        assert loader.stats().num_copied_batches == 0


def test_loader_break_starts_the_next_epoch(aloha_shards, epochs):
    with es.StreamingLoader(stream_of(aloha_shards), num_workers=2) as loader:
        for number, _ in enumerate(loader):
            if number == 3:
                break
        assert windows_of(loader) == epochs[1]


def test_loader_set_epoch_is_followed_although_workers_ran_ahead(aloha_shards, epochs):
    with es.StreamingLoader(stream_of(aloha_shards), num_workers=2) as loader:
        assert windows_of(loader) == epochs[0]
        loader.set_epoch(2)
        assert windows_of(loader) == epochs[2]
        loader.set_epoch(0)
        assert windows_of(loader) == epochs[0]


def test_loader_with_fewer_batches_than_workers(aloha_shards):
    stream = stream_of(aloha_shards, batch_size=140)
    with es.StreamingLoader(stream, num_workers=3) as loader:
        assert [len(windows_of(loader)) for _ in range(4)] == [1, 1, 1, 1]


@pytest.mark.parametrize("way", ["synchronous", "three threads", "three processes"])
def test_loader_resumes_at_every_batch_and_runs_into_the_next_epoch(aloha_shards, epochs, way):
    uninterrupted = epochs[0] + epochs[1]
    with es.StreamingLoader(stream_of(aloha_shards), num_workers=0) as loader:
        states = [loader.state_dict()]
        for _ in loader:
            states.append(loader.state_dict())
    with es.StreamingLoader(stream_of(aloha_shards), **WAYS[way]) as loader:
        for number, state in enumerate(states):
            loader.load_state_dict(state)
            rest = windows_of(loader)
            if number < 14:
                rest += windows_of(loader)
            assert rest == uninterrupted[number:], number


def test_loader_resumes_with_another_batch_size(aloha_shards, epochs):
    with es.StreamingLoader(stream_of(aloha_shards), num_workers=0) as loader:
        batches = iter(loader)
        for _ in range(3):
            next(batches)
        state = loader.state_dict()
    with es.StreamingLoader(stream_of(aloha_shards, batch_size=5), num_workers=2) as loader:
        loader.load_state_dict(state)
        assert sum(windows_of(loader), []) == sum(epochs[0], [])[30:]


def test_loader_state_counts_what_the_loop_was_given_not_what_workers_prepared(aloha_shards):
    with es.StreamingLoader(stream_of(aloha_shards), num_workers=3, prefetch=4) as loader:
        batches = iter(loader)
        assert loader.state_dict()["position"] == 0
        next(batches)
        next(batches)
        state = loader.state_dict()
        assert (state["epoch"], state["position"]) == (0, 20)
        for _ in range(12):
            next(batches)
        state = loader.state_dict()
        assert (state["epoch"], state["position"]) == (1, 0)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"seed": 1}, "seed"),
        ({"window": es.Window(action=range(9))}, "window"),
        ({"shuffle": False}, "shuffle"),
        ({"order": es.OrderOptions(lanes=2)}, "lanes"),
    ],
)
def test_loader_state_of_another_stream_is_refused_naming_both_values(aloha_shards, options, name):
    state = stream_of(aloha_shards).state_dict()
    other = stream_of(aloha_shards, **options)
    with pytest.raises(StateError) as caught:
        other.load_state_dict(state)
    assert f"{name} is {state[name]!r}, this stream has {other.state_dict()[name]!r}" in str(caught.value)


@pytest.mark.parametrize("state", [{}, None, {"version": 99, "epoch": 0, "position": 0}])
def test_loader_state_that_is_none_of_ours_is_refused(aloha_shards, state):
    with pytest.raises(StateError):
        stream_of(aloha_shards).load_state_dict(state)


def test_loader_worker_killed_is_an_error_that_says_so_and_a_new_epoch_works(aloha_shards, epochs):
    with es.StreamingLoader(stream_of(aloha_shards), num_workers=2, timeout_s=60) as loader:
        batches = iter(loader)
        next(batches)
        victim = loader.worker_pids[1]
        os.kill(victim, signal.SIGKILL)
        with pytest.raises(WorkerError, match=rf"worker 1 \(pid {victim}\): killed by SIGKILL"):
            list(batches)
        loader.set_epoch(0)
        assert windows_of(loader) == epochs[0]


def test_loader_error_in_a_worker_reaches_the_loop_as_itself(aloha_shards_copy):
    stream = stream_of(aloha_shards_copy)
    for tar in aloha_shards_copy.glob("*.tar"):
        tar.unlink()
    for options in ({"num_workers": 2}, {"num_workers": 0}):
        with es.StreamingLoader(stream, timeout_s=60, **options) as loader, pytest.raises(EpistreamError) as caught:
            list(loader)
        assert "shard-" in str(caught.value)
        assert not isinstance(caught.value, WorkerError)


def test_loader_two_iterations_at_once_end_the_older_one(aloha_shards, epochs):
    with es.StreamingLoader(stream_of(aloha_shards), num_workers=2) as loader:
        first = iter(loader)
        next(first)
        assert windows_of(loader) == epochs[1]
        with pytest.raises(StateError, match="ended by a later iter"):
            next(first)


def test_loader_two_iterators_take_an_epoch_each_when_they_are_asked_for_a_batch(aloha_shards, epochs):
    with es.StreamingLoader(stream_of(aloha_shards), num_workers=2, timeout_s=60) as loader:
        first, second, third = iter(loader), iter(loader), iter(loader)
        assert windows_of(second) == epochs[0]
        before = windows_of([next(first)])
        assert windows_of(third) == epochs[2]
        assert before == epochs[1][:1]
        with pytest.raises(StateError, match="ended by a later iter"):
            next(first)


def test_loader_closed_before_the_first_batch_ends_the_iteration_at_once(aloha_shards):
    with es.StreamingLoader(stream_of(aloha_shards), num_workers=1, timeout_s=60) as loader:
        batches = iter(loader)
        loader.close()
        with pytest.raises(StateError, match="close"):
            next(batches)
        assert loader.worker_pids == []


def test_loader_that_is_dropped_ends_its_workers_at_once(aloha_shards):
    loader = es.StreamingLoader(stream_of(aloha_shards), num_workers=2)
    windows_of(loader)
    pids = loader.worker_pids
    gc.disable()  # its last reference is enough, nothing waits for the collector
    try:
        del loader
    finally:
        gc.enable()
    assert len(pids) == 2
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.parametrize("options", [{"num_workers": 0}, {"num_workers": 2}])
def test_loader_made_and_closed_again_and_again_keeps_no_descriptors(aloha_shards, options):
    def num_descriptors():
        with es.StreamingLoader(stream_of(aloha_shards), **options) as loader:
            windows_of(loader)
        gc.collect()
        return len(list(Path("/proc/self/fd").iterdir()))

    assert num_descriptors() == num_descriptors() == num_descriptors()


def test_loader_whose_workers_cannot_all_start_keeps_none(aloha_shards, monkeypatch):
    started = []

    def start(process):
        if len(started) == 2:
            raise BlockingIOError("no more processes")
        whole_start(process)
        started.append(process.pid)

    whole_start = ForkProcess.start
    monkeypatch.setattr(ForkProcess, "start", start)
    loader = es.StreamingLoader(stream_of(aloha_shards), num_workers=3)
    with pytest.raises(BlockingIOError):
        iter(loader)
    assert len(started) == 2
    assert not any(psutil.pid_exists(pid) for pid in started)


def test_loader_in_a_forked_child_leaves_the_workers_to_the_parent(aloha_shards, epochs):
    with es.StreamingLoader(stream_of(aloha_shards), num_workers=2, timeout_s=60) as loader:
        batches = iter(loader)
        before = windows_of([next(batches)])
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = 0 if windows_of(loader) == epochs[1] else 2
                loader.close()
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert before + windows_of(batches) == epochs[0]


def test_loader_closed_twice_and_used_again(aloha_shards, epochs):
    loader = es.StreamingLoader(stream_of(aloha_shards), num_workers=1)
    loader.close()
    assert windows_of(loader) == epochs[0]
    loader.close()
    loader.close()
    assert windows_of(loader) == epochs[1]
    loader.close()


@pytest.mark.parametrize(
    "options",
    [{"num_workers": -1}, {"num_workers": 1, "num_threads": 1}, {"prefetch": 0}, {"timeout_s": 0}],
)
def test_loader_with_impossible_numbers_is_refused(aloha_shards, options):
    with pytest.raises(OptionError, match="StreamingLoader"):
        es.StreamingLoader(stream_of(aloha_shards), **options)


@pytest.mark.parametrize("way", ["one thread", "one process"])
def test_loader_worker_that_fails_before_any_epoch_says_why(aloha_shards, monkeypatch, way):
    def no_feed(job, *, prefetch=False):
        raise FormatError("shard-000000.index: torn")

    monkeypatch.setattr("epistream.loader.workers.worker.Feed", no_feed)
    with es.StreamingLoader(stream_of(aloha_shards), timeout_s=60, **WAYS[way]) as loader:
        with pytest.raises(FormatError, match=r"shard-000000\.index: torn"):
            next(iter(loader))
        assert loader.worker_pids == []


def test_loader_error_that_does_not_survive_pickling_comes_in_words(aloha_shards, monkeypatch):
    class Peculiar(es.EpistreamError):
        def __init__(self, where, what):
            super().__init__(f"{where}: {what}")

    def no_read(feed, batch_index, out):
        raise Peculiar("here", "that")

    monkeypatch.setattr(Feed, "read", no_read)
    loader = es.StreamingLoader(stream_of(aloha_shards), num_workers=1, timeout_s=60)
    with loader, pytest.raises(WorkerError, match="Peculiar: here: that"):
        next(iter(loader))
