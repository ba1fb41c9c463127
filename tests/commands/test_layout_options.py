"""`--layout` and `--layout-file`: every command that opens HDF5 files takes them, as streams take `layout=`."""

import json

import every_layout
import pytest
from click.testing import CliRunner

from epistream.commands import cli
from epistream.errors import LayoutError, OptionError


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "indexes"))


@pytest.fixture
def own(tmp_path):
    return every_layout.write_own(tmp_path)


def run(*arguments):
    return CliRunner().invoke(cli, list(map(str, arguments)))


def lines_of(tmp_path):
    return {
        "inspect": ["inspect"],
        "plan": ["plan", "--batch-size", 2],
        "warm": ["cache", "warm", "--directory", tmp_path / "cache"],
    }


@pytest.mark.parametrize("name", ["inspect", "plan", "warm"])
def test_command_of_a_file_of_ones_own_layout_takes_the_description_and_needs_it(own, tmp_path, name):
    path, description = own
    line = [*lines_of(tmp_path)[name], path]
    assert isinstance(run(*line).exception, LayoutError)
    done = run(*line, "--layout-file", description)
    assert done.exit_code == 0, done.output
    wanted = {"inspect": "episodes     2 of 5 steps", "plan": "10 windows of 2 episodes", "warm": "1 of 1 shards"}
    assert wanted[name] in done.output


@pytest.mark.parametrize("name", ["inspect", "plan", "warm"])
def test_command_insists_on_a_layout_by_name(tmp_path, name):
    path = every_layout.write("mobile-aloha", tmp_path)
    line = [*lines_of(tmp_path)[name], path, "--layout"]
    assert "wanted robomimic" in str(run(*line, "robomimic").exception)
    assert run(*line, "mobile-aloha").exit_code == 0
    message = str(run(*line, "robomimik").exception)
    assert message.startswith("layout 'robomimik': unknown, wanted one of libero, robomimic, ")
    assert "Did you mean 'robomimic'?" in message


def test_both_options_together_are_refused(own):
    path, description = own
    failed = run("inspect", path, "--layout", "aloha", "--layout-file", description)
    assert isinstance(failed.exception, OptionError)
    assert str(failed.exception) == "--layout and --layout-file: both given, wanted one."


def test_tune_writes_the_layout_into_the_configuration(own, tmp_path):
    path, description = own
    done = run("tune", path, "--layout-file", description, "--batch-size", 2, "--seconds", 0.02, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["config"]["stream"]["layout"] == str(description)


def test_verify_refuses_hdf5_files_before_it_looks_into_them(own, tmp_path):
    path, _ = own
    assert "an HDF5 file, wanted tars or LeRobot data sets. Pack it first" in str(run("verify", path).exception)
    assert not (tmp_path / "indexes").exists()


def test_inspect_makes_a_picture_of_an_hdf5_file_without_a_suffix(tmp_path):
    path = every_layout.write("mobile-aloha", tmp_path).rename(tmp_path / "episode")
    done = run("inspect", path, "--image", tmp_path / "sheet.png")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "sheet.png").stat().st_size > 1000
