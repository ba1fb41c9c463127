"""Ray Train: a TorchTrainer, whose workers report checkpoints; a run of the same name goes on from the last one."""

import os
import secrets
import tempfile
from pathlib import Path

# Before Ray is imported: nothing is told to its makers, nobody else is let in, no key is left in the home folder.
os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
# How often the controller looks after the workers; it adds to every start and end.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")

import ray
import ray.train
import torch
from common import Job, error_of, make_model, make_stream, read_job, windows_of, write_windows
from ray.train import Checkpoint, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, prepare_model

import epistream as es


def train(config: dict) -> None:
    job, rank = config["job"], ray.train.get_context().get_world_rank()
    model = make_model()
    wrapped = prepare_model(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    parts = {"model": model, "optimizer": optimizer}
    step, seen = 0, []
    with es.StreamingLoader(make_stream(job), num_workers=job.workers) as loader:
        parts["loader"] = loader
        if job.resume:
            with ray.train.get_checkpoint().as_directory() as folder:
                saved = torch.load(Path(folder, "state.pt"), weights_only=True)
            for name, part in parts.items():
                part.load_state_dict(saved[name])
            step = saved["step"]
        while loader.state_dict()["epoch"] < job.epochs and step != job.stop:
            for batch in loader:
                seen.append(windows_of(batch))
                optimizer.zero_grad()
                error_of(wrapped, batch).backward()
                optimizer.step()
                step += 1
                if step == job.stop:
                    save({**{name: part.state_dict() for name, part in parts.items()}, "step": step}, rank)
                    break
    write_windows(job, rank, seen)


def save(state: dict, rank: int) -> None:
    """Every worker reports; the first brings the checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        if rank == 0:
            torch.save(state, Path(folder, "state.pt"))
        ray.train.report({"step": state["step"]}, checkpoint=Checkpoint.from_directory(folder) if rank == 0 else None)


def main(job: Job) -> None:
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100 << 20)
    try:
        TorchTrainer(
            train,
            train_loop_config={"job": job},
            scaling_config=ScalingConfig(num_workers=job.ranks, use_gpu=False),
            run_config=RunConfig(name="grid", storage_path=str(job.out / "ray")),
        ).fit()
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main(read_job())
