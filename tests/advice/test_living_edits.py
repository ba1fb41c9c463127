"""Advice of edits, of the history of a dataset and of what names episodes, taken."""

import json
import os
import re
import shutil
from pathlib import Path

import fsspec
import pytest
from ailing.episodes import healthy, write
from click.testing import CliRunner
from editing.small import ACTION, STATE, VELOCITY, copied, numbers, packed, recordings, whole
from words.advised import follow, taken

import epistream as es
from epistream.commands import cli
from epistream.errors import (
    DatasetExistsError,
    EditConflictError,
    EpistreamError,
    FormatError,
    OptionError,
    SourceError,
)
from epistream.sharding.edit import revision
from epistream.sharding.tar.reindex import ReindexOptions, reindex

OTHER_NAMES = """\
name: others
features:
  - {path: observations/qpos, name: joints}
  - {path: observations/qvel, name: speed}
  - {path: action, name: action}
  - {path: observations/images/top, camera: top}
fps: 50
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Recordings 0 to 2, of 4, 5 and 6 steps."""
    folder = tmp_path_factory.mktemp("edits")
    return packed(recordings(folder / "in", range(3)), folder / "set")


@pytest.fixture(scope="module")
def later(tmp_path_factory):
    """Recordings 10 and 11."""
    folder = tmp_path_factory.mktemp("later")
    return packed(recordings(folder / "in", range(10, 12)), folder / "set")


@pytest.fixture
def url(made, tmp_path):
    return copied(made, tmp_path / "a set")


def said(action, error=EpistreamError):
    with pytest.raises(error) as caught:
        action()
    return str(caught.value)


def run(*words):
    return CliRunner().invoke(cli, list(map(str, words)))


def done(*words):
    result = run("edit", *words)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


def refused(*words):
    return said(lambda: (_ for _ in ()).throw(run("edit", *words).exception))


def history(url):
    return json.loads(done("log", url, "--json"))


# --- several who edit -------------------------------------------------------------------------------------


@taken("sharding/edit/conditional.py", "epistream edit log")
def test_edit_that_lost_against_another_look_at_the_log_and_run_it_again(url, monkeypatch):
    swap = revision.swap

    def slowly(*given):
        monkeypatch.setattr(revision, "swap", swap)
        es.edit.remove(url, "0")
        swap(*given)

    monkeypatch.setattr(revision, "swap", slowly)
    message = refused("remove", url, "1")
    assert "look at 'epistream edit log' and run the edit again" in message
    assert history(url)[-1]["what"] == "1 of 3 episodes removed"
    done("remove", url, "0")
    assert numbers(url) == whole(2)


@taken("sharding/edit/revision.py", "--prune")
def test_edit_whose_files_a_prune_removed_meanwhile_run_it_again(url, monkeypatch):
    done("remove", url, "0")
    swap = revision.swap

    def slowly(*given):
        monkeypatch.setattr(revision, "swap", swap)
        done("compact", url, "--prune", "0")
        swap(url, Path(url, "dataset.json").read_bytes(), *given[2:])

    monkeypatch.setattr(revision, "swap", slowly)
    message = said(lambda: es.edit.split(url, "val", "0"), EditConflictError)
    assert "'compact --prune' does so" in message
    assert "run the edit again" in message
    done("split", url, "val", "--episodes", "0")
    assert numbers(url) == whole(1, 2)


# --- the history ------------------------------------------------------------------------------------------


@taken("sharding/edit/history_edits.py", "epistream edit log", "--prune")
def test_undo_to_what_is_pruned_shows_what_is_kept(url):
    done("remove", url, "0")
    done("split", url, "train")
    done("compact", url, "--prune", "1")
    first = history(url)[0]["fingerprint"]
    message = refused("undo", url, "--to", first)
    assert "'epistream edit log' marks what is not" in message
    assert first[:8] + " (not kept)" in done("log", url)
    assert [one["kept"] for one in history(url)] == [False, False, True, True]
    done("undo", url, "--to", history(url)[2]["fingerprint"])
    assert numbers(url) == whole(1, 2)


@taken("sharding/edit/history_edits.py", "epistream edit log")
def test_undo_to_a_fingerprint_that_never_was_take_one_of_the_log(url):
    done("remove", url, "0")
    assert "wanted one of those of 'epistream edit log'" in refused("undo", url, "--to", "xyz")
    done("undo", url, "--to", history(url)[0]["fingerprint"][:8])
    assert numbers(url) == whole(0, 1, 2)


