"""Advice of packing jobs that the tasks of an array share, taken."""

import re

import pytest
from click.testing import CliRunner
from hdf5_files import aloha_raw
from words.advised import taken

import epistream as es
from epistream.commands import cli


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Three episodes, of which each is a shard."""
    folder = tmp_path_factory.mktemp("in")
    for seed in range(3):
        aloha_raw(folder / f"e_{seed}.hdf5", 20, seed, cameras=("top",))
    return folder


@pytest.fixture
def pack(sources, tmp_path):
    """Runs the command with more options; gives what it says if it fails, else None."""

    def run(*more):
        line = ["pack", sources, tmp_path / "out", "--codec", "raw", "--shard-size", "64KiB", "--workers", "1", *more]
        result = CliRunner().invoke(cli, list(map(str, line)))
        return None if result.exit_code == 0 else str(result.exception)

    return run


def task(index, number=3):
    return "--task-index", index, "--num-tasks", number


@taken("sharding/pack/workspace.py", "--task-index", "--num-tasks")
@taken("sharding/pack/making.py", "--task-index", "--num-tasks")
def test_array_published_too_early_run_the_tasks_that_are_missing(pack, tmp_path):
    message = pack("--publish")
    assert "Run the tasks first: --task-index 0 and so on, with --num-tasks." in message
    assert pack(*task(0)) is None
    message = pack("--publish")
    [(number, named)] = re.findall(r"Run again with --num-tasks (\d+) and --task-index ([\d, ]+);", message)
    assert (number, named) == ("3", "1, 2")
    assert [pack(*task(index, number)) for index in named.split(", ")] == [None, None]
    assert pack("--publish") is None
    assert es.open_dataset(tmp_path / "out").num_episodes == 3


@taken("sharding/pack/making.py", "--resume")
def test_array_published_too_early_finish_it_in_one_process(pack, tmp_path):
    pack(*task(0))
    assert "or finish it here with --resume" in pack("--publish")
    assert pack("--resume") is None
    assert es.open_dataset(tmp_path / "out").num_episodes == 3


@taken("sharding/pack/job_note.py", "--num-tasks", "--resume")
@pytest.mark.parametrize("number", [3, None])
def test_array_of_another_number_give_the_same_or_finish_it_by_one_process(pack, tmp_path, number):
    pack(*task(1))
    message = pack(*task(0, 2))
    assert "wanted --num-tasks 2. Give the same number, or finish it by one process with --resume." in message
    if number is None:
        assert pack("--resume") is None
    else:
        assert [pack(*task(index)) for index in (0, 2)] == [None, None]
        assert pack("--publish") is None
    assert es.open_dataset(tmp_path / "out").num_episodes == 3
