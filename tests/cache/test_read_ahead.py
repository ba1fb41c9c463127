"""Reading ahead on local disks: what is read in which order, how much, and when nothing is."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_disk import FakeDisk
from machine.waiting import wait_until

from epistream.cache import read_ahead, routes
from epistream.cache.ahead_board import AheadBoard
from epistream.cache.node import CacheOptions, NodeCache
from epistream.cache.read_ahead import FileRange, Places, ReadAhead, local_ranges
from epistream.cache.source import local
from epistream.cache.source.entry import Entry, Part
from epistream.cache.stats import Counters
from epistream.cgroups import System

MIB = 1 << 20
TAR = 3 * MIB + 1000
INDEX = 5000
# In which the plan needs them; all files lie in the order of their names.
ORDER = [4, 1, 3, 0, 2, 5]


@pytest.fixture
def places(tmp_path: Path) -> dict[int, Places]:
    made = {}
    for number in ORDER:
        index, tar = tmp_path / f"{number}.index", tmp_path / f"{number}.tar"
        index.write_bytes(bytes(INDEX))
        tar.write_bytes(bytes(TAR))
        made[number] = (FileRange(index, 0, INDEX), FileRange(tar, 0, TAR))
    return made


@pytest.fixture
def boards(places: dict[int, Places]) -> Iterator[tuple[AheadBoard, AheadBoard]]:
    """The leader's and a reader's."""
    made = AheadBoard(places[0][0].path), AheadBoard(places[0][0].path)
    assert made[0].try_lead()
    yield made
    for board in made:
        board.close()


def machine(tmp_path: Path, available: int) -> System:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text(f"MemAvailable: {available >> 10} kB\n")
    return System(tmp_path / "proc", tmp_path)


def reader_ahead(places: dict[int, Places], ahead: int = 6, system: System | None = None) -> ReadAhead:
    uses = iter([(number, places[number]) for number in ORDER])
    return ReadAhead(places[0][0].path, uses, ahead, Counters(), system)


def work(reader: ReadAhead, board: AheadBoard, passed: int = 0) -> None:
    for _ in range(200):
        if not reader.step(board, passed):
            return
    raise AssertionError("it never rests")


def whole(disk: FakeDisk) -> list[str]:
    """Names of the files that were read to their ends, in that order."""
    return [name for name, offset, size in disk.read if offset + size == (TAR if name.endswith(".tar") else INDEX)]


def test_slow_disk_is_read_whole_shard_by_shard_indexes_first_and_in_the_order_of_the_files(
    places, boards, monkeypatch
) -> None:
    disk = FakeDisk(read_s=0.008).install(monkeypatch)
    reader = reader_ahead(places, ahead=6)
    work(reader, boards[0])
    # Three are in use, and lie in this order; the others come as the plan needs them.
    expected = [1, 3, 4, 0, 2, 5]
    assert whole(disk) == [name for n in expected for name in (f"{n}.index", f"{n}.tar")]
    assert disk.cached == {
        (f.path.name, page) for p in places.values() for f in p for page in range(-(-f.stop // 4096))
    }
    stats = reader._counters.snapshot()
    assert stats.bytes_ahead == 6 * (TAR + INDEX)
    assert stats.disk.endswith("in sequence: shards are read ahead whole")
    assert stats.disk.startswith("8.7 ms a read, ")


def test_every_piece_is_advised_before_it_is_read_and_never_past_the_end(places, boards, monkeypatch) -> None:
    disk = FakeDisk(read_s=0.008).install(monkeypatch)
    work(reader_ahead(places), boards[0])
    for number in ORDER:
        mine = [(offset, size) for name, offset, size in disk.advised if name == f"{number}.tar"]
        assert mine == [(0, MIB), (MIB, MIB), (2 * MIB, MIB), (3 * MIB, 1000)]


def test_fast_disk_is_only_tried_and_advised(places, boards, monkeypatch) -> None:
    disk = FakeDisk(read_s=0.0001, bytes_per_s=3e9).install(monkeypatch)
    reader = reader_ahead(places)
    work(reader, boards[0])
    assert {size for _, _, size in disk.read} == {64 << 10}
    assert len(disk.read) == 6, "one of each shard"
    stats = reader._counters.snapshot()
    assert (stats.bytes_ahead, stats.disk) == (0, "0.1 ms a read: read where and when needed")
    assert boards[1].told() is None


def test_files_in_the_page_cache_cost_a_probe_each_and_no_read(places, boards, monkeypatch) -> None:
    disk = FakeDisk(read_s=0.008).install(monkeypatch)
    for files in places.values():
        for file in files:
            disk.keep(file.path)
    reader = reader_ahead(places)
    work(reader, boards[0])
    assert (disk.read, disk.advised) == ([], [])
    # Those that try the disk find all at hand, at four places of each shard; then a shard is two probes.
    assert disk.num_probes == 4 * 6 + 2 * 6
    assert (boards[1].told(), reader._counters.snapshot().disk) == (None, "")


def test_second_pass_over_files_in_the_page_cache_reads_nothing(places, boards, monkeypatch) -> None:
    disk = FakeDisk(read_s=0.008).install(monkeypatch)
    uses = iter([(number, places[number]) for number in ORDER * 2])
    reader = ReadAhead(places[0][0].path, uses, 6, Counters())
    work(reader, boards[0])
    num_reads, num_probes = len(disk.read), disk.num_probes
    work(reader, boards[0], passed=6)
    assert len(disk.read) == num_reads
    assert disk.num_probes == num_probes + 6 * 8, "four places of two files"


def test_disk_that_becomes_slow_is_read_ahead_from_then_on(places, boards, monkeypatch) -> None:
    disk = FakeDisk(read_s=0.0001, bytes_per_s=1e9).install(monkeypatch)
    uses = iter([(number, places[number]) for number in ORDER])
    reader = ReadAhead(places[0][0].path, uses, 1, Counters())
    work(reader, boards[0])
    disk.read_s = 0.002  # a volume whose credit is used up
    for passed in range(1, 6):
        work(reader, boards[0], passed)
    assert whole(disk)[-2:] == ["5.index", "5.tar"]
    assert boards[1].told() is not None


def test_no_more_is_read_ahead_than_half_of_the_memory_that_is_left(places, boards, monkeypatch, tmp_path) -> None:
    disk = FakeDisk(read_s=0.008).install(monkeypatch)
    reader = reader_ahead(places, ahead=6, system=machine(tmp_path, available=2 * (2 * TAR)))
    work(reader, boards[0])
    read = {name for name in whole(disk) if name.endswith(".tar")}
    assert read == {"4.tar", "1.tar"}, "the first two that the plan needs"
    work(reader, boards[0], passed=1)
    assert {name for name in whole(disk) if name.endswith(".tar")} == {"4.tar", "1.tar", "3.tar"}


def test_readers_are_told_of_each_shard_until_it_is_there(places, boards, monkeypatch) -> None:
    FakeDisk(read_s=0.008).install(monkeypatch)
    leader, reader = boards
    ahead = reader_ahead(places)
    seen = []
    counts = []
    while ahead.step(leader, 0):
        expected = [number for number in sorted(ORDER) if reader.is_expected(number)]
        seen += [expected] if expected not in seen else []
        counts.append(reader.told()[0])
    assert seen[0] == [0, 1, 2, 3, 4, 5]
    assert [number for number in sorted(ORDER) if reader.is_expected(number)] == []
    assert len(seen) == 6
    assert counts == sorted(counts)
    assert reader.told()[1] > 0, "patience"


def test_first_batches_have_the_disk_to_themselves_but_not_for_ever(places, boards, monkeypatch) -> None:
    disk = FakeDisk(read_s=0.008).install(monkeypatch)
    leader, rank = boards
    before: list[tuple[int, bool]] = []

    class Clock:
        now = 0.0

        def monotonic(self) -> float:
            return self.now

        def sleep(self, seconds: float) -> None:
            self.now += seconds
            before.append((len(disk.read), rank.is_expected(4), rank.told()[0]))

    monkeypatch.setattr(read_ahead, "time", Clock())
    rank.begin_first()
    work(reader_ahead(places), leader)
    assert {reads for reads, _, _ in before} == {6}, "those that try the disk"
    assert all(is_expected for _, is_expected, _ in before)
    assert len({count for _, _, count in before}) > 900, "nobody takes it for dead"
    assert len(whole(disk)) == 12


@pytest.mark.parametrize(
    "harm",
    [
        lambda path: path.unlink(),
        lambda path: os.truncate(path, 100),
        lambda path: (path.unlink(), path.mkdir()),
        lambda path: path.write_bytes(b""),
    ],
    ids=["removed", "truncated", "folder", "emptied"],
)
def test_file_that_changed_is_passed_over_and_the_others_are_read(harm, places, boards, monkeypatch) -> None:
    disk = FakeDisk(read_s=0.008).install(monkeypatch)
    harm(places[3][1].path)
    work(reader_ahead(places), boards[0])
    tars = [name for name in whole(disk) if name.endswith(".tar")]
    assert sorted(tars) == [f"{n}.tar" for n in (0, 1, 2, 4, 5)]
    assert not boards[1].is_expected(3)


def test_entries_elsewhere_are_passed_over(places, boards, monkeypatch) -> None:
    disk = FakeDisk(read_s=0.008).install(monkeypatch)
    places[1] = places[3] = ()
    work(reader_ahead(places), boards[0])
    assert {name.partition(".")[0] for name, _, _ in disk.read} == {"0", "2", "4", "5"}


def test_one_reads_ahead_and_another_takes_over_when_it_ends(places, monkeypatch) -> None:
    monkeypatch.setattr("epistream.cache.read_ahead._PAUSE_S", 0.01)
    FakeDisk(read_s=0.008).install(monkeypatch)
    first, second = reader_ahead(places), reader_ahead(places)
    first.start()
    watch = AheadBoard(places[0][0].path)
    wait_until(lambda: watch.told() is not None, "the first is told")
    second.start()
    first.close()
    wait_until(lambda: second._counters.snapshot().disk != "" or second._window, "the second has begun")
    second.close()
    assert not first._thread.is_alive()
    assert not second._thread.is_alive()
    assert watch.try_lead()
    watch.close()


def descriptors(folder: Path) -> list[str]:
    """Files of a folder that this process has open."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # that of the folder itself
            found.append(str(link.readlink()))
    return sorted(name for name in found if name.startswith(str(folder)))


