"""Behaviour cloning with plain DistributedDataParallel.

torchrun --nproc-per-node 2 examples/bc_torchrun.py SHARDS OUT
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from policy import Policy, inputs, make_stream, windows_of
from torch.nn.parallel import DistributedDataParallel

import epistream as es


def main(shards: str, out: str, num_epochs: int = 5) -> None:
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    policy = Policy(shards)
    model = DistributedDataParallel(policy)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses, windows = [], []
    # Every rank gets the same number of batches, so no rank waits for another in the backward pass.
    with es.StreamingLoader(make_stream(shards), num_workers=1) as loader:
        for _ in range(num_epochs):
            for batch in loader:
                loss = policy.error(batch, model(*inputs(batch)))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
                windows.append(windows_of(batch))
    Path(out, f"rank-{dist.get_rank()}.json").write_text(json.dumps({"losses": losses, "windows": windows}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
