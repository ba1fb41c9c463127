"""The grid's data, its reference, and the table of its cells behind a run."""

import json
import shutil
import tempfile
from functools import cache
from pathlib import Path

import h5py
import numpy as np
import pytest
from launching import BATCH_SIZE, LENGTHS, NUM_EPOCHS

import epistream as es


def write_episodes(path: Path) -> None:
    """Small episodes in the layout of robomimic."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_name": "Lift", "type": 1, "env_kwargs": {}})
        for number, length in enumerate(LENGTHS):
            demo = data.create_group(f"demo_{number}")
            demo.attrs["num_samples"] = length
            demo["actions"] = rng.normal(size=(length, 7))
            demo["obs/robot0_eef_pos"] = rng.normal(size=(length, 3))
            demo["obs/agentview_image"] = rng.integers(0, 255, (length, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="session")
def made_grid(tmp_path_factory) -> Path:
    """8 episodes of 144 steps, packed into several shards: 18 batches of 8 an epoch on one rank, 9 on two."""
    folder = tmp_path_factory.mktemp("grid")
    write_episodes(folder / "made.hdf5")
    es.pack(folder / "made.hdf5", folder / "made", shard_size=80_000)
    assert len(list((folder / "made").glob("*.tar"))) > 2
    return folder / "made"


@pytest.fixture(scope="session")
def reference(made_grid):
    """The windows of every batch of all epochs, by rank, from streams that no trainer touches.

    A function of the number of ranks, and of the ranks on each node: who shares a node decides which half of a global
    batch a rank gets, and not every launcher says it.
    """

    @cache
    def read(ranks: int, local_size: int) -> list[list[list[list[int]]]]:
        return [read_rank(es.World.of(rank, ranks, local_size)) for rank in range(ranks)]

    def read_rank(world: es.World) -> list[list[list[int]]]:
        given = {"batch_size": BATCH_SIZE, "features": ["action"], "seed": 3, "split": None, "world": world}
        stream = es.EpisodeStream(made_grid, **given)
        batches = []
        for epoch in range(NUM_EPOCHS):
            stream.set_epoch(epoch)
            batches += [np.stack([b["episode_index"], b["step_index"]], axis=1).tolist() for b in stream]
        return batches

    return read


@pytest.fixture
def cache_directory():
    """A directory in memory for one job's cache, gone afterwards; no other test fills or empties it."""
    folder = Path(tempfile.mkdtemp(prefix="epistream-grid-", dir="/dev/shm"))
    yield folder / "cache"
    shutil.rmtree(folder)


def pytest_terminal_summary(terminalreporter) -> None:
    """A line for each cell of the grid that was run."""
    cells = [
        (dict(report.user_properties)["cell"], name == "passed", report.duration)
        for name in ("passed", "failed", "error")
        for report in terminalreporter.getreports(name)
        if getattr(report, "when", "") == "call" and "cell" in dict(report.user_properties)
    ]
    if cells:
        terminalreporter.section("grid: windows of every rank beside the reference's")
    for cell, is_right, seconds in cells:
        terminalreporter.write_line(f"{'right' if is_right else 'WRONG'}  {cell}  {seconds:6.1f} s")
    if cells:
        num_wrong = sum(not is_right for _, is_right, _ in cells)
        terminalreporter.write_line(f"{len(cells)} cells, {num_wrong} wrong, {sum(s for *_, s in cells):.0f} s in all")
