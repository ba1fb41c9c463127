"""A rank of torchrun is killed in mid-epoch: all start again from the checkpoint, and no window is lost or doubled."""

import json
import os
import signal
import subprocess
import sys
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rank_windows import windows_of_rank

import epistream as es
from epistream.errors import OptionError
from epistream.loader import agreement

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
BATCHES_AN_EPOCH = 7  # 140 windows, 20 in a global batch
DEADLINE_S = 150

# Runs the example; in each start, by its number, a rank may die when it is given its batch of that number.
DYING = """
import json, os, signal, sys
sys.path.insert(0, sys.argv[1])
import bc_elastic

shards, out, deaths = sys.argv[2:]
rank, start = os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]
noted, count, dying = bc_elastic.windows_of, iter(range(1 << 30)), json.loads(deaths).get(start, [-1, -1])

def windows_of(batch):
    if [int(rank), next(count)] == dying:
        os.kill(os.getpid(), signal.SIGKILL)
    return noted(batch)

bc_elastic.windows_of = windows_of
bc_elastic.main(shards, out, num_epochs=2)
open(f"{out}/start-{rank}", "w").write(start)
"""


@pytest.fixture
def out(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    (tmp_path / "dying.py").write_text(DYING)
    return folder


def torchrun(out, shards, num_ranks, deaths):
    """Run the example to its end with a restart for each death but the last; its exit status and what it printed."""
    job = subprocess.Popen(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", str(num_ranks), "--max-restarts", "2" if "1" in deaths else "0"),
            *(str(out.parent / "dying.py"), str(EXAMPLES), str(shards), str(out), json.dumps(deaths)),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
        start_new_session=True,
    )
    try:
        printed, _ = job.communicate(timeout=DEADLINE_S)
    except subprocess.TimeoutExpired:
        os.killpg(job.pid, signal.SIGKILL)
        raise
    return job.returncode, printed


def noted(out, rank):
    lines = map(json.loads, (out / f"rank-{rank}.jsonl").read_text().splitlines())
    return [(line["step"], line["windows"]) for line in lines]


def memory_files():
    """What the library and torch's workers leave in shared memory, were they to leave something."""
    return {path.name for path in Path("/dev/shm").iterdir() if path.name.startswith(("torch_", "psm_"))}


def test_ranks_killed_in_mid_epoch_cost_no_window_once_all_have_started_again(aloha_shards, out):
    before = memory_files()
    # Rank 1 dies in batch 4, one behind the checkpoint of step 3, from which batch 3 on comes again. Rank 0, which
    # writes the checkpoints, dies in the 8th batch from there on: number 10, in the second epoch and one behind step 9.
    status, printed = torchrun(out, aloha_shards, 2, {"0": [1, 4], "1": [0, 7]})
    assert status == 0, printed
    assert [(out / f"start-{rank}").read_text() for rank in range(2)] == ["2", "2"]
    for rank in range(2):
        steps, windows = zip(*noted(out, rank), strict=True)
        assert list(steps) == list(range(2 * BATCHES_AN_EPOCH))
        assert list(windows) == windows_of_rank(aloha_shards, es.World.of(rank, 2), 2, batch_size=10)
    assert memory_files() <= before


def test_job_whose_rank_was_killed_goes_on_with_another_number_of_ranks(aloha_shards, out):
    status, _ = torchrun(out, aloha_shards, 2, {"0": [1, 10]})
    assert status != 0
    assert torch.load(out / "checkpoint.pt", weights_only=True)["step"] == 9
    of_two = [dict(noted(out, rank)) for rank in range(2)]
    status, printed = torchrun(out, aloha_shards, 1, {})
    assert status == 0, printed
    steps, windows = zip(*noted(out, 0), strict=True)
    assert list(steps) == list(range(2 * BATCHES_AN_EPOCH))
    # Global batches are the same on any number of ranks: those of two ranks up to the checkpoint, of one from there on.
    together = [of_two[0][step] + of_two[1][step] for step in range(9)] + list(windows[9:])
    expected = windows_of_rank(aloha_shards, es.World(), 2, batch_size=20)
    assert [sorted(batch) for batch in together] == [sorted(batch) for batch in expected]
    assert list(windows[9:]) == expected[9:]


@pytest.fixture
def started(monkeypatch, aloha_shards):
    """Let a rank of a job compare its stream, as a process that torchrun started would; the store is never renewed."""
    store = torch.distributed.HashStore()

    def start(rank, size, restarts, batch_sizes=(10,), first_group=0):
        group = torch.distributed.ProcessGroup(rank, size)
        monkeypatch.setattr(agreement, "_GROUPS", count(first_group))  # in a process of its own
        distributed = SimpleNamespace(
            is_available=lambda: True,
            is_initialized=lambda: True,
            get_world_size=lambda: size,
            group=SimpleNamespace(WORLD=group),
            distributed_c10d=SimpleNamespace(_get_default_store=lambda: store),
        )
        monkeypatch.setattr(agreement, "distributed", distributed)
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(restarts))
        for batch_size in batch_sizes:
            world = es.World.of(rank, size)
            stream = es.EpisodeStream(aloha_shards, batch_size=batch_size, features=["action"], world=world)
            agreement.check_agreement(stream.job)

    return start


def test_ranks_are_compared_with_those_of_their_own_start_only(started):
    started(0, 2, 0)  # rank 1 is killed before it has a stream
    for rank in range(2):
        started(rank, 2, 1, batch_sizes=(10, 20))
    for rank in range(2):
        started(rank, 2, 2, batch_sizes=(5,))  # a script may take smaller batches after it was killed
    for rank in range(4):  # and nodes may have joined
        started(rank, 4, 2)
    for rank in range(2):  # or it makes another group in the same processes
        started(rank, 2, 2, batch_sizes=(4,), first_group=1)
    with pytest.raises(OptionError, match=r"stream 1 of rank 1: batch_size is 7, another rank has 5"):
        started(1, 2, 2, batch_sizes=(7,))
