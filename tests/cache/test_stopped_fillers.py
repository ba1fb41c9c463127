"""Processes that are stopped (SIGSTOP) while they bring or make something: who needs it waits once, not each batch."""

import multiprocessing.process
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import xxhash
from cache_actors import DEADLINE_S, context
from hdf5_files import aloha_raw
from partial_actors import FreezeAt
from web.faulty_server import FaultyServer, serve

import epistream as es
from epistream.cache.node import CacheOptions, NodeCache
from epistream.cache.source import ranged
from epistream.cache.source.entry import Entry, Part
from epistream.cache.store import joining
from epistream.cache.store.locks import pauses
from epistream.cache.store.partial import GRANULE_BYTES
from epistream.cache.store.store import ShardStore
from epistream.errors import DeadlineError
from epistream.loader.frames.kept_arrays import KeptArrays
from epistream.loader.shards.shard_entry import shard_entry

SHORT_S = 0.05
BLOCK = 2 * GRANULE_BYTES
DATA = np.random.default_rng(3).integers(0, 256, 24 * GRANULE_BYTES + 11, dtype=np.uint8).tobytes()
INDEX = DATA[: GRANULE_BYTES + 5]
SHAPES = {"a": (np.dtype("<i4"), (5, 2))}
Process = multiprocessing.process.BaseProcess


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranged, "_PATIENCE_S", SHORT_S)
    monkeypatch.setattr(joining, "_BEGIN_S", SHORT_S)


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with serve() as state:
        state.files |= {"/s.tar": DATA, "/s.index": INDEX}
        yield state


def options(path: Path, **more: object) -> CacheOptions:
    return CacheOptions(**{"mode": "shm", "directory": str(path), "fill_timeout_s": SHORT_S, **more})  # type: ignore[arg-type]


def shard(server: FaultyServer) -> Entry:
    held = {"/s.tar": DATA, "/s.index": INDEX}
    return Entry(tuple(Part(server.url + n, len(d), xxhash.xxh3_128_hexdigest(d)) for n, d in held.items()))


def made(number: int) -> Entry:
    return Entry((Part("/nowhere/0.tar", 10, "0" * 32),), f"made {number}", "group")


class Stopped:
    """A process that does something with a cache, and is stopped at a step of that, until the block ends."""

    def __init__(self, action, *arguments: object, options: CacheOptions, step: str) -> None:
        self._ours, theirs = multiprocessing.Pipe()
        cache = NodeCache(options, observe=FreezeAt(step, theirs))
        self.process = context().Process(target=action, args=(cache, *arguments), daemon=True)

    def __enter__(self) -> "Stopped":
        self.process.start()
        assert self._ours.poll(DEADLINE_S)
        assert self._ours.recv() == self.process.pid
        for _ in pauses(time.monotonic() + DEADLINE_S):  # it tells just before
            if Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T":
                return self
        raise AssertionError("it was not stopped")

    def goes_on(self) -> int | None:
        """Its exit code, after SIGCONT."""
        os.kill(self.process.pid or 0, signal.SIGCONT)
        self.process.join(DEADLINE_S)
        return self.process.exitcode

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.join(DEADLINE_S)


def open_whole(cache: NodeCache, entry: Entry) -> None:
    cache.open(entry).close()
    cache.close()


def make(cache: NodeCache, entry: Entry) -> None:
    opened = cache.open_made(entry, 40, lambda view: None)
    assert opened is not None
    opened.close()
    cache.close()


def read_batches(cache: NodeCache, entry: Entry, num_batches: int, shift: int) -> None:
    """Read rows all over a shard, which is opened anew for each batch, and compare them."""
    for batch in range(num_batches):
        with cache.open(entry, wait=False) as opened:
            tar, index = opened.blobs
            assert bytes(index.read(0, index.size)) == INDEX
            tar.check_with(block_sums_of(DATA), BLOCK)
            starts = np.arange(3) * 8 * GRANULE_BYTES + (batch + shift) * BLOCK % (8 * GRANULE_BYTES)
            for request in [*tar.requests(starts, np.full(3, 9)), *tar.requests_left()]:
                request()
            assert [bytes(tar.read(at, 9)) for at in starts.tolist()] == [DATA[at : at + 9] for at in starts.tolist()]


def block_sums_of(data: bytes) -> np.ndarray:
    parts = (data[at : at + BLOCK] for at in range(0, len(data), BLOCK))
    return np.array([xxhash.xxh3_64_intdigest(part) for part in parts], np.uint64)


@pytest.mark.parametrize("step", ["share.locked", "share.fetched", "share.written"])
def test_rows_of_a_shard_whose_filler_is_stopped_cost_all_readers_one_wait(server, cache_path, step):
    """The filler holds a piece of the tar that six batches read from; the others, and other processes, know of it."""
    steps: list[str] = []
    entry = shard(server)
    with Stopped(open_whole, entry, options=options(cache_path), step=step) as filler:
        with NodeCache(options(cache_path), observe=steps.append) as cache:
            read_batches(cache, entry, 6, shift=0)
        with NodeCache(options(cache_path), observe=steps.append) as another:
            read_batches(another, entry, 6, shift=2)
            assert another.stats().bytes_ranged == 0 or steps.count("share.in_vain") == 1
        assert steps.count("share.in_vain") == 1
        assert filler.goes_on() == 0
    with NodeCache(options(cache_path)) as cache, cache.open(entry) as opened:
        assert bytes(opened.blobs[0].read(0, len(DATA))) == DATA


