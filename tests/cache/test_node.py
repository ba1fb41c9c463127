"""Which tier serves what, and how the cache steps down: once, in words, with the numbers."""

import errno
import logging
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import xxhash
from web.faulty_server import FaultyServer, serve

from epistream.cache import routes
from epistream.cache.node import CacheOptions, CacheStats, NodeCache
from epistream.cache.source.entry import Entry, Part
from epistream.cache.store import places
from epistream.cache.store.budget import Budget
from epistream.errors import CacheError, OptionError, SourceError

MIB = 1 << 20
FILES = {f"/{i}.tar": np.random.default_rng(i).integers(0, 256, MIB, dtype=np.uint8).tobytes() for i in range(4)}


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with serve() as state:
        state.files = dict(FILES)
        yield state


@pytest.fixture(autouse=True)
def private_defaults(tmpfs_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default directories lie in the test's own places."""
    monkeypatch.setattr(places, "SHM_PARENT", tmpfs_path)
    monkeypatch.setattr(places, "DISK_PARENT", tmp_path)


def entry_of(server: FaultyServer, number: int) -> Entry:
    data = FILES[f"/{number}.tar"]
    return Entry((Part(f"{server.url}/{number}.tar", MIB, xxhash.xxh3_128_hexdigest(data)),))


def local_entry(path: Path) -> Entry:
    data = FILES["/0.tar"]
    path.write_bytes(data)
    return Entry((Part(str(path), MIB, xxhash.xxh3_128_hexdigest(data)),))


def check(cache: NodeCache, entry: Entry, number: int) -> str:
    with cache.open(entry) as opened:
        assert bytes(opened.blobs[0].read(0, MIB)) == FILES[f"/{number}.tar"]
        return opened.tier


def test_auto_reads_local_disks_in_place_and_keeps_remote_sources(server: FaultyServer, tmp_path: Path) -> None:
    with NodeCache(CacheOptions()) as cache:
        assert check(cache, local_entry(tmp_path / "a.tar"), 0) == "direct"
        assert cache.stats().reason.startswith("on a local file system")
        assert check(cache, entry_of(server, 0), 0) == "shm"
        assert check(cache, entry_of(server, 0), 0) == "shm"
        stats = cache.stats()
    assert (stats.direct, stats.fills, stats.hits, stats.bytes_fetched, stats.bypasses) == (1, 1, 1, MIB, 0)


def test_auto_keeps_network_file_systems_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = routes.file_system_type
    monkeypatch.setattr(routes, "file_system_type", lambda path: "nfs4" if path.suffix == ".tar" else real(path))
    with NodeCache(CacheOptions()) as cache:
        assert check(cache, local_entry(tmp_path / "a.tar"), 0) == "shm"
        assert "nfs4" in cache.stats().reason


@pytest.mark.parametrize(("mode", "tier"), [("off", "direct"), ("disk", "disk"), ("shm", "shm")])
def test_mode_says_where(server: FaultyServer, tmp_path: Path, mode: str, tier: str) -> None:
    with NodeCache(CacheOptions(mode=mode)) as cache:
        assert check(cache, entry_of(server, 1), 1) == tier
        assert check(cache, local_entry(tmp_path / "a.tar"), 0) == tier


def test_direct_remote_reads_are_counted_apart(server: FaultyServer) -> None:
    with NodeCache(CacheOptions(mode="off")) as cache, cache.open(entry_of(server, 1)) as opened:
        opened.blobs[0].read(5, 10)
        stats = cache.stats()
    assert (stats.bytes_ranged, stats.bytes_fetched) == (MIB, 0)


def test_too_small_shared_memory_steps_down_to_disk_and_says_so_once(
    server: FaultyServer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), NodeCache(CacheOptions(budget_bytes=MIB // 2)) as cache:
        for number in range(3):
            assert check(cache, entry_of(server, number), number) == "disk"
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 1
    assert "tier shm left aside" in messages[0]
    assert "0.5 MiB" in messages[0]
    assert "wanted 1.0 MiB for one shard" in messages[0]
    assert "Raise budget_bytes" in messages[0]


def test_too_small_disk_too_reads_directly(server: FaultyServer, caplog: pytest.LogCaptureFixture) -> None:
    options = CacheOptions(budget_bytes=MIB // 2, disk_budget_bytes=MIB // 4)
    with caplog.at_level(logging.WARNING), NodeCache(options) as cache:
        for number in range(3):
            assert check(cache, entry_of(server, number), number) == "direct"
        assert cache.stats().bypasses == 3
    assert len(caplog.records) == 2


def test_too_small_shared_memory_is_an_error_if_it_was_asked_for(server: FaultyServer) -> None:
    with (
        NodeCache(CacheOptions(mode="shm", budget_bytes=MIB // 2)) as cache,
        pytest.raises(CacheError, match=r"wanted 1\.0 MiB for one shard"),
    ):
        cache.open(entry_of(server, 0))


def test_unusable_directory_steps_down_or_is_an_error_if_it_was_asked_for(
    server: FaultyServer, tmpfs_path: Path
) -> None:
    (tmpfs_path / "file").touch()
    with NodeCache(CacheOptions(directory=str(tmpfs_path / "file"))) as cache:
        assert check(cache, entry_of(server, 0), 0) == "disk"
    with NodeCache(CacheOptions(mode="shm", directory=str(tmpfs_path / "file"))) as cache:
        for _ in range(2):
            with pytest.raises(CacheError, match="wanted a directory of our own"):
                cache.open(entry_of(server, 0))


def test_everything_leased_reads_directly_and_says_so_once(
    server: FaultyServer, caplog: pytest.LogCaptureFixture
) -> None:
    options = CacheOptions(mode="shm", budget_bytes=2 * MIB, room_timeout_s=0.01)
    with caplog.at_level(logging.WARNING), NodeCache(options) as cache:
        held = [cache.open(entry_of(server, number)) for number in (0, 1)]
        for number in (2, 3, 2):
            assert check(cache, entry_of(server, number), number) == "direct"
        assert cache.stats().bypasses == 3
        for opened in held:
            opened.close()
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 1
    assert "2.0 MiB held and too much of it leased, wanted 1.0 MiB more" in messages[0]


def test_directory_removed_by_somebody_else_costs_one_direct_read(server: FaultyServer, tmpfs_path: Path) -> None:
    with NodeCache(CacheOptions(mode="shm", directory=str(tmpfs_path / "c"))) as cache:
        opened = cache.open(entry_of(server, 0))
        for file in (tmpfs_path / "c").iterdir():
            file.unlink()
        (tmpfs_path / "c").rmdir()
        assert bytes(opened.blobs[0].read(0, MIB)) == FILES["/0.tar"]
        opened.close()
        assert check(cache, entry_of(server, 1), 1) == "direct"
        assert check(cache, entry_of(server, 1), 1) == "shm"


def test_disk_tier_keeps_what_leaves_memory(server: FaultyServer, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    options = CacheOptions(mode="auto", budget_bytes=2 * MIB, disk_directory=str(disk))
    with NodeCache(options) as cache:
        for _ in range(3):
            for number in range(4):
                assert check(cache, entry_of(server, number), number) == "shm"
        stats = cache.stats()
    assert stats.bytes_fetched == 4 * MIB, "each shard was fetched once, in three epochs with room for half"
    assert (stats.fills, stats.disk_hits) == (12, 8)
    assert len(list(disk.glob("*.shard"))) == 4, "it outlives the job"
    num_requests = len(server.requests)
    with NodeCache(options) as cache:
        check(cache, entry_of(server, 3), 3)
    assert len(server.requests) == num_requests


def test_disk_tier_that_was_damaged_is_fetched_again(server: FaultyServer, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    options = CacheOptions(disk_directory=str(disk))
    with NodeCache(options) as cache:
        check(cache, entry_of(server, 0), 0)
    (shard,) = disk.glob("*.shard")
    shard.write_bytes(bytes(MIB))
    with NodeCache(options) as cache:
        assert check(cache, entry_of(server, 0), 0) == "shm"
        assert cache.stats().bytes_fetched == MIB


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small tmpfs")
class TestSmallTmpfs:
    """A real tmpfs, as a container's /dev/shm: of 67 MiB, of which 64 are left to others."""

    @pytest.fixture
    def small(self, tmp_path: Path) -> Iterator[Path]:
        path = tmp_path / "small"
        path.mkdir()
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=67m", "none", str(path)], check=False)
        if mounted.returncode:
            pytest.skip("mount is not permitted here")
        yield path
        subprocess.run(["umount", "-l", str(path)], check=True)

    def test_budget_is_what_it_has(self, server: FaultyServer, small: Path) -> None:
        with NodeCache(CacheOptions(mode="shm", directory=str(small / "c"))) as cache:
            for number in (0, 1, 2, 3, 0, 1):
                assert check(cache, entry_of(server, number), number) == "shm"
                space = os.statvfs(small)
                budget = cache.budget()
                assert budget is not None
                assert budget.bytes <= 3 * MIB
                assert space.f_bavail * space.f_frsize >= 64 * MIB, "others find room, whatever the cache holds"
            assert cache.stats().evictions > 0

    def test_of_which_one_may_only_read_it_is_left_aside_or_an_error(
        self, server: FaultyServer, small: Path, tmp_path: Path
    ) -> None:
        (small / "c").mkdir(mode=0o700)  # left there by an earlier job
        subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
        disk = str(tmp_path / "disk")
        with NodeCache(CacheOptions(directory=str(small / "c"), disk_directory=disk)) as cache:
            assert check(cache, entry_of(server, 0), 0) == "disk"
        for path in (small / "c", small / "new"):
            with (
                NodeCache(CacheOptions(mode="shm", directory=str(path))) as cache,
                pytest.raises(CacheError, match=f"{path}: Read-only file system, wanted a directory"),
            ):
                cache.open(entry_of(server, 0))

    def test_filled_by_somebody_else_it_is_left_aside_without_a_bus_error(
        self, server: FaultyServer, small: Path
    ) -> None:
        with NodeCache(CacheOptions(directory=str(small / "c"), room_timeout_s=0.05)) as cache:
            assert check(cache, entry_of(server, 0), 0) == "shm"
            ballast = os.open(small / "ballast", os.O_WRONLY | os.O_CREAT)
            space = os.statvfs(small)
            os.posix_fallocate(ballast, 0, space.f_bavail * space.f_frsize)
            os.close(ballast)
            assert check(cache, entry_of(server, 0), 0) == "shm", "what is there stays usable"
            # Others have nothing left: it may have nothing more.
            assert check(cache, entry_of(server, 1), 1) == "disk"
            with cache.open(entry_of(server, 1)):
                assert check(cache, entry_of(server, 2), 2) in ("direct", "disk")

    def test_enospc_midway_leaves_nothing(
        self, server: FaultyServer, small: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # The budget says there is room, the file system says no.
        monkeypatch.setattr("epistream.cache.store.fill.measure", lambda *_: Budget(64 * MIB, {"cap": 64 * MIB}))
        with (small / "ballast").open("wb") as ballast:
            os.posix_fallocate(ballast.fileno(), 0, 64 * MIB)
        with NodeCache(CacheOptions(directory=str(small / "c"), room_timeout_s=0.05)) as cache:
            kept = [cache.open(entry_of(server, number)) for number in (0, 1)]
            assert check(cache, entry_of(server, 2), 2) in ("direct", "disk")
            assert list((small / "c").glob("*.part")) == []
            for opened in kept:
                opened.close()

    def test_of_64_mib_is_left_to_others_and_the_cure_is_said_once(
        self, server: FaultyServer, small: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        subprocess.run(["mount", "-o", "remount,size=64m", str(small)], check=True)
        monkeypatch.setattr(places, "SHM_PARENT", small)
        with caplog.at_level(logging.WARNING), NodeCache(CacheOptions()) as cache:
            for number in range(3):
                assert check(cache, entry_of(server, number), number) == "disk"
        (message,) = [record.getMessage() for record in caplog.records]
        assert "tier shm left aside, the next one is used" in message
        assert "a budget of 0.0 MiB (the least of: filesystem 0.0 MiB" in message
        assert "--shm-size in Docker" in message
        assert "64 MiB at least, is left to others" in message
        with (
            NodeCache(CacheOptions(mode="shm")) as cache,
            pytest.raises(CacheError, match="--shm-size"),
        ):
            cache.open(entry_of(server, 0))


def test_pages_that_cannot_be_had_are_a_step_down_and_not_a_crash(
    server: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with NodeCache(CacheOptions(room_timeout_s=0.0)) as cache:
        assert check(cache, entry_of(server, 0), 0) == "direct"


def test_open_in_place_of_a_second_part_that_is_missing_leaves_no_file_open(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"abc")
    entry = Entry((Part(str(tmp_path / "a.tar"), 3, "0" * 32), Part(str(tmp_path / "a.index"), 3, "0" * 32)))
    with NodeCache(CacheOptions(mode="off")) as cache, pytest.raises(SourceError, match=r"a\.index: No such file"):
        cache.open(entry)
    links = [os.path.realpath(fd) for fd in Path("/proc/self/fd").iterdir()]
    assert str(tmp_path / "a.tar") not in links


def test_before_wait_is_called_once_and_only_on_a_miss(server: FaultyServer) -> None:
    calls: list[int] = []
    with NodeCache(CacheOptions(budget_bytes=MIB // 2)) as cache:  # both tiers are tried
        cache.open(entry_of(server, 0), lambda: calls.append(1)).close()
        cache.open(entry_of(server, 0), lambda: calls.append(2)).close()
    assert calls == [1, 2]
    calls.clear()
    with NodeCache(CacheOptions()) as cache:
        cache.open(entry_of(server, 0), lambda: calls.append(1)).close()
        cache.open(entry_of(server, 0), lambda: calls.append(2)).close()
    assert calls == [1]


def test_storage_options_may_be_given_per_protocol(server: FaultyServer) -> None:
    for options in ({"headers": {"X-Who": "me"}}, {"http": {"headers": {"X-Who": "me"}}, "s3": {"anon": True}}):
        with NodeCache(CacheOptions(), options) as cache:
            check(cache, entry_of(server, 0), 0)


def test_stats_add_up() -> None:
    total = CacheStats(hits=1, fill_seconds=0.5) + CacheStats(hits=2, fills=1, tier="shm", reason="asked for")
    assert (total.hits, total.fills, total.fill_seconds, total.tier) == (3, 1, 0.5, "shm")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "ram"}, "cache mode: 'ram', wanted one of auto, shm, disk, off"),
        ({"memory_fraction": 0}, "memory_fraction: 0, wanted above 0"),
        ({"memory_fraction": 1.5}, "memory_fraction: 1.5"),
        ({"budget_bytes": -1}, "budget_bytes: -1"),
        ({"disk_budget_bytes": -1}, "disk_budget_bytes: -1"),
        ({"room_timeout_s": -1}, "room_timeout_s: -1"),
        ({"attempts": 0}, "attempts: 0"),
        ({"parallel_requests": 0}, "parallel_requests: 0"),
    ],
)
def test_options_refuse_nonsense(changes: dict, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        CacheOptions(**changes)
