"""A batch that does not come: one deadline for the wait, and nobody waits for workers that hang."""

import os
import signal
from itertools import count
from types import SimpleNamespace

import pytest

import epistream as es
from epistream.errors import DeadlineError, WorkerError
from epistream.loader import iteration
from epistream.loader.iteration import Iteration
from epistream.loader.monitoring.stats import StatsRecorder
from epistream.loader.workers import pool as pool_module
from epistream.loader.workers.worker import Message
from epistream.processes import how_it_ended

FOREVER_S = 100_000.0  # a test that waited for this would be ended by pytest


@pytest.fixture
def ends(monkeypatch):
    """How each worker process ended, by worker, as its pool saw it."""
    seen = {}
    end_all = pool_module._end_all

    def spied(processes, *rest):
        kept = [(process.name, process) for process in processes]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pool_module.BaseProcess, "close", lambda process: None)
            killed = end_all(processes, *rest)
        seen.update({name.rpartition("-")[2]: how_it_ended(process.exitcode) for name, process in kept})
        for _, process in kept:
            process.close()
        return killed

    monkeypatch.setattr(pool_module, "_end_all", spied)
    return seen


def loader_of(shards, **options):
    stream = es.EpisodeStream(shards, batch_size=4, features=["action"], cache=options.pop("cache", "auto"))
    return es.StreamingLoader(stream, num_workers=2, prefetch=1, **options)


@pytest.fixture
def hang(monkeypatch):
    """Stop workers of a loader where they are, where SIGKILL reaches them alone, and wait for these no longer."""
    stopped = set()
    receive = pool_module.WorkerPool.receive
    monkeypatch.setattr(
        pool_module.WorkerPool,
        "receive",
        lambda pool, worker, wait_s: receive(pool, worker, 0.0 if worker in stopped else wait_s),
    )

    def hang(loader, *workers):
        for worker in workers:
            os.kill(loader.worker_pids[worker], signal.SIGSTOP)
        stopped.update(workers)

    return hang


def test_worker_that_hangs_is_killed_without_being_waited_for(aloha_shards, monkeypatch, ends, hang):
    # Neither the wait for workers that leave by themselves nor that after SIGTERM can have been gone through.
    monkeypatch.setattr(pool_module, "_STOP_S", FOREVER_S)
    monkeypatch.setattr(pool_module, "_FAILED_S", FOREVER_S)
    loader = loader_of(aloha_shards, timeout_s=60)
    batches = iter(loader)
    next(batches)
    hang(loader, 1)
    with pytest.raises(DeadlineError, match="worker 1: no batch within 60 s"):
        list(batches)
    assert loader.worker_pids == []
    # The other one left in good order, as it could.
    assert ends == {"0": "exited with code 0", "1": how_it_ended(-signal.SIGKILL)}
    loader.close()


def test_others_that_hang_too_are_killed_without_the_wait_of_an_ordinary_end(aloha_shards, monkeypatch, ends, hang):
    monkeypatch.setattr(pool_module, "_FAILED_S", 0.1)
    first = []
    end_all = pool_module._end_all
    monkeypatch.setattr(
        pool_module, "_end_all", lambda processes, steps, *rest: first.append(steps) or end_all(processes, steps, *rest)
    )
    loader = loader_of(aloha_shards, timeout_s=60)
    batches = iter(loader)
    next(batches)
    hang(loader, 0, 1)
    with pytest.raises(DeadlineError):
        list(batches)
    assert ends == dict.fromkeys("01", how_it_ended(-signal.SIGKILL))
    assert [wait_s for force, wait_s in first[0] if force is not pool_module.BaseProcess.kill] == [0.1]


def test_workers_that_hang_beside_one_that_died_are_killed_soon(aloha_shards, monkeypatch, ends, hang):
    monkeypatch.setattr(pool_module, "_FAILED_S", 0.1)
    loader = loader_of(aloha_shards, timeout_s=60)
    batches = iter(loader)
    next(batches)
    hang(loader, 0)
    os.kill(loader.worker_pids[1], signal.SIGKILL)
    os.waitid(os.P_PID, loader.worker_pids[1], os.WEXITED | os.WNOWAIT)  # `hang` has no patience with the other one
    with pytest.raises(WorkerError, match="worker 1"):
        list(batches)
    assert ends["0"] == how_it_ended(-signal.SIGKILL)


def test_ordinary_close_lets_workers_end_in_order(aloha_shards, ends):
    loader = loader_of(aloha_shards)
    next(iter(loader))
    loader.close()
    assert ends == dict.fromkeys("01", "exited with code 0")


def test_killed_workers_leave_no_cache_behind(aloha_shards, cache_directory, monkeypatch, hang):
    monkeypatch.setattr(pool_module, "_FAILED_S", 0.1)
    cache = es.CacheOptions(mode="shm", directory=str(cache_directory))
    loader = loader_of(aloha_shards, timeout_s=60, cache=cache)
    batches = iter(loader)
    next(batches)
    next(batches)
    assert cache_directory.is_dir()
    hang(loader, 0, 1)
    with pytest.raises(DeadlineError):
        list(batches)
    assert not cache_directory.exists()


def test_messages_without_a_batch_do_not_put_the_deadline_off(monkeypatch):
    clock = count(100)  # a second passes whenever somebody looks
    monkeypatch.setattr(iteration.time, "monotonic", lambda: float(next(clock)))
    waits, given_back = [], []

    def receive(worker_index, wait_s):
        waits.append(wait_s)
        return Message(serial=1, first_batch=0, slot=len(waits)) if wait_s > 0 else None

    pool = SimpleNamespace(
        num_workers=1,
        slots=SimpleNamespace(groups=lambda num_batches, num_workers: [range(1)]),
        is_running=lambda serial: True,
        receive=receive,
        give_back=lambda worker_index, slot: given_back.append(slot),
        give_up=given_back.append,
    )
    schedule = SimpleNamespace(num_batches=1, epoch=0, start=0)
    batches = Iteration(schedule, 0, StatsRecorder(), None).collect(pool, 4.0, lambda: given_back.append("failed"))
    with pytest.raises(DeadlineError, match="worker 0: no batch within 4 s"):
        next(batches)
    assert waits == [3, 2, 1, 0]
    assert given_back == [1, 2, 3, 0, "failed"]  # three slots, then worker 0 as the one that hangs
