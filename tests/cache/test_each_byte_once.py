"""Cold reads and fills together bring each byte once per node, and never a wrong one to a reader."""

import errno
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
import xxhash
from cache_actors import DEADLINE_S
from partial_actors import block_sums, cold_epochs_of, read_blocks
from web.faulty_server import FaultyServer, asked_bytes, serve

from epistream.cache.admin import clear, look
from epistream.cache.node import CacheOptions, NodeCache
from epistream.cache.source import ranged
from epistream.cache.source.entry import Entry, Part
from epistream.cache.store.partial import GRANULE_BYTES, SharedPart
from epistream.errors import ChecksumError

BLOCK = GRANULE_BYTES
DATA = np.random.default_rng(5).integers(0, 256, (3, 21 * BLOCK + 5), dtype=np.uint8)
DATAS = [row.tobytes() for row in DATA]
INDEX_BYTES = 2 * BLOCK + 77
TOTAL = sum(map(len, DATAS)) + 3 * INDEX_BYTES


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with serve() as state:
        for number, data in enumerate(DATAS):
            state.files |= {f"/{number}.tar": data, f"/{number}.index": data[:INDEX_BYTES]}
        yield state


def entry_of(server: FaultyServer, number: int, **changes: object) -> Entry:
    data = DATAS[number]
    parts = (("tar", data), ("index", data[:INDEX_BYTES]))
    facts = [
        {"url": f"{server.url}/{number}.{kind}", "size": len(held), "checksum": xxhash.xxh3_128_hexdigest(held)}
        for kind, held in parts
    ]
    return Entry(tuple(Part(**{**fact, **changes}) for fact in facts))  # type: ignore[arg-type]


def options(path: Path, **more: object) -> CacheOptions:
    return CacheOptions(mode="shm", directory=str(path), **more)  # type: ignore[arg-type]


def read_whole(cache: NodeCache, server: FaultyServer, number: int) -> bool:
    with cache.open(entry_of(server, number)) as opened:
        tar, index = opened.blobs
        return bytes(tar.read(0, tar.size)) == DATAS[number] and bytes(index.read(0, index.size)) == tar.read(
            0, INDEX_BYTES
        )


@pytest.mark.parametrize("num_processes", [1, 8])
def test_processes_of_a_node_fetch_each_byte_once_and_no_byte_in_a_second_epoch(server, cache_path, num_processes):
    entries = [entry_of(server, number) for number in range(3)]
    wrong, fetched, by_ranges = cold_epochs_of(num_processes, cache_path, entries, DATAS)
    assert wrong == 0
    assert asked_bytes(server) == TOTAL
    assert fetched + by_ranges == TOTAL
    assert by_ranges > 0
    assert sorted(file.suffix for file in cache_path.iterdir() if len(file.stem) == 32) == [".shard"] * 3


def test_blocks_that_one_reader_brought_cost_the_next_one_nothing(server, cache_path):
    draw = np.random.default_rng(1)
    with NodeCache(options(cache_path)) as one, NodeCache(options(cache_path)) as other:
        assert read_blocks(one, entry_of(server, 0), DATAS[0], np.random.default_rng(3))
        brought = asked_bytes(server)
        assert 0 < brought < len(DATAS[0]) + INDEX_BYTES
        assert read_blocks(other, entry_of(server, 0), DATAS[0], np.random.default_rng(3))
        assert asked_bytes(server) == brought == one.stats().bytes_ranged
        assert read_blocks(other, entry_of(server, 0), DATAS[0], draw)
        assert read_whole(other, server, 0)
        assert asked_bytes(server) == len(DATAS[0]) + INDEX_BYTES
        total = one.stats() + other.stats()
        assert total.bytes_ranged + total.bytes_fetched == asked_bytes(server)
        assert (total.cold, total.fills, total.refetches) == (3, 1, 0)


