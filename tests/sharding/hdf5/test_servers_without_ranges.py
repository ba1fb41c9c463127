"""HDF5 files of servers that answer requests for ranges with something else: brought whole once, and read right."""

import errno
import logging
import os

import h5py
import numpy as np
import pytest
import torch
from hdf5_files import aloha_raw
from web.odd_ranges import KINDS, serve_oddly

import epistream as es
from epistream import whole_files
from epistream.errors import EpistreamError, FetchError, SourceError
from epistream.sharding.files.storage import local_copy, read_range, read_start
from epistream.sharding.files.versioned_files import open_remote, version_and_bytes

NAME = "/episode_0.hdf5"
DATA = np.random.default_rng(0).integers(0, 256, 5000, np.uint8).tobytes()


@pytest.fixture(autouse=True)
def _places(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(whole_files, "_copies", whole_files._Copies())


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """An episode of 2.5 MB: rows that lie in the file, others that are cut by chunks, and some that h5py unpacks."""
    path = aloha_raw(tmp_path_factory.mktemp("in") / "episode_0.hdf5", 12)
    with h5py.File(path, "r+") as file:
        velocity = file["observations/qvel"][:]
        del file["observations/qvel"]
        file.create_dataset("observations/qvel", data=velocity, chunks=(3, 4))
        file["observations/images/wide"] = np.random.default_rng(1).integers(0, 256, (12, 256, 256, 3), np.uint8)
        file.create_dataset("observations/effort", data=velocity * 2, compression="gzip", chunks=(5, 14))
    return path


def batches(source, **options):
    stream = es.EpisodeStream(source, batch_size=5, seed=3, **options)
    return [{name: values for name, values in batch.items() if name != "task"} for batch in stream]


@pytest.mark.parametrize("cache", ["off", "shm"])
@pytest.mark.parametrize("kind", KINDS)
def test_stream_of_hdf5_is_right_whatever_the_server_answers_for_a_range(
    recorded, tmp_path, caplog, monkeypatch, kind, cache
):
    monkeypatch.setattr("epistream.cache.store.places.SHM_PARENT", tmp_path)
    options = es.CacheOptions(mode=cache, directory=str(tmp_path / "cache") if cache == "shm" else None)
    wanted = batches(str(recorded), cache="off")
    caplog.set_level(logging.WARNING)
    with serve_oddly(kind) as server:
        server.files[NAME] = recorded.read_bytes()
        found = batches(server.url + NAME, cache=options)
    for batch, other in zip(wanted, found, strict=True):
        for name, values in batch.items():
            assert torch.equal(values, other[name]), name
    if kind != "whole file of no length":  # where a request for the size may be one for all of it
        assert server.asked.count("") == 1
    assert sum("knows no ranges" in record.message for record in caplog.records) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_parts_starts_and_copies_of_files_are_right_whatever_the_server_answers_for_a_range(kind):
    with serve_oddly(kind) as server:
        url = f"{server.url}/file"
        server.files["/file"] = DATA
        assert read_range(url, 1000, 700) == DATA[1000:1700]
        assert read_range(url, 0, 5000) == DATA
        assert read_start(url, 600) == DATA[:600]
        assert read_start(url, 6000) == DATA
        with local_copy(url) as path:
            assert path.read_bytes() == DATA
        with pytest.raises(EpistreamError, match=r"/file: (ends at byte 5000|1,000 bytes at 4,000, wanted 2,000)"):
            read_range(url, 4000, 2000)


def test_copy_that_leaves_while_it_is_read_is_not_taken_for_the_one_in_its_place(monkeypatch):
    monkeypatch.setattr(whole_files, "_MOST_FILES", 1)
    monkeypatch.setattr(whole_files, "_copies", whole_files._Copies())
    pread = os.pread

    def interrupted(*arguments):
        """Meanwhile another thread brings another file, for which this one leaves."""
        monkeypatch.setattr(whole_files.os, "pread", pread)
        assert whole_files.whole_file(f"{server.url}/other", None).read(0, 3) == b"zzz"
        return pread(*arguments)

    with serve_oddly("whole file") as server:
        server.files |= {"/file": DATA, "/other": b"z" * len(DATA)}
        monkeypatch.setattr(whole_files.os, "pread", interrupted)
        assert whole_files.whole_file(f"{server.url}/file", None).read(10, 20) == DATA[10:20]


def test_size_that_no_server_tells_is_that_of_the_copy():
    with serve_oddly("whole file of no length") as server:
        server.files["/a.hdf5"] = DATA
        version, num_bytes = version_and_bytes(f"{server.url}/a.hdf5")
        assert (version, num_bytes) == ("bytes=None", 5000)
        with open_remote(f"{server.url}/a.hdf5") as file:
            file.seek(4990)
            assert file.read() == DATA[4990:]


def test_file_that_the_disk_has_no_room_for_is_refused_before_it_is_brought(monkeypatch):
    class Small:
        f_bavail, f_frsize = 1, 4096

    monkeypatch.setattr(whole_files.os, "fstatvfs", lambda fd: Small)
    with serve_oddly("whole file") as server:
        server.files["/file"] = DATA
        with pytest.raises(SourceError, match=r"0\.004 MiB of room in .*, wanted 0\.005 MiB for a copy.*TMPDIR"):
            whole_files.PartsOfFile(f"{server.url}/file", None, 5000).read(1000, 1010)
        assert server.asked == ["bytes=1000-1009"]
        server.kind = "whole file of no length"
        with pytest.raises(SourceError, match=r"more than .*no more room in .*TMPDIR"):
            version_and_bytes(f"{server.url}/file")
        assert len(server.asked) == 3, "one for the size, one for the copy, and no other try"


def test_disk_that_is_full_before_it_seemed_so_is_named_and_not_filled_again(monkeypatch):
    def full(fd, data, position):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("epistream.bodies.os.pwrite", full)
    with serve_oddly("whole file of no length") as server:
        server.files["/file"] = DATA
        with pytest.raises(SourceError, match=r"No space left on device after .* of it.*TMPDIR"):
            version_and_bytes(f"{server.url}/file")
        assert len(server.asked) == 2, "one for the size, one for the copy, and no other try"


def test_copy_that_cannot_be_brought_says_what_allows_more(monkeypatch):
    with serve_oddly("whole file") as server:
        server.files["/file"] = DATA
        monkeypatch.setattr(whole_files, "persist", _timed_out)
        with pytest.raises(FetchError, match="allow more with fetch_timeout_s, or copy the file here"):
            whole_files.whole_file(f"{server.url}/file", None).read(0, 3)


def _timed_out(*arguments):
    raise TimeoutError("no answer within 0.1 s")
