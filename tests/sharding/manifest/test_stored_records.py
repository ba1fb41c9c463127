"""Records beside a manifest: listed in it, read when somebody looks, written once, called as features are now."""

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest

from epistream.errors import FormatError
from epistream.sharding.format.episode_meta import EpisodeMeta
from epistream.sharding.format.features import Feature
from epistream.sharding.manifest.episode_records import EpisodeRecords
from epistream.sharding.manifest.manifest import Manifest
from epistream.sharding.manifest.manifest_columns import ManifestColumns
from epistream.sharding.manifest.manifest_file import read_manifest
from epistream.sharding.manifest.manifest_writing import manifest_files, write_manifest
from epistream.sharding.manifest.opened_dataset import concatenate, dataset_of
from epistream.sharding.manifest.record_making import RecordRules, count_episode
from epistream.sharding.manifest.stored_records import NO_RECORDS, Records

FEATURES = {name: Feature(name, "array", "float32", (2,), "npy") for name in ("action", "state")}
RULES = RecordRules.of(FEATURES, 1)


def records_of(*numbers):
    """Records of episodes of three steps, told apart by their means and attributes."""
    return EpisodeRecords.join(
        [
            count_episode(
                {name: np.full((3, 2), number, np.float32) for name in FEATURES},
                EpisodeMeta(length=3, attributes={"number": number}),
                RULES,
            ).records
            for number in numbers
        ]
    )


def manifest_of(count, records=NO_RECORDS, record_of=None):
    columns = ManifestColumns(
        names=("shard-000000.tar",),
        shard_bytes=np.array([1000]),
        shard_checksums=np.zeros((1, 16), np.uint8),
        index_bytes=np.array([100]),
        index_checksums=np.zeros((1, 16), np.uint8),
        shard_split=np.zeros(1, np.uint8),
        episode_shard=np.zeros(count, np.int64),
        episode_in_shard=np.arange(count),
        episode_length=np.full(count, 3),
        task_offsets=np.zeros(count + 1, np.int64),
        task_ids=np.zeros(0, np.int64),
        episode_record=None if record_of is None else np.array(record_of),
    )
    return Manifest(FEATURES, ("all",), columns, records=records)


def numbers_of(records):
    return records.attribute_columns(["number"])["number"]


def test_records_are_listed_in_the_manifest_and_read_on_the_first_look(tmp_path):
    write_manifest(manifest_of(3, Records.of(records_of(5, 6, 7))), str(tmp_path))
    [file] = tmp_path.glob("episodes-*.tables")
    [listed] = json.loads((tmp_path / "dataset.json").read_text())["episodes"]
    assert listed == {
        "file": file.name,
        "bytes": file.stat().st_size,
        "checksum": listed["checksum"],
        "count": 3,
    }
    assert file.name == f"episodes-{listed['checksum'][:16]}.tables"
    found = read_manifest(str(tmp_path))
    assert numbers_of(found.records.table) == [5, 6, 7]
    file.unlink()
    again = read_manifest(str(tmp_path))
    assert len(again.records) == 3
    with pytest.raises(FormatError, match=r"episodes-\w+\.tables: no such file"):
        again.records.table  # noqa: B018


@pytest.mark.parametrize("tear", [lambda data: data[:-1], lambda data: data[:-1] + b"\1", lambda data: b""])
def test_records_that_are_damaged_hurt_only_who_asks(tmp_path, tear):
    write_manifest(manifest_of(1, Records.of(records_of(5))), str(tmp_path))
    [file] = tmp_path.glob("episodes-*.tables")
    file.write_bytes(tear(file.read_bytes()))
    found = dataset_of(read_manifest(str(tmp_path)), str(tmp_path), {})
    with pytest.raises(FormatError, match="with checksum"):
        found.episode_records  # noqa: B018


