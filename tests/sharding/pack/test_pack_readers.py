"""The shards are read by the programs that people already have."""

import io
import subprocess
import tarfile

import h5py
import numpy as np
import pytest
import webdataset
from hdf5_files import members, npy, shards

from epistream.sharding.pack.pack import pack


@pytest.fixture(scope="module")
def packed(tmp_path_factory, example_data):
    out = tmp_path_factory.mktemp("packed")
    pack(example_data / "aloha", out / "aloha", shard_size="2MiB")
    pack(example_data / "robomimic", out / "robomimic", codec="raw")
    return out


@pytest.mark.parametrize("name", ["aloha", "robomimic"])
def test_tar_command_lists_and_extracts_what_tarfile_reads(packed, tmp_path, name):
    for shard in shards(packed / name):
        wanted = dict(members(shard))
        listed = subprocess.run(["tar", "-tf", shard], capture_output=True, text=True, check=True)
        assert listed.stdout.splitlines() == list(wanted)
        assert listed.stderr == ""
        folder = tmp_path / shard.stem
        folder.mkdir()
        subprocess.run(["tar", "-xf", shard, "-C", folder], check=True, capture_output=True)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == wanted


def test_tar_stream_is_read_without_seeking(packed):
    (shard,) = shards(packed / "robomimic")[:1]
    with tarfile.open(fileobj=io.BytesIO(shard.read_bytes()), mode="r|") as tar:
        assert [info.name for info in tar] == [name for name, _ in members(shard)]


@pytest.mark.filterwarnings("ignore")
def test_webdataset_sees_one_sample_an_episode(packed, example_data):
    urls = [str(shard) for shard in shards(packed / "aloha")]
    assert len(urls) == 2
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == ["ep-000000000", "ep-000000001"]
    for sample, name, length in zip(samples, ("episode_0", "episode_1"), (80, 60), strict=True):
        with h5py.File(example_data / "aloha" / f"{name}.hdf5") as file:
            np.testing.assert_array_equal(npy(sample["action.npy"]), file["action"][()])
            row = file["observations/images/top"][length - 1].tobytes().rstrip(b"\0")
        assert sample[f"observation.images.top.{length - 1:06d}.jpg"] == row
        assert sum(field.endswith(".jpg") for field in sample) == 2 * length


@pytest.mark.filterwarnings("ignore")
def test_webdataset_decodes_fields_by_their_suffix(packed):
    url = str(shards(packed / "robomimic")[0])
    sample = next(iter(webdataset.WebDataset(url, shardshuffle=False).decode("rgb8")))
    assert sample["meta.json"]["length"] == 9
    assert sample["action.npy"].shape == (9, 7)
    assert sample["observation.images.agentview.npy"].shape == (9, 84, 84, 3)


@pytest.mark.filterwarnings("ignore")
def test_wids_opens_a_shard_at_random(packed, tmp_path):
    wids = pytest.importorskip("wids")
    listed = [
        {"url": str(shard), "nsamples": len({name.split(".")[0] for name, _ in members(shard)})}
        for shard in shards(packed / "robomimic")
    ]
    dataset = wids.ShardListDataset(listed, cache_dir=str(tmp_path), keep=True)
    assert len(dataset) == 3
    assert dataset[1]["__key__"] == "ep-000000001"
    assert dataset[2][".action.npy"].shape == (6, 7)
    assert dataset[0][".meta.json"]["source_path"] == "/data/demo_2"
