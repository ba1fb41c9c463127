"""`create_optimized_dataloader` in a training job of two processes, as ``accelerate launch`` starts them."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from statistics import mean

import pytest

pytest.importorskip("accelerate", reason="accelerate comes with the extra 'dev'")

NUM_EPOCHS, BATCH_SIZE, LENGTHS = 6, 7, [80, 60]
EVERYTHING = Counter((episode, t) for episode, length in enumerate(LENGTHS) for t in range(length))
# The loop of the old document: a sampler that is told the epoch, a model that Accelerate wraps.
TRAINING = """
import json, sys, torch
from accelerate import Accelerator
import epistream as es

folder, out, use_distributed, num_epochs, batch_size = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
accelerator = Accelerator(cpu=True)
loader, dataset = es.create_optimized_dataloader(
    [folder], ["top"], batch_size=batch_size, num_workers=1, use_distributed=bool(use_distributed), ctrl_type="abs"
)
if not use_distributed:  # then Accelerate divides it, as any other map-style loader
    loader = accelerator.prepare(loader)
torch.manual_seed(0)
model = torch.nn.Linear(14, 16 * 14)
model, optimizer = accelerator.prepare(model, torch.optim.Adam(model.parameters(), lr=1e-2))
losses, epochs = [], []
for epoch in range(num_epochs):
    (loader if not use_distributed else loader.sampler).set_epoch(epoch)
    epochs.append([])
    for batch in loader:
        error = (model(batch["state"]).view(-1, 16, 14) - batch["action"]) ** 2
        loss = error[~batch["is_pad"]].mean()
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()
        losses.append(loss.item())
        epochs[-1] += zip(batch["episode_id"].tolist(), batch["timestamp"].tolist())
report = {"losses": losses, "epochs": epochs, "weights": model.module.bias.tolist()}
open(f"{out}/rank-{accelerator.process_index}.json", "w").write(json.dumps(report))
accelerator.end_training()
"""


@pytest.mark.parametrize("use_distributed", [1, 0])
def test_training_under_accelerate_launch_gives_each_window_to_one_rank_and_learns(
    example_data, tmp_path, use_distributed
):
    script = tmp_path / "train.py"
    script.write_text(TRAINING)
    job = subprocess.run(
        [
            *(str(Path(sys.executable).parent / "accelerate"), "launch", "--multi_gpu", "--num_processes", "2"),
            *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"),
            *(str(script), str(example_data / "aloha"), str(tmp_path)),
            *map(str, (use_distributed, NUM_EPOCHS, BATCH_SIZE)),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert job.returncode == 0, job.stdout + job.stderr
    ranks = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2)]
    orders = set()
    for epoch in range(NUM_EPOCHS):
        given = [[tuple(window) for window in rank["epochs"][epoch]] for rank in ranks]
        assert [len(windows) for windows in given] == [70, 70]
        assert Counter(given[0]) + Counter(given[1]) == EVERYTHING, f"epoch {epoch}"
        orders.add(tuple(given[0]))
    assert len(orders) == NUM_EPOCHS  # set_epoch was heard
    assert ranks[0]["weights"] == ranks[1]["weights"]  # gradients were averaged
    for rank in ranks:
        assert len(rank["losses"]) == NUM_EPOCHS * 70 // BATCH_SIZE
        assert mean(rank["losses"][-10:]) < 0.6 * mean(rank["losses"][:10])