def test_who_was_told_of_a_stopped_filler_still_shares_what_others_bring(server, cache_path):
    entry = shard(server)
    with (
        Stopped(open_whole, entry, options=options(cache_path), step="share.fetched"),
        NodeCache(options(cache_path)) as cache,
        NodeCache(options(cache_path)) as another,
    ):
        read_batches(cache, entry, 4, shift=0)
        num_requests = len(server.requests)
        read_batches(another, entry, 4, shift=0)
        assert len(server.requests) == num_requests, "all of it was left to others, what was waited for in vain too"


def test_filler_that_is_stopped_before_it_shares_anything_is_waited_for_once(server, cache_path):
    steps: list[str] = []
    entry = shard(server)
    with Stopped(open_whole, entry, options=options(cache_path), step="fill.allocated") as filler:
        for _ in range(2):
            with NodeCache(options(cache_path), observe=steps.append) as cache:
                read_batches(cache, entry, 4, shift=0)
        assert steps.count("begin.in_vain") == 1
        assert filler.goes_on() == 0
        with NodeCache(options(cache_path)) as cache, cache.open(entry) as opened:
            assert (opened.tier, bytes(opened.blobs[0].read(0, len(DATA)))) == ("shm", DATA)


@pytest.mark.parametrize("step", ["fill.allocated", "fill.verified"])
def test_what_a_stopped_process_makes_keeps_nothing_else_from_being_made(cache_path, step):
    clock = [100.0]
    steps: list[str] = []
    with (
        Stopped(make, made(0), options=options(cache_path), step=step) as maker,
        NodeCache(options(cache_path), observe=steps.append) as cache,
    ):
        kept = KeptArrays(cache, 8, lambda: clock[0])

        def fill(arrays):
            arrays["a"][:] = 7

        for _ in range(3):
            kept.begin_batch()
            assert kept.open(0, lambda: made(0), SHAPES, fill, may_evict=True) is None
            assert kept.is_busy(0)
            assert kept.may_make
            for number in (1, 2):
                found = kept.get(number) or kept.open(
                    number, lambda number=number: made(number), SHAPES, fill, may_evict=True
                )
                assert found.arrays["a"].tolist() == [[7, 7]] * 5
            clock[0] += 1.0
        assert "turn.poll" not in steps, "nobody waits"
        assert maker.goes_on() == 0
        kept.begin_batch()
        assert kept.open(0, lambda: made(0), SHAPES, fill, may_evict=True).arrays["a"].tolist() == [[0, 0]] * 5
        kept.close()


@pytest.mark.parametrize("step", ["fill.allocated", "fill.verified"])
def test_episodes_of_hdf5_that_a_stopped_process_fills_cost_one_wait_and_are_right(
    tmp_path, cache_path, monkeypatch, step
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    path = aloha_raw(tmp_path / "in" / "a.hdf5", 12)
    entry = shard_entry(es.open_dataset(str(path)), 0)
    with h5py.File(path) as file:
        wanted = file["action"][:].astype("<f4").tobytes()
    waits = count_waits(monkeypatch)
    given_up: list[int] = []
    with (
        Stopped(open_whole, entry, options=options(cache_path), step=step) as filler,
        NodeCache(options(cache_path)) as cache,
    ):
        for batch in range(6):
            with cache.open(entry, lambda: given_up.append(1), wait=batch % 2 == 0) as opened:
                assert opened.tier == "direct"
                assert wanted in bytes(opened.blobs[0].read(0, opened.blobs[0].size))
        assert (len(waits), len(given_up)) == (1, 1)
        assert filler.goes_on() == 0
        with cache.open(entry) as opened:
            assert opened.tier == "shm"
            assert wanted in bytes(opened.blobs[0].read(0, opened.blobs[0].size))


def test_filler_that_is_stopped_on_its_way_through_the_disk_is_waited_for_once_in_all(
    server, tmp_path, cache_path, monkeypatch
):
    waits = count_waits(monkeypatch)
    both = options(cache_path, mode="auto", disk_directory=str(tmp_path / "disk"))
    entry = shard(server)
    # Two fills are stopped by the signal, that of memory and, in it, that of the disk.
    with Stopped(open_whole, entry, options=both, step="fill.verified"), NodeCache(both) as cache:
        for _ in range(4):
            with cache.open(entry) as opened:
                assert bytes(opened.blobs[0].read(0, len(DATA))) == DATA
        assert len(waits) == 1, waits


def test_room_that_a_stopped_process_holds_is_waited_for_once(tmp_path, cache_path):
    def local(number: int) -> Entry:
        path = tmp_path / f"{number}.tar"
        path.write_bytes(bytes([number]) * 5000)
        return Entry((Part(str(path), 5000, xxhash.xxh3_128_hexdigest(path.read_bytes())),))

    steps: list[str] = []
    small = options(cache_path, budget_bytes=2 * 4096, room_timeout_s=SHORT_S)
    with (
        Stopped(open_whole, local(0), options=small, step="fill.verified") as filler,
        NodeCache(small, observe=steps.append) as cache,
    ):
        for number in range(1, 5):
            before = steps.count("room.wait")
            with cache.open(local(number)) as opened:
                assert (opened.tier, bytes(opened.blobs[0].read(0, 3))) == ("direct", bytes([number]) * 3)
            looks = steps.count("room.wait") - before
            assert looks == 1 if number > 1 else looks > 1, "only the first one waits"
        assert filler.goes_on() == 0
        with cache.open(local(9)) as opened:
            assert opened.tier == "shm"


def count_waits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Told each wait for a fill that ran into its deadline."""
    waits: list[str] = []
    wait = ShardStore._wait_fill_lock

    def counted(store: ShardStore, key: str, size: int) -> object:
        try:
            return wait(store, key, size)
        except DeadlineError as error:
            waits.append(str(error))
            raise

    monkeypatch.setattr(ShardStore, "_wait_fill_lock", counted)
    return waits
