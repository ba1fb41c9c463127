"""Records made of shards that lie there: as packing makes them, from a disk and by ranges from a server."""

import json
from dataclasses import replace

import h5py
import numpy as np
import pytest
from editing.same_records import assert_same_records
from hdf5_files import aloha_raw, robomimic
from web.faulty_server import put_folder, serve

import epistream as es
from epistream.errors import EpistreamError, FormatError
from epistream.sharding.episodes.shard_records import records_from_shards
from epistream.sharding.format.texts import Texts
from epistream.sharding.pack.pack import pack
from epistream.sharding.tasks.pool import TaskPool

LENGTHS = {"demo_1": 40, "demo_2": 30, "demo_3": 20}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A source of three episodes, and a dataset of two shards with their records."""
    folder = tmp_path_factory.mktemp("records")
    path = robomimic(folder / "a.hdf5", LENGTHS, {"train": ["demo_1", "demo_3"], "valid": ["demo_2"]})
    pack(path, folder / "out", shard_size="64KiB")
    return folder


def test_records_of_shards_are_those_of_packing(folder):
    dataset = es.open_dataset(folder / "out")
    found = records_from_shards(dataset, np.arange(3))
    assert_same_records(found, dataset.episode_records)
    assert found.attributes(0)


def test_records_come_in_the_order_asked_for(folder):
    dataset = es.open_dataset(folder / "out")
    assert records_from_shards(dataset, np.array([2, 0])).num_steps.tolist() == [20, 40]
    assert records_from_shards(dataset, np.array([], np.int64)).num_records == 0


def test_records_over_a_server_and_by_processes_are_the_same(folder):
    dataset, rows = es.open_dataset(folder / "out"), np.array([1, 2, 0])
    wanted = records_from_shards(dataset, rows).to_bytes()
    with serve() as server:
        remote = es.open_dataset(put_folder(server, folder / "out"))
        assert records_from_shards(remote, rows).to_bytes() == wanted
    with TaskPool(1, "records") as pool:
        assert records_from_shards(dataset, rows, pool).to_bytes() == wanted


def test_records_are_of_the_steps_within_valid_ranges(folder):
    dataset = es.open_dataset(folder / "out")
    columns = replace(
        dataset.columns, range_offsets=np.array([0, 1, 3, 4]), ranges=np.array([[0, 40], [5, 10], [20, 30], [0, 20]])
    )
    found = records_from_shards(replace(dataset, columns=columns), np.arange(3))
    with h5py.File(folder / "a.hdf5") as file:
        actions = file["data/demo_2/actions"][:].astype(np.float64)
    kept = np.concatenate([actions[5:10], actions[20:30]])
    assert found.num_steps.tolist() == [40, 15, 20]
    assert found.features["action"].mean[1] == pytest.approx(kept.mean(axis=0))
    assert np.array_equal(found.features["action"].minimum[1], kept.min(axis=0))


def test_arrays_that_lie_apart_are_read_one_by_one(tmp_path, monkeypatch):
    pack(aloha_raw(tmp_path / "e_0.hdf5", 6, 0), tmp_path / "out")
    monkeypatch.setattr("epistream.sharding.episodes.shard_records._MOST_BETWEEN", -1)
    with serve() as server:
        remote = es.open_dataset(put_folder(server, tmp_path / "out"))
        found = records_from_shards(remote, np.array([0]))
    assert_same_records(found, es.open_dataset(tmp_path / "out").episode_records)


def test_index_or_tar_of_others_is_refused(tmp_path):
    pack(aloha_raw(tmp_path / "e_0.hdf5", 6, 0), tmp_path / "out")
    dataset = es.open_dataset(tmp_path / "out")
    tar, index = tmp_path / "out" / "shard-000000.tar", tmp_path / "out" / "shard-000000.index"
    data = tar.read_bytes()
    tar.write_bytes(data[:2048])
    with pytest.raises(FormatError, match=r"shard-000000.tar, ep-000000000: .*epistream verify"):
        records_from_shards(dataset, np.array([0]))
    tar.write_bytes(data)
    whole = index.read_bytes()
    index.write_bytes(whole[:-1])
    with pytest.raises(FormatError, match="wanted the index with"):
        records_from_shards(dataset, np.array([0]))
    index.unlink()
    with pytest.raises(FormatError, match="no such file, wanted the index"):
        records_from_shards(dataset, np.array([0]))
    index.write_bytes(whole)
    tar.unlink()
    with pytest.raises(EpistreamError):
        records_from_shards(dataset, np.array([0]))


def test_dataset_of_an_earlier_release_gets_records_that_hold_its_attributes(folder, tmp_path):
    import shutil

    shutil.copytree(folder / "out", tmp_path / "old")
    document = json.loads((tmp_path / "old" / "dataset.json").read_text())
    document["version"] = 2
    del document["episodes"]
    (tmp_path / "old" / "dataset.json").write_text(json.dumps(document))
    dataset = es.open_dataset(tmp_path / "old")
    assert dataset.episode_records is None
    found = records_from_shards(dataset, np.arange(3))
    assert_same_records(found, es.open_dataset(folder / "out").episode_records)


def test_batches_of_any_size_give_the_same_records(folder, monkeypatch):
    dataset = es.open_dataset(folder / "out")
    wanted = records_from_shards(dataset, np.arange(3)).to_bytes()
    monkeypatch.setattr("epistream.sharding.episodes.shard_records._BATCH_BYTES", 1)
    assert records_from_shards(dataset, np.arange(3)).to_bytes() == wanted


def test_episode_without_a_valid_step_has_a_record_of_none(folder):
    dataset = es.open_dataset(folder / "out")
    columns = replace(dataset.columns, range_offsets=np.array([0, 1, 1, 2]), ranges=np.array([[0, 40], [0, 20]]))
    found = records_from_shards(replace(dataset, columns=columns), np.arange(3))
    assert found.num_steps.tolist() == [40, 0, 20]
    assert found.num_points.tolist() == [40, 0, 20]
    assert (found.features["action"].minimum[1] == np.inf).all()


def test_attributes_that_are_known_are_not_read_again(folder, monkeypatch):
    dataset = es.open_dataset(folder / "out")
    known = Texts.of(['{"a":1}', "", '{"a":3}'], "attributes")

    def refuse(*_):
        raise AssertionError("read")

    monkeypatch.setattr("epistream.sharding.episodes.shard_records.packed_attributes", refuse)
    found = records_from_shards(dataset, np.array([2, 0, 1]), described=known)
    assert list(found.described) == list(known)
