"""What messages of the node's cache and of reads over the network advise, taken."""

import os
import re
import shutil
import tempfile
from contextlib import closing

import numpy as np
import pytest
import xxhash
from click.testing import CliRunner
from hdf5_files import aloha_raw
from web.faulty_server import serve
from web.odd_ranges import serve_oddly

import epistream as es
from epistream import whole_files
from epistream.cache.admin import look
from epistream.cache.node import NodeCache
from epistream.cache.source.entry import Entry, Part
from epistream.cache.store.budget import Limits
from epistream.cache.store.locks import LockFile
from epistream.cache.store.store import StoreOptions, open_store
from epistream.commands import cli
from epistream.errors import (
    CacheError,
    ChecksumError,
    DeadlineError,
    EpistreamError,
    FetchError,
    FormatError,
    SourceError,
)
from epistream.sharding.files.storage import local_copy, read_range
from epistream.sharding.files.versioned_files import version_and_bytes

DATA = np.random.default_rng(0).integers(0, 256, 9000, np.uint8).tobytes()


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda seconds: None)


def run(*arguments):
    result = CliRunner().invoke(cli, [*map(str, arguments)])
    assert result.exit_code == 0, result.output + str(result.exception)
    return result.output


def read(source, **options):
    stream = es.EpisodeStream(str(source), batch_size=4, shuffle=False, features=["action"], **options)
    return np.concatenate([batch["action"][:, 0] for batch in stream])


@pytest.fixture
def packed(tmp_path):
    for number in range(2):
        path = aloha_raw(tmp_path / str(number) / "episode_0.hdf5", 8, seed=number)
        es.pack(str(path), str(tmp_path / f"out{number}"), codec="raw", workers=1)
    return tmp_path / "out0"


def exchange_index(folder):
    shutil.copyfile(folder.with_name("out1") / "shard-000000.index", folder / "shard-000000.index")
    return "shard-000000.index: checksum"


def exchange_tar(folder):
    shutil.copyfile(folder.with_name("out1") / "shard-000000.tar", folder / "shard-000000.tar")
    return r"shard-000000\.tar: checksum"


def tear_manifest(folder):
    path = next(folder.glob("dataset-*.tables"))
    path.write_bytes(path.read_bytes()[:-9])
    return "bytes with checksum"


def lengthen_tar(folder):
    with (folder / "shard-000000.tar").open("ab") as file:
        file.write(bytes(10240))
    return r"shard-000000\.tar: \d+ bytes, wanted"


def tear_index(folder):
    path = folder / "shard-000000.index"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    return "shard-000000.index"


@pytest.mark.parametrize("cache", ["auto", "shm"])
@pytest.mark.parametrize("damage", [exchange_index, exchange_tar, tear_manifest, lengthen_tar, tear_index])
def test_index_overwrite_makes_the_data_set_that_is_there(packed, tmp_path, damage, cache):
    said = damage(packed)
    options = es.CacheOptions(mode=cache, directory=str(tmp_path / "cache"))
    if (damage, cache) == (exchange_tar, "auto"):
        return  # a tar of the right size that is read in place is compared by 'epistream verify'
    with pytest.raises(EpistreamError, match=said) as caught:
        read(packed, cache=options)
    assert "'epistream index URL --overwrite'" in str(caught.value)
    run("index", packed, "--overwrite")
    options = es.CacheOptions(mode=cache, directory=str(tmp_path / "next"))  # the old one tells of the failure for 5 s
    wanted = read(packed.with_name("out1")) if damage is exchange_tar else read(tmp_path / "0" / "episode_0.hdf5")
    np.testing.assert_array_equal(read(packed, cache=options), wanted)


@pytest.mark.parametrize("damage", [exchange_index, tear_index])
def test_copying_it_again_mends_an_index_that_is_not_the_manifests(packed, damage):
    good = (packed / "shard-000000.index").read_bytes()
    damage(packed)
    with pytest.raises((ChecksumError, FormatError)):
        read(packed)
    (packed / "shard-000000.index").write_bytes(good)
    assert len(read(packed)) == 8


def test_more_tries_and_more_time_than_a_busy_server_needs(packed):
    with serve() as server:
        server.files |= {f"/{path.name}": path.read_bytes() for path in packed.iterdir() if path.is_file()}
        server.plan = lambda path, number: "503" if number < 3 else None
        with pytest.raises(SourceError, match=r"CacheOptions\(fetch_timeout_s, attempts\)"):
            read(server.url, cache=es.CacheOptions(mode="off", attempts=2))
        assert len(read(server.url, cache=es.CacheOptions(mode="off", attempts=9))) == 8
        server.retry_after = "20"
        server.requests.clear()
        server.plan = lambda path, number: "503" if path.endswith(".tar") and number == 0 else None
        with pytest.raises(FetchError, match="allow more with fetch_timeout_s"):
            read(server.url, cache=es.CacheOptions(mode="off", fetch_timeout_s=10))
        server.requests.clear()
        assert len(read(server.url, cache=es.CacheOptions(mode="off", fetch_timeout_s=60))) == 8


