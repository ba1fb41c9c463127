"""Packed bytes in pieces of several local files: any bytes of them, few files open, and no byte of another file."""

import gc
import os
import pickle
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
from scattered.pieces import scatter

from epistream.cache.source import pieces_blob
from epistream.cache.source.pieces import PieceFile, Pieces, Span, ranges_of
from epistream.cache.source.pieces_blob import PiecesBlob
from epistream.errors import FormatError, SourceChangedError, SourceError

DATA = np.random.default_rng(0).integers(0, 256, 50_000, dtype=np.uint8).tobytes()
A, B = PieceFile("/a.mp4", 1000, "1"), PieceFile("s3://bucket/b.mp4", 500, "2")


def pieces_of(
    start: list[int], file: list[int], place: list[int], num_bytes: int = 160, files: tuple[PieceFile, ...] = (A, B)
) -> Pieces:
    return Pieces(files, num_bytes, *(np.array(each, np.int64) for each in (start, file, place)))


def open_fds(folder: Path) -> list[str]:
    found = [Path(file.path) for file in psutil.Process().open_files()]
    return sorted(path.name for path in found if path.parent == folder)


def test_any_ranges_of_many_files_are_right_and_few_files_are_open(tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    blob = PiecesBlob("packed", scatter(DATA, 24, 300, seed=2).write_to(tmp_path))
    assert open_fds(tmp_path) == [], "nothing is opened before it is needed"
    for _ in range(100):
        starts = draw.integers(0, len(DATA), 20)
        sizes = np.minimum(draw.integers(0, 400, 20), len(DATA) - starts)
        wanted = [DATA[start : start + size] for start, size in zip(starts, sizes, strict=True)]
        assert [bytes(one) for one in blob.read_in_turn(starts.tolist(), sizes.tolist())] == wanted
        targets = [bytearray(size) for size in sizes.tolist()]
        blob.read_each(starts.tolist(), [memoryview(target) for target in targets])
        assert targets == wanted
        assert len(open_fds(tmp_path)) <= 4
    assert bytes(blob.read(0, len(DATA))) == DATA
    assert len(open_fds(tmp_path)) == 4
    blob.close()
    assert open_fds(tmp_path) == []


def test_threads_share_a_blob_while_files_leave_and_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces_blob, "_MOST_OPEN", 1)
    blob = PiecesBlob("packed", scatter(DATA, 9, 100, seed=3).write_to(tmp_path))
    wrong: list[int] = []

    def read(seed: int) -> None:
        for start in np.random.default_rng(seed).integers(0, len(DATA) - 300, 300).tolist():
            if bytes(blob.read(start, 300)) != DATA[start : start + 300]:
                wrong.append(start)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    gc.collect()
    assert len(open_fds(tmp_path)) == 1


def test_reader_in_turn_keeps_the_file_that_left_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces_blob, "_MOST_OPEN", 1)
    (tmp_path / "a").write_bytes(b"aaaabbbb")
    (tmp_path / "b").write_bytes(b"cccc")
    files = tuple(PieceFile(str(path), path.stat().st_size, version(path)) for path in (tmp_path / "a", tmp_path / "b"))
    blob = PiecesBlob("packed", pieces_of([0, 8], [0, 1], [0, 0], 12, files))
    turn = iter(blob.read_in_turn([0, 4], [4, 4]))
    assert bytes(next(turn)) == b"aaaa"
    assert bytes(blob.read(8, 4)) == b"cccc"
    assert bytes(next(turn)) == b"bbbb"


def version(path: Path) -> str:
    status = path.stat()
    return f"bytes={status.st_size};mtime_ns={status.st_mtime_ns};inode={status.st_ino}"