def test_threads_that_end_leave_no_descriptor(places, monkeypatch) -> None:
    FakeDisk(read_s=0.008).install(monkeypatch)
    folder = places[0][0].path.parent
    reader = reader_ahead(places)
    reader.start()
    wait_until(lambda: reader._counters.snapshot().bytes_ahead == 6 * (TAR + INDEX), "all are read")
    reader.close()
    reader.close()
    assert descriptors(folder) == []


def test_thread_that_meets_a_fault_ends_and_leaves_nobody_waiting(places, monkeypatch, caplog) -> None:
    FakeDisk(read_s=0.008).install(monkeypatch)

    def uses() -> Iterator[tuple[int, Places]]:
        yield 4, places[4]
        raise RuntimeError("a fault")

    reader = ReadAhead(places[0][0].path, uses(), 6, Counters())
    reader.start()
    reader._thread.join(60)
    assert "readers read for themselves" in caplog.text
    board = AheadBoard(places[0][0].path)
    assert (board.told(), board.is_expected(4), board.try_lead()) == (None, False, True)
    board.close()


def test_board_that_cannot_be_opened_ends_the_thread(places) -> None:
    reader = ReadAhead(Path("/nowhere/at/all"), iter([]), 6, Counters())
    reader.start()
    reader._thread.join(60)
    assert not reader._thread.is_alive()
    reader.close()


