"""A cold start: the first bytes come by checked ranges, and later ones from the cache."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import xxhash
from web.faulty_server import FaultyServer, serve

from epistream.cache.node import CacheOptions, NodeCache
from epistream.cache.source.entry import Entry, Part
from epistream.cache.source.ranged import RangeBlob
from epistream.cache.source.remote import Remote, RetryOptions
from epistream.errors import ChecksumError

MIB = 1 << 20
DATA = np.random.default_rng(5).integers(0, 256, 40 * MIB + 5, dtype=np.uint8).tobytes()
INDEX = DATA[:5000]
SUMS = np.array([xxhash.xxh3_64_intdigest(DATA[i : i + MIB]) for i in range(0, len(DATA), MIB)], np.uint64)


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with serve() as state:
        state.files = {"/s.tar": DATA, "/s.index": INDEX}
        yield state


def entry_of(server: FaultyServer) -> Entry:
    return Entry(
        (
            Part(f"{server.url}/s.tar", len(DATA), xxhash.xxh3_128_hexdigest(DATA)),
            Part(f"{server.url}/s.index", len(INDEX), xxhash.xxh3_128_hexdigest(INDEX)),
        )
    )


def test_open_without_waiting_reads_ranges_until_the_entry_is_there(server: FaultyServer, cache_path: Path) -> None:
    entry = entry_of(server)
    with NodeCache(CacheOptions(mode="shm", directory=str(cache_path))) as cache:
        with cache.open(entry, wait=False) as opened:
            tar, index = opened.blobs
            assert bytes(index.read(0, len(INDEX))) == INDEX
            assert isinstance(tar, RangeBlob)
            tar.check_with(SUMS, MIB)
            assert bytes(tar.read(7 * MIB + 3, 9)) == DATA[7 * MIB + 3 : 7 * MIB + 12]
        stats = cache.stats()
        assert (stats.cold, stats.fills, stats.bypasses) == (1, 0, 0)
        assert stats.bytes_ranged == MIB + len(INDEX), "one block and the index"
        cache.open(entry).close()
        with cache.open(entry, wait=False) as opened:
            assert opened.tier == "shm"
        stats = cache.stats()
        assert (stats.cold, stats.fills, stats.hits) == (1, 1, 1)


def test_wrong_bytes_of_a_cold_start_never_reach_the_reader(server: FaultyServer, cache_path: Path) -> None:
    server.plan = lambda path, number: "wrong"
    with (
        NodeCache(CacheOptions(mode="shm", directory=str(cache_path))) as cache,
        cache.open(entry_of(server), wait=False) as opened,
    ):
        tar, index = opened.blobs
        with pytest.raises(ChecksumError, match=r"s\.index: checksum [0-9a-f]{32} twice"):
            index.read(0, len(INDEX))
        assert isinstance(tar, RangeBlob)
        tar.check_with(SUMS, MIB)
        with pytest.raises(ChecksumError, match=r"s\.tar: block 3 "):
            tar.read(3 * MIB, 5)


def test_wanted_ranges_are_brought_once_each_and_kept(server: FaultyServer) -> None:
    blob = RangeBlob(entry_of(server).parts[0], Remote(None, RetryOptions()), lambda size: None)
    blob.check_with(SUMS, MIB)
    starts = np.array([i * MIB + 100 for i in range(0, 40, 2)] * 2)
    starts[-1] = 38 * MIB - 10  # over a border
    runs = blob.runs_of(starts, np.full(len(starts), 50))
    assert runs == [(i, i) for i in [*range(0, 38, 2), 37, 38]]
    for first, last in runs:
        blob.bring(first, last)
    assert len(server.requests) == 21
    out = np.zeros((len(starts), 50), np.uint8)
    blob.gather(starts, out)
    assert [row.tobytes() for row in out] == [DATA[start : start + 50] for start in starts]
    assert len(server.requests) == 21
    assert blob.runs_of(np.array([], np.int64), np.array([], np.int64)) == []


def test_small_blocks_that_lie_near_each_other_are_one_request(server: FaultyServer) -> None:
    blob = RangeBlob(entry_of(server).parts[0], Remote(None, RetryOptions()), lambda size: None)
    blob.check_with(np.zeros(len(DATA) // 65536 + 1, np.uint64), 65536)
    blocks = np.array([0, 1, 4, 8, *range(100, 120)])
    runs = blob.runs_of(blocks * 65536, np.ones(len(blocks), np.int64))
    # A gap of two blocks is read over, one of three is not; and no request is longer than 1 MiB.
    assert runs == [(0, 4), (8, 8), (100, 115), (116, 119)]
