"""What a contender of the comparison is, and what all of them share."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
from peers.data import SCENARIOS, Scenario

BATCH_SIZE = 32
NUM_WORKERS = 2

Batches = Iterator[Any]
Sample = dict[str, Any]


def nothing_to_load() -> None:
    """For loaders whose packages everybody has."""


@dataclass(frozen=True)
class Contender:
    """One way to read a scenario.

    Attributes:
        name: in the tables.
        form: the files that it reads, a name of `writers.WRITERS`.
        stores: which scenarios it runs on: "jpeg", "raw" or "numbers".
        load: imports its packages, before any clock runs.
        start: opens it, in every rank of the job.
        holds_raw: it reads the same windows with raw frames, where a scenario has such a twin.
        in_ranks: whether it runs on several ranks and from a cold page cache too.
        only: names of the scenarios that it runs on, if not on all that fit.
        is_prepared: `start` does an earlier epoch's work first, so that a cold start of it would measure that.
    """

    name: str
    form: str
    stores: tuple[str, ...]
    load: Callable[[], None]
    start: Callable[[Scenario, Path], Batches]
    holds_raw: bool = False
    in_ranks: bool = False
    only: tuple[str, ...] = ()
    is_prepared: bool = False

    def fits(self, scenario: Scenario) -> bool:
        """Whether it runs on a scenario."""
        if (self.holds_raw and not scenario.raw_twin) or (self.only and scenario.name not in self.only):
            return False
        return (scenario.codec if scenario.has_frames else "numbers") in self.stores

    def stored(self, scenario: Scenario) -> Scenario:
        """The scenario whose files it reads for this one."""
        return SCENARIOS[scenario.raw_twin] if self.holds_raw and scenario.raw_twin else scenario


def jpeg(data: bytes) -> np.ndarray:
    """The fastest decoder that there is for this, for everybody."""
    return simplejpeg.decode_jpeg(data, "RGB")


def forever(loader: Any) -> Batches:
    """Epoch after epoch."""
    while True:
        yield from loader


def world() -> tuple[int, int]:
    """This process's rank and how many there are."""
    if not torch.distributed.is_initialized():
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()
