"""Behaviour cloning that outlives the death of a rank: torchrun starts all ranks again, from the last checkpoint.

    TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 torchrun --nproc-per-node 2 --max-restarts 2 examples/bc_elastic.py SHARDS OUT

(With the variable each start has a store of its own. Without it torch 2.13 goes on with the store of the start before,
where ranks may find the addresses of the dead, and wait for them for half an hour.)
The same line goes on where the job was if torchrun itself was ended, also with another number of ranks.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from policy import Policy, inputs, make_stream, windows_of
from torch.nn.parallel import DistributedDataParallel

import epistream as es

GLOBAL_BATCH = 20  # over all ranks, so that any number of ranks trains on the same batches
STEPS_BETWEEN_CHECKPOINTS = 3


def main(shards: str, out: str, num_epochs: int = 5) -> None:
    # torchrun ends the other ranks with SIGTERM when one dies; leaving by an exception closes the loader.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    dist.init_process_group("gloo")
    rank, checkpoint = dist.get_rank(), Path(out, "checkpoint.pt")
    torch.manual_seed(0)
    policy = Policy(shards)
    model = DistributedDataParallel(policy)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    step = 0
    with es.StreamingLoader(make_stream(shards, GLOBAL_BATCH // dist.get_world_size()), num_workers=1) as loader:
        if checkpoint.exists():  # every rank reads it: the loader's state is the same for all
            saved = torch.load(checkpoint, weights_only=True)
            policy.load_state_dict(saved["policy"])
            optimizer.load_state_dict(saved["optimizer"])
            loader.load_state_dict(saved["loader"])
            step = saved["step"]
        log = open_log(Path(out, f"rank-{rank}.jsonl"), step)
        while loader.state_dict()["epoch"] < num_epochs:
            for batch in loader:
                loss = policy.error(batch, model(*inputs(batch)))
                # Before the ranks meet in the backward pass: whatever a checkpoint holds, every rank has noted.
                log.write(json.dumps({"step": step, "loss": loss.item(), "windows": windows_of(batch)}) + "\n")
                log.flush()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                step += 1
                if rank == 0 and step % STEPS_BETWEEN_CHECKPOINTS == 0:
                    models = {"policy": policy.state_dict(), "optimizer": optimizer.state_dict()}
                    save({**models, "loader": loader.state_dict(), "step": step}, checkpoint)
    log.close()
    dist.destroy_process_group()


def save(state: dict, path: Path) -> None:
    """A checkpoint is there whole or not at all: a rank may die while it is written."""
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        torch.save(state, file)
        os.fsync(file.fileno())
    part.replace(path)


def open_log(path: Path, step: int):
    """A rank's log, cut at the checkpoint's step: what was trained behind it is trained again."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    path.write_text("".join(line for line in lines if line.endswith("\n") and json.loads(line)["step"] < step))
    return path.open("a")


if __name__ == "__main__":
    main(*sys.argv[1:])
