"""Fetching over HTTP from a server that drops, stalls, cuts, lies and refuses."""

import os
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import xxhash
from web.faulty_server import FaultyServer, serve

from epistream.cache.node import CacheOptions, NodeCache
from epistream.cache.source import fetch
from epistream.cache.source.entry import Entry, Part
from epistream.cache.source.ranged import RangeBlob
from epistream.cache.source.remote import Remote, RetryOptions
from epistream.errors import ChecksumError, FetchError, FormatError, SourceChangedError, SourceError

MIB = 1 << 20
DATA = np.random.default_rng(3).integers(0, 256, 5 * MIB + 77, dtype=np.uint8).tobytes()
INDEX = bytes(range(200))


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with serve() as state:
        state.files = {"/s.tar": DATA, "/s.index": INDEX}
        yield state


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "CHUNK_BYTES", MIB)
    monkeypatch.setattr(fetch.chunks, "__defaults__", (MIB,))


def part_of(url: str, data: bytes, *, blocks: bool = False) -> Part:
    sums = np.array([xxhash.xxh3_64_intdigest(data[i : i + MIB]) for i in range(0, len(data), MIB)], np.uint64)
    return Part(url, len(data), xxhash.xxh3_128_hexdigest(data), block_checksums=sums if blocks else None)


def entry_of(server: FaultyServer) -> Entry:
    return Entry((part_of(f"{server.url}/s.tar", DATA), part_of(f"{server.url}/s.index", INDEX)))


def cache_of(path: Path, **changes: float | str) -> NodeCache:
    fast = {"request_timeout_s": 10.0, "fetch_timeout_s": 30.0, "directory": str(path), "mode": "shm", **changes}
    return NodeCache(CacheOptions(**fast))


def assert_right(cache: NodeCache, entry: Entry) -> None:
    with cache.open(entry) as opened:
        assert bytes(opened.blobs[0].read(0, len(DATA))) == DATA
        assert bytes(opened.blobs[1].read(0, len(INDEX))) == INDEX


def only_first(fault: str, requests: int = 1):
    return lambda path, number: fault if number < requests else None


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("fault", ["503", "429", "500", "drop", "cut", "short", "trickle"])
def test_fetch_with_a_passing_fault_brings_the_bytes_once(server: FaultyServer, cache_path: Path, fault: str) -> None:
    server.plan = lambda path, number: fault if path == "/s.tar" and number in (0, 3) else None
    with cache_of(cache_path) as cache:
        assert_right(cache, entry_of(server))
        stats = cache.stats()
    assert stats.bytes_fetched == len(DATA) + len(INDEX)
    # What had arrived is not asked for again: 6 chunks, 1 index, and the two that failed. (A dropped connection
    # is tried again by the HTTP library itself.)
    num_faults = 0 if fault == "trickle" else 2
    assert len(server.requests) == 7 + num_faults
    assert stats.retries == (0 if fault == "drop" else num_faults)


def test_fetch_from_a_stalling_server_is_delayed_and_not_hung(server: FaultyServer, cache_path: Path) -> None:
    server.plan = only_first("stall")
    with cache_of(cache_path, request_timeout_s=0.3) as cache:
        assert_right(cache, entry_of(server))


def test_fetch_from_a_server_that_always_stalls_ends_with_an_error(server: FaultyServer, cache_path: Path) -> None:
    server.plan = lambda path, number: "stall"
    with (
        cache_of(cache_path, request_timeout_s=0.2, fetch_timeout_s=1.0) as cache,
        pytest.raises(
            FetchError, match=r"/s\.tar: bytes 0-\d+: TimeoutError: no answer within [\d.]+ s after \d tries, wanted"
        ),
    ):
        cache.open(entry_of(server))


def test_fetch_from_a_server_that_always_fails_ends_after_its_tries(server: FaultyServer, cache_path: Path) -> None:
    server.plan = lambda path, number: "503"
    with cache_of(cache_path, attempts=2) as cache, pytest.raises(FetchError, match=r"503.*after 2 tries"):
        cache.open(entry_of(server))
    assert len(server.requests) == 2


