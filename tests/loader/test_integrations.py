"""The example scripts under the launchers of their frameworks, two ranks each: windows counted, and the loss falls."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from statistics import mean

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
LAUNCH = {
    "bc_torchrun.py": TORCHRUN,
    "bc_accelerate.py": [
        *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"),
        *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"),
    ],
    "bc_hf_trainer.py": TORCHRUN,
    "bc_lightning.py": [sys.executable],
}
PREPARED = """
import json, sys
from accelerate import Accelerator
from torch.utils.data import DataLoader
import epistream as es

accelerator = Accelerator(cpu=True)
keep = ("episode_index", "step_index")  # Accelerate can hand out tensors only
only = lambda batch: {key: batch[key] for key in keep}
stream = es.EpisodeStream(sys.argv[1], batch_size=10, features=["action"], sample_format=only)
loader = accelerator.prepare(DataLoader(stream, batch_size=None))
seen = [pair for b in loader for pair in zip(b["episode_index"].tolist(), b["step_index"].tolist())]
open(f"{sys.argv[2]}/rank-{accelerator.process_index}.json", "w").write(json.dumps(seen))
accelerator.end_training()
"""
NUM_EPOCHS, BATCHES_AN_EPOCH = 5, 7  # 140 windows, 2 ranks x 10


def launch(script, shards, out, launcher):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(out)}
    job = subprocess.run(
        [*LAUNCH[launcher], str(script), str(shards), str(out)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert job.returncode == 0, job.stdout + job.stderr
    return [json.loads((out / f"rank-{rank}.json").read_text()) for rank in range(2)]


def test_stream_given_to_accelerates_prepare_gives_every_window_to_one_rank(aloha_shards, tmp_path):
    script = tmp_path / "prepared.py"
    script.write_text(PREPARED)
    ranks = launch(script, aloha_shards, tmp_path, "bc_accelerate.py")
    given = Counter(tuple(window) for rank in ranks for window in rank)
    assert given == Counter((e, t) for e, length in enumerate([80, 60]) for t in range(length))


@pytest.mark.parametrize("script", LAUNCH)
def test_example_gives_every_window_to_one_rank_and_learns(script, aloha_shards, tmp_path):
    ranks = launch(EXAMPLES / script, aloha_shards, tmp_path, script)
    everything = Counter((e, t) for e, length in enumerate([80, 60]) for t in range(length))
    for epoch in range(NUM_EPOCHS):
        batches = slice(epoch * BATCHES_AN_EPOCH, (epoch + 1) * BATCHES_AN_EPOCH)
        given = Counter(tuple(window) for rank in ranks for batch in rank["windows"][batches] for window in batch)
        assert given == everything, f"epoch {epoch}"
    for rank in ranks:
        assert len(rank["losses"]) == NUM_EPOCHS * BATCHES_AN_EPOCH
        assert mean(rank["losses"][-BATCHES_AN_EPOCH:]) < 0.6 * mean(rank["losses"][:BATCHES_AN_EPOCH])


@pytest.mark.parametrize(
    ("script", "name"), [("bc_accelerate.py", "checkpoint-{epoch:04}"), ("bc_hf_trainer.py", "checkpoint-{step}")]
)
def test_example_started_again_goes_on_from_its_last_checkpoint(script, name, aloha_shards, tmp_path):
    whole = launch(EXAMPLES / script, aloha_shards, tmp_path, script)
    for epoch in range(3, NUM_EPOCHS + 1):
        shutil.rmtree(tmp_path / name.format(epoch=epoch, step=epoch * BATCHES_AN_EPOCH))
    for rank, again in zip(whole, launch(EXAMPLES / script, aloha_shards, tmp_path, script), strict=True):
        rest = slice(2 * BATCHES_AN_EPOCH, None)
        assert again["windows"] == rank["windows"][rest]
        assert again["losses"] == pytest.approx(rank["losses"][rest], rel=1e-4)
