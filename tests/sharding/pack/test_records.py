"""What packing and indexing write of each episode: its values as h5py reads them, its attributes."""

import json

import h5py
import numpy as np
import pytest
from hdf5_files import aloha_raw, robomimic

import epistream as es
from epistream.sharding.manifest.record_statistics import statistics_of
from epistream.sharding.pack.pack import pack
from epistream.sharding.tar.reindex import ReindexOptions, reindex

LENGTHS = {"demo_1": 40, "demo_2": 30, "demo_3": 20}


@pytest.fixture
def source(tmp_path):
    path = robomimic(tmp_path / "a.hdf5", LENGTHS, {"train": ["demo_1", "demo_3"], "valid": ["demo_2"]})
    with h5py.File(path, "r+") as file:
        file["data/demo_3"].attrs["success"] = True
    return path


def records_file(folder):
    [path] = folder.glob("episodes-*.tables")
    return path.read_bytes()


def test_pack_keeps_moments_and_attributes_of_each_episode(tmp_path, source):
    pack(source, tmp_path / "out", shard_size="64KiB")
    records = es.open_dataset(tmp_path / "out").episode_records
    with h5py.File(source) as file:
        actions = [file[f"data/{name}/actions"][:].astype(np.float64) for name in LENGTHS]
    assert records.num_steps.tolist() == [40, 30, 20]
    assert records.features["action"].mean == pytest.approx(np.stack([values.mean(axis=0) for values in actions]))
    assert np.array_equal(records.features["action"].maximum, np.stack([values.max(axis=0) for values in actions]))
    assert records.attribute_columns(["success"]) == {"success": [None, None, True]}
    for row in range(3):
        meta = json.loads(meta_of(tmp_path / "out", row))["attributes"]
        scalars = {name: value for name, value in meta.items() if isinstance(value, str | int | float)}
        assert {name: records.attributes(row)[name] for name in scalars} == scalars


def meta_of(folder, row):
    import tarfile

    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name == f"ep-{row:09d}.meta.json":
                    return tar.extractfile(member).read()
    raise AssertionError(row)


def test_statistics_of_the_records_of_a_split_are_those_of_the_manifest(tmp_path, source):
    pack(source, tmp_path / "out")
    dataset = es.open_dataset(tmp_path / "out")
    found = statistics_of(dataset.episode_records, dataset.episode_split == dataset.splits.index("train")).statistics
    assert found.keys() == dataset.statistics.keys()
    for name, values in dataset.statistics.items():
        assert found[name].keys() == values.keys()
        for key, value in values.items():
            np.testing.assert_allclose(found[name][key], value, rtol=1e-6, atol=1e-9, err_msg=f"{name} {key}")
            if key in ("count", "min", "max"):
                assert found[name][key] == value


def test_records_are_the_same_bytes_with_any_workers_and_from_the_tars_alone(tmp_path):
    for seed in range(6):
        aloha_raw(tmp_path / "in" / f"e_{seed}.hdf5", 5 + seed, seed)
    pack(tmp_path / "in", tmp_path / "one", shard_size="64KiB", val_fraction=0.3)
    pack(tmp_path / "in", tmp_path / "two", shard_size="64KiB", val_fraction=0.3, workers=2)
    packed = records_file(tmp_path / "one")
    assert records_file(tmp_path / "two") == packed
    for path in (*tmp_path.glob("one/*.json"), *tmp_path.glob("one/*.tables"), *tmp_path.glob("one/*.index")):
        path.unlink()
    reindex(str(tmp_path / "one"), ReindexOptions())
    assert records_file(tmp_path / "one") == packed


def test_bad_episodes_leave_no_record(tmp_path):
    for seed in range(3):
        aloha_raw(tmp_path / "in" / f"e_{seed}.hdf5", 5 + seed, seed)
    (tmp_path / "in" / "e_1.hdf5").write_bytes(b"no HDF5 at all")
    pack(tmp_path / "in", tmp_path / "out", skip_bad=True)
    assert es.open_dataset(tmp_path / "out").episode_records.num_steps.tolist() == [5, 7]
