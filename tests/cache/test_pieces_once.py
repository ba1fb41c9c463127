"""Pieces of remote files: each byte is fetched once per node, by ranges of the files, whoever dies meanwhile."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import xxhash
from cache_actors import DEADLINE_S, context
from partial_actors import cold_epochs_of, read_blocks, run_killed
from scattered.pieces import PiecesSupply, scatter
from web.faulty_server import FaultyServer, asked_bytes, serve

from epistream.cache.node import CacheOptions, NodeCache
from epistream.cache.source import fetch
from epistream.cache.source.blob import Blob, Supply
from epistream.cache.source.entry import Entry, Part
from epistream.cache.source.local import FileBlob
from epistream.cache.source.pieces import PieceFile, Pieces
from epistream.cache.source.pieces_blob import PiecesBlob
from epistream.cache.source.ranged import RangeBlob
from epistream.cache.source.remote import Remote, RetryOptions, WholeBodyError
from epistream.cache.source.remote_pieces import RemotePieces
from epistream.cache.store.partial import GRANULE_BYTES
from epistream.errors import ChecksumError, FetchError

BLOCK = GRANULE_BYTES
# Gaps so large that nobody reads over them: exactly the pieces are asked for.
FAR = 200_000
DATAS = [row.tobytes() for row in np.random.default_rng(5).integers(0, 256, (2, 21 * BLOCK + 5), dtype=np.uint8)]
SCATTERED = [scatter(data, 5, 23, seed=seed, gap_bytes=FAR) for seed, data in enumerate(DATAS)]
INDEX_BYTES = 5000


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with serve() as state:
        for number, scattered in enumerate(SCATTERED):
            state.files |= {f"/{number}{name}": content for name, content in scattered.served().items()}
        yield state


def entry_of(server: FaultyServer, folder: Path, number: int = 0, **changes: object) -> Entry:
    url, index = f"{server.url}/{number}", folder / f"{number}.index"
    index.write_bytes(DATAS[number][:INDEX_BYTES])
    supply = PiecesSupply(url, SCATTERED[number].at(url))
    facts = {"version": "1", "block_bytes": BLOCK, "supply": supply, **changes}
    checksum = xxhash.xxh3_128_hexdigest(DATAS[number][:INDEX_BYTES])
    return Entry((Part(f"{url}/set", len(DATAS[number]), **facts), Part(str(index), INDEX_BYTES, checksum)))  # type: ignore[arg-type]


def options(path: Path, **more: object) -> CacheOptions:
    return CacheOptions(mode="shm", directory=str(path), **more)  # type: ignore[arg-type]


def is_right(cache: NodeCache, entry: Entry, number: int = 0) -> bool:
    with cache.open(entry) as opened:
        packed, index = opened.blobs
        data = bytes(packed.read(0, packed.size))
        return data == DATAS[number] and bytes(index.read(0, index.size)) == data[:INDEX_BYTES]


@pytest.mark.parametrize("num_processes", [1, 6])
def test_processes_of_a_node_fetch_each_byte_of_the_pieces_once(server, tmp_path, cache_path, num_processes):
    entries = [entry_of(server, tmp_path, number) for number in range(2)]
    wrong, fetched, by_ranges = cold_epochs_of(num_processes, cache_path, entries, DATAS)
    assert wrong == 0
    total = sum(map(len, DATAS))
    assert asked_bytes(server) == total
    assert fetched + by_ranges == total + 2 * INDEX_BYTES
    assert by_ranges > 0
    assert sorted(file.suffix for file in cache_path.iterdir() if len(file.stem) == 32) == [".shard"] * 2


BRING = ["share.locked", "share.fetched", "share.written", "share.flagged"]


@pytest.mark.parametrize(
    ("fills", "step"),
    [
        *((False, step) for step in ["begin.done", *BRING]),
        *((True, step) for step in ["reserve.adopted", *BRING, "fill.verified", "fill.renamed"]),
    ],
)
def test_who_is_killed_at_a_step_costs_others_what_was_under_way(server, tmp_path, cache_path, fills, step):
    entry = entry_of(server, tmp_path)
    with NodeCache(options(cache_path)) as cache:
        if fills:
            assert read_blocks(cache, entry, DATAS[0], np.random.default_rng(1))
        else:
            assert is_right(cache, entry_of(server, tmp_path, 1), 1), "another, so that the directory stays"
        brought = asked_bytes(server)
        victim = context().Process(
            target=run_killed, args=(str(cache_path), entry, DATAS[0], step), kwargs={"fills": fills}, daemon=True
        )
        victim.start()
        victim.join(DEADLINE_S)
        assert victim.exitcode == -9, f"the step {step} was not reached"
        under_way = asked_bytes(server) - brought
        assert read_blocks(cache, entry, DATAS[0], np.random.default_rng(2))
        assert is_right(cache, entry)
        total = len(DATAS[0]) + (0 if fills else len(DATAS[1]))
        assert total <= asked_bytes(server) <= total + under_way
        if step in ("share.flagged", "fill.verified", "fill.renamed"):
            assert asked_bytes(server) == total, "nothing was lost"
    assert not cache_path.exists()


def test_blocks_that_a_reader_brought_are_found_by_another_and_by_the_filler(server, tmp_path, cache_path):
    entry = entry_of(server, tmp_path)
    with NodeCache(options(cache_path)) as one, NodeCache(options(cache_path)) as other:
        assert read_blocks(one, entry, DATAS[0], np.random.default_rng(3))
        brought = asked_bytes(server)
        assert 0 < brought == one.stats().bytes_ranged < len(DATAS[0])
        assert read_blocks(other, entry, DATAS[0], np.random.default_rng(3))
        assert asked_bytes(server) == brought
        with other.open(entry, wait=False) as opened:
            assert isinstance(opened.blobs[0], RangeBlob)
            assert bytes(opened.blobs[0].read(0, len(DATAS[0]))) == DATAS[0], "all of it, from whom it may be"
        assert is_right(other, entry)
        assert asked_bytes(server) == len(DATAS[0])
        total = one.stats() + other.stats()
        assert total.bytes_ranged + total.bytes_fetched == len(DATAS[0]) + INDEX_BYTES
        assert (total.cold, total.fills, total.refetches) == (3, 1, 0)


@dataclass(frozen=True)
class IndexSupply(Supply):
    """Supplies a local file under another name."""

    path: Path

    def open(self) -> Blob:
        return FileBlob(self.path, INDEX_BYTES)

    def local_ranges(self) -> Iterable[tuple[Path, int, int]]:
        return ((self.path, 0, INDEX_BYTES),)


def test_index_that_is_supplied_is_at_hand_as_a_local_one_is(server, tmp_path, cache_path):
    packed, index = entry_of(server, tmp_path).parts
    supplied = Part(f"{server.url}/index", INDEX_BYTES, index.checksum, supply=IndexSupply(Path(index.url)))
    entry = Entry((packed, supplied))
    assert entry.is_shareable
    with NodeCache(options(cache_path)) as cache:
        assert read_blocks(cache, entry, DATAS[0], np.random.default_rng(0))
        assert is_right(cache, entry)
    assert asked_bytes(server) == len(DATAS[0])


def test_entry_without_a_byte_in_pieces_is_kept_without_a_request(server, tmp_path, cache_path):
    _, index = entry_of(server, tmp_path).parts
    nothing = Pieces((), 0, *(np.zeros(0, np.int64),) * 3)
    packed = Part(f"{server.url}/set", 0, version="1", supply=PiecesSupply("set", nothing))
    with NodeCache(options(cache_path)) as cache:
        for wait in (False, True, False):
            with cache.open(Entry((packed, index)), wait=wait) as opened:
                assert bytes(opened.blobs[0].read(0, 0)) == b""
                assert bytes(opened.blobs[1].read(0, INDEX_BYTES)) == DATAS[0][:INDEX_BYTES]
        assert (cache.stats().cold, cache.stats().fills, cache.stats().hits) == (1, 1, 1)
    assert server.requests == []


def test_index_of_an_entry_in_pieces_is_checked_when_it_is_copied(server, tmp_path, cache_path):
    entry = entry_of(server, tmp_path)
    (tmp_path / "0.index").write_bytes(bytes(INDEX_BYTES))
    with NodeCache(options(cache_path)) as cache:
        with pytest.raises(ChecksumError, match=r"0\.index: checksum"):
            cache.open(entry)
        assert not [file for file in cache_path.iterdir() if file.suffix in (".part", ".have", ".shard")]


@dataclass(frozen=True)
class Noted(PiecesSupply):
    """Notes when it is opened, and costs as it is told."""

    opened: list[int] = field(default_factory=list)
    is_costly: bool = True

    def open(self) -> Blob:
        self.opened.append(1)
        return PiecesBlob(self.url, self.where)


def local_entry(folder: Path, *, is_costly: bool) -> tuple[Entry, list[int]]:
    supply = Noted(str(folder), SCATTERED[0].write_to(folder), is_costly=is_costly)
    (folder / "index").write_bytes(DATAS[0][:INDEX_BYTES])
    index = Part(str(folder / "index"), INDEX_BYTES, xxhash.xxh3_128_hexdigest(DATAS[0][:INDEX_BYTES]))
    return Entry((Part(str(folder / "0.bin"), len(DATAS[0]), version="1", supply=supply), index)), supply.opened


def test_costly_entry_on_a_local_disk_is_read_once_by_whoever_comes_first(tmp_path, cache_path):
    entry, opened = local_entry(tmp_path, is_costly=True)
    with NodeCache(CacheOptions(directory=str(cache_path))) as cache:
        assert cache.keeps(entry)
        assert cache.budget_ahead(entry, 0) is not None
        for wait in (False, True, False):
            with cache.open(entry, wait=wait) as found:
                assert found.tier == "shm"
                assert bytes(found.blobs[0].read(0, len(DATAS[0]))) == DATAS[0]
        assert len(opened) == 1
        assert (cache.stats().fills, cache.stats().hits, cache.stats().cold) == (1, 2, 0)


@pytest.mark.parametrize("mode", ["auto", "shm", "off"])
def test_pieces_of_local_files_are_read_where_they_lie_or_copied_as_asked_for(tmp_path, cache_path, mode):
    entry, opened = local_entry(tmp_path, is_costly=False)
    assert entry.parts[0].remote_pieces is None
    with NodeCache(CacheOptions(mode=mode, directory=str(cache_path))) as cache:
        assert cache.keeps(entry) == (mode == "shm")
        assert is_right(cache, entry)
        with cache.open(entry, wait=False) as found:
            assert found.tier == ("shm" if mode == "shm" else "direct")
            assert isinstance(found.blobs[0], PiecesBlob) == (mode != "shm")
    assert len(opened) == (1 if mode == "shm" else 2)


# --- over a bad network ------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["503", "drop", "cut", "short"])
def test_passing_faults_of_files_cost_another_try(server, tmp_path, cache_path, fault):
    server.plan = lambda path, number: fault if number == 0 else None
    with NodeCache(options(cache_path)) as cache:
        assert read_blocks(cache, entry_of(server, tmp_path), DATAS[0], np.random.default_rng(0))
        assert is_right(cache, entry_of(server, tmp_path))


def test_file_that_is_missing_or_never_comes_is_named(server, tmp_path, cache_path):
    with NodeCache(options(cache_path, attempts=2)) as cache:
        server.plan = lambda path, number: "503" if path.endswith("3.bin") else None
        with pytest.raises(FetchError, match=r"/0/3\.bin: bytes .* 503.* after 2 tries"):
            cache.open(entry_of(server, tmp_path))
        with (
            pytest.raises(FetchError, match=r"/1/3\.bin: bytes"),
            cache.open(entry_of(server, tmp_path, 1), wait=False) as opened,
        ):
            opened.blobs[0].read(0, len(DATAS[1]))
        server.plan = lambda path, number: None
        assert is_right(cache, entry_of(server, tmp_path, 1), 1), "what was had meanwhile is right"


@pytest.mark.parametrize("change", [lambda content: content + b"x", lambda content: content[:-1]])
def test_file_that_changed_its_size_is_an_error_and_nothing_of_it_is_kept(server, tmp_path, cache_path, change):
    entry = entry_of(server, tmp_path)
    with NodeCache(options(cache_path)) as cache:
        before = server.files["/0/2.bin"]
        server.files["/0/2.bin"] = change(before)
        said = rf"/0/2\.bin: {len(server.files['/0/2.bin'])} bytes, wanted {len(before)}"
        with cache.open(entry, wait=False) as opened, pytest.raises(ChecksumError, match=said):
            opened.blobs[0].read(0, len(DATAS[0]))
        with pytest.raises(ChecksumError, match=said):
            cache.open(entry)
        assert not [file for file in cache_path.iterdir() if file.suffix in (".part", ".have", ".shard")]


def test_servers_without_ranges_send_each_file_once_to_who_fills(server, tmp_path, cache_path):
    server.ranges = False
    entries = [entry_of(server, tmp_path, number) for number in range(2)]
    # Another entry of the same files.
    url = f"{server.url}/0"
    again = Part(f"{url}/set", len(DATAS[0]), version="2", supply=PiecesSupply(url, SCATTERED[0].at(url)))
    with NodeCache(options(cache_path)) as cache:
        with cache.open(entries[0], wait=False) as opened, pytest.raises(WholeBodyError, match="ignores ranges"):
            opened.blobs[0].read(0, len(DATAS[0]))
        server.requests.clear()
        assert is_right(cache, entries[0])
        assert is_right(cache, entries[1], 1)
        assert is_right(cache, Entry((again, entries[0].parts[1])))
        whole = sorted(path for path, asked in server.requests if not asked)
        assert whole == sorted(server.files)
        assert cache.stats().fills == 3


def test_servers_without_ranges_send_each_file_once_to_who_reads_without_a_cache(server, tmp_path):
    server.ranges = False
    with NodeCache(CacheOptions(mode="off")) as cache:
        for _ in range(3):
            assert is_right(cache, entry_of(server, tmp_path))
        assert sorted(path for path, asked in server.requests if not asked) == [f"/0/{n}.bin" for n in range(5)]


def test_copy_of_a_file_that_is_too_short_is_an_error(server):
    server.ranges = False
    server.files["/0/2.bin"] = server.files["/0/2.bin"][:-1]
    copy = RemotePieces(Remote(None, RetryOptions()), SCATTERED[0].at(f"{server.url}/0")).whole_file("", 0, "")
    with pytest.raises(ChecksumError, match=r"/0/2\.bin: ends at byte \d+, wanted \d+ bytes"):
        copy.read(0, len(DATAS[0]))


# --- which requests ----------------------------------------------------------------------------------------


def requests_of(server: FaultyServer, pieces: Pieces, start: int, stop: int) -> tuple[bytes, list[tuple[str, str]]]:
    server.requests.clear()
    data = RemotePieces(Remote(None, RetryOptions()), pieces).read_range("the part", start, stop)
    return data, sorted((path, asked.removeprefix("bytes=")) for path, asked in server.requests)


def laid_out(server: FaultyServer, pieces: list[tuple[int, int, int]], file_bytes: int) -> tuple[Pieces, bytes]:
    """Pieces (file, place, size) of two files, in this order; and the bytes that they are."""
    files = [np.random.default_rng(seed).integers(0, 256, file_bytes, dtype=np.uint8).tobytes() for seed in range(2)]
    server.files |= {f"/{number}": content for number, content in enumerate(files)}
    file, place, size = (np.array(column, np.int64) for column in zip(*pieces, strict=True))
    stops = np.cumsum(size)
    said = tuple(PieceFile(f"{server.url}/{number}", file_bytes, "1") for number in range(2))
    data = b"".join(files[each][begin : begin + count] for each, begin, count in pieces)
    return Pieces(said, int(stops[-1]), stops - size, file, place), data


def test_a_range_is_one_request_for_what_lies_near_and_one_for_each_file(server):
    pieces, data = laid_out(
        server,
        [
            (1, 5000, 100),
            (0, 0, 10),
            (1, 5100, 50),
            (0, 10, 40),
            (1, 900_000, 7),
            (1, 100, 30),
            (0, 131_000, 6),
            (0, 5, 9),
        ],
        1_000_000,
    )
    found, asked = requests_of(server, pieces, 0, len(data))
    assert found == data
    assert asked == [("/0", "0-131005"), ("/1", "100-5149"), ("/1", "900000-900006")]
    found, asked = requests_of(server, pieces, 90, 115)
    assert found == data[90:115]
    assert asked == [("/0", "0-9"), ("/1", "5090-5104")]
    assert requests_of(server, pieces, 7, 7) == (b"", [])


def test_gaps_do_not_make_requests_longer_than_a_mebibyte_but_pieces_do(server):
    num_bytes = 3 << 20
    pieces, data = laid_out(server, [(0, at, 10) for at in range(0, num_bytes, 100_000)], num_bytes)
    found, asked = requests_of(server, pieces, 0, len(data))
    assert found == data
    assert [asked for _, asked in asked] == ["0-1000009", "1100000-2100009", "2200000-3100009"]
    pieces, data = laid_out(server, [(0, 5, 2 << 20), (0, 5 + (2 << 20), 100)], num_bytes)
    assert requests_of(server, pieces, 0, len(data))[1] == [("/0", f"5-{104 + (2 << 20)}")]


def test_fill_asks_for_chunks_of_several_files(server, tmp_path, cache_path, monkeypatch):
    monkeypatch.setattr(fetch.chunks, "__defaults__", (3 * BLOCK,))
    monkeypatch.setattr(fetch, "CHUNK_BYTES", 3 * BLOCK)
    with NodeCache(options(cache_path)) as cache:
        assert is_right(cache, entry_of(server, tmp_path))
    spans = [asked for _, asked in server.requests]
    assert len(spans) == len(set(spans)) > 8
    assert asked_bytes(server) == len(DATAS[0])


def test_what_an_entry_in_pieces_is_made_of_decides_whether_it_is_shared(server, tmp_path):
    entry = entry_of(server, tmp_path)
    packed, index = entry.parts
    assert entry.is_shareable
    assert not Entry((packed, Part(index.url, index.size, version="1"))).is_shareable, "nothing tells that it is right"
    assert not Entry((index,)).is_shareable
    assert not Entry((Part(index.url, 10, version="1", supply=packed.supply), index)).is_shareable, "it is local"
    assert entry == Entry(entry.parts)
    assert Entry((packed,)).key == Entry((Part(packed.url, packed.size, version="1"),)).key