@pytest.mark.parametrize("fault", ["429", "503"])
@pytest.mark.parametrize("asked", ["2", "date"])
def test_fetch_from_a_busy_server_waits_as_long_as_it_asks(
    server: FaultyServer, monkeypatch: pytest.MonkeyPatch, fault: str, asked: str
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("tenacity.nap.time", SimpleNamespace(sleep=pauses.append))
    server.plan = only_first(fault)
    server.retry_after = formatdate(time.time() + 3, usegmt=True) if asked == "date" else asked
    remote = Remote(None, RetryOptions(first_pause_s=0.001))
    assert remote.read_range(f"{server.url}/s.tar", 3, 9) == DATA[3:9]
    assert len(pauses) == 1
    assert 1.0 < pauses[0] < 3.1


def test_fetch_from_a_server_that_wants_peace_beyond_the_deadline_ends_at_once(server: FaultyServer) -> None:
    server.plan = only_first("503")
    server.retry_after = "3600"
    with pytest.raises(FetchError, match=r"503.* after 1 tries"):
        Remote(None, RetryOptions(timeout_s=30.0)).read_range(f"{server.url}/s.tar", 3, 9)


@pytest.mark.parametrize("asked", ["soon", "-1", "Thu, 01 Jan 1970 00:00:00 GMT"])
def test_fetch_from_a_server_that_asks_for_nonsense_goes_on_as_usual(server: FaultyServer, asked: str) -> None:
    server.plan = only_first("503")
    server.retry_after = asked
    remote = Remote(None, RetryOptions(first_pause_s=0.001))
    assert remote.read_range(f"{server.url}/s.tar", 3, 9) == DATA[3:9]


@pytest.mark.parametrize("fault", ["403", "401", "400"])
def test_fetch_that_is_refused_is_not_tried_again(server: FaultyServer, cache_path: Path, fault: str) -> None:
    server.plan = lambda path, number: fault
    with cache_of(cache_path) as cache, pytest.raises(SourceError, match=f"{fault}.*Check the URL and the credentials"):
        cache.open(entry_of(server))
    assert len(server.requests) == 1


def test_fetch_of_a_missing_object_names_its_url(server: FaultyServer, cache_path: Path) -> None:
    entry = Entry((part_of(f"{server.url}/none.tar", DATA),))
    with cache_of(cache_path) as cache, pytest.raises(SourceError, match=r"/none\.tar"):
        cache.open(entry)
    assert len(server.requests) == 1


def test_fetch_of_wrong_bytes_is_repeated_once(server: FaultyServer, cache_path: Path) -> None:
    server.plan = lambda path, number: "wrong" if path == "/s.tar" and number == 1 else None
    with cache_of(cache_path) as cache:
        assert_right(cache, entry_of(server))
        assert cache.stats().refetches == 1


def test_fetch_of_wrong_bytes_twice_names_both_checksums_and_leaves_nothing(
    server: FaultyServer, cache_path: Path
) -> None:
    server.plan = lambda path, number: "wrong" if path == "/s.tar" else None
    entry = entry_of(server)
    with cache_of(cache_path) as cache:
        with pytest.raises(
            ChecksumError, match=rf"/s\.tar: checksum [0-9a-f]{{32}} twice, wanted {entry.parts[0].checksum}"
        ):
            cache.open(entry)
        assert [file.name for file in cache_path.iterdir() if file.suffix in (".part", ".shard")] == []


def test_fetch_error_is_carried_to_another_process_without_another_request(
    server: FaultyServer, cache_path: Path
) -> None:
    server.plan = lambda path, number: "403"
    with cache_of(cache_path) as cache, cache_of(cache_path) as other:
        with pytest.raises(SourceError) as first:
            cache.open(entry_of(server))
        with pytest.raises(SourceError) as second:
            other.open(entry_of(server))
    assert str(first.value) == str(second.value)
    assert len(server.requests) == 1


def test_fetch_from_a_server_without_ranges_reads_it_through(server: FaultyServer, cache_path: Path) -> None:
    server.ranges = False
    with cache_of(cache_path) as cache:
        assert_right(cache, entry_of(server))


def test_fetch_from_a_server_without_ranges_that_stalls_is_tried_again(server: FaultyServer, cache_path: Path) -> None:
    server.ranges = False
    server.plan = lambda path, number: "stall" if path == "/s.tar" and number == 1 else None
    with cache_of(cache_path, request_timeout_s=0.3) as cache:
        assert_right(cache, entry_of(server))


def test_fetch_from_a_server_without_ranges_that_always_stalls_ends_with_an_error(
    server: FaultyServer, cache_path: Path
) -> None:
    server.ranges = False
    server.plan = lambda path, number: "stall" if number else None
    with (
        cache_of(cache_path, request_timeout_s=0.2, fetch_timeout_s=1.0) as cache,
        pytest.raises(FetchError, match=r"/s\.tar: .*Timeout.* after \d tries, wanted"),
    ):
        cache.open(entry_of(server))


def test_fetch_of_an_object_that_became_shorter_ends_with_an_error(server: FaultyServer, cache_path: Path) -> None:
    entry = entry_of(server)
    server.files["/s.tar"] = DATA[: 3 * MIB]
    with cache_of(cache_path, attempts=2) as cache, pytest.raises(FetchError, match=r"s\.tar: ends at byte"):
        cache.open(entry)


def test_second_open_fetches_nothing(server: FaultyServer, cache_path: Path) -> None:
    with cache_of(cache_path) as cache, cache_of(cache_path) as other:
        assert_right(cache, entry_of(server))
        before = len(server.requests)
        assert_right(other, entry_of(server))
        assert len(server.requests) == before
        assert other.stats().hits == 1


def test_range_blob_checks_each_block(server: FaultyServer) -> None:
    remote = Remote(None, RetryOptions(attempts=2))
    counted: list[int] = []
    blob = RangeBlob(part_of(f"{server.url}/s.tar", DATA, blocks=True), remote, counted.append)
    assert bytes(blob.read(2 * MIB - 5, 10)) == DATA[2 * MIB - 5 : 2 * MIB + 5]
    assert counted == [2 * MIB]
    assert bytes(blob.read(2 * MIB + 5, 10)) == DATA[2 * MIB + 5 : 2 * MIB + 15]
    assert counted == [2 * MIB], "the block was kept"
    server.plan = lambda path, number: "wrong"
    with pytest.raises(ChecksumError, match=r"/s\.tar: block 4 \(bytes from 4194304\)"):
        blob.read(4 * MIB, 10)


def test_range_blob_reads_more_than_it_keeps(server: FaultyServer) -> None:
    data = np.random.default_rng(4).integers(0, 256, 20 * MIB + 3, dtype=np.uint8).tobytes()
    server.files["/big"] = data
    blob = RangeBlob(part_of(f"{server.url}/big", data, blocks=True), Remote(None, RetryOptions()), lambda size: None)
    assert bytes(blob.read(1, len(data) - 1)) == data[1:]


def test_range_blob_without_ranges_on_the_server_reads_a_copy_that_is_brought_once(server: FaultyServer) -> None:
    server.ranges = False
    part = part_of(f"{server.url}/s.tar", DATA, blocks=True)
    for _ in range(2):
        blob = RangeBlob(part, Remote(None, RetryOptions()), lambda size: None)
        assert bytes(blob.read(5, 100_000)) == DATA[5:100_005]
        assert bytes(blob.read(len(DATA) - 7, 7)) == DATA[-7:]
    whole = [asked for path, asked in server.requests if path == "/s.tar" and not asked]
    assert len(whole) == 1
    blob = RangeBlob(part, Remote(None, RetryOptions()), lambda size: None, may_copy=False)
    with pytest.raises(FetchError, match="the server ignores ranges"):
        blob.read(0, 10)


def test_range_blob_of_a_file_of_another_size_names_both_sizes(server: FaultyServer) -> None:
    server.files["/i.index"] = DATA[:1000]
    for ranges in (True, False):
        server.ranges = ranges
        blob = RangeBlob(part_of(f"{server.url}/i.index", DATA[:999]), Remote(None, RetryOptions()), lambda size: None)
        with pytest.raises(ChecksumError, match=r"i\.index: 1000 bytes, wanted 999\. .*epistream index URL"):
            blob.read(0, 999)


def test_range_blob_beyond_the_end_is_a_named_error(server: FaultyServer) -> None:
    blob = RangeBlob(part_of(f"{server.url}/s.tar", DATA), Remote(None, RetryOptions()), lambda size: None)
    with pytest.raises(FormatError, match=r"s\.tar: bytes \[5242957, 5242958\) asked for, it has 5242957"):
        blob.read(len(DATA), 1)


def test_fetch_of_a_local_file_that_was_truncated_names_it(tmp_path: Path, cache_path: Path) -> None:
    file = tmp_path / "s.tar"
    file.write_bytes(DATA[:-1])
    entry = Entry((part_of(str(file), DATA),))
    with (
        cache_of(cache_path) as cache,
        pytest.raises(SourceChangedError, match=rf"s\.tar: {len(DATA) - 1} bytes, wanted {len(DATA)}"),
    ):
        cache.open(entry)


def test_fetch_of_a_missing_local_file_names_it(tmp_path: Path, cache_path: Path) -> None:
    with cache_of(cache_path) as cache, pytest.raises(SourceError, match=r"none\.tar: No such file"):
        cache.open(Entry((Part(str(tmp_path / "none.tar"), 10, "0" * 32),)))


def test_fetch_through_fsspec_memory_file_system(cache_path: Path) -> None:
    import fsspec

    fs = fsspec.filesystem("memory")
    fs.pipe_file("/bucket/s.tar", DATA)
    with cache_of(cache_path) as cache, cache.open(Entry((part_of("memory://bucket/s.tar", DATA),))) as opened:
        assert bytes(opened.blobs[0].read(0, len(DATA))) == DATA
    fs.rm("/bucket/s.tar")


def test_entry_without_a_checksum_is_known_by_its_version(tmp_path: Path, cache_path: Path) -> None:
    file = tmp_path / "s.tar"
    entry = Entry((Part(str(file), 4),))
    with cache_of(cache_path) as cache:
        file.write_bytes(b"old!")
        with cache.open(entry) as opened:
            assert bytes(opened.blobs[0].read(0, 4)) == b"old!"
    file.write_bytes(b"new!")
    os.utime(file, ns=(1, 1))
    with cache_of(cache_path) as cache, cache.open(entry) as opened:
        assert bytes(opened.blobs[0].read(0, 4)) == b"new!"
