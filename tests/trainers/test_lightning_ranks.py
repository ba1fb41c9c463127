"""Lightning and Fabric on two ranks that they start themselves, and going on with another number of ranks."""

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
from launching import BATCH_SIZE, LENGTHS, NUM_EPOCHS, PROGRAMS, Start, launch

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
EVERYTHING = Counter((e, t) for e, length in enumerate(LENGTHS) for t in range(length))
pytestmark = pytest.mark.timeout(400)


@dataclass(frozen=True)
class Variant(Start):
    """A start of `programs/lightning_variants.py`."""

    strategy: str = "auto"
    batch_size: int = BATCH_SIZE


@pytest.fixture
def run(made_grid, tmp_path, cache_directory):
    """Starts a program. Returns the windows of every batch, by rank."""

    def start(program="lightning_variants", kind=Variant, ranks=2, **changes):
        given = {"workers": 1, "epochs": NUM_EPOCHS, "ranks": ranks, **changes}
        job = kind(str(made_grid), str(tmp_path), str(cache_directory), **given)
        ended = launch(PROGRAMS / f"{program}.py", job, under_torchrun=False)
        assert ended.status == 0, ended.printed
        return [json.loads((tmp_path / f"windows-{rank}.json").read_text()) for rank in range(ranks)]

    return start


def test_loader_that_is_made_before_the_ranks_are_goes_on_from_mid_epoch_beside_validation(run, reference):
    first, rest = run(strategy="ddp", stop=13), run(strategy="ddp", resume=True)
    assert [before + after for before, after in zip(first, rest, strict=True)] == reference(2, 1)


@pytest.mark.parametrize("strategy", ["ddp_spawn", pytest.param("ddp_fork", marks=pytest.mark.soak)])
def test_loader_that_is_handed_to_ranks_that_are_spawned_or_forked_is_dealt_out_once(strategy, run, reference):
    assert run(strategy=strategy) == reference(2, 1)


@pytest.mark.soak  # the grid starts them by torchrun
def test_fabric_that_starts_its_ranks_deals_windows_out_once(run, reference):
    assert run("fabric_loop", Start, epochs=2) == [rank[:18] for rank in reference(2, 1)]


@pytest.mark.parametrize(("ranks", "stop"), [((1, 2), 7), pytest.param((2, 1), 5, marks=pytest.mark.soak)], ids=str)
def test_resume_on_another_number_of_ranks_gives_every_window_of_the_broken_epoch_once(ranks, stop, run):
    before, after = ranks
    first = run(ranks=before, strategy="auto" if before == 1 else "ddp", stop=stop)
    rest = run(ranks=after, strategy="auto" if after == 1 else "ddp", resume=True)
    given = [tuple(window) for rank in first for batch in rank for window in batch]
    num_left = len(EVERYTHING) - len(given)
    num_batches = num_left // (BATCH_SIZE * after)
    for rank in rest:
        given += [tuple(window) for batch in rank[:num_batches] for window in batch]
    assert len(given) == len(set(given)) == len(EVERYTHING) - num_left % (BATCH_SIZE * after)
    for epoch in range(2):
        start = num_batches + epoch * 18 // after
        later = [batch for rank in rest for batch in rank[start : start + 18 // after]]
        assert Counter(tuple(window) for batch in later for window in batch) == EVERYTHING
    assert {len(rank) for rank in rest} == {num_batches + 2 * 18 // after}


def test_example_that_is_started_again_trains_on_what_was_left(aloha_shards, tmp_path):
    everything = Counter((e, t) for e, length in enumerate([80, 60]) for t in range(length))
    seen = [[], []]
    for steps in (["12"], []):
        subprocess.run(
            [sys.executable, str(EXAMPLES / "bc_lightning.py"), str(aloha_shards), str(tmp_path), *steps],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            cwd=tmp_path,
            timeout=180,
            check=True,
        )
        for rank in range(2):
            seen[rank] += json.loads((tmp_path / f"rank-{rank}.json").read_text())["windows"]
    assert [len(rank) for rank in seen] == [35, 35]
    for epoch in range(5):
        batches = slice(epoch * 7, epoch * 7 + 7)
        assert Counter(tuple(w) for rank in seen for batch in rank[batches] for w in batch) == everything