def test_forked_child_does_not_close_its_parents_thread(places, monkeypatch) -> None:
    reader = reader_ahead(places)
    monkeypatch.setattr(reader, "_pid", os.getpid() + 1)
    reader.close()
    assert not reader.is_closed


def test_local_ranges_name_the_index_before_the_tar_and_nothing_remote() -> None:
    local = Entry((Part("/a/s.tar", 100, "x"), Part("/a/s.index", 10, "y")))
    assert local_ranges(local) == (FileRange(Path("/a/s.index"), 0, 10), FileRange(Path("/a/s.tar"), 0, 100))
    assert local_ranges(Entry((Part("s3://a/s.tar", 100, "x"), Part("s3://a/s.index", 10, "y")))) == ()


def test_cache_leaves_advice_about_files_to_who_reads_ahead(places, monkeypatch) -> None:
    advised = []
    monkeypatch.setattr(local, "is_at_hand", lambda fd, offset: False)
    monkeypatch.setattr(local, "advise", lambda fd, first, size: advised.append((first, size)))
    entry = Entry((Part(str(places[0][1].path), TAR, "x"), Part(str(places[0][0].path), INDEX, "y")))
    with NodeCache(CacheOptions(mode="off")) as cache:
        cache.open(entry).close()
        assert advised == [(0, TAR), (0, INDEX)]
        cache.read_ahead(places[0][0].path, [entry], 2).close()
        cache.open(entry).close()
    assert advised == [(0, TAR), (0, INDEX)]


def test_only_disks_of_this_machine_are_read_ahead(places, tmp_path, monkeypatch) -> None:
    url = str(places[0][1].path)
    for kind, expected in {"ext4": True, "xfs": True, "tmpfs": False, "nfs4": False, "fuse.s3fs": False}.items():
        monkeypatch.setattr(routes, "file_system_type", lambda path, kind=kind: kind)
        assert routes.is_on_disk(url) is expected
        with NodeCache(CacheOptions(mode="off")) as cache:
            assert cache.is_on_disk(Entry((Part(url, TAR, "x"),))) is expected
    assert not routes.is_on_disk("s3://bucket/shard.tar")
    monkeypatch.setattr(routes, "file_system_type", lambda path: "ext4")
    with NodeCache(CacheOptions(mode="shm", directory=f"/dev/shm/epistream-ahead-{os.getpid()}")) as cache:
        assert not cache.is_on_disk(Entry((Part(url, TAR, "x"),))), "it is kept in memory"