def test_more_records_are_one_more_file_and_those_before_stay(tmp_path):
    write_manifest(manifest_of(2, Records.of(records_of(5, 6))), str(tmp_path))
    [first] = tmp_path.glob("episodes-*.tables")
    inode = first.stat().st_ino
    was = read_manifest(str(tmp_path))
    more = was.records.and_more(records_of(7))
    now = replace(manifest_of(3), records=more)
    assert len([name for name in manifest_files(now, str(tmp_path)).tables if name.startswith("episodes-")]) == 1
    write_manifest(now, str(tmp_path))
    assert first.stat().st_ino == inode
    assert len(list(tmp_path.glob("episodes-*.tables"))) == 2
    found = read_manifest(str(tmp_path))
    assert numbers_of(found.records.table) == [5, 6, 7]
    elsewhere = tmp_path / "copy"
    elsewhere.mkdir()
    write_manifest(found, str(elsewhere))
    assert numbers_of(read_manifest(str(elsewhere)).records.table) == [5, 6, 7]


def test_manifest_that_is_written_anew_takes_old_records_away(tmp_path):
    write_manifest(manifest_of(1, Records.of(records_of(5))), str(tmp_path))
    write_manifest(manifest_of(1, Records.of(records_of(6))), str(tmp_path))
    [file] = tmp_path.glob("episodes-*.tables")
    assert numbers_of(EpisodeRecords.parse(file.read_bytes(), file.name)) == [6]


def test_records_of_episodes_follow_what_is_kept_of_them(tmp_path):
    write_manifest(manifest_of(2, Records.of(records_of(5, 6, 7)), [2, 0]), str(tmp_path))
    dataset = dataset_of(read_manifest(str(tmp_path)), str(tmp_path), {})
    assert numbers_of(dataset.episode_records) == [7, 5]
    assert numbers_of(pickle.loads(pickle.dumps(dataset)).episode_records) == [7, 5]
    assert "table" not in pickle.loads(pickle.dumps(dataset.records)).__dict__


def test_records_are_none_where_one_episode_has_none():
    with_one = dataset_of(manifest_of(2, Records.of(records_of(5)), [0, -1]), "x", {})
    without = dataset_of(manifest_of(2), "y", {})
    assert with_one.episode_records is None
    assert without.episode_records is None


def test_datasets_in_a_row_have_the_records_of_both_or_none(tmp_path):
    one = dataset_of(manifest_of(2, Records.of(records_of(5, 6)), [1, 0]), "x", {})
    other = dataset_of(manifest_of(1, Records.of(records_of(7))), "y", {})
    assert numbers_of(concatenate([one, other]).episode_records) == [6, 5, 7]
    without = dataset_of(manifest_of(1), "z", {})
    joined = concatenate([one, without, other])
    assert joined.episode_records is None
    assert joined.columns.record_of.tolist() == [1, 0, -1, 2]


def test_number_of_a_record_that_is_not_there_is_refused():
    with pytest.raises(FormatError, match=r"episode_record\[1\] is 1, wanted -1 to 0"):
        manifest_of(2, Records.of(records_of(5))).check("x")


def test_features_have_the_names_of_now_in_every_file(tmp_path):
    records = Records.of(records_of(5)).renamed({"left": "action"}).and_more(records_of(6).renamed({"left": "action"}))
    write_manifest(manifest_of(2, records), str(tmp_path))
    found = read_manifest(str(tmp_path)).records
    assert sorted(found.table.features) == ["left", "state"]
    swapped = found.renamed({"left": "state", "state": "left"}).renamed({"action": "left", "left": "state"})
    assert [one.to_dict().get("renamed") for one in swapped.files] == [{"action": "state", "left": "action"}, {
        "action": "state"}]  # fmt: skip
    assert swapped.table.features["left"].mean[0].tolist() == [5.0, 5.0]
    back = found.renamed({"action": "left"})
    assert [one.renamed for one in back.files] == [{}, {"action": "left"}]
