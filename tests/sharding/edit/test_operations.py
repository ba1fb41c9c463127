"""What a stream gives after each edit, written out; and that no shard was touched."""

import json
from pathlib import Path

import numpy as np
import pytest
from editing.small import (
    ACTION,
    CAMERA,
    STATE,
    VELOCITY,
    copied,
    faults,
    numbers,
    packed,
    payload,
    recordings,
    seen,
    stream,
    whole,
)

import epistream as es
from epistream.errors import EditError, OptionError, SourceError
from epistream.sharding.selecting.selection_file import ListedEpisode, write_selection


def test_remove_takes_episodes_out_of_streams_and_leaves_every_byte(url):
    before, fingerprint = payload(url), es.open_dataset(url).fingerprint
    report = es.edit.remove(url, "1, 7:")
    assert (report.num_episodes, report.before, report.what) == (6, fingerprint, "4 of 10 episodes removed")
    assert numbers(url) == whole(0, 2, 3, 4, 5, 6)
    assert payload(url) == before
    assert faults(url) == []
    assert es.open_dataset(url).episode_length.tolist() == [4, 6, 7, 8, 9, 10]


def test_remove_of_all_episodes_of_a_shard_leaves_that_shard_out(url):
    dataset = es.open_dataset(url)
    first = np.flatnonzero(dataset.episode_shard == 0)
    assert (dataset.num_shards, len(first) < 10) == (2, True)
    es.edit.remove(url, first)
    assert es.open_dataset(url).num_shards == 1
    assert numbers(url) == whole(*range(len(first), 10))
    assert faults(url) == []


@pytest.mark.parametrize(
    ("selection", "error", "message"),
    [
        (":", EditError, "all 10 episodes would be removed, wanted to keep one. Remove the folder instead."),
        ("10", OptionError, "no episode 10 of .*set, wanted 0 to 9"),
        ("length > 99", OptionError, "none of .*10 episodes"),
        ("lenght > 3", OptionError, "'lenght'"),
    ],
)
def test_remove_that_cannot_be_says_so_and_changes_nothing(url, selection, error, message):
    before = {path.name: path.read_bytes() for path in Path(url).iterdir()}
    with pytest.raises(error, match=message):
        es.edit.remove(url, selection)
    assert {path.name: path.read_bytes() for path in Path(url).iterdir()} == before


def test_trim_moves_anchors_and_still_reads_the_steps_about_them(url):
    es.edit.trim(url, (1, -1), "0, 3")
    es.edit.trim(url, slice(3, None), "6")
    assert [one.step for one in seen(url) if one.number == 0] == [1, 2]
    assert [one.step for one in seen(url) if one.number == 3] == [1, 2, 3, 4, 5]
    assert [one.step for one in seen(url) if one.number == 6] == [3, 4, 5, 6, 7, 8, 9]
    assert [one.step for one in seen(url) if one.number == 1] == [0, 1, 2, 3, 4]
    first = next(iter(stream(url, window=es.Window(obs=range(-1, 1)), features=[STATE])))
    assert first[STATE][0, :, 1].tolist() == [0, 1]  # the step before the first anchor is there, and no padding
    assert faults(url) == []
    with pytest.raises(EditError, match=r"episode 0: no step of its 4 would be left in \[3, 4\), wanted one. Remove"):
        es.edit.trim(url, (-1, None), "0")


def test_trim_by_ranges_and_twice_keeps_what_both_keep(url):
    es.edit.trim(url, ranges={4: (2, 7), 5: (0, 3)})
    es.edit.trim(url, (3, None), "4")
    assert [one.step for one in seen(url) if one.number == 4] == [3, 4, 5, 6]
    assert [one.step for one in seen(url) if one.number == 5] == [0, 1, 2]
    with pytest.raises(OptionError, match="episode 10, wanted one of 10"):
        es.edit.trim(url, ranges={10: (0, 1)})
    with pytest.raises(OptionError, match="give either steps"):
        es.edit.trim(url, (0, 1), ranges={1: (0, 1)})


def test_tasks_are_of_all_steps_and_others_keep_theirs(url):
    es.edit.tasks(url, "pick", "0:3")
    es.edit.tasks(url, ["place", "put down"], "2:4")
    es.edit.tasks(url, replacing={"pick": "take"})
    found = {one.number: one.task for one in seen(url)}
    assert found == {0: "take", 1: "take", 2: "place", 3: "place", **dict.fromkeys(range(4, 10), "")}
    assert list(es.open_dataset(url).tasks) == ["take", "place", "put down"]
    assert faults(url) == []
    with pytest.raises(OptionError, match="no instruction 'pick'"):
        es.edit.tasks(url, replacing={"pick": "take"})
    with pytest.raises(EditError, match="these instructions are so already, wanted a change"):
        es.edit.tasks(url, "take", "0")