CHANGES: dict[str, Callable[[Path], object]] = {
    "rewritten": lambda path: path.write_bytes(path.read_bytes()[::-1]),
    "emptied": lambda path: path.write_bytes(b""),
    "replaced": lambda path: (
        path.rename(path.with_name("old")),
        path.write_bytes(bytes(path.with_name("old").stat().st_size)),
    ),
    "touched": lambda path: os.utime(path, ns=(5, 5)),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("is_open", [True, False], ids=["while open", "before it is opened"])
def test_file_that_changed_since_it_was_indexed_is_a_named_error(tmp_path: Path, change: str, is_open: bool) -> None:
    pieces = scatter(DATA, 3, 30, seed=4).write_to(tmp_path)
    for file in pieces.files:
        os.utime(file.url, ns=(1, 1))
    pieces = pieces_of(*map(np.ndarray.tolist, (pieces.start, pieces.file, pieces.place)), len(DATA), tuple(
        PieceFile(file.url, file.num_bytes, version(Path(file.url))) for file in pieces.files
    ))  # fmt: skip
    blob = PiecesBlob("packed", pieces)
    if is_open:
        assert bytes(blob.read(0, len(DATA))) == DATA
        blob.check_unchanged()
    CHANGES[change](tmp_path / "1.bin")
    starts = np.arange(0, len(DATA) - 50, 50)
    for read in (
        lambda: blob.read(0, len(DATA)),
        lambda: blob.gather(starts, np.zeros((len(starts), 50), np.uint8)),
        lambda: blob.read_each([0], [memoryview(bytearray(len(DATA)))]),
        lambda: list(blob.read_in_turn(starts.tolist(), [50] * len(starts))),
    ):
        with pytest.raises(
            SourceChangedError, match=r"1\.bin: .*wanted .*(it was replaced or written to|It was truncated)"
        ):
            read()
    if is_open:
        with pytest.raises(SourceChangedError, match=r"1\.bin"):
            blob.check_unchanged()


def test_file_that_is_missing_or_elsewhere_is_a_named_error(tmp_path: Path) -> None:
    pieces = scatter(DATA, 3, 30).write_to(tmp_path)
    (tmp_path / "2.bin").unlink()
    with pytest.raises(SourceError, match=r"2\.bin: No such file or directory, wanted to read it"):
        PiecesBlob("packed", pieces).read(0, len(DATA))
    (tmp_path / "2.bin").mkdir()
    with pytest.raises((SourceError, SourceChangedError), match=r"2\.bin"):
        PiecesBlob("packed", pieces).read(0, len(DATA))
    with pytest.raises(SourceError, match=r"s3://bucket/b\.mp4: not on this machine"):
        PiecesBlob("packed", pieces_of([0], [1], [0])).read(0, 1)


def test_no_bytes_at_all_are_read_without_a_file() -> None:
    for pieces in (Pieces((), 0, *(np.zeros(0, np.int64),) * 3), pieces_of([0, 0], [0, 1], [3, 500], 0)):
        blob = PiecesBlob("packed", pieces)
        assert bytes(blob.read(0, 0)) == b""
        blob.read_each([0], [memoryview(b"")])
        assert [bytes(one) for one in blob.read_in_turn([0, 0], [0, 0])] == [b"", b""]
        with pytest.raises(FormatError, match="packed: bytes"):
            blob.read_each([0], [memoryview(bytearray(1))])
        with pytest.raises(FormatError, match="packed: bytes"):
            list(blob.read_in_turn([0], [1]))
        assert list(ranges_of(pieces)) == []


@pytest.mark.parametrize(
    ("start", "file", "place", "message"),
    [
        ([0, 70], [0], [0, 0], r"2 starts, 1 files and 2 places"),
        ([], [], [], "none, wanted 160 bytes"),
        ([1, 70], [0, 0], [0, 0], "do not ascend from 0"),
        ([0, 70, 60], [0, 0, 0], [0, 0, 0], "do not ascend from 0"),
        ([0, 161], [0, 0], [0, 0], "do not ascend from 0 to at most 160"),
        ([0, 2**63 - 1, -(2**63)], [0, 0, 0], [0, 0, 0], "do not ascend"),
        ([0, 70], [0, 2], [0, 0], "file 2 or 0, wanted one of 2"),
        ([0, 70], [-1, 1], [0, 0], "file 1 or -1"),
        ([0, 70], [0, 1], [0, -1], "piece 1 is 90 bytes from byte -1 of s3://bucket/b.mp4 on, wanted .* 500 bytes"),
        ([0, 70], [0, 1], [0, 411], "piece 1 is 90 bytes from byte 411 of s3://bucket/b.mp4 on"),
        ([0, 70], [0, 1], [2**63 - 1, 0], "piece 0 is 70 bytes"),
    ],
)
def test_pieces_that_cannot_be_are_a_named_error(start, file, place, message) -> None:
    with pytest.raises(FormatError, match=f"pieces of /a.mp4: .*{message}.*Open the dataset again"):
        pieces_of(start, file, place)


def test_pieces_without_files_are_none() -> None:
    with pytest.raises(FormatError, match="pieces of no file"):
        Pieces((), 1, *(np.zeros(1, np.int64),) * 3)


def test_joined_pieces_are_as_few_as_can_be_and_spans_are_the_same_bytes() -> None:
    pieces = pieces_of([0, 10, 10, 30, 60, 100], [0, 1, 0, 0, 1, 1], [100, 7, 110, 130, 200, 240], 160)
    joined = pieces.joined
    assert (joined.start.tolist(), joined.file.tolist(), joined.place.tolist()) == ([0, 60], [0, 1], [100, 200])
    assert list(joined.within(5, 70)) == [Span(0, 55, 0, 105), Span(55, 10, 1, 200)]
    assert list(pieces.within(5, 35)) == [Span(0, 5, 0, 105), Span(5, 20, 0, 110), Span(25, 5, 0, 130)]
    assert list(joined.within(7, 7)) == []
    assert list(joined.within(159, 160)) == [Span(0, 1, 1, 299)]
    again = pickle.loads(pickle.dumps(pieces))
    assert again.joined.start.tolist() == [0, 60]


def test_ranges_of_pieces_are_merged_by_file_and_none_of_remote_ones() -> None:
    big = PieceFile("/big.mp4", 10 << 20, "3")
    pieces = pieces_of([0, 50, 50, 60, 100, 130], [2, 1, 0, 2, 0, 2], [1 << 20, 3, 9, 40, 40, 90], 160, (A, B, big))
    assert list(ranges_of(pieces)) == [
        (Path("/a.mp4"), 9, 70),
        (Path("/big.mp4"), 40, 120),
        (Path("/big.mp4"), 1 << 20, (1 << 20) + 50),
    ]
