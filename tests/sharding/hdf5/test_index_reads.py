"""Indexing reads a small file in a few pieces, and finds the same as h5py does in the file itself."""

import os
from pathlib import Path
from random import Random

import pytest
from hdf5_files import aloha_jpeg, aloha_raw, robomimic
from web.faulty_server import serve

from epistream.errors import FetchError, LayoutError
from epistream.sharding.files import versioned_files
from epistream.sharding.hdf5 import file as hdf5_file
from epistream.sharding.hdf5.dataset import open_hdf5_files
from epistream.sharding.hdf5.scan import index_hdf5
from epistream.sharding.layouts.values import dataset
from epistream.sharding.opening import source_bytes
from epistream.sharding.opening.source_bytes import BlocksOfFile
from epistream.sharding.opening.walking import child


@pytest.fixture
def reads(monkeypatch):
    """(start, bytes) of every read of a file in blocks."""
    made, real = [], source_bytes.os.preadv

    def preadv(descriptor, buffers, offset):
        made.append((offset, sum(map(len, buffers))))
        return real(descriptor, buffers, offset)

    monkeypatch.setattr(source_bytes.os, "preadv", preadv)
    return made


def test_small_file_is_read_once_to_index_it_and_once_for_its_statistics(tmp_path, reads):
    path = aloha_jpeg(tmp_path / "a.hdf5", 20, cameras=("top",))
    size = path.stat().st_size
    assert size < 64 << 10
    index_hdf5(str(path))
    assert reads == [(0, size)]
    open_hdf5_files([str(path)], folder=tmp_path / "kept")
    assert reads == [(0, size)] * 3


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="Linux only")
def test_nothing_else_reads_the_file(tmp_path):
    path = aloha_jpeg(tmp_path / "a.hdf5", 20, cameras=("top",))
    index_hdf5(str(path))  # everything is imported

    def calls():
        return int(Path("/proc/self/io").read_text().partition("syscr: ")[2].split()[0])

    first = calls()
    overhead = calls() - first
    first = calls()
    index_hdf5(str(path))
    assert calls() - first - overhead <= 3


@pytest.mark.parametrize("block_bytes", [512, 5_000, 64 << 10])
@pytest.mark.parametrize(
    "make",
    [
        lambda path: aloha_jpeg(path, 20),
        lambda path: aloha_raw(path, 20),
        lambda path: robomimic(path, {"demo_0": 9, "demo_1": 7}, {"train": ["demo_0"], "valid": ["demo_1"]}),
    ],
)
def test_index_is_that_of_the_file_as_h5py_reads_it(tmp_path, monkeypatch, make, block_bytes):
    url = str(make(tmp_path / "a.hdf5"))
    monkeypatch.setattr(source_bytes, "_BLOCK_BYTES", block_bytes)
    found = [index.to_bytes() for index in index_hdf5(url)]

    monkeypatch.setattr("epistream.sharding.hdf5.scan.read_hdf5", straight)
    assert [index.to_bytes() for index in index_hdf5(url)] == found


def straight(url, options, use, allow_outside):
    with hdf5_file.open_hdf5(url, options) as (file, raw):
        return use(file, raw)


def test_remote_file_is_not_brought_again_for_each_of_its_headers(tmp_path, monkeypatch):
    block_bytes = 64 << 10
    monkeypatch.setattr(versioned_files, "_REMOTE_BLOCK_BYTES", block_bytes)
    path = robomimic(tmp_path / "a.hdf5", dict.fromkeys((f"demo_{number}" for number in range(60)), 20))
    num_blocks = -(-path.stat().st_size // block_bytes)
    with serve() as server:
        server.files["/a.hdf5"] = path.read_bytes()
        (index,) = index_hdf5(f"{server.url}/a.hdf5")
        assert index.rows.num_episodes == 60
        assert len(server.requests) < 4 * num_blocks, (len(server.requests), num_blocks)


def test_remote_file_gives_the_bytes_of_the_file_in_any_order(monkeypatch):
    monkeypatch.setattr(versioned_files, "_REMOTE_BLOCK_BYTES", 1000)
    data, random = os.urandom(20_500), Random(0)
    with serve() as server:
        server.files["/a"] = data
        with versioned_files.open_remote(f"{server.url}/a") as file:
            for _ in range(50):
                start, size = random.randrange(21_000), random.choice([0, 1, 999, 1000, 1001, 2500, 30_000])
                file.seek(start)
                assert file.read(size) == data[start : start + size]


def asked(file):
    return "observations/images/top" in file


def taken_for_missing(file):
    return child(file, "observations")


def refused(file):
    with pytest.raises(LayoutError):
        dataset(file, "observations/qpos")


@pytest.mark.parametrize("look", [asked, taken_for_missing, refused])
def test_remote_file_that_cannot_be_read_just_now_says_why_and_lacks_nothing(tmp_path, monkeypatch, look):
    def fail(self, start, stop):
        raise FetchError(f"{server.url}/a.hdf5: gone. Ask again.")

    def ask(file, raw):
        raw._blocks.clear()
        monkeypatch.setattr(versioned_files.PartsOfFile, "read", fail)
        return look(file)

    monkeypatch.setattr(hdf5_file, "other_files", lambda *arguments, **options: ())  # which has looked at all names
    with serve() as server:
        server.files["/a.hdf5"] = aloha_raw(tmp_path / "a.hdf5").read_bytes()
        with pytest.raises(FetchError, match=r"^http.*/a\.hdf5: gone\. Ask again\.$"):
            hdf5_file.read_hdf5(f"{server.url}/a.hdf5", None, ask)


def test_blocks_give_the_bytes_of_the_file_in_any_order(tmp_path):
    data = bytes(range(256)) * 2000
    path = tmp_path / "a"
    path.write_bytes(data)
    with BlocksOfFile(path) as blocks:
        assert blocks.seek(0, 2) == len(data)
        for start, size in ((7, 3), (65_530, 20), (300_000, 150_000), (1, 70_000), (len(data) - 5, 50), (len(data), 9)):
            blocks.seek(start)
            assert blocks.read(size) == data[start : start + size]
            assert blocks.tell() == min(start + size, len(data))


def test_file_that_loses_its_end_while_it_is_indexed_is_an_error(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(bytes(200_000))
    with BlocksOfFile(path) as blocks:
        path.write_bytes(bytes(100_000))
        blocks.seek(150_000)
        with pytest.raises(OSError, match=r"ends at byte 1.*it was cut off"):
            blocks.read(10)