@taken("sharding/manifest/manifest_file.py", "epistream edit log")
def test_fingerprint_that_is_not_kept_take_one_of_the_log(url):
    done("remove", url, "0")
    message = said(lambda: es.open_dataset(f"{url}@{'0' * 32}"), SourceError)
    follow(message)
    [line] = [one for one in done("log", url).splitlines() if "packed by" in one]
    assert numbers(f"{url}@{line.split()[0]}") == whole(0, 1, 2)


@taken("sharding/files/sources.py", "epistream edit log")
def test_fingerprint_of_four_digits_take_more_of_the_log(url):
    done("remove", url, "0")
    follow(said(lambda: es.open_dataset(f"{url}@0123"), OptionError))
    [line] = [one for one in done("log", url).splitlines() if "packed by" in one]
    assert numbers(f"{url}@{line.split()[0]}") == whole(0, 1, 2)


@taken("sharding/edit/revision.py", "epistream edit undo", "--to")
def test_edit_of_what_was_before_undo_to_it_first(url):
    done("remove", url, "0")
    before = history(url)[0]["fingerprint"]
    message = refused("remove", f"{url}@{before[:8]}", "2")
    follow(re.sub(r"(.*)'(epistream .*) ('[^']*') (.*)'(.*)", r"\1'\2 URL \4'\5", message), url)
    done("remove", url, "2")
    assert numbers(url) == whole(0, 1)


@taken("sharding/manifest/history.py", "epistream edit")
def test_history_that_is_damaged_streams_and_is_copied_again_to_edit(url):
    done("remove", url, "0")
    whole_copy = copied(url, Path(url).with_name("copy"))
    name = json.loads(Path(url, "dataset.json").read_text())["history"]["file"]
    for data in (b"torn", None):
        Path(url, name).unlink() if data is None else Path(url, name).write_bytes(data)
        assert numbers(url) == whole(1, 2)
        assert "'epistream edit' does. Copy it again." in refused("remove", url, "0")
    shutil.copy(Path(whole_copy, name), url)
    done("remove", url, "0")
    assert numbers(url) == whole(2)


@taken("sharding/tar/reindex.py", "epistream edit log", "--to")
def test_index_of_an_edited_dataset_undo_edits_or_index_a_copy_of_its_tars(url, tmp_path):
    done("remove", url, "0")
    message = said(lambda: reindex(url, ReindexOptions(overwrite=True)), DatasetExistsError)
    assert "(epistream edit log '" in message
    assert "then edit undo --to the first), or copy its tars" in message
    (tmp_path / "tars").mkdir()
    for tar in Path(url).glob("*.tar"):
        shutil.copy(tar, tmp_path / "tars")
    assert run("index", tmp_path / "tars").exit_code == 0
    assert numbers(tmp_path / "tars") == whole(0, 1, 2)
    done("undo", url, "--to", history(url)[0]["fingerprint"])
    assert run("index", url, "--overwrite").exit_code == 0
    assert numbers(url) == whole(0, 1, 2)


def test_index_of_an_edited_dataset_that_is_torn_put_a_kept_manifest_in_its_place(url):
    done("remove", url, "0")
    fingerprint = es.open_dataset(url).fingerprint
    Path(url, "dataset.json").write_text("{")
    message = said(lambda: reindex(url, ReindexOptions(overwrite=True)), DatasetExistsError)
    assert "Put a copy of the last of its manifest-*.json in the place of the torn dataset.json" in message
    shutil.copy(Path(url, f"manifest-{fingerprint}.json"), Path(url, "dataset.json"))
    assert numbers(url) == whole(1, 2)
    done("remove", url, "0")


# --- what is added and merged -----------------------------------------------------------------------------


@taken("sharding/edit/joining.py", "epistream edit rename", "epistream edit drop")
def test_merge_of_other_features_rename_or_drop_them(url, later, tmp_path):
    other = copied(later, tmp_path / "other")
    done("rename", other, f"{ACTION}=command")
    done("drop", url, VELOCITY)
    message = refused("merge", url, other, tmp_path / "out")
    assert "'epistream edit rename', 'epistream edit drop'" in message
    done("rename", other, f"command={ACTION}")
    done("drop", other, VELOCITY)
    done("merge", url, other, tmp_path / "out")
    assert numbers(tmp_path / "out") == {**whole(0, 1, 2), **whole(10, 11)}


