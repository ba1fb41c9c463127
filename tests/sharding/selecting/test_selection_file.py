"""Selection files: what is written is read, episodes are found again, and hostile files are refused."""

import json
import logging

import numpy as np
import pytest

from epistream.errors import FormatError, OptionError, VersionError
from epistream.sharding.selecting.columns import Column
from epistream.sharding.selecting.facts import KnownFacts
from epistream.sharding.selecting.selection import parse_selection
from epistream.sharding.selecting.selection_file import ListedEpisode, read_selection, write_selection


def facts_of(sources, paths=None, url="shards/"):
    count = len(sources)
    columns = {
        "source": Column.of(sources),
        "path": Column.of(paths or ["/"] * count),
        "key": Column.of([f"ep-{number:09d}" for number in range(count)]),
    }
    return KnownFacts(url, count, columns)


def listed(path, facts):
    return np.flatnonzero(parse_selection(f"@{path}").rows(facts)).tolist()


def test_written_file_is_the_json_that_is_documented(tmp_path):
    path = tmp_path / "bad.json"
    episodes = [ListedEpisode(3, "day1/ep 3.hdf5", "/", "ep-000000003", ("E101", "W207")), ListedEpisode(5)]
    write_selection(path, episodes, "s3://bucket/set")
    said = json.loads(path.read_text())
    assert said == {
        "format": "epistream-selection",
        "version": 1,
        "of": "s3://bucket/set",
        "episodes": [
            {"index": 3, "source": "day1/ep 3.hdf5", "path": "/", "key": "ep-000000003", "codes": ["E101", "W207"]},
            {"index": 5, "source": "", "path": "", "key": "", "codes": []},
        ],
    }
    read = read_selection(path)
    assert (read.of, list(read.episodes)) == ("s3://bucket/set", episodes)
    write_selection(path, [], "x")
    assert list(read_selection(path).episodes) == []


def test_listed_episode_is_found_by_its_source_wherever_it_stands_now(tmp_path):
    path = tmp_path / "bad.json"
    write_selection(path, [ListedEpisode(0, "/data/day1/ep_1.hdf5", "/", "/")], "/data/day1")
    assert listed(path, facts_of(["/data/day1/ep_0.hdf5", "/data/day1/ep_1.hdf5"])) == [1]
    assert listed(path, facts_of(["ep_2.hdf5", "ep_0.hdf5", "ep_1.hdf5"])) == [2]
    assert listed(path, facts_of(["day2/ep_1.hdf5", "day1/ep_1.hdf5"])) == [1]
    assert listed(path, facts_of(["/mnt/data/day1/ep_1.hdf5"])) == [0]


def test_listed_episode_of_a_file_of_many_is_found_by_its_path(tmp_path):
    path = tmp_path / "bad.json"
    write_selection(path, [ListedEpisode(0, "demo.hdf5", "/data/demo_2")], "")
    assert listed(path, facts_of(["demo.hdf5"] * 3, ["/data/demo_0", "/data/demo_1", "/data/demo_2"])) == [2]


def test_listed_episode_without_a_source_is_found_by_key_then_by_number_of_the_same_dataset(tmp_path, caplog):
    path = tmp_path / "bad.json"
    write_selection(path, [ListedEpisode(0, key="ep-000000002"), ListedEpisode(1)], "shards/")
    assert listed(path, facts_of([""] * 3)) == [1, 2]
    with caplog.at_level(logging.WARNING):
        assert listed(path, facts_of([""] * 3, url="others/")) == [2]
    assert "bad.json: not among the episodes of others/: episode 1" in caplog.text


def test_listed_source_that_fits_two_files_is_refused(tmp_path):
    path = tmp_path / "bad.json"
    write_selection(path, [ListedEpisode(0, "ep_1.hdf5", "/")], "")
    with pytest.raises(OptionError, match=r"ep_1\.hdf5: /: 2 files of shards/ are called so, wanted one"):
        listed(path, facts_of(["day1/ep_1.hdf5", "day2/ep_1.hdf5"]))


def test_entries_that_match_nothing_are_told_and_nothing_at_all_is_an_error(tmp_path, caplog):
    path = tmp_path / "bad.json"
    write_selection(path, [ListedEpisode(n, f"gone_{n}.hdf5", "/") for n in range(5)], "shards/")
    with caplog.at_level(logging.WARNING), pytest.raises(OptionError, match="none of 1 episode, wanted at least one"):
        listed(path, facts_of(["ep_1.hdf5"]))
    assert "gone_0.hdf5: /, gone_1.hdf5: /, gone_2.hdf5: / and 2 more" in caplog.text


def test_plain_text_lists_numbers_keys_and_sources_a_line(tmp_path):
    path = tmp_path / "bad.txt"
    path.write_bytes(b"\xef\xbb\xbf# thrown out on Monday\r\n4\r\nep-000000001\r\n\r\nday1/ep_0.hdf5\r\n")
    sources = ["day1/ep_0.hdf5", "day1/ep_1.hdf5", "day1/ep_0.hdf5", "x.hdf5", "y.hdf5"]
    assert listed(path, facts_of(sources)) == [0, 1, 2, 4]
    assert np.flatnonzero(parse_selection(f"not listed('{path}')").rows(facts_of(sources))).tolist() == [3]


@pytest.mark.parametrize(
    ("data", "error", "told"),
    [
        (b'{"format": "epistream-selection", "version": 2, "episodes": []}', VersionError, "version 2"),
        (b'{"format": "other"}', FormatError, "format 'other', wanted 'epistream-selection'"),
        (b"[1, 2]", FormatError, "format a list"),
        (b'{"format": "epistream-selection", "version": 1, "episodes": 3}', FormatError, "'episodes', a list"),
        (b'{"format": "epistream-selection", "ver', FormatError, "no readable JSON"),
        (b"{" * 100_000, FormatError, "no readable JSON"),
        (b"\xff\xfe1", FormatError, "no text in UTF-8"),
        (b"1\n\0\0", FormatError, "zero bytes"),
        *(
            (b'{"format": "epistream-selection", "version": 1, "episodes": [%s]}' % one, FormatError, r"episodes\[0\]")
            for one in (
                b"3",
                b"{}",
                b'{"index": -1}',
                b'{"index": true}',
                b'{"source": 3}',
                b'{"key": "a", "codes": 1}',
            )
        ),
    ],
)
def test_torn_or_hostile_file_is_refused_by_its_name(tmp_path, data, error, told):
    path = tmp_path / "list"
    path.write_bytes(data)
    with pytest.raises(error, match=f"{path}: .*{told}"):
        parse_selection(f"@{path}")


def test_selection_of_a_file_that_changed_has_another_identity(tmp_path):
    path = tmp_path / "list"
    path.write_text("1\n")
    before = parse_selection(f"@{path}")
    assert parse_selection(f"@{path}") == before
    path.write_text("2\n")
    assert parse_selection(f"@{path}") != before
