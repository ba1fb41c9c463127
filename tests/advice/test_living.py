"""Advice of commands that edit, examine and list episodes, and of tasks of an array, taken."""

import json
import shutil

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from hdf5_files import aloha_raw
from words.advised import taken

import epistream as es
from epistream.commands import cli
from epistream.errors import EditError


def run(*words):
    return CliRunner().invoke(cli, list(map(str, words)))


def refused(*words):
    """What a command says that refuses its options."""
    done = run(*words)
    assert done.exit_code
    return str(done.exception) if done.exception and not isinstance(done.exception, SystemExit) else done.output


@taken("epistream/commands/inspect.py", "--episode", "--episodes")
def test_list_and_one_episode_ask_for_one_of_them(aloha_shards):
    told = refused("inspect", aloha_shards, "--episode", 0, "--episodes", ":")
    assert "--episode" in told
    assert run("inspect", aloha_shards, "--episode", 0).exit_code == 0
    assert "2 of 2 episodes" in run("inspect", aloha_shards, "--episodes", ":").output


@taken("epistream/commands/edit.py", "--from")
def test_trim_without_steps_takes_them_from_a_file(aloha_shards, tmp_path):
    folder = shutil.copytree(aloha_shards, tmp_path / "shards")
    assert "--from FILE" in refused("edit", "trim", folder)
    file = tmp_path / "keep.json"
    listed = [{"index": 0, "keep": [3, 9], "codes": ["idle-start"]}]
    file.write_text(json.dumps({"format": "epistream-selection", "version": 1, "of": "", "episodes": listed}))
    done = run("edit", "trim", folder, "--from", file)
    assert done.exit_code == 0, done.output
    assert "1 of 2 episodes trimmed" in done.output


@taken("epistream/commands/pack.py", "--publish")
def test_task_of_an_array_says_how_all_of_them_are_joined(tmp_path):
    aloha_raw(tmp_path / "a.hdf5")
    done = run("pack", tmp_path / "a.hdf5", tmp_path / "out", "--task-index", 0, "--num-tasks", 1)
    assert done.exit_code == 0, done.output
    assert "--publish" in done.output
    done = run("pack", tmp_path / "a.hdf5", tmp_path / "out", "--publish")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out" / "dataset.json").exists()


@pytest.fixture
def still(tmp_path):
    """Episodes in which nothing moves."""
    for number in range(9):
        aloha_raw(tmp_path / f"episode_{number}.hdf5")
    return tmp_path


@taken("epistream/commands/doctor.py", "--fail-on", "--all")
def test_findings_below_the_level_are_selected_with_a_lower_one(still, tmp_path):
    out = tmp_path / "found.json"
    done = run("doctor", still, "--no-frames", "--fail-on", "info", "--all", "--select-out", out)
    assert done.exit_code in (0, 1), done.output
    assert json.loads(out.read_text())["format"] == "epistream-selection"


def record(path, num_episodes):
    with h5py.File(path, "w") as file:
        for number in range(num_episodes):
            group = file.create_group(f"data/demo_{number}")
            group["actions"] = group["obs/state"] = np.full((4, 2), number, "f4")
    return path


@taken("sharding/edit/adding.py", "episodes=", "--episodes")
def test_file_that_grew_is_added_by_its_new_episodes(tmp_path):
    es.pack(record(tmp_path / "demos.hdf5", 2), tmp_path / "set")
    record(tmp_path / "demos.hdf5", 3)
    with pytest.raises(EditError, match=r"demos\.hdf5 was packed before.*--episodes"):
        es.edit.add(tmp_path / "set", tmp_path / "demos.hdf5")
    done = run("edit", "add", tmp_path / "set", tmp_path / "demos.hdf5", "--episodes", "2:", "--workers", 1)
    assert done.exit_code == 0, done.output
    assert es.open_dataset(tmp_path / "set").num_episodes == 3
