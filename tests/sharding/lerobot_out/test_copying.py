"""Ranges of files are copied as they are, and never of a file that is not the one that was looked at."""

import os

import pytest

from epistream.errors import SourceChangedError, SourceError
from epistream.plain_files import version_of_file
from epistream.sharding.lerobot_out import copying
from epistream.sharding.lerobot_out.copying import RangeReader
from epistream.sharding.lerobot_out.model import FileRange


@pytest.fixture
def reader():
    made = RangeReader()
    yield made
    made.close()


def written(path, data):
    path.write_bytes(data)
    return lambda offset, size: FileRange(str(path), version_of_file(path.stat()), offset, size)


def taken(pieces):
    return b"".join(bytes(piece) for piece in pieces)


def test_ranges_of_several_files_come_one_behind_the_other(tmp_path, reader, monkeypatch):
    monkeypatch.setattr(copying, "_PIECE_BYTES", 7)
    a, b = written(tmp_path / "a", bytes(range(100))), written(tmp_path / "b", bytes(range(100, 200)))
    ranges = [a(3, 30), a(50, 1), b(0, 100), a(0, 7)]
    expected = bytes([*range(3, 33), 50, *range(100, 200), *range(7)])
    assert taken(reader.read(ranges, "episode 0")) == expected
    assert [len(piece) for piece in reader.read([a(0, 16)], "episode 0")] == [7, 7, 2]


def test_a_file_that_stays_open_is_opened_once(tmp_path, reader, monkeypatch):
    a, opened, real = written(tmp_path / "a", bytes(100)), [], os.open
    monkeypatch.setattr(os, "open", lambda *arguments: opened.append(arguments) or real(*arguments))
    for offset in range(5):
        assert len(taken(reader.read([a(offset, 10)], "episode 0"))) == 10
    assert len(opened) == 1


@pytest.mark.parametrize("when", ["before", "while"])
@pytest.mark.parametrize("how", ["replaced", "cut", "written to"])
def test_a_file_that_is_another_one_is_refused(tmp_path, reader, monkeypatch, when, how):
    monkeypatch.setattr(copying, "_PIECE_BYTES", 10)
    path = tmp_path / "a.mp4"
    one = written(path, bytes(100))(0, 100)

    def change():
        if how == "replaced":
            (tmp_path / "new").write_bytes(bytes(100))
            (tmp_path / "new").replace(path)
        else:
            path.write_bytes(bytes(50 if how == "cut" else 100))
            os.utime(path, ns=(1, 1))

    if when == "before":
        assert taken(reader.read([one], "episode 3")) == bytes(100)  # it is open from then on
        change()
    pieces = reader.read([one], "episode 3")
    if when == "while":
        next(pieces)
        change()
    with pytest.raises(SourceChangedError, match=r"episode 3: .*a\.mp4: replaced or written to since the export began"):
        taken(pieces)
    again = FileRange(str(path), version_of_file(path.stat()), 0, 50)
    assert len(taken(reader.read([again], "episode 3"))) == 50  # what it holds now is opened anew


@pytest.mark.parametrize("kind", ["nothing", "folder", "fifo"])
def test_what_is_no_file_is_named_and_not_waited_for(tmp_path, reader, kind):
    path = tmp_path / "a.mp4"
    if kind == "folder":
        path.mkdir()
    if kind == "fifo":
        os.mkfifo(path)
    with pytest.raises(SourceError, match=r"episode 0: .*a\.mp4: .*, wanted to read it"):
        taken(reader.read([FileRange(str(path), "", 0, 1)], "episode 0"))