def test_wrong_block_of_the_server_is_told_to_nobody(server, cache_path):
    server.plan = lambda path, number: "wrong" if path.endswith(".tar") else None
    with NodeCache(options(cache_path)) as cache:
        with cache.open(entry_of(server, 0), wait=False) as opened:
            tar, index = opened.blobs
            index.read(0, index.size)
            tar.check_with(block_sums(DATAS[0]), BLOCK)
            with pytest.raises(ChecksumError, match="block 3"):
                tar.read(3 * BLOCK, 9)
        (have,) = cache_path.glob("*.have")
        assert have.read_bytes() == bytes(22) + b"\1\1\1"
        server.plan = lambda path, number: None
        assert read_whole(cache, server, 0)
        assert cache.stats().refetches == 0


def test_wrong_bytes_of_a_fill_never_reach_a_cold_reader_and_are_all_fetched_again(server, cache_path):
    server.plan = lambda path, number: "wrong" if number < 2 and path.endswith(".tar") else None
    read: list[bool] = []

    def observe(step: str) -> None:
        if step == "share.flagged" and not read:
            read.append(False)
            read[0] = read_blocks(other, entry_of(server, 0), DATAS[0], np.random.default_rng(0))

    with NodeCache(options(cache_path)) as other, NodeCache(options(cache_path), observe=observe) as cache:
        assert read_whole(cache, server, 0)
        assert read == [True]
        assert cache.stats().refetches == 1
    assert not cache_path.exists()


def test_bytes_that_are_taken_back_just_before_they_are_read_are_brought_again(server, cache_path, monkeypatch):
    with NodeCache(options(cache_path)) as cache:
        assert read_blocks(cache, entry_of(server, 0), DATAS[0], np.random.default_rng(0))
        asked = asked_bytes(server)
        real = SharedPart.turn

        @contextmanager
        def turn(shared, *wanted):
            with real(shared, *wanted) as runs:
                yield runs
            if wanted[1] - wanted[0] == BLOCK:
                shared.clear()  # by a fill, which found that it was wrong

        monkeypatch.setattr(SharedPart, "turn", turn)
        with cache.open(entry_of(server, 0), wait=False) as opened:
            tar = opened.blobs[0]
            tar.check_with(block_sums(DATAS[0]), BLOCK)
            first = next(b for b in range(4) if not tar._absent_blocks(b, b))
            assert bytes(tar.read(first * BLOCK, BLOCK)) == DATAS[0][first * BLOCK : (first + 1) * BLOCK]
        assert asked_bytes(server) == asked, "they are right after all"


def test_damaged_bytes_of_a_partial_entry_are_noticed_by_readers_and_fillers(server, cache_path):
    with NodeCache(options(cache_path)) as cache:
        assert read_blocks(cache, entry_of(server, 0), DATAS[0], np.random.default_rng(0))
        (part,) = cache_path.glob("*.part")
        with part.open("r+b") as file:
            file.write(bytes(len(DATAS[0]) + INDEX_BYTES))
        assert read_blocks(cache, entry_of(server, 0), DATAS[0], np.random.default_rng(0))
        assert read_whole(cache, server, 0)
        assert cache.stats().refetches == 2


def test_full_file_system_makes_cold_readers_read_alone(server, cache_path, monkeypatch):
    with NodeCache(options(cache_path)) as cache:
        with closing(cache.open(entry_of(server, 0), wait=False)) as opened, monkeypatch.context() as patch:
            tar = opened.blobs[0]
            tar.check_with(block_sums(DATAS[0]), BLOCK)

            def full(*arguments):
                raise OSError(errno.ENOSPC, "No space left on device")

            patch.setattr(os, "pwrite", full)
            assert bytes(tar.read(BLOCK - 3, 9)) == DATAS[0][BLOCK - 3 : BLOCK + 6]
            assert asked_bytes(server) == 2 * BLOCK
        (have,) = cache_path.glob("*.have")
        assert have.read_bytes() == bytes(25)
        assert read_whole(cache, server, 0)


def test_full_file_system_that_keeps_flags_out_does_not_keep_a_fill_from_its_end(server, cache_path, monkeypatch):
    monkeypatch.setattr("epistream.cache.store.partial.Partial.set_flags", lambda *arguments: None)
    with NodeCache(options(cache_path)) as cache:
        assert read_blocks(cache, entry_of(server, 0), DATAS[0], np.random.default_rng(0))
        assert read_whole(cache, server, 0)


