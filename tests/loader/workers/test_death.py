"""Processes die: whatever is killed, nobody hangs, nobody is left over, and no memory stays."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from machine.waiting import is_gone, wait_until

import epistream as es

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
DEADLINE_S = 60

SCRIPT = """
import signal, sys
import epistream as es

shards, directory, num_workers, start_method = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
stream = es.EpisodeStream(shards, batch_size=4, seed=0, features=["action", "observation.images.top"],
                          cache=es.CacheOptions(mode="shm", directory=directory))
loader = es.StreamingLoader(stream, num_workers=num_workers, start_method=start_method)
batches = iter(loader)
for _ in range(num_workers):  # one of each: all are in the cache, and not just entering it
    next(batches)
print(*loader.worker_pids, flush=True)
sys.stdin.read()  # until the test ends this process
"""


@pytest.fixture
def start(aloha_shards, cache_directory):
    """Start a training process in a group of its own; returns it and the pids of its workers."""
    processes = []

    def start(num_workers=2, start_method="fork"):
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(aloha_shards), str(cache_directory), str(num_workers), start_method],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        processes.append(process)
        line = process.stdout.readline()
        assert line, process.stderr.read()
        return process, [int(pid) for pid in line.split()]

    yield start
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(DEADLINE_S)
        with process:  # closes its pipes
            pass


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_training_process_killed_takes_its_workers_and_the_memory_along(start, cache_directory, start_method):
    process, workers = start(start_method=start_method)
    assert len(workers) == 2
    assert cache_directory.is_dir()
    process.kill()
    wait_until(lambda: all(is_gone(pid) for pid in workers), "the workers end")
    wait_until(lambda: not cache_directory.exists(), "the last one out removes the directory")


def test_one_of_two_jobs_killed_leaves_the_other_ones_cache_alone(start, cache_directory):
    victim, victim_workers = start()
    survivor, survivor_workers = start()
    victim.kill()
    wait_until(lambda: all(is_gone(pid) for pid in victim_workers), "the victim's workers end")
    assert cache_directory.is_dir()
    assert not any(is_gone(pid) for pid in survivor_workers)
    survivor.stdin.close()
    assert survivor.wait(DEADLINE_S) == 0
    wait_until(lambda: not cache_directory.exists(), "the last one out removes the directory")


def test_all_killed_at_once_is_cleaned_by_the_next_start(start, cache_directory, aloha_shards):
    process, workers = start()
    os.killpg(process.pid, signal.SIGKILL)
    wait_until(lambda: all(is_gone(pid) for pid in [process.pid, *workers]), "everybody is dead")
    assert cache_directory.is_dir()  # nobody was left to remove it
    options = es.CacheOptions(mode="shm", directory=str(cache_directory))
    with es.StreamingLoader(es.EpisodeStream(aloha_shards, batch_size=4, cache=options), num_workers=1) as loader:
        assert sum(len(batch["step_index"]) for batch in loader) == 140
    wait_until(lambda: not cache_directory.exists(), "the last one out removes the directory")


def test_rank_killed_under_torchrun_ends_the_job_with_an_error_and_leaves_nothing(
    aloha_shards, cache_directory, tmp_path
):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(EXAMPLES / "train_ddp.py"), str(aloha_shards), str(tmp_path), "--epochs", "100000"]
    command += ["--cache-directory", str(cache_directory)]
    job = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    try:
        agent = psutil.Process(job.pid)
        # Two ranks, each with a worker, all of them in the cache.
        wait_until(lambda: len(agent.children(recursive=True)) >= 4 and cache_directory.is_dir(), "all ranks stream")
        family = agent.children(recursive=True)
        rank = agent.children()[-1]
        rank.kill()
        output, _ = job.communicate(timeout=DEADLINE_S)
        assert job.returncode != 0
        assert "SIGKILL" in output
        wait_until(lambda: all(is_gone(process.pid) for process in family), "everybody is gone")
        wait_until(lambda: not cache_directory.exists(), "the last one out removes the directory")
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
            job.communicate(timeout=DEADLINE_S)