def test_another_tmpdir_or_a_copy_serves_where_a_file_of_a_server_without_ranges_has_no_room(tmp_path, monkeypatch):
    class Small:
        f_bavail, f_frsize = 1, 4096

    monkeypatch.setattr(whole_files, "_copies", whole_files._Copies())
    real, roomy = os.fstatvfs, str(tmp_path)
    monkeypatch.setattr(whole_files.os, "fstatvfs", lambda fd: real(fd) if tempfile.gettempdir() == roomy else Small)
    with serve_oddly("refused") as server:
        url = f"{server.url}/a.hdf5"
        server.files["/a.hdf5"] = DATA
        with pytest.raises(SourceError, match=r"Let TMPDIR name a folder with more room, or copy the file to a disk\."):
            read_range(url, 5000, 100)
        with local_copy(url) as path:
            assert read_range(str(path), 5000, 100) == DATA[5000:5100]
        monkeypatch.setattr(tempfile, "tempdir", None)
        monkeypatch.setenv("TMPDIR", roomy)
        assert read_range(url, 5000, 100) == DATA[5000:5100]
        assert version_and_bytes(url)[1] == 9000


# --- the cache itself ---


@pytest.fixture
def entry(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(DATA)
    return Entry((Part(str(path), len(DATA), xxhash.xxh3_128_hexdigest(DATA)),))


def tier_of(entry, **options):
    with NodeCache(es.CacheOptions(**{"mode": "shm", **options})) as cache, cache.open(entry) as opened:
        assert bytes(opened.blobs[0].read(0, len(DATA))) == DATA
        return opened.tier


def open_to_others(path):
    path.mkdir(mode=0o755)
    return lambda: path.chmod(0o700)


def a_link(path):
    path.symlink_to(path.parent)
    return path.unlink


def a_file(path):
    path.write_text("")
    return path.unlink


@pytest.mark.parametrize(
    ("place", "advised"),
    [
        (open_to_others, r"Run 'chmod 700 .*/cache'"),
        (a_link, r"Remove it or choose another one"),
        (a_file, r"Remove it or choose another one"),
    ],
)
def test_directory_that_cannot_be_used_is_mended_or_another_one_named(tmp_path, entry, place, advised):
    directory = tmp_path / "cache"
    mend = place(directory)
    with pytest.raises(CacheError, match=advised):
        tier_of(entry, directory=str(directory))
    assert tier_of(entry, directory=str(tmp_path / "another")) == "shm"
    mend()
    assert tier_of(entry, directory=str(directory)) == "shm"


def test_place_where_nothing_can_be_made_is_changed_by_cache_options(tmp_path, entry):
    with pytest.raises(CacheError, match=r"Name another one with CacheOptions \(directory, or disk_directory"):
        tier_of(entry, directory="/proc/cache")
    assert tier_of(entry, directory=str(tmp_path / "another")) == "shm"
    assert tier_of(entry, mode="disk", disk_directory=str(tmp_path / "disk")) == "disk"


def test_budget_that_is_too_small_is_raised_by_the_option_or_the_command(tmp_path, entry):
    directory = tmp_path / "cache"
    small = es.CacheOptions(mode="shm", directory=str(directory), budget_bytes=4096)
    with NodeCache(small) as cache:
        with pytest.raises(CacheError, match="Raise budget_bytes, or run 'epistream cache resize SIZE'"):
            cache.open(entry)
        run("cache", "resize", "1MiB", "--directory", directory)
        with cache.open(entry) as opened:
            assert opened.tier == "shm"
    assert tier_of(entry, directory=str(directory), budget_bytes=1 << 20) == "shm"


def test_budget_that_others_settled_is_changed_for_all_by_the_command(tmp_path, entry, caplog):
    directory = tmp_path / "cache"
    with NodeCache(es.CacheOptions(mode="shm", directory=str(directory), budget_bytes=4096)) as first:
        first.budget()
        with NodeCache(es.CacheOptions(mode="shm", directory=str(directory), budget_bytes=1 << 20)) as cache:
            cache.budget()
            advised = re.search(r"change it for all: epistream (cache resize \S+ --directory \S+)", caplog.text)
            run(*advised[1].split())
            with cache.open(entry) as opened:
                assert opened.tier == "shm"


def test_look_at_what_is_no_cache_and_the_list_of_those_that_are(tmp_path):
    with pytest.raises(CacheError, match="'epistream cache ls' lists yours"):
        look(tmp_path / "none")
    run("cache", "ls")


def test_shard_that_another_process_fills_comes_with_more_fill_timeout(tmp_path):
    def acquire(**more):
        steps = []

        def observe(step):
            steps.append(step)
            if step == "turn.poll" and steps.count(step) == 3 and more["fill_timeout_s"] > 1:
                held.close()  # the other one ends without it

        store = open_store(tmp_path / "cache", StoreOptions(Limits(), **more), observe=observe)
        try:
            with closing(store.acquire("0" * 32, 9000, lambda fd: os.pwrite(fd, DATA, 0))) as lease:
                return bytes(lease.view(0, 9000))
        finally:
            store.leave()

    kept = open_store(tmp_path / "cache", StoreOptions(Limits()))
    held = LockFile("0" * 32 + ".fill", kept.directory.dir_fd)
    assert held.try_exclusive()
    with pytest.raises(DeadlineError, match="raise fill_timeout_s"):
        acquire(fill_timeout_s=0.01)
    held.write_text("")  # what was told of it ends with the process
    assert acquire(fill_timeout_s=60.0) == DATA
    kept.leave()


def test_lock_that_a_process_holds_is_free_when_that_ends(tmp_path):
    store = open_store(tmp_path / "cache", StoreOptions(Limits(), lock_timeout_s=0.01))
    other = LockFile(".lock", store.directory.dir_fd)
    assert other.try_exclusive()
    with (
        pytest.raises(DeadlineError, match="Look whether that process is stopped, and end it"),
        store.directory.locked(0.01),
    ):
        pass
    other.close()
    with store.directory.locked(0.01):
        pass
    store.leave()