@pytest.mark.parametrize("changes", [{"checksum": None, "version": "7"}, {"block_bytes": BLOCK // 2}])
def test_what_cannot_be_shared_is_read_by_ranges_of_ones_own(server, cache_path, changes):
    entry = entry_of(server, 0, **changes)
    half = BLOCK // 2
    pieces = [DATAS[0][at : at + half] for at in range(0, len(DATAS[0]), half)]
    sums = np.array([xxhash.xxh3_64_intdigest(piece) for piece in pieces], np.uint64)
    with NodeCache(options(cache_path)) as cache:
        for _ in range(2):
            server.requests.clear()
            with cache.open(entry, wait=False) as opened:
                tar = opened.blobs[0]
                tar.check_with(sums, half)
                assert bytes(tar.read(BLOCK, 9)) == DATAS[0][BLOCK : BLOCK + 9]
            assert len(server.requests) == 1


def test_cold_reads_above_a_disk_tier_are_not_shared(server, tmp_path, cache_path):
    with NodeCache(options(cache_path, disk_directory=tmp_path / "disk")) as cache:
        assert read_blocks(cache, entry_of(server, 0), DATAS[0], np.random.default_rng(0))
        assert not list(cache_path.glob("*.part"))
        assert read_whole(cache, server, 0)


def test_a_disk_alone_shares_as_memory_does(server, tmp_path):
    with NodeCache(CacheOptions(mode="disk", disk_directory=tmp_path / "disk")) as cache:
        assert read_blocks(cache, entry_of(server, 0), DATAS[0], np.random.default_rng(0))
        assert read_whole(cache, server, 0)
        assert asked_bytes(server) == len(DATAS[0]) + INDEX_BYTES


def test_a_holder_who_does_not_come_is_waited_for_once(server, cache_path, monkeypatch):
    monkeypatch.setattr(ranged, "_PATIENCE_S", 0.05)
    with NodeCache(options(cache_path)) as cache, cache.open(entry_of(server, 0), wait=False) as opened:
        tar, index = opened.blobs
        held = cache._use().tiers.store_of(entry_of(server, 0))
        assert held is not None
        entry = entry_of(server, 0)
        places = [(offset, part.size) for offset, part in zip(entry.offsets, entry.parts, strict=True)]
        with closing(held.joining.share(entry.key, places)) as stopped:
            shared = stopped.parts[0]
            with shared.turn(0, 8 * BLOCK, BLOCK, 0.0), stopped.parts[1].turn(0, INDEX_BYTES, BLOCK, 0.0):
                assert bytes(index.read(0, index.size)) == DATAS[0][:INDEX_BYTES]
                tar.check_with(block_sums(DATAS[0]), BLOCK)
                assert bytes(tar.read(5, 9)) == DATAS[0][5:14]
                assert tar._patience_s < 0.05
                assert shared.absent(0, 8 * BLOCK) == [(BLOCK, 8 * BLOCK)], "who waited leaves it to others"


def test_cache_ls_knows_partial_entries_and_clear_removes_those_that_nobody_uses(server, cache_path):
    entry = entry_of(server, 0)
    with NodeCache(options(cache_path)) as cache:
        assert read_blocks(cache, entry, DATAS[0], np.random.default_rng(0))
        (row,) = look(cache_path).entries
        assert (row.key, row.state, row.size, row.pids) == (entry.key, "partial", entry.size, ())
        assert 0 <= row.idle_s < DEADLINE_S
        with cache.open(entry, wait=False):
            (row,) = look(cache_path).entries
            assert (row.state, row.pids) == ("partial", (os.getpid(),))
            assert clear(cache_path, forget=False) == 0
        assert clear(cache_path, forget=False) >= entry.size
        assert look(cache_path).entries == ()
        assert not list(cache_path.glob("*.have"))


def test_partial_entries_of_a_kept_directory_outlive_their_readers(server, cache_path):
    with NodeCache(options(cache_path, keep=True)) as cache:
        assert read_blocks(cache, entry_of(server, 0), DATAS[0], np.random.default_rng(0))
    with NodeCache(options(cache_path, keep=True)) as cache:
        assert read_whole(cache, server, 0)
    assert asked_bytes(server) == len(DATAS[0]) + INDEX_BYTES
