"""What the programs of the grid share: their job, the stream, the model, and the note of what the training step got."""

import gc
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

import epistream as es

FEATURES = ["action", "observation.robot0_eef_pos"]
BATCH_SIZE = 8


@dataclass(frozen=True)
class Job:
    """What a program is told: train `epochs` epochs, or save a checkpoint after `stop` steps in all and end there."""

    data: str
    out: Path  # for checkpoints and notes; the only folder that a resumed run shares with the one before it
    cache: str  # a directory in memory for the node's cache, for this job alone
    ranks: int
    workers: int
    epochs: int
    stop: int | None
    resume: bool


def read_job() -> Job:
    """The job that the command line names."""
    told = json.loads(Path(sys.argv[1]).read_text())
    return Job(**{**told, "out": Path(told["out"])})


def make_stream(job: Job, **changes) -> es.EpisodeStream:
    """The stream that all programs train on. Every rank makes it with the same arguments."""
    given = {"batch_size": BATCH_SIZE, "features": FEATURES, "seed": 3, "split": None}
    return es.EpisodeStream(job.data, **{**given, "cache": es.CacheOptions(directory=job.cache), **changes})


def make_model() -> nn.Module:
    """The same tiny model on every rank."""
    torch.manual_seed(0)
    return nn.Linear(3, 7)


def error_of(model: nn.Module, batch: dict) -> torch.Tensor:
    """Mean squared error of the action that the model gives for the observation."""
    return ((model(batch["observation.robot0_eef_pos"][:, 0]) - batch["action"][:, 0]) ** 2).mean()


def windows_of(batch: dict) -> list[list[int]]:
    """[episode, step] of each window of a batch, in its order."""
    return [list(pair) for pair in zip(batch["episode_index"].tolist(), batch["step_index"].tolist(), strict=True)]


def write_windows(job: Job, rank: int, batches: list[list[list[int]]]) -> None:
    """Note what this rank's training steps got, batch after batch; there is the whole note or none."""
    note = job.out / f"windows-{rank}.json"
    draft = note.with_suffix(f".{os.getpid()}")
    draft.write_text(json.dumps(batches))
    draft.replace(note)


def leave_group() -> None:
    """Leave the process group once nothing uses it: gloo aborts one that goes with the interpreter, now and then.

    A model of DistributedDataParallel holds it, and is part of a cycle (pytorch issue 190489).
    """
    gc.collect()
    dist.destroy_process_group()