def test_splits_are_assigned_by_name_and_streams_follow(url):
    report = es.edit.split(url, "val", "8:")
    assert report.splits == {"train": 8, "val": 2}  # what has no split is for training beside what has one
    assert report.notes == ("8 episodes without a split: train from now on",)
    assert numbers(url, split="val") == whole(8, 9)
    assert numbers(url, split="auto") == whole(*range(8))
    es.edit.remove(url, "8:")  # then there is no val any more
    assert es.open_dataset(url).splits == ("train",)
    with pytest.raises(OptionError, match="split"):
        next(iter(stream(url, split="val")))
    assert faults(url) == []
    with pytest.raises(OptionError, match="'all': stands for no split"):
        es.edit.split(url, "all", "0")
    assert es.edit.split(url, "all").splits == {"all": 8}


def test_rename_swaps_names_and_drop_leaves_features_out(url):
    before = payload(url)
    es.edit.rename(url, {STATE: ACTION, ACTION: STATE})
    assert {one.number for one in seen(url, ACTION)} == set(range(10))
    assert {one.number for one in seen(url, STATE)} == set(range(10, 20))
    es.edit.drop(url, [CAMERA, "observation.q*"])
    assert list(es.open_dataset(url).features) == [ACTION, STATE]
    assert list(next(iter(stream(url))).keys() & {CAMERA, VELOCITY}) == []
    es.edit.rename(url, {STATE: VELOCITY})  # a name that was dropped is free
    assert {one.number for one in seen(url, VELOCITY)} == set(range(10, 20))
    assert payload(url) == before
    assert faults(url) == []


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"acton": "a"}, "'acton': no such feature, .*action"),
        ({ACTION: STATE}, "two features would be 'observation.state', wanted one of each name. Drop the other first."),
        ({ACTION: "task"}, "task: cannot be a name"),
        ({ACTION: "a/b"}, "a/b: cannot be a name"),
    ],
)
def test_rename_that_cannot_be_is_refused(url, names, message):
    with pytest.raises(OptionError, match=message):
        es.edit.rename(url, names)


def test_drop_of_everything_or_of_nothing_is_refused(url):
    with pytest.raises(EditError, match="no feature would be left"):
        es.edit.drop(url, "*")
    with pytest.raises(OptionError, match="'angle': no such feature"):
        es.edit.drop(url, "angle")


def test_edit_that_changes_nothing_is_refused_and_leaves_no_file(url):
    es.edit.split(url, "train")
    before = sorted(path.name for path in Path(url).iterdir())
    with pytest.raises(EditError, match="it is so already, wanted a change"):
        es.edit.split(url, "train")
    with pytest.raises(EditError, match="it is so already"):
        es.edit.rename(url, {ACTION: ACTION})
    assert sorted(path.name for path in Path(url).iterdir()) == before


def test_trim_that_cuts_nothing_says_how_steps_come_back(url):
    es.edit.trim(url, (2, None), "0")
    with pytest.raises(EditError, match=r"no step is cut off.*come back by undoing that"):
        es.edit.trim(url, (1, None), "0")


def test_ranges_beyond_the_episode_are_those_of_its_steps(url):
    es.edit.trim(url, ranges={0: (2, 10**30), 1: (-(10**30), 3)})
    found = es.open_dataset(url).columns
    assert found.ranges_of(0).tolist() == [[2, found.episode_length[0]]]
    assert found.ranges_of(1).tolist() == [[0, 3]]


def test_seed_beside_the_name_of_a_split_is_refused(url):
    with pytest.raises(OptionError, match="split 'val' with split_seed 3: a seed chooses nothing"):
        es.edit.split(url, "val", "0", split_seed=3)


def test_file_of_episodes_without_its_sign_is_explained(url):
    with pytest.raises(OptionError, match=r"A file that lists episodes is given as @bad\.json\."):
        es.edit.remove(url, "bad.json")


@pytest.mark.parametrize("digits", ["b", "be2c", "be2cabc"])
def test_fingerprint_of_too_few_digits_is_refused(url, digits):
    with pytest.raises(OptionError, match=rf"@{digits}: {len(digits)} digits? of a fingerprint, wanted the first 8"):
        es.open_dataset(f"{url}@{digits}")


