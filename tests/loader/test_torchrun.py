"""The laws of the order with real processes: torchrun with 1, 2 and 4 ranks, forked and spawned workers, kill -9."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

import epistream as es

GLOBAL_BATCH = 12
DEADLINE_S = 150

# Streams one epoch for each way of running, and writes the windows of this rank's batches.
EVERY_WAY = """
import json, sys
import torch.distributed as dist
import epistream as es

def main(shards, out, ways):
    dist.init_process_group("gloo")
    result = []
    for num_workers, method in json.loads(ways):
        stream = es.EpisodeStream(shards, batch_size=12 // dist.get_world_size(), features=["action"], seed=5)
        threads = 0 if num_workers == 0 else None
        with es.StreamingLoader(stream, num_workers=num_workers, num_threads=threads, start_method=method) as loader:
            result.append([
                list(zip(b["episode_index"].tolist(), b["step_index"].tolist())) for b in loader
            ])
    open(f"{out}/rank-{dist.get_rank()}.json", "w").write(json.dumps(result))
    dist.destroy_process_group()

if __name__ == "__main__":
    main(*sys.argv[1:])
"""

# Streams three epochs; every rank logs its batches; rank 0 saves the state after each, as a checkpoint would.
RESUMABLE = """
import json, os, sys
import torch.distributed as dist
import epistream as es

def main(shards, out):
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    stream = es.EpisodeStream(shards, batch_size=12 // dist.get_world_size(), features=["action"], seed=5)
    log = open(f"{out}/log-{rank}.jsonl", "a")
    with es.StreamingLoader(stream, num_workers=1) as loader:
        if os.path.exists(f"{out}/state.json"):
            loader.load_state_dict(json.load(open(f"{out}/state.json")))
        while loader.state_dict()["epoch"] < 3:
            for batch in loader:
                before = loader.state_dict()
                windows = list(zip(batch["episode_index"].tolist(), batch["step_index"].tolist()))
                log.write(json.dumps([before["epoch"], before["position"], windows]) + "\\n")
                log.flush()
                dist.barrier()  # every rank has logged this batch before it counts as done
                if rank == 0:
                    with open(f"{out}/state.tmp", "w") as file:
                        json.dump(before, file)
                    os.replace(f"{out}/state.tmp", f"{out}/state.json")
                dist.barrier()
    dist.destroy_process_group()

if __name__ == "__main__":
    main(*sys.argv[1:])
"""


def torchrun(num_ranks, script, *arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
    return subprocess.Popen(
        [*command, str(script), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def finish(job):
    output, _ = job.communicate(timeout=DEADLINE_S)
    assert job.returncode == 0, output


def global_batches(shards, num_epochs):
    """The windows of each global batch, sorted, from one process without workers."""
    stream = es.EpisodeStream(shards, batch_size=GLOBAL_BATCH, features=["action"], seed=5)
    batches = []
    for epoch in range(num_epochs):
        stream.set_epoch(epoch)
        batches += [sorted(zip(b["episode_index"].tolist(), b["step_index"].tolist(), strict=True)) for b in stream]
    return batches


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_global_batches_are_the_same_with_any_ranks_workers_and_start_method(aloha_shards, tmp_path, num_ranks):
    # A spawned worker imports torch again with the script, which takes seconds.
    ways = [(0, "fork"), (1, "fork"), (3, "fork"), *{1: [(1, "spawn")], 2: [(3, "spawn")], 4: []}[num_ranks]]
    script = tmp_path / "every_way.py"
    script.write_text(EVERY_WAY)
    finish(torchrun(num_ranks, script, aloha_shards, tmp_path, json.dumps(ways)))
    ranks = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(num_ranks)]
    expected = global_batches(aloha_shards, 1)
    assert len(expected) == 140 // GLOBAL_BATCH
    for way in range(len(ways)):
        together = [
            sorted(tuple(w) for part in parts for w in part) for parts in zip(*[r[way] for r in ranks], strict=True)
        ]
        assert together == expected, ways[way]


def test_job_killed_and_resumed_on_other_ranks_gives_the_uninterrupted_sequence(aloha_shards, tmp_path):
    script, state = tmp_path / "resumable.py", tmp_path / "state.json"
    script.write_text(RESUMABLE)
    for num_ranks, stop_at in [(2, (0, 36)), (1, (1, 24)), (4, None)]:
        job = torchrun(num_ranks, script, aloha_shards, tmp_path)
        if stop_at is None:
            finish(job)
            break
        deadline = time.monotonic() + DEADLINE_S
        while not state.exists() or reached(state) < stop_at:
            assert job.poll() is None, job.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.002)
        os.killpg(job.pid, signal.SIGKILL)
        job.wait(DEADLINE_S)
        job.stdout.close()
    # A batch that was logged but not counted before the kill is read again after it: the last writing stands.
    batches: dict[tuple[int, int], dict[int, list]] = {}
    for log in sorted(tmp_path.glob("log-*.jsonl")):
        for line in log.read_text().splitlines():
            epoch, position, windows = json.loads(line)
            batches.setdefault((epoch, position), {})[len(batches), log.name] = windows
    found = {}
    for key, parts in batches.items():
        found[key] = {tuple(window) for windows in parts.values() for window in windows}
    # The state after the last batch of epoch e is position 0 of epoch e + 1.
    order = [(e, p) for e in range(3) for p in [*range(12, 132, 12), None]]
    keys = [(e + 1, 0) if p is None else (e, p) for e, p in order]
    assert sorted(found) == sorted(keys)
    assert [sorted(found[key]) for key in keys] == global_batches(aloha_shards, 3)


def reached(state) -> tuple[int, int]:
    saved = json.loads(state.read_text())
    return saved["epoch"], saved["position"]
