"""Indexes that an earlier release kept for a user: found under the same names, believed, and made again to the byte."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import xxhash

import epistream as es
from epistream.sharding.format.index import KIND
from epistream.sharding.format.tables import parse_tables, write_tables

KEPT_HDF5 = {
    "87e320637b82178b938d1b69d3952172.0.index",
    "87e320637b82178b938d1b69d3952172.1.index",
    "e1db1a4964ff15a631b909b2b84c9bf3.statistics-2.json",
}
# Statistics had q01 and q99 alone; later releases make those of now.
STORED_STATISTICS = "e1db1a4964ff15a631b909b2b84c9bf3.statistics-1.json"
SKETCHES = "e1db1a4964ff15a631b909b2b84c9bf3.statistics-2.tables"
PRUNED = ".pruned"  # when the folder was looked through
MARK_NS = 10**18


def put(kept_for_user, path, name=None):
    """Keep a stored file for the user, and mark it so that a newer one in its place is told from it."""
    kept_for_user.mkdir(parents=True, exist_ok=True)
    target = kept_for_user / (name or path.name)
    shutil.copy(path, target)
    os.utime(target, ns=(MARK_NS, MARK_NS))


def names(folder):
    return {path.name for path in folder.iterdir()}


def refuse(*arguments, **options):
    raise AssertionError("indexed again")


def test_stored_indexes_of_an_hdf5_file_are_those_that_opening_it_uses(
    stored, remote_demos, kept_for_user, monkeypatch
):
    for path in (stored / "kept_hdf5").iterdir():
        put(kept_for_user, path)
    monkeypatch.setattr("epistream.sharding.hdf5.kept.index_hdf5", refuse)
    dataset = es.open_dataset(remote_demos)
    assert names(kept_for_user) == KEPT_HDF5 | {STORED_STATISTICS, PRUNED, SKETCHES}
    assert {path.stat().st_mtime_ns for path in kept_for_user.glob("*.index")} == {MARK_NS}
    assert list(dataset.index_url) == sorted(str(path) for path in kept_for_user.glob("*.index"))
    assert dataset.fingerprint == "e1db1a4964ff15a631b909b2b84c9bf3"


def test_indexes_of_an_hdf5_file_made_now_are_the_stored_ones_to_the_byte(stored, remote_demos, kept_for_user):
    es.open_dataset(remote_demos)
    assert names(kept_for_user) == KEPT_HDF5 | {PRUNED, SKETCHES}
    attributes = []
    for path in sorted((stored / "kept_hdf5").glob("*.index")):  # sketches have had more quantiles since
        made, wanted = (kept_for_user / path.name).read_bytes(), path.read_bytes()
        attributes += json.loads(parsed(made).arrays["hdf5:attributes"].tobytes())
        assert without_attributes(made) == wanted, path.name
    # Later releases put them beside; earlier ones look at no table that they do not know.
    assert [one["num_samples"] for one in attributes] == [9, 6, 5, 8, 7]
    assert [one["ep_meta"] for one in attributes][3] == '{"lang": ["task 2", "lift the cube"]}'


def parsed(data):
    return parse_tables(data, KIND, "index", "")


def without_attributes(data):
    tables = parsed(data)
    arrays = {name: array for name, array in tables.arrays.items() if name != "hdf5:attributes"}
    return write_tables(KIND, tables.meta, arrays)


def name_of(url, version):
    """Recipe 2, no layout that is insisted on, and shards of 128 MiB."""
    return xxhash.xxh3_128_hexdigest("\0".join(["hdf5", "2", str(url), version, "134217728", ""]).encode())


def test_name_of_a_kept_hdf5_index_says_recipe_url_version_and_shard_size(remote_demos):
    assert f"{name_of(remote_demos, 'bytes=42916')}.0.index" in KEPT_HDF5


def test_name_of_a_kept_index_of_a_local_hdf5_file_says_what_stat_tells(stored, kept_for_user, tmp_path):
    path = Path(shutil.copy(stored / "demos.hdf5", tmp_path / "demos.hdf5"))
    os.utime(path, ns=(MARK_NS, MARK_NS))
    es.open_dataset(path)
    name = name_of(path, f"bytes=42916;mtime_ns={MARK_NS};inode={path.stat().st_ino}")
    assert {f"{name}.0.index", f"{name}.1.index"} <= names(kept_for_user)


@pytest.mark.parametrize("is_kept", [True, False])
def test_stored_index_of_a_tar_without_one_is_the_one_that_opening_it_uses(
    stored, kept_for_user, tmp_path, monkeypatch, is_kept
):
    path = tmp_path / "foreign.tar"
    shutil.copy(stored / "foreign.tar", path)
    status = path.stat()
    # The recipe is 2: 1 left out captions and frames in folders, and took rows of numbers for steps.
    said = f"2\0{path}\0{(status.st_size, status.st_mtime_ns, status.st_ino, status.st_dev)}"
    name = f"{xxhash.xxh3_128_hexdigest(said.encode())}.index"
    if is_kept:
        put(kept_for_user, stored / "foreign.index", name)
        monkeypatch.setattr("epistream.sharding.tar.index_cache.index_tar", refuse)
    dataset = es.open_dataset(path)
    kept = kept_for_user / name
    assert list(dataset.index_url) == [str(kept)]
    assert names(kept_for_user) == {name} if is_kept else {name, PRUNED}
    assert (kept.stat().st_mtime_ns == MARK_NS) == is_kept
    assert kept.read_bytes() == (stored / "foreign.index").read_bytes()
    assert dataset.fingerprint == "7a8efa185cffc59fb0adb705af29cb89"


def test_stored_foreign_tar_gives_every_value_that_was_put_in(stored):
    values = np.load(stored / "values.npz")
    stream = es.EpisodeStream(stored / "foreign.tar", shuffle=False, batch_size=1, cache="off")
    seen = []
    for batch in stream:
        episode, step = ("pick", "place")[int(batch["episode_index"])], int(batch["step_index"])
        seen.append((episode, step))
        np.testing.assert_array_equal(batch["action"][0, 0].numpy(), values[f"foreign/{episode}/action"][step])
        frame = batch["observation.images.top"][0, 0].numpy()
        np.testing.assert_array_equal(frame, values[f"foreign/{episode}/top"][step])
    assert seen == [("pick", step) for step in range(3)] + [("place", step) for step in range(4)]


def test_index_of_a_tar_kept_under_the_recipe_before_is_made_again(stored, kept_for_user, tmp_path):
    path = Path(shutil.copy(stored / "foreign.tar", tmp_path / "foreign.tar"))
    status = path.stat()
    said = f"1\0{path}\0{(status.st_size, status.st_mtime_ns, status.st_ino, status.st_dev)}"
    before = f"{xxhash.xxh3_128_hexdigest(said.encode())}.index"
    put(kept_for_user, stored / "foreign.index", before)
    dataset = es.open_dataset(path)
    assert before not in dataset.index_url[0]
    assert Path(dataset.index_url[0]).read_bytes() == (stored / "foreign.index").read_bytes()
