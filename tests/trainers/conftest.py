"""The grid's data, its reference, and the table of its cells behind a run."""

import json
import os
import shutil
from functools import cache
from pathlib import Path
from uuid import uuid4

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
    """Where one job's cache may be in memory, gone afterwards; no other test fills or empties it."""
    folder = Path(f"/dev/shm/epistream-grid-{os.getpid()}-{uuid4().hex}")
    yield folder  # not made: a test that is killed leaves nothing behind
    shutil.rmtree(folder, ignore_errors=True)
    assert not folder.exists()


def pytest_terminal_summary(terminalreporter) -> None:
    """A line for each cell of the grid that was run."""
    cells = [
        (dict(report.user_properties), outcome == "passed", report.duration)
        for outcome in ("passed", "failed", "error")
        for report in terminalreporter.getreports(outcome)
        if getattr(report, "when", "") == "call" and "cell" in dict(report.user_properties)
    ]
    if not cells:
        return
    terminalreporter.section("grid: windows of every rank beside the reference's; seconds, and those of processors")
    for told, is_right, seconds in sorted(cells, key=lambda each: each[0]["number"]):
        verdict = "right" if is_right else "WRONG"
        line = f"{verdict}  {told['cell']}  {seconds:6.1f} s  {told.get('processor_s', 0):6.1f} s"
        terminalreporter.write_line(line + ("  refused" if told["refused"] and is_right else ""))
    num_wrong = sum(not is_right for _, is_right, _ in cells)
    seconds = sum(seconds for *_, seconds in cells)
    busy = sum(told.get("processor_s", 0) for told, *_ in cells)
    terminalreporter.write_line(f"{len(cells)} cells, {num_wrong} wrong; {seconds:.0f} s, {busy:.0f} s of processors")
