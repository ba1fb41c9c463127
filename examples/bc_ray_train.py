"""Behaviour cloning with Ray Train: checkpoints in mid-epoch, and workers that die are started again from the last one.

    python examples/bc_ray_train.py SHARDS OUT

The same line goes on where the run was, since Ray finds the checkpoints of the run of that name in OUT. Every worker
makes the stream in its training function: Ray has told it its rank by then.
"""

import json
import sys
import tempfile
from pathlib import Path

import ray.train
import torch
from policy import Policy, inputs, make_stream, windows_of
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, prepare_model

import epistream as es

STEPS_BETWEEN_CHECKPOINTS = 3


def train(config: dict) -> None:
    rank = ray.train.get_context().get_world_rank()
    torch.manual_seed(0)
    policy = Policy(config["shards"])
    model = prepare_model(policy)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    step = 0
    with es.StreamingLoader(make_stream(config["shards"]), num_workers=config["num_workers"]) as loader:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is not None:  # every worker reads it: the loader's state is the same for all
            with checkpoint.as_directory() as folder:
                saved = torch.load(Path(folder, "state.pt"), weights_only=True)
            policy.load_state_dict(saved["policy"])
            optimizer.load_state_dict(saved["optimizer"])
            loader.load_state_dict(saved["loader"])
            step = saved["step"]
        log = open_log(Path(config["out"], f"rank-{rank}.jsonl"), step)
        while loader.state_dict()["epoch"] < config["num_epochs"]:
            for batch in loader:
                loss = policy.error(batch, model(*inputs(batch)))
                # Before the workers meet in the backward pass: whatever a checkpoint holds, every one has noted.
                log.write(json.dumps({"step": step, "loss": loss.item(), "windows": windows_of(batch)}) + "\n")
                log.flush()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                step += 1
                if step % STEPS_BETWEEN_CHECKPOINTS == 0:
                    models = {"policy": policy.state_dict(), "optimizer": optimizer.state_dict()}
                    report({**models, "loader": loader.state_dict(), "step": step}, loss.item(), rank)
    log.close()


def report(state: dict, loss: float, rank: int) -> None:
    """Every worker reports, and waits for the others here; the first brings the checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        if rank == 0:
            torch.save(state, Path(folder, "state.pt"))
        ray.train.report({"loss": loss}, checkpoint=Checkpoint.from_directory(folder) if rank == 0 else None)


def open_log(path: Path, step: int):
    """A worker's log, cut at the checkpoint's step: what was trained behind it is trained again."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    path.write_text("".join(line for line in lines if line.endswith("\n") and json.loads(line)["step"] < step))
    return path.open("a")


def main(shards: str, out: str, num_ranks: int = 2, num_workers: int = 1, num_epochs: int = 5, loop=train) -> None:
    shards, out = (str(Path(each).resolve()) for each in (shards, out))
    trainer = TorchTrainer(
        loop,
        train_loop_config={"shards": shards, "out": out, "num_workers": num_workers, "num_epochs": num_epochs},
        scaling_config=ScalingConfig(num_workers=num_ranks, use_gpu=torch.cuda.is_available()),
        run_config=RunConfig(
            name="bc",
            storage_path=out,
            failure_config=FailureConfig(max_failures=2),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )
    trainer.fit()


if __name__ == "__main__":
    main(*sys.argv[1:3])
