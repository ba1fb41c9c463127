"""Packing reads each source byte once, and what it says of a source is what the file holds."""

import os
from pathlib import Path

import h5py
import numpy as np
import pytest
import xxhash
from hdf5_files import aloha_jpeg, aloha_raw, contents, episodes, manifest, npy, robomimic

from epistream.errors import SourceChangedError
from epistream.sharding.dataset import open_dataset
from epistream.sharding.pack import source_reader
from epistream.sharding.pack.pack import pack

# Headers, which the scan and every opening read, and what else a job reads: its indexes, the listing of a folder.
OVERHEAD_A_FILE = 64 << 10


def bytes_read():
    """By this process, from anything, as Linux counts them."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["rchar"])


def sizes(folder):
    files = [path for path in Path(folder).rglob("*.hdf5")]
    return sum(path.stat().st_size for path in files), len(files)


def checksums(out):
    """path -> (bytes, checksum) of the sources that a manifest names."""
    return {source.path: (source.num_bytes, source.checksum) for source in open_sources(out)}


def open_sources(out):
    from epistream.sharding.manifest.manifest_file import read_manifest

    return read_manifest(str(out)).sources


def hashed(folder):
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_size, xxhash.xxh3_128_hexdigest(path.read_bytes()))
        for path in Path(folder).rglob("*.hdf5")
    }


@pytest.fixture
def warm(tmp_path):
    """Everything is imported."""
    pack(aloha_raw(tmp_path / "warm" / "a.hdf5"), tmp_path / "warmed")


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="Linux only")
@pytest.mark.usefixtures("warm")
@pytest.mark.parametrize("codec", ["raw", "jpeg"])
def test_pack_reads_each_byte_of_its_sources_once(tmp_path, codec):
    for seed in range(3):
        aloha_raw(tmp_path / "in" / f"e_{seed}.hdf5", 400, seed)
    num_bytes, num_files = sizes(tmp_path / "in")
    before = bytes_read()
    pack(tmp_path / "in", tmp_path / "out", codec=codec, shard_size="1MiB")
    read = bytes_read() - before
    assert num_bytes <= read <= num_bytes + num_files * OVERHEAD_A_FILE
    assert checksums(tmp_path / "out") == hashed(tmp_path / "in")


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="Linux only")
@pytest.mark.usefixtures("warm")
def test_pack_reads_a_file_of_several_shards_once_with_one_worker(tmp_path):
    robomimic(tmp_path / "in" / "a.hdf5", {f"demo_{number}": 100 for number in range(12)})
    robomimic(tmp_path / "in" / "b.hdf5", {f"demo_{number}": 100 for number in range(12)})
    num_bytes, num_files = sizes(tmp_path / "in")
    before = bytes_read()
    report = pack(tmp_path / "in", tmp_path / "out", codec="raw", shard_size="512KiB")
    read = bytes_read() - before
    assert report.num_shards > 8
    assert num_bytes <= read <= num_bytes + 4 * num_files * OVERHEAD_A_FILE
    assert checksums(tmp_path / "out") == hashed(tmp_path / "in")


@pytest.mark.parametrize("workers", [1, 2])
def test_pack_of_files_too_large_for_memory_gives_the_same_bytes(tmp_path, monkeypatch, workers):
    robomimic(tmp_path / "in" / "a.hdf5", {f"demo_{number}": 30 for number in range(8)}, {"train": ["demo_1"]})
    robomimic(tmp_path / "in" / "b.hdf5", {f"demo_{number}": 30 for number in range(8)})
    pack(tmp_path / "in", tmp_path / "out", codec="raw", shard_size="128KiB", workers=workers)
    monkeypatch.setattr(source_reader, "WHOLE_BYTES", 1000)
    monkeypatch.setattr(source_reader, "_READ_BYTES", 777)
    pack(tmp_path / "in", tmp_path / "straight", codec="raw", shard_size="128KiB")
    assert contents(tmp_path / "out") == contents(tmp_path / "straight")
    assert checksums(tmp_path / "straight") == hashed(tmp_path / "in")


def test_pack_holds_no_file_that_is_too_large(tmp_path, monkeypatch):
    path = aloha_raw(tmp_path / "in" / "a.hdf5", 20)
    monkeypatch.setattr(source_reader, "WHOLE_BYTES", path.stat().st_size - 1)

    def refuse(data):
        raise AssertionError(f"{len(data)} bytes in memory")

    monkeypatch.setattr(source_reader, "BytesInMemory", refuse)
    pack(path, tmp_path / "out", codec="raw")
    monkeypatch.setattr(source_reader, "WHOLE_BYTES", path.stat().st_size)
    with pytest.raises(AssertionError, match="bytes in memory"):
        pack(path, tmp_path / "again", codec="raw")


def test_pack_names_the_checksum_of_a_file_of_which_nothing_is_packed(tmp_path):
    for name in "abc":
        aloha_jpeg(tmp_path / "in" / f"{name}.hdf5", cameras=("top",) if name == "b" else ("top", "angle"))
    pack(tmp_path / "in", tmp_path / "out", skip_bad=True)
    assert manifest(tmp_path / "out")["num_episodes"] == 2
    assert checksums(tmp_path / "out") == hashed(tmp_path / "in")


def linked(folder):
    """An episode whose actions are behind an external link, and whose camera and state are virtual datasets."""
    other = aloha_raw(folder / "in" / "other" / "real.h5", 12, 5, cameras=("top",))
    path = aloha_raw(folder / "in" / "e.hdf5", 12, 6, cameras=("top",))
    with h5py.File(path, "r+") as file, h5py.File(other) as real:
        del file["action"], file["observations/images/top"], file["observations/qpos"]
        file["action"] = h5py.ExternalLink("other/real.h5", "/action")
        for name in ("observations/images/top", "observations/qpos"):
            layout = h5py.VirtualLayout(real[name].shape, real[name].dtype)
            layout[:] = h5py.VirtualSource("other/real.h5", name, real[name].shape)
            file.create_virtual_dataset(name, layout)
    return path, other


def test_pack_takes_what_a_source_has_in_other_files_from_there(tmp_path):
    path, other = linked(tmp_path)
    pack(path, tmp_path / "out", codec="raw")
    (fields,) = episodes(tmp_path / "out").values()
    with h5py.File(other) as real, h5py.File(path) as file:
        np.testing.assert_array_equal(npy(fields["action.npy"]), real["action"][()])
        np.testing.assert_array_equal(npy(fields["observation.state.npy"]), real["observations/qpos"][()])
        np.testing.assert_array_equal(npy(fields["observation.qvel.npy"]), file["observations/qvel"][()])
        np.testing.assert_array_equal(npy(fields["observation.images.top.npy"]), real["observations/images/top"][()])


def test_hdf5_file_is_indexed_with_what_it_has_in_other_files(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path, other = linked(tmp_path)
    dataset = open_dataset(path)
    with h5py.File(other) as real:
        np.testing.assert_allclose(dataset.statistics["action"]["mean"], real["action"][()].mean(0), rtol=1e-5)
        np.testing.assert_allclose(
            dataset.statistics["observation.state"]["max"], real["observations/qpos"][()].max(0), rtol=1e-6
        )


def test_pack_source_that_changes_while_it_is_read_is_noticed(tmp_path, monkeypatch):
    path = aloha_raw(tmp_path / "a.hdf5")
    real = xxhash.xxh3_128

    def touch():
        os.utime(path, ns=(1, 1))
        return real()

    monkeypatch.setattr(source_reader.xxhash, "xxh3_128", touch)
    with pytest.raises(SourceChangedError, match="changed since"):
        pack(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_pack_source_that_changes_while_it_is_packed_from_the_disk_is_noticed(tmp_path, monkeypatch):
    path = aloha_raw(tmp_path / "a.hdf5")
    monkeypatch.setattr(source_reader, "WHOLE_BYTES", 1000)
    real = source_reader.SourceReader.content

    def touch(self, source):
        os.utime(path, ns=(1, 1))  # after it was hashed, before its frames are read
        return real(self, source)

    monkeypatch.setattr(source_reader.SourceReader, "content", touch)
    with pytest.raises(SourceChangedError, match="changed since"):
        pack(path, tmp_path / "out")


def test_pack_source_that_loses_its_end_after_the_scan_is_noticed(tmp_path):
    path = aloha_raw(tmp_path / "a.hdf5", 50)
    status = path.stat()

    def cut(progress):
        if progress.stage == "scanning":
            os.truncate(path, status.st_size // 2)
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    with pytest.raises(SourceChangedError, match="changed since"):
        pack(path, tmp_path / "out", progress=cut)
