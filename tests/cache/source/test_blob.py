"""One promise for every kind of blob; and what each kind adds."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import h5py
import numpy as np
import pytest
from scattered.pieces import PiecesSupply, scatter

from epistream.cache.source.blob import Blob
from epistream.cache.source.entry import Entry, Part, part_offsets
from epistream.cache.source.local import FileBlob, MappedBlob
from epistream.cache.source.pieces_blob import PiecesBlob
from epistream.cache.source.ranged import RangeBlob
from epistream.cache.source.remote import Remote, RetryOptions
from epistream.cache.source.remote_pieces import ranges_of_part
from epistream.cache.source.rows import rows, runs
from epistream.errors import FormatError, OptionError, SourceChangedError, SourceError
from epistream.loader.shards.hdf5_blob import Hdf5Blob
from epistream.sharding.files.versioned_files import version_and_bytes
from epistream.sharding.hdf5.index import Extents

DATA = np.random.default_rng(0).integers(0, 256, 300_001, dtype=np.uint8).tobytes()


def hdf5_file(path: Path) -> int:
    """An HDF5 file that holds DATA in one piece, and where in it."""
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("images", data=np.frombuffer(DATA, np.uint8))
        return int(dataset.id.get_offset())


def hdf5_blob(url: str, offset: int) -> Hdf5Blob:
    version, num_bytes = version_and_bytes(url)
    starts = np.array([0, 5, 1000, 299_000])
    extents = Extents(version, num_bytes, len(DATA), starts.astype(np.uint64), starts + offset, ())
    return Hdf5Blob(url, extents, {})


@pytest.fixture(params=["mapped", "file", "range", "hdf5", "hdf5-range", "pieces", "pieces-range"])
def blob(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Blob]:
    path, fs, made = tmp_path / "s.tar", fsspec.filesystem("memory"), None
    if request.param == "mapped":
        made = MappedBlob(memoryview(DATA), "s.tar")
    elif request.param == "file":
        path.write_bytes(DATA)
        made = FileBlob(path, len(DATA))
    elif request.param == "range":
        fs.pipe_file("/blob/s.tar", DATA)
        made = RangeBlob(
            Part("memory://blob/s.tar", len(DATA), block_bytes=4096), Remote(None, RetryOptions()), lambda size: None
        )
    elif request.param == "pieces":
        made = PiecesBlob("s.tar", scatter(DATA, 7, 60).write_to(tmp_path))
    elif request.param == "pieces-range":
        scattered = scatter(DATA, 7, 60)
        for name, content in scattered.served().items():
            fs.pipe_file(f"/blob{name}", content)
        url, pieces = "memory://blob/s.tar", scattered.at("memory://blob")
        part = Part(url, len(DATA), version="1", block_bytes=4096, supply=PiecesSupply(url, pieces))
        made = RangeBlob(part, ranges_of_part(part, Remote(None, RetryOptions())), lambda size: None)
    elif request.param == "hdf5":
        made = hdf5_blob(str(path), hdf5_file(path))
    else:
        offset = hdf5_file(path)
        fs.pipe_file("/blob/s.tar", path.read_bytes())
        made = hdf5_blob("memory://blob/s.tar", offset)
    yield made
    made.close()
    made.close()
    if fs.exists("/blob"):
        fs.rm("/blob", recursive=True)


@pytest.mark.parametrize(("offset", "size"), [(0, 0), (0, 1), (5, 100), (0, 300_001), (300_000, 1), (300_001, 0)])
def test_read_gives_the_bytes(blob: Blob, offset: int, size: int) -> None:
    assert bytes(blob.read(offset, size)) == DATA[offset : offset + size]


def test_read_into_fills_arrays_of_any_shape(blob: Blob) -> None:
    for shape in [(0,), (7,), (2, 3, 4), (0, 5)]:
        out = np.full(shape, 7, np.uint8)
        blob.read_into(11, out)
        assert out.tobytes() == DATA[11 : 11 + out.size]
    target = bytearray(8)
    blob.read_into(9, memoryview(target))
    assert target == DATA[9:17]


def test_read_into_an_array_with_gaps_is_refused(blob: Blob) -> None:
    with pytest.raises(ValueError, match="wanted a C-contiguous one"):
        blob.read_into(0, np.zeros((4, 4), np.uint8)[:, ::2])
    with pytest.raises(ValueError, match="wanted a C-contiguous one"):
        blob.gather(np.array([0, 1, 2, 3]), np.zeros((4, 4), np.uint8)[:, ::2])


@pytest.mark.parametrize("width", [1, 3, 8, 56, 1000])
@pytest.mark.parametrize("count", [0, 1, 2, 500])
def test_gather_gives_each_row(blob: Blob, width: int, count: int) -> None:
    starts = np.random.default_rng(1).integers(0, len(DATA) - width + 1, count)
    if count > 1:
        starts[0], starts[1] = 0, len(DATA) - width  # the ends
    out = np.zeros((count, width), np.uint8)
    blob.gather(starts, out)
    assert [row.tobytes() for row in out] == [DATA[start : start + width] for start in starts]


def test_gather_of_rows_without_width_does_nothing(blob: Blob) -> None:
    blob.gather(np.array([1, 2]), np.zeros((2, 0), np.uint8))


@pytest.mark.parametrize(("offset", "size"), [(-1, 1), (300_000, 2), (300_002, 0), (0, -1), (1 << 40, 1)])
def test_read_outside_is_a_named_error(blob: Blob, offset: int, size: int) -> None:
    with pytest.raises(FormatError, match=r"s\.tar: bytes \[.*\) asked for, it has 300001"):
        blob.read(offset, size)


@pytest.mark.parametrize("start", [-1, 299_999, 1 << 40])
def test_gather_outside_is_a_named_error(blob: Blob, start: int) -> None:
    with pytest.raises(FormatError, match="asked for, it has 300001"):
        blob.gather(np.array([5, start]), np.zeros((2, 3), np.uint8))


PLACES = [(0, 4), (300_000, 1), (7, 0), (5, 70_000)]


def test_read_at_several_places_at_once_and_in_turn(blob: Blob) -> None:
    offsets, sizes = [offset for offset, _ in PLACES], [size for _, size in PLACES]
    wanted = [DATA[offset : offset + size] for offset, size in PLACES]
    assert [bytes(piece) for piece in blob.read_in_turn(offsets, sizes)] == wanted
    targets = [bytearray(size) for size in sizes]
    blob.read_each(offsets, [memoryview(target) for target in targets])
    assert targets == wanted
    assert list(blob.read_in_turn([], [])) == []
    for offset, size in [(300_001, 1), (-1, 2)]:
        with pytest.raises(FormatError, match=r"s\.tar: bytes \["):
            list(blob.read_in_turn([0, offset], [1, size]))
        with pytest.raises(FormatError, match=r"s\.tar: bytes \["):
            blob.read_each([offset], [memoryview(bytearray(size))])


def test_requests_are_told_by_blobs_with_ranges_alone(blob: Blob) -> None:
    starts, sizes = np.array([10, 200_000]), np.array([100, 100])
    requests = blob.requests(starts, sizes)
    assert len(requests) == (2 if blob.has_ranges else 0)
    for request in requests:
        request()
    assert bytes(blob.read(10, 100)) == DATA[10:110]
    blob.check_unchanged()


def test_kinds_of_blobs_say_what_they_are_like(blob: Blob) -> None:
    assert (blob.is_mapped, blob.has_ranges) == (isinstance(blob, MappedBlob), isinstance(blob, RangeBlob))


def test_mapped_read_copies_nothing() -> None:
    base = np.frombuffer(DATA, np.uint8)
    view = MappedBlob(memoryview(DATA), "s").read(10, 20)
    assert np.shares_memory(np.frombuffer(view, np.uint8), base)


def test_runs_join_near_rows_and_cut_long_ones() -> None:
    starts = np.array([10, 100_000_000, 0, 40, 9_000_000, 5_000_000, 4_990_000])
    found = [(sorted(starts[chosen].tolist()), first, span) for chosen, first, span in runs(starts, 10)]
    assert found == [
        ([0, 10, 40], 0, 50),
        ([4_990_000, 5_000_000], 4_990_000, 10_010),
        ([9_000_000], 9_000_000, 10),
        ([100_000_000], 100_000_000, 10),
    ]
    dense = np.arange(0, 20 << 20, 1024)
    spans = [span for _, _, span in runs(dense, 1024)]
    assert max(spans) <= (4 << 20) + 1024
    assert sum(spans) == 20 << 20


def test_rows_of_a_short_buffer_are_none() -> None:
    assert len(rows(bytearray(5), 6, 1)) == 0


Change = Callable[[Path], object]


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.write_bytes(DATA[::-1]),
        lambda path: path.write_bytes(b""),
        lambda path: path.unlink(),
        lambda path: (path.rename(path.with_name("old")), path.write_bytes(DATA)),
        lambda path: os.utime(path, ns=(5, 5)),
        lambda path: os.truncate(path, 100),
    ],
    ids=["rewritten", "emptied", "removed", "replaced", "touched", "truncated"],
)
def test_file_that_changes_while_in_use_is_a_named_error(tmp_path: Path, change: Change) -> None:
    path = tmp_path / "s.tar"
    path.write_bytes(DATA)
    os.utime(path, ns=(1, 1))
    blob = FileBlob(path, len(DATA))
    assert bytes(blob.read(3, 3)) == DATA[3:6]
    change(path)
    with pytest.raises(SourceChangedError, match=r"s\.tar"):
        blob.read(1000, 3)
    with pytest.raises(SourceChangedError, match=r"s\.tar"):
        blob.gather(np.array([5, 1000]), np.zeros((2, 3), np.uint8))
    with pytest.raises(SourceChangedError, match=r"s\.tar"):
        blob.read_each([5, 1000], [memoryview(bytearray(3)), memoryview(bytearray(3))])
    with pytest.raises(SourceChangedError, match=r"s\.tar"):
        list(blob.read_in_turn([5, 1000], [3, 3]))
    blob.close()


def test_file_of_another_size_than_promised_is_a_named_error(tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(DATA)
    with pytest.raises(SourceChangedError, match=r"s\.tar: 300001 bytes, wanted 300002"):
        FileBlob(tmp_path / "s.tar", 300_002)


def test_file_that_is_missing_is_a_named_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"s\.tar: No such file"):
        FileBlob(tmp_path / "s.tar", 1)


def test_offsets_are_multiples_of_64() -> None:
    assert part_offsets([1, 64, 0, 65, 3]) == (0, 64, 128, 128, 256)
    entry = Entry((Part("a", 100, "0"), Part("b", 7, "1")))
    assert (*entry.offsets, entry.size) == (0, 128, 135)


def test_key_differs_with_every_fact() -> None:
    base = Part("s3://a/x.tar", 10, "aa", None)
    entries = [
        Entry((base,)),
        Entry((Part("s3://b/x.tar", 10, "aa"),)),  # the same basename in another bucket
        Entry((Part("s3://a/x.tar", 11, "aa"),)),
        Entry((Part("s3://a/x.tar", 10, "ab"),)),
        Entry((Part("s3://a/x.tar", 10, None, "etag"),)),
        Entry((base, base)),
        Entry((base,), "episode 3 at 224x224"),
    ]
    keys = [entry.key for entry in entries]
    assert len(set(keys)) == len(keys)
    assert all(len(key) == 32 and int(key, 16) >= 0 for key in keys)
    assert Entry((base,)).key == keys[0]


def test_key_does_not_depend_on_block_checksums() -> None:
    plain = Entry((Part("u", 10, "aa"),))
    checked = Entry((Part("u", 10, "aa", block_checksums=np.zeros(1, np.uint64)),))
    assert plain.key == checked.key
    assert plain == checked


def test_nonsense_is_refused() -> None:
    with pytest.raises(OptionError, match="a size of -1 bytes"):
        Part("u", -1)
    with pytest.raises(OptionError, match="2 block checksums, wanted 1"):
        Part("u", 10, block_checksums=np.zeros(2, np.uint64))
    with pytest.raises(OptionError, match="no parts"):
        Entry(())
