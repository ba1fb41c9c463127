"""`epistream export`: what it prints, what it passes on, errors in one line, and its help."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from hdf5_files import aloha_jpeg, robomimic

from epistream.commands import cli
from epistream.errors import EpistreamError, OptionError

SETS = Path(__file__).parents[1] / "sharding" / "lerobot" / "sets"


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def export(*arguments):
    return CliRunner().invoke(cli, ["export", "lerobot", *map(str, arguments)])


def test_export_command_tells_what_it_did(tmp_path):
    done = export(SETS / "cameras_v30", tmp_path / "out", "--workers", 1)
    assert (done.exit_code, done.stderr) == (0, "")
    first, second, third = done.stdout.splitlines()
    assert first == "5 episodes, 28 steps"
    assert second.startswith("3 files, ")
    assert second.endswith(" s")
    assert third == str(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "meta" / "info.json").read_text())["codebase_version"] == "v3.0"


def test_export_command_takes_several_sources_and_every_choice(tmp_path):
    for name in "ab":
        masks = {"train": ["demo_0"], "valid": ["demo_1"]}
        robomimic(tmp_path / f"{name}.hdf5", {"demo_0": 3, "demo_1": 2}, masks)
    words = ["--version", "2.1", "--feature", "action", "--feature", "observation.images.*", "--split", "train"]
    words += ["--pictures", "image", "--as-recorded", "--workers", 1, "--chunks-size", 7]
    done = export(tmp_path / "a.hdf5", tmp_path / "b.hdf5", tmp_path / "out", *words)
    assert done.exit_code == 0, done.output
    info = json.loads((tmp_path / "out" / "meta" / "info.json").read_text())
    assert (info["codebase_version"], info["chunks_size"], info["total_episodes"]) == ("v2.1", 7, 2)
    assert list(info["features"])[:-5] == ["observation.images.agentview", "action"]


def test_export_command_passes_every_option_on(tmp_path, monkeypatch):
    seen = {}

    class Enough(EpistreamError):
        pass

    def call(*places, **options):
        seen.update(options, places=places)
        raise Enough

    monkeypatch.setattr("epistream.commands.export.export_lerobot", call)
    words = "--fps 12.5 --task grasp --reencode --codec h264 --crf 20 --gop 3 --preset fast --data-files-size-in-mb 7 "
    words += "--video-files-size-in-mb 9 --layout robomimic --workers 3 --episodes 0:9 --engine ray --address auto"
    assert isinstance(export("in", "out", *words.split()).exception, Enough)
    assert seen.pop("places") == ("in", "out")
    assert callable(seen.pop("progress"))
    assert seen == {
        **{
            "version": "3.0",
            "split": None,
            "episodes": "0:9",
            "fps": 12.5,
            "task": "grasp",
            "pictures": None,
            "reencode": True,
        },
        "upright": True,
        "engine": "ray",
        "address": "auto",
        **{"codec": "h264", "crf": 20, "gop": 3, "preset": "fast", "chunks_size": 1000, "workers": 3},
        **{"data_files_size_in_mb": 7.0, "video_files_size_in_mb": 9.0, "layout": "robomimic"},
        **{"storage_options": seen["storage_options"], "features": None},
        **({"allow_outside_files": seen["allow_outside_files"]} if "allow_outside_files" in seen else {}),
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--split", "test"], "no split 'test'"),
        (["--fps", "3"], "50 steps a second, fps is 3"),
        (["--feature", "acton"], "acton"),
    ],
)
def test_export_command_refuses_what_cannot_be_done(tmp_path, words, message):
    aloha_jpeg(tmp_path / "in" / "episode_0.hdf5", 2)
    done = export(tmp_path / "in", tmp_path / "out", *words)
    assert isinstance(done.exception, OptionError)
    assert message in str(done.exception)
    assert not (tmp_path / "out").exists()


def test_export_command_over_a_set_is_refused(tmp_path):
    assert export(SETS / "numbers_v30", tmp_path / "out", "--workers", 1).exit_code == 0
    done = export(SETS / "numbers_v30", tmp_path / "out", "--workers", 1)
    assert "holds a LeRobot data set already, wanted an empty folder" in str(done.exception)


def test_export_command_interrupted_says_how_to_go_on(tmp_path, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("epistream.commands.export.export_lerobot", interrupted)
    done = export(SETS / "numbers_v30", tmp_path / "out")
    assert done.exit_code == 130
    assert done.stderr == f"interrupted: the same command goes on with {tmp_path / 'out'}\n"


def test_export_command_says_what_its_options_are():
    text = " ".join(CliRunner().invoke(cli, ["export", "lerobot", "--help"], env={"COLUMNS": "200"}).output.split())
    assert "Usage: cli export lerobot [OPTIONS] SOURCE... OUT" in text
    assert "--version [3.0|2.1] Of LeRobot's format; 3.0 puts many episodes into a file" in text
    assert "--fps FLOAT Steps a second, where the source does not say it." in text
    assert "--pictures [video|image] All cameras as videos, or as PNG in Parquet files;" in text
    assert "--as-recorded Do not turn pictures that were recorded upside down." in text
    assert "[default: (one a core)]" in text