@taken("sharding/edit/joining_options.py", "epistream edit rename", "epistream edit drop")
def test_add_of_other_features_pack_apart_rename_or_drop_and_merge(url, tmp_path):
    [file] = recordings(tmp_path / "in", range(10, 11))
    done("drop", url, VELOCITY)
    done("rename", url, f"{STATE}=state")
    layout = tmp_path / "others.yaml"
    layout.write_text(OTHER_NAMES)
    message = refused("add", url, file, "--layout-file", layout, "--workers", "1")
    assert "pack them apart, rename and drop features there ('epistream edit rename', 'epistream edit drop')" in message
    apart = packed([file], tmp_path / "apart", layout=str(layout))
    done("rename", apart, "joints=state")
    done("drop", apart, "speed")
    done("merge", url, apart, tmp_path / "out")
    assert numbers(tmp_path / "out", "state") == {**whole(0, 1, 2), **whole(10)}


@taken("sharding/edit/merging.py", "--copy")
def test_merge_on_a_store_of_shards_on_this_machine_copy_them(made, later):
    out = f"memory://merged-{os.getpid()}"
    assert "Add --copy" in refused("merge", made, later, out)
    done("merge", made, later, out, "--copy")
    assert numbers(out) == {**whole(0, 1, 2), **whole(10, 11)}


@taken("sharding/manifest/groups.py", "epistream edit merge", "--copy", "epistream edit compact")
def test_fetched_dataset_that_names_folders_elsewhere_merge_copies_or_compact_it(made, later, tmp_path):
    out, remote = tmp_path / "out", f"memory://fetched-{os.getpid()}"
    done("merge", made, later, out)
    upload(out, f"{remote}/a")
    message = said(lambda: es.open_dataset(f"{remote}/a"), FormatError)
    assert "Merge there with 'epistream edit merge --copy', or " in message
    assert "('epistream edit compact') and copy that" in message
    done("merge", made, later, f"{remote}/b", "--copy")
    done("compact", out)
    upload(out, f"{remote}/c")
    assert numbers(f"{remote}/b") == numbers(f"{remote}/c") == {**whole(0, 1, 2), **whole(10, 11)}


def upload(folder, url):
    fsspec.filesystem("memory").put(f"{folder}/", url.removeprefix("memory:/") + "/", recursive=True)


# --- which episodes ---------------------------------------------------------------------------------------


@taken("sharding/selecting/selection.py", "epistream inspect", "--episodes")
def test_selection_of_no_episode_list_those_there_are(url):
    message = said(lambda: es.edit.remove(url, "length > 99"), OptionError)
    follow(message, SOURCE=url)
    assert "3 of 3 episodes" in run("inspect", url, "--episodes", ":").output
    done("remove", url, "length > 5")
    assert numbers(url) == whole(0, 1)


@taken("sharding/selecting/listed.py", "epistream doctor", "--select-out", "--fail-on")
def test_trim_from_a_file_without_steps_take_the_one_that_doctor_writes(tmp_path):
    episodes = healthy(num=8)
    for name in ("state", "action", "quat"):
        episodes[4][name][:25] = episodes[4][name][24]
    folder, file = tmp_path / "set", tmp_path / "idle.json"
    es.pack(write(episodes, tmp_path / "in" / "a.hdf5"), folder, codec="raw")
    file.write_text("4\n")
    message = refused("trim", folder, "--from", file)
    assert "wanted 'keep' as 'epistream doctor --fail-on warning --select-out' writes it" in message
    line = ["doctor", folder, "--no-frames", "--only", "idle-start", "--fail-on", "warning", "--select-out", file]
    assert run(*line).exit_code == 1
    assert "1 of 8 episodes trimmed" in done("trim", folder, "--from", file)
    assert run(*line).exit_code == 0


@taken("loader/doctor/checks/registry.py", "epistream doctor", "--list")
def test_check_that_there_is_not_list_all(url):
    message = str(run("doctor", url, "--no-frames", "--only", "none-of-them").exception)
    follow(message)
    listed = run("doctor", "--list").output
    assert "idle-start" in listed
    assert run("doctor", url, "--no-frames", "--only", "idle-start").exit_code == 0
