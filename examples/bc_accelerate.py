"""Behaviour cloning with Hugging Face Accelerate.

    accelerate launch --multi_gpu --num_processes 2 examples/bc_accelerate.py SHARDS OUT

(``--multi_gpu`` starts one process a rank, also where there are only CPUs; ``--cpu`` starts a single one without MPI.)

The loader is not given to ``accelerator.prepare``: that would read on rank 0 alone and hand its share out to all ranks.
The stream finds its rank by itself, so that every rank reads its own windows.
"""

import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from policy import Policy, inputs, make_stream, windows_of

import epistream as es


def main(shards: str, out: str, num_epochs: int = 5) -> None:
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(0)
    policy = Policy(shards)
    model, optimizer = accelerator.prepare(policy, torch.optim.Adam(policy.parameters(), lr=3e-3))
    losses, windows = [], []
    with es.StreamingLoader(make_stream(shards), num_workers=1) as loader:
        for _ in range(num_epochs):
            for batch in loader:
                loss = policy.error(batch, model(*inputs(batch)))
                optimizer.zero_grad()
                accelerator.backward(loss)
                optimizer.step()
                losses.append(loss.item())
                windows.append(windows_of(batch))
    report = {"losses": losses, "windows": windows}
    Path(out, f"rank-{accelerator.process_index}.json").write_text(json.dumps(report))
    accelerator.end_training()


if __name__ == "__main__":
    main(*sys.argv[1:])
