"""Advice about files that are elsewhere or of another kind: taken as it stands, it works."""

import re
from pathlib import Path

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


def test_program_that_formats_of_others_are_referred_to_is_where_the_message_says(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / ".zgroup").write_text('{"zarr_format": 2}')
    code, text = run("pack", tmp_path / "in", tmp_path / "out")
    assert code
    ((document, section),) = set(re.findall(r"(docs/\w+\.md), '([^']+)'", text))
    root = Path(__file__).parents[2]
    written = (root / document).read_text().split(f"\n## {section}\n")[1].split("\n## ")[0]
    (program,) = re.findall(r"```python\n(def write_episode.*?)\n\n\n", written, re.DOTALL)
    names = {"h5py": h5py, "np": np}
    exec(program, names)
    step = {"state": np.ones(3), "action": np.ones(3), "pictures": {"top": np.zeros((8, 10, 3), np.uint8)}}
    names["write_episode"](tmp_path / "e.hdf5", [step] * 4, "lift")
    report = es.pack(tmp_path / "e.hdf5", tmp_path / "out")
    assert (report.num_steps, es.open_dataset(tmp_path / "out").tasks[0]) == (4, "lift")


def test_pointer_in_place_of_a_file_is_cured_by_fetching_the_file(tmp_path):
    path = tmp_path / "e.hdf5"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    code, text = run("pack", path, tmp_path / "out")
    assert code
    assert "git lfs pull" in text
    aloha_raw(path, 5)  # what git lfs pull puts there
    assert run("pack", path, tmp_path / "out")[0] == 0


def test_hdf5_by_another_name_is_given_by_the_pattern_that_is_advised(tmp_path):
    (tmp_path / "in").mkdir()
    aloha_raw(tmp_path / "e.hdf5", 5).rename(tmp_path / "in" / "e.mat")
    code, text = run("pack", tmp_path / "in", tmp_path / "out")
    assert code
    assert run("pack", re.findall(r"by a pattern: '([^']+)'", text)[0], tmp_path / "out")[0] == 0


def test_missing_source_is_put_where_the_message_says(tmp_path):
    path = links_away(tmp_path)
    kept = (tmp_path / "away.h5").rename(tmp_path / "kept.h5")
    code, text = run("pack", path, tmp_path / "out")
    assert code
    place = Path(re.findall(r"Put it at (\S+)\.", text)[0])
    kept.rename(place)
    assert run("pack", path, tmp_path / "out", "--allow-outside-files")[0] == 0
