"""Indexes that are read where they lie are those that the manifest is of, or named."""

import shutil

import h5py
import numpy as np
import pytest
from hdf5_files import aloha_raw
from web.faulty_server import serve

import epistream as es
from epistream.cache.node import NodeCache
from epistream.errors import ChecksumError
from epistream.loader.shards import shard_entry
from epistream.loader.shards.open_shards import OpenShards
from epistream.sharding.format.checksums import checksum


@pytest.fixture
def exchanged(tmp_path, monkeypatch):
    """A data set whose index is another one's, as good as its own but for its checksums."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    for number in range(2):
        path = aloha_raw(tmp_path / str(number) / "episode_0.hdf5", 8, seed=number)
        es.pack(str(path), str(tmp_path / f"out{number}"), codec="raw", workers=1)
    index, other = (tmp_path / f"out{number}" / "shard-000000.index" for number in range(2))
    assert index.stat().st_size == other.stat().st_size
    shutil.copyfile(other, index)
    return tmp_path / "out0"


@pytest.mark.parametrize("cache", ["auto", "off"])
def test_index_that_is_not_the_manifests_is_named_before_anything_is_read_by_it(exchanged, cache):
    stream = es.EpisodeStream(str(exchanged), batch_size=2, cache=cache)
    with pytest.raises(ChecksumError, match=r"shard-000000\.index: checksum \w{32}, wanted \w{32}, .*--overwrite"):
        next(iter(stream))


def test_it_is_named_over_the_network_too(exchanged):
    with serve() as server:
        server.files |= {f"/{path.name}": path.read_bytes() for path in exchanged.iterdir() if path.is_file()}
        with pytest.raises(ChecksumError, match=r"shard-000000\.index: checksum"):
            next(iter(es.EpisodeStream(server.url, batch_size=2, cache="off")))


def test_each_index_is_compared_once(exchanged, monkeypatch):
    compared = []
    monkeypatch.setattr(shard_entry, "checksum", lambda data: compared.append(data) or checksum(data))
    with NodeCache(es.CacheOptions(mode="off")) as cache:
        shards = OpenShards(es.open_dataset(str(exchanged.with_name("out1"))), cache, 1)
        for _ in range(3):
            shards.take(0, lambda: None, wait=True)
            shards.close()
    assert len(compared) == 1


def test_kept_index_of_hdf5_that_was_exchanged_is_made_anew_when_the_data_set_is_opened_again(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    paths = [aloha_raw(tmp_path / str(number) / "episode_0.hdf5", 8, seed=number) for number in range(2)]
    stream, _ = (es.EpisodeStream(str(path), batch_size=8, shuffle=False) for path in paths)
    ours, other = (es.open_dataset(str(path)).index_url[0] for path in paths)
    with h5py.File(paths[0]) as file:
        wanted = file["action"][:]
    shutil.copyfile(other, ours)
    with pytest.raises(es.EpistreamError, match="Open the dataset again"):
        next(iter(stream))
    again = es.EpisodeStream(str(paths[0]), batch_size=8, shuffle=False)
    np.testing.assert_array_equal(next(iter(again))["action"][:, 0], wanted)
