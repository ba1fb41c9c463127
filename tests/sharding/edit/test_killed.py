"""SIGKILL before every write, sync, rename and removal of an edit: the old dataset or the new one, and edits go on."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from editing.small import packed, recordings

HELPERS = Path(__file__).parents[2] / "helpers"
KILLED = HELPERS / "editing" / "killed.py"
# Of edits that take many steps, or share them with others, the usual run is killed at some; a soak at each.
STRIDES = {"remove": 1, "trim": 5, "undo": 3, "add": 9, "compact": 4, "prune": 3, "compact and prune": 7}


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    """A set of four recordings of 4 to 7 steps in two shards, and two others beside it."""
    folder = tmp_path_factory.mktemp("start") / "start"
    packed(recordings(folder / "first", range(4), size=(40, 40)), folder / "set")
    recordings(folder / "later", range(10, 12), size=(40, 40))
    return folder


def killed(name: str, stride: int, start: Path, folder: Path) -> int:
    (folder / "start").parent.mkdir(exist_ok=True)
    import shutil

    shutil.copytree(start, folder / "start")
    command = [sys.executable, str(KILLED), name, str(folder), str(stride)]
    done = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": str(HELPERS)}, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)["num_steps"]


@pytest.mark.parametrize(("name", "stride"), STRIDES.items())
def test_edit_that_is_killed_leaves_the_old_dataset_or_the_new_one(name, stride, start, tmp_path):
    assert killed(name, stride, start, tmp_path) > 10


@pytest.mark.soak
@pytest.mark.parametrize("name", [name for name, stride in STRIDES.items() if stride > 1])
def test_edit_that_is_killed_at_every_step_leaves_the_old_dataset_or_the_new_one(name, start, tmp_path):
    assert killed(name, 1, start, tmp_path) > 10
