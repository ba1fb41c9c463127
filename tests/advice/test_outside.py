"""Advice about files that are elsewhere or of another kind: taken as it stands, it works."""

import re

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from hdf5_files import aloha_raw

import epistream as es
from epistream.commands import cli
from epistream.errors import EpistreamError


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache-home"))


def run(*arguments):
    """Exit code and text of a command."""
    done = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    return done.exit_code, done.output + (f"{done.exception}" if isinstance(done.exception, EpistreamError) else "")


def links_away(folder):
    """An episode whose action is outside of its folder."""
    path = aloha_raw(folder / "in" / "e.hdf5", 6, cameras=("top",))
    with h5py.File(folder / "away.h5", "w") as other, h5py.File(path, "a") as file:
        other["a"] = np.ones((6, 14), np.float32)
        del file["action"]
        file["action"] = h5py.ExternalLink("../away.h5", "/a")
    return path


def test_option_for_files_outside_of_the_folder_is_that_of_every_command_and_of_streams(tmp_path):
    path = links_away(tmp_path)
    for command in (
        ["inspect", path],
        ["plan", path, "--batch-size", "2"],
        ["cache", "warm", path, "--directory", tmp_path / "cache"],
        ["pack", path, tmp_path / "out"],
    ):
        code, text = run(*command)
        assert code
        (option,) = set(re.findall(r"--allow-[a-z-]+", text))
        code, text = run(*command, option)
        assert code == 0, text
    assert f"read outside of the sources' folders: {tmp_path / 'away.h5'}" in text
    with pytest.raises(EpistreamError) as refused:
        es.EpisodeStream(str(path))
    ((name, value),) = re.findall(r"(\w+)=(True)", str(refused.value))
    assert es.EpisodeStream(str(path), **{name: value == "True"}).num_windows == 6


def test_option_for_files_outside_of_the_folder_is_an_attribute_of_the_map_style_class(tmp_path):
    path = links_away(tmp_path)

    class Mine(es.OptimizedEpisodicDataset):
        camera_names = ("top",)

    arguments = ([str(path)], ["top"], 2)
    with pytest.raises(EpistreamError, match="allow_outside_files=True"):
        Mine(*arguments)
    Mine.allow_outside_files = True
    assert len(Mine(*arguments)) == 6
