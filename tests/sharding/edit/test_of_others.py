"""Datasets that were made by others: links, texts and numbers that no edit of ours writes."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from editing.small import numbers, packed, recordings, whole

import epistream as es
from epistream.commands.edit import command
from epistream.errors import FormatError, OptionError
from epistream.sharding.edit.pruning import prune


def change(url, make):
    """Write ``dataset.json`` anew, with what `make` does to it."""
    path = Path(url) / "dataset.json"
    document = json.loads(path.read_text())
    make(document)
    path.write_text(json.dumps(document))


@pytest.mark.parametrize("name", ["added-000000000000", "part-001-000"])
@pytest.mark.parametrize("way", ["prune", "overwrite"])
def test_link_to_a_folder_of_others_is_not_followed(url, files, tmp_path, name, way):
    (tmp_path / "theirs").mkdir()
    for file in ("thesis.txt", "shard-000000.tar", "dataset.json"):
        (tmp_path / "theirs" / file).write_text("x")
    (Path(url) / name).symlink_to(tmp_path / "theirs")
    if way == "prune":
        prune(url, 0)
    else:
        packed(files, Path(url), overwrite=True)
    assert sorted(path.name for path in (tmp_path / "theirs").iterdir()) == [
        "dataset.json",
        "shard-000000.tar",
        "thesis.txt",
    ]


def test_prune_of_a_folder_that_edits_made_leaves_what_they_did_not(url, tmp_path):
    es.edit.add(url, recordings(tmp_path / "more", range(20, 22)))
    [folder] = Path(url).glob("added-*")
    (folder / "thesis.txt").write_text("x")
    es.edit.undo(url)
    prune(url, 0)
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("text", ["[ 1 ]", "[\n 1,\n 2\n]", 'a "[ 3 ]" b', "\\[ 1 ]", '\\"[ 1 ]'])
def test_texts_that_look_like_lists_of_numbers_stay_as_they_are(url, text):
    es.edit.tasks(url, text, "0")
    change(url, lambda document: document["provenance"].update(note=text))
    es.edit.remove(url, "1")
    dataset = es.open_dataset(url)
    assert dataset.tasks[dataset.columns.tasks_of(0)[0]] == text
    assert json.loads((Path(url) / "dataset.json").read_text())["provenance"]["note"] == text


def test_split_that_looks_like_a_list_is_a_split(url):
    es.edit.split(url, "[ 1 ]", "0")
    assert "[ 1 ]" in es.open_dataset(url).splits
    es.edit.undo(url)
    assert numbers(url) == whole(*range(10))


def test_lists_of_numbers_are_read_across(url):
    assert '"shape": [12, 16, 3]' in (Path(url) / "dataset.json").read_text()


@pytest.mark.parametrize("count", [2**63, 10**30])
@pytest.mark.parametrize("of", ["episodes", "sources", "history"])
def test_more_edits_or_records_than_there_can_be_are_refused(url, of, count):
    es.edit.remove(url, "1")

    def make(document):
        one = document[of][0] if of == "episodes" else document[of]
        one["count"] = count

    change(url, make)
    with pytest.raises(FormatError, match=rf"dataset.json: {of}\..*count"):
        es.open_dataset(url)


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), "\ud800"])
def test_what_no_json_file_can_hold_is_named_before_anything_is_written(url, value):
    change(url, lambda document: document["provenance"].update(note=[value]))
    before = {path.name: path.read_bytes() for path in Path(url).iterdir()}
    with pytest.raises(FormatError, match=r"dataset.json: provenance: .*Correct it by hand"):
        es.edit.remove(url, "1")
    assert {path.name: path.read_bytes() for path in Path(url).iterdir() if path.name in before} == before
    assert numbers(url) == whole(*range(10))


def test_checksum_of_thousands_of_letters_is_not_repeated(url):
    change(url, lambda document: document["tables"].update(checksum="f" * 5000))
    with pytest.raises(FormatError) as caught:
        es.open_dataset(url)
    assert len(str(caught.value)) < 1000


def test_history_is_shown_without_what_moves_the_cursor(url):
    es.edit.tasks(url, "\x1b[31mred\nnew line", "0")
    shown = CliRunner().invoke(command, ["log", url])
    assert shown.exit_code == 0
    assert "\x1b" not in shown.output
    assert "?[31mred?new line" in shown.output.replace("\n", "").replace(" ", "").replace("newline", "new line")


@pytest.mark.parametrize(
    "steps", ["1:5", [1, 5], (1,), (1, 5, 2), slice(1, 5, 2), (1.5, None), ("1", "2"), range(1, 5), (True, 5)]
)
def test_steps_that_are_no_two_whole_numbers_are_refused(url, steps):
    with pytest.raises(OptionError, match=r"trim: steps .*wanted the first that stays"):
        es.edit.trim(url, steps)


@pytest.mark.parametrize(
    "ranges",
    [{0: 5}, {0: (1,)}, {0: (1, 3, 2)}, {0: (1.5, 9)}, {"0": (1, 3)}, {0: (None, 3)}, {0.5: (1, 3)}, {True: (1, 3)}],
)
def test_ranges_that_are_no_two_whole_numbers_an_episode_are_refused(url, ranges):
    with pytest.raises(OptionError, match=r"trim: ranges .*wanted an episode's steps"):
        es.edit.trim(url, ranges=ranges)


def test_numbers_of_numpy_are_numbers(url):
    es.edit.trim(url, ranges={np.int64(0): (np.int32(1), np.uint8(3))})
    assert es.open_dataset(url).columns.ranges_of(0).tolist() == [[1, 3]]


def test_undo_to_a_number_is_refused(url):
    with pytest.raises(OptionError, match="undo: 5, wanted the first digits of a fingerprint"):
        es.edit.undo(url, 5)


def test_compact_gathers_the_records_of_the_episodes_that_are_left(url):
    for first in (1, 2, 3):
        es.edit.trim(url, (first, None))
    es.edit.remove(url, "1:")
    assert len(json.loads((Path(url) / "dataset.json").read_text())["episodes"]) == 4
    before = es.open_dataset(url).statistics
    es.edit.compact(url)
    [records] = json.loads((Path(url) / "dataset.json").read_text())["episodes"]
    assert records["count"] == 1
    assert es.open_dataset(url).statistics == before
