"""`epistream layouts`: the list, why a file has a layout or none, drafts; and `inspect`, which shows one."""

import json
import shlex

import every_layout
import h5py
import pytest
from click.testing import CliRunner
from hdf5_files import numbers, picture

from epistream.commands import cli
from epistream.errors import LayoutError, OptionError, SourceError
from epistream.sharding.check.layout_marks import lacking
from epistream.sharding.layouts.registry import LAYOUTS


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "indexes"))


def run(*arguments):
    return CliRunner(env={"COLUMNS": "200"}).invoke(cli, list(map(str, arguments)))


def unknown(path):
    with h5py.File(path, "w") as file:
        file["cam"], file["act"] = [picture(step) for step in range(4)], numbers(4, 2, 0)
    return path


def test_list_has_every_layout_with_its_marks():
    for line in (["layouts"], ["layouts", "list"]):
        text = run(*line).stdout
        assert all(layout.name in text for layout in LAYOUTS)
        assert "/data/<demo>/actions, /data/<demo>/obs/<key>" in text
    rows = json.loads(run("layouts", "list", "--json").stdout)
    assert [row["name"] for row in rows[: len(LAYOUTS)]] == [layout.name for layout in LAYOUTS]


def test_detect_says_what_was_taken_and_what_the_others_lack(tmp_path):
    path = every_layout.write("mobile-aloha", tmp_path)
    done = run("layouts", "detect", path, "--json")
    found = json.loads(done.stdout)
    assert (done.exit_code, found["layout"], found["lacks"]["mobile-aloha"]) == (0, "mobile-aloha", [])
    assert found["lacks"]["act-plus-plus"] == ["no /base_action"]
    assert found["lacks"]["aloha"][0] == "cameras of (T, H, W, C) arrays"
    assert found["lacks"]["robomimic"] == ["a group /data"]
    assert found["lacks"]["minari"] == ["groups /episode_<n>"]
    text = run("layouts", "detect", path).stdout
    assert "mobile-aloha     fits, and is taken" in text
    assert "lacks /joint_action/vector, /observation/*/rgb" in text


def test_detect_of_an_unknown_file_ends_with_1_and_the_way_on(tmp_path):
    done = run("layouts", "detect", unknown(tmp_path / "a.h5"))
    assert done.exit_code == 1
    assert "no known layout. Write a layout file of your own with 'epistream layouts draft FILE" in done.stdout
    assert isinstance(run("layouts", "detect", tmp_path / "none.h5").exception, SourceError)


@pytest.mark.parametrize("name", every_layout.WRITERS)
def test_marks_are_all_there_where_a_layout_fits_and_only_there(tmp_path, name):
    with h5py.File(every_layout.write(name, tmp_path)) as file:
        for layout in LAYOUTS:
            assert (lacking(layout, file) == []) == layout.matches(file), layout.name


def test_draft_is_written_once_and_says_the_next_step(tmp_path):
    path, out = unknown(tmp_path / "my recording.h5"), tmp_path / "layout.yaml"
    done = run("layouts", "draft", path, "-o", out)
    words = shlex.split(done.stdout.partition("Correct it, then: ")[2])
    assert words == ["epistream", "inspect", str(path), "--layout-file", str(out)]
    assert run(*words[1:]).exit_code == 0
    failed = run("layouts", "draft", path, "-o", out).exception
    assert isinstance(failed, OptionError)
    assert str(failed) == f"{out}: exists already. Give another name with -o, or --overwrite."
    assert run("layouts", "draft", path, "-o", out, "--overwrite").exit_code == 0
    assert isinstance(run("layouts", "draft", path, "-o", tmp_path / "no" / "x.yaml").exception, SourceError)


def test_inspect_of_an_unknown_file_shows_a_draft_that_works(tmp_path):
    path = unknown(tmp_path / "a.h5")
    failed = run("inspect", path).exception
    assert isinstance(failed, LayoutError)
    message, _, draft = str(failed).partition(" writes it):\n")
    assert f"epistream layouts draft {path} -o layout.yaml" in message
    (tmp_path / "layout.yaml").write_text(draft)
    assert run("inspect", path, "--layout-file", tmp_path / "layout.yaml").exit_code == 0


def test_bench_takes_a_layout(tmp_path):
    path, out = unknown(tmp_path / "a.h5"), tmp_path / "layout.yaml"
    run("layouts", "draft", path, "-o", out)
    quick = ["--rounds", 1, "--seconds", 0.02, "--batch-size", 2, "--action", "0:2", "--parallel", 1, "--no-once"]
    assert isinstance(run("bench", path, *quick).exception, LayoutError)
    done = run("bench", path, *quick, "--layout-file", out)
    assert done.exit_code == 0, done.exception
    assert "unknown, wanted one of" in str(run("bench", path, "--layout", "robomimik").exception)


def test_name_of_a_draft_is_never_that_of_a_known_layout(tmp_path):
    assert "name: my-aloha\n" in run("layouts", "draft", unknown(tmp_path / "aloha.h5")).stdout
    path = unknown(tmp_path / "ä: *&.h5")
    run("layouts", "draft", path, "-o", tmp_path / "x.yaml")
    assert run("pack", path, tmp_path / "out", "--layout-file", tmp_path / "x.yaml").exit_code == 0


def test_pack_of_unknown_files_says_the_way_on_once(tmp_path):
    for name in "abc":
        unknown(tmp_path / f"{name}.h5")
    message = str(run("pack", tmp_path, tmp_path / "out").exception)
    assert message.count("epistream layouts draft FILE -o layout.yaml") == 1