def test_name_without_a_sign_is_no_fingerprint(url, monkeypatch):
    monkeypatch.chdir(url)
    with pytest.raises(SourceError, match="no such file"):
        es.open_dataset("cafe")


def test_state_that_is_gone_says_what_drops_them(url):
    with pytest.raises(SourceError, match=r"no manifest of a fingerprint that begins so.*A prune drops them"):
        es.open_dataset(f"{url}@deadbeef")


def test_edits_of_one_kind_after_another_give_what_packing_the_rest_gives(files, url, tmp_path):
    es.edit.remove(url, "0, 4, 9")
    es.edit.split(url, "val", "1")
    es.edit.tasks(url, "go", "3")
    left = [files[number] for number in (1, 2, 3, 5, 6, 7, 8)]
    again = packed(left, tmp_path / "again")
    assert [(one.number, one.step) for one in seen(url)] == [(one.number, one.step) for one in seen(again)]
    assert numbers(url, split="val") == whole(2)
    assert {one.number for one in seen(url) if one.task == "go"} == {5}


def test_history_says_what_was_done_by_which_command(url):
    packed_as = es.open_dataset(url).fingerprint
    es.edit.remove(url, "0")
    es.edit.tasks(url, "it's", "length > 5")
    es.edit.undo(url)
    told = es.edit.log(url)
    assert [edit.what for edit in told[1:]] == [
        "1 of 10 episodes removed",
        "instructions of 6 of 9 episodes changed",
        "undone: instructions of 6 of 9 episodes changed",
    ]
    assert [edit.command for edit in told[1:]] == [
        "remove 0",
        """tasks 'it'"'"'s' --episodes 'length > 5'""",
        "undo",
    ]
    assert [edit.before for edit in told] == [-1, 0, 1, 0]
    assert (told[0].fingerprint, told[1].fingerprint) == (packed_as, told[3].fingerprint)
    assert json.loads(Path(url, "dataset.json").read_text())["fingerprint"] == told[3].fingerprint


def test_list_of_an_edited_and_another_dataset_streams_both(url, packed_more):
    es.edit.rename(url, {STATE: "pose", VELOCITY: STATE})
    es.edit.rename(url, {STATE: VELOCITY, "pose": STATE})
    es.edit.remove(url, "0:5")
    es.edit.trim(url, (2, None), "0")
    es.edit.tasks(url, "go", "1")
    assert numbers([url, packed_more]) == {5: 7, **whole(6, 7, 8, 9, 10, 11, 12, 13)}
    assert {one.number for one in seen([packed_more, url]) if one.task == "go"} == {6}
    swapped = copied(packed_more, Path(url).parent / "swapped")
    es.edit.rename(swapped, {STATE: ACTION, ACTION: STATE})
    assert numbers([url, swapped], ACTION)[10] == 7  # by the names that each has now
    assert {one.number for one in seen([url, swapped], STATE)} == {5, 6, 7, 8, 9, 20, 21, 22, 23}


def test_stream_of_a_tar_of_an_edited_dataset_is_that_part_of_it(url):
    shards = list(es.open_dataset(url).shard_url)
    es.edit.remove(url, "0")
    assert {one.number for one in seen(shards[0])} == {1, 2, 3, 4, 5, 6, 7} - {one.number for one in seen(shards[1])}
    assert 0 not in numbers(shards[0])


def test_listed_episode_whose_file_has_namesakes_is_told_by_its_number_or_not_at_all(tmp_path):
    day1 = recordings(tmp_path / "day1", range(3))
    recordings(tmp_path / "day2", range(3, 6))
    for number in range(3):  # the second day's files are called as the first's
        (tmp_path / "day2" / f"take_{number + 3:03d}.hdf5").rename(tmp_path / "day2" / day1[number].name)
    url = packed(day1, tmp_path / "set")
    es.edit.add(url, tmp_path / "day2")
    now = es.open_dataset(url)
    file = tmp_path / "bad.json"
    bad = [ListedEpisode(4, "take_001.hdf5", "/", "ep-000000001", ("not-finite",))]
    write_selection(file, bad, f"{url}@{now.fingerprint}")
    assert es.edit.remove(url, f"@{file}").num_episodes == 5
    assert es.open_dataset(url).episode_length.tolist() == [4, 5, 6, 7, 9]  # the fifth is gone, not the second
    es.edit.undo(url)
    es.edit.remove(url, "0")
    with pytest.raises(OptionError, match=r"take_001\.hdf5: /: episodes 0, 3 of .* are called so, wanted one"):
        es.edit.remove(url, f"@{file}")
