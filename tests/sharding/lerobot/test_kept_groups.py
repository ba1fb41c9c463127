"""Row groups that episodes share: kept once, right whoever dies, whatever is torn or full, in little memory."""

import errno
import os
import signal
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cache_actors import DEADLINE_S, context
from robots.lerobot_meta import numbers
from robots.lerobot_sets import RobotSet, image
from robots.reading import replace_file

from epistream.errors import FormatError, SourceChangedError
from epistream.sharding.format.features import Feature
from epistream.sharding.lerobot import picture_groups, row_groups
from epistream.sharding.lerobot.chunked_file import ChunkWriter
from epistream.sharding.lerobot.files import SourceFile
from epistream.sharding.lerobot.picture_groups import make_room
from epistream.sharding.lerobot.rows import read_rows
from epistream.sharding.lerobot_meta import parquet_ranges

ACTION = Feature(name="action", kind="array", codec="npy", dtype="float32", shape=(3,), source_path="action")
FRONT = Feature(name="front", kind="frames", dtype="uint8", shape=(48, 64, 3), codec="png", source_path="front")
LENGTHS = (5, 1, 9, 40, 2, 13, 1, 1, 30, 4)


def written(tmp_path, rows_in_group, lengths=LENGTHS, **more):
    spec = RobotSet(lengths=lengths, features={"action": numbers(3), **more}, rows_in_group=rows_in_group)
    root = spec.write(tmp_path / "set")
    return spec, file_of(root, spec)


def file_of(root, spec):
    return SourceFile.at(str(root), spec.data_path(0), None, "the rows of an episode")


def read(file, number, folder, features=(ACTION,), *, holds_one=False):
    return read_rows(file, number, {one.name: one for one in features}, folder, holds_one=holds_one)


def wrong_episodes(spec, file, folder, action=ACTION):
    return [
        number
        for number in np.random.default_rng(0).permutation(len(spec.lengths)).tolist()
        if not np.array_equal(read(file, number, folder, (action,)).values["action"], spec.values("action", number))
    ]


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(row_groups, "_CHUNK_ROWS", 7)
    monkeypatch.setattr(picture_groups, "_BATCH_ROWS", 3)


@pytest.mark.parametrize("rows_in_group", [1, 2, 7, 9, 50, 1 << 20])
@pytest.mark.usefixtures("small_chunks")
def test_each_episode_has_its_rows_wherever_groups_and_chunks_end(tmp_path, rows_in_group):
    spec, file = written(tmp_path, rows_in_group)
    for _ in range(2):
        assert wrong_episodes(spec, file, tmp_path / "kept") == []


@pytest.mark.parametrize("rows_in_group", [1, 7, 1 << 20])
@pytest.mark.usefixtures("small_chunks")
def test_each_episode_has_the_pictures_that_its_rows_have(tmp_path, rows_in_group):
    spec, file = written(tmp_path, rows_in_group, (4, 1, 9, 3), front=image())
    for number, length in enumerate(spec.lengths):
        place = read(file, number, tmp_path, (ACTION, FRONT)).pictures["front"]
        wanted = b"".join(spec.picture_bytes("front", number, step) for step in range(length))
        assert place.size.sum() == len(wanted)
        found, row, left = b"", place.first, length
        for group in place.groups:
            pictures = picture_groups.group_pictures(file, "front", group, tmp_path)
            before, taken = int(pictures.size[:row].sum()), pictures.size[row : row + left]
            part = bytearray(int(taken.sum()))
            pictures.read_into(before, memoryview(part))
            found, row, left = found + bytes(part), 0, left - len(taken)
        assert found == wanted


def test_group_of_one_episode_is_read_in_place(tmp_path):
    spec, file = written(tmp_path, None)
    assert wrong_episodes(spec, file, tmp_path / "kept") == []
    assert not (tmp_path / "kept").exists()


def test_group_is_decoded_once_and_kept_by_version(tmp_path, monkeypatch):
    spec, file = written(tmp_path, 1 << 20)
    folder, opened = tmp_path / "kept", []
    real = row_groups.batches_of
    monkeypatch.setattr(row_groups, "batches_of", lambda *args, **more: opened.append(1) or real(*args, **more))
    assert wrong_episodes(spec, file, folder) == []
    assert len(opened) == 1
    assert [path.suffix for path in folder.iterdir() if not path.name.startswith(".")] == [".rows"]

    class Other(RobotSet):
        def values(self, key, episode):
            return super().values(key, episode) + 1

    other = Other(lengths=LENGTHS, features=spec.features, rows_in_group=1 << 20)
    replace_file(tmp_path / "set" / spec.data_path(0), (other.write(tmp_path / "b") / spec.data_path(0)).read_bytes())
    assert wrong_episodes(other, file_of(tmp_path / "set", spec), folder) == []
    assert len(opened) == 2


def _flip(data, at):
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


HARM = {
    "empty": lambda data: b"",
    "cut in the first chunk": lambda data: data[:100],
    "cut in the table": lambda data: data[:-20],
    "without its end": lambda data: data[:-8],
    "a bit of a chunk": lambda data: _flip(data, 700),
    "a bit of the table": lambda data: _flip(data, len(data) - 200),
    "a bit of the length": lambda data: _flip(data, len(data) - 1),
    "zeros": lambda data: bytes(len(data)),
    "zeros in place of chunks": lambda data: bytes(3000) + data[3000:],
    "another kind": lambda data: data.replace(b"epistream.parquet-rows", b"epistream.parquet-bows"),
}


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.usefixtures("small_chunks")
def test_what_a_crash_left_torn_is_made_again(tmp_path, harm):
    spec, file = written(tmp_path, 1 << 20)
    read(file, 0, tmp_path / "kept")
    (kept,) = (tmp_path / "kept").glob("*.rows")
    whole = kept.read_bytes()
    kept.write_bytes(HARM[harm](whole))
    assert wrong_episodes(spec, file, tmp_path / "kept") == []
    assert kept.read_bytes() == whole


@pytest.mark.usefixtures("small_chunks")
def test_pictures_that_are_torn_while_they_are_read_are_unpacked_again(tmp_path):
    spec, file = written(tmp_path, 1 << 20, (4, 3), front=image())
    pictures = picture_groups.group_pictures(file, "front", 0, tmp_path)
    (kept,) = (tmp_path / "pictures").glob("*.pictures")
    with kept.open("r+b") as torn:
        torn.write(bytes(200))
    wanted = spec.picture_bytes("front", 0, 0)
    found = bytearray(len(wanted))
    pictures.read_into(0, memoryview(found))
    assert bytes(found) == wanted


def _die(file, folder, chunk):
    """Read an episode, and be killed when a chunk is to be written; or before the file is put in its place."""
    left = [chunk]
    real = ChunkWriter.add

    def add(self, data):
        if left[0] == 0:
            self._target.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        real(self, data)

    def finish(self, *arguments):
        self._target.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    row_groups._CHUNK_ROWS = 7
    ChunkWriter.add, ChunkWriter.finish = add, finish
    read(file, 0, folder)


def test_process_that_is_killed_while_it_keeps_a_group_costs_the_others_nothing(tmp_path):
    spec, file = written(tmp_path, 1 << 20)
    folder = tmp_path / "kept"
    for chunk in (0, 3, 1000):
        process = context().Process(target=_die, args=(file, folder, chunk), daemon=True)
        process.start()
        process.join(DEADLINE_S)
        assert process.exitcode == -signal.SIGKILL
        assert not list(folder.glob("*.rows"))
        assert list(folder.glob(".*.tmp"))
    for path in folder.glob(".*.tmp"):
        os.utime(path, (0, 0))
    assert wrong_episodes(spec, file, folder) == []
    assert not list(folder.glob(".*.tmp"))


@pytest.mark.parametrize("name", ["action", "front"])
def test_full_disk_makes_room_elsewhere_and_leaves_nothing_half_written(tmp_path, monkeypatch, name, caplog):
    spec, file = written(tmp_path, 1 << 20, (4, 1, 9), front=image())
    folder, real = tmp_path / "kept", ChunkWriter.add

    def add(self, data):
        if self._target.name.startswith(str(folder)):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self, data)

    monkeypatch.setattr(ChunkWriter, "add", add)
    features = (ACTION, FRONT) if name == "front" else (ACTION,)
    for number in range(3):
        rows = read(file, number, folder, features)
        np.testing.assert_array_equal(rows.values["action"], spec.values("action", number))
    assert "No space left on device" in caplog.text
    assert not [path for path in folder.rglob("*") if path.suffix in (".rows", ".pictures", ".tmp")]


@pytest.mark.parametrize("name", ["action", "front"])
@pytest.mark.usefixtures("small_chunks")
def test_group_that_a_full_disk_has_no_room_for_is_decoded_twice_at_most(tmp_path, monkeypatch, name):
    _, file = written(tmp_path, 1 << 20, (4, 1, 9, 3), front=image())
    folder, real, begun = tmp_path / "kept", ChunkWriter.add, []

    def add(self, data):
        if not self._target.tell():
            begun.append(self._target.name)
        elif self._target.name.startswith(str(folder)):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self, data)

    monkeypatch.setattr(ChunkWriter, "add", add)
    for number in range(4):
        read(file, number, folder, (ACTION, FRONT) if name == "front" else (ACTION,))
    assert len(begun) == len(set(begun)) == (4 if name == "front" else 2)


def test_a_group_is_kept_with_little_of_it_in_memory(tmp_path, monkeypatch):
    count, width = 400_000, 28
    values = np.random.default_rng(0).random(count * width, np.float32)
    steps = np.arange(count)
    table = pa.table(
        {
            "action": pa.FixedSizeListArray.from_arrays(pa.array(values), width),
            "episode_index": pa.array(steps // 1000),
            "frame_index": pa.array(steps % 1000),
            "timestamp": pa.array((steps % 1000 / 50).astype(np.float32)),
        }
    )
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=count)
    del table
    file = SourceFile.at(str(tmp_path), "rows.parquet", None, "rows")
    before, most = pa.total_allocated_bytes(), [0]
    real = ChunkWriter.add

    def add(self, data):
        most[0] = max(most[0], pa.total_allocated_bytes())
        real(self, data)

    monkeypatch.setattr(ChunkWriter, "add", add)
    feature = Feature(name="action", kind="array", codec="npy", dtype="float32", shape=(width,), source_path="action")
    rows = read(file, 123, tmp_path / "kept", (feature,))
    np.testing.assert_array_equal(rows.values["action"], values.reshape(-1, 1000, width)[123])
    assert most[0] - before < values.nbytes / 3


def _change(file, change):
    table = pq.read_table(file.url)
    Path(file.url).unlink()
    pq.write_table(change(table), file.url)
    return SourceFile.at(str(Path(file.url).parent), Path(file.url).name, None, "rows")


@pytest.mark.parametrize("cut", [7, 1 << 20])
def test_rows_of_an_episode_in_two_places_are_refused_and_cost_no_other(tmp_path, cut):
    spec, file = written(tmp_path, cut)

    def change(table):
        return pa.concat_tables([table.slice(0, 20), table.slice(45), table.slice(20, 25)])

    table = change(pq.read_table(file.url))
    Path(file.url).unlink()
    pq.write_table(table, file.url, row_group_size=cut)
    file = file_of(tmp_path / "set", spec)
    for number, length in enumerate(LENGTHS):
        if number == 3:
            with pytest.raises(FormatError, match="rows of episode 3 in several places"):
                read(file, number, tmp_path)
        else:
            assert len(read(file, number, tmp_path).timestamp) == length


def test_numbers_of_episodes_that_are_missing_are_named(tmp_path):
    _, file = written(tmp_path, 1 << 20)

    def change(table):
        numbers = [None if row == 9 else number for row, number in enumerate(table["episode_index"].to_pylist())]
        return table.set_column(table.column_names.index("episode_index"), "episode_index", pa.array(numbers))

    with pytest.raises(FormatError, match="episode_index as int64, 1 values missing, wanted a whole number a step"):
        read(_change(file, change), 5, tmp_path)


def test_groups_that_do_not_say_their_episodes_are_looked_through(tmp_path):
    spec, file = written(tmp_path, None)
    table = pq.read_table(file.url)
    Path(file.url).unlink()
    pq.write_table(table, file.url, row_group_size=9, write_statistics=False)
    assert wrong_episodes(spec, file_of(tmp_path / "set", spec), tmp_path / "kept") == []


def test_a_torn_group_is_an_error_and_keeps_nothing(tmp_path):
    _, file = written(tmp_path, 1 << 20)
    with Path(file.url).open("r+b") as torn:
        torn.seek(4)
        torn.write(b"\xff" * 400)
    with pytest.raises(FormatError, match="wanted a whole Parquet file"):
        read(SourceFile.at(str(tmp_path / "set"), file.name, None, "rows"), 5, tmp_path / "kept")
    assert not [path for path in (tmp_path / "kept").iterdir() if path.suffix in (".rows", ".tmp", ".lock")]


def test_room_for_pictures_is_made_of_those_that_were_used_longest_ago(tmp_path, monkeypatch):
    monkeypatch.setattr(picture_groups, "MOST_KEPT_BYTES", 1000)
    ages = {"a.pictures": 50, "b.pictures": 10, "c.pictures": 30, "d.lock": 100, ".e.pictures.7.tmp": 7200}
    for name, age in [*ages.items(), (".f.pictures.8.tmp", 5)]:
        path = tmp_path / name
        path.write_bytes(bytes(300))
        time = path.stat().st_mtime - age
        os.utime(path, (time, time))
    make_room(tmp_path, 400)
    assert {path.name for path in tmp_path.iterdir()} == {"b.pictures", "c.pictures", "d.lock", ".f.pictures.8.tmp"}
    make_room(tmp_path, 5000)
    assert {path.name for path in tmp_path.iterdir()} == {"d.lock", ".f.pictures.8.tmp"}


# Of which a file is larger than what is read of its end.
WIDE = Feature(name="action", kind="array", codec="npy", dtype="float32", shape=(1000,), source_path="action")


def uploaded(spec, tmp_path):
    """Its file of rows in memory://, which is read as remote ones are."""
    url = f"memory://{tmp_path.parent.name}/{tmp_path.name}"
    data = (spec.write(tmp_path / "set") / spec.data_path(0)).read_bytes()
    fsspec.filesystem("memory").pipe_file(f"{url}/{spec.data_path(0)}", data)
    return SourceFile.at(url, spec.data_path(0), None, "the rows of an episode")


@pytest.mark.parametrize("piece", [50_000, 4 << 20])
def test_bytes_of_a_remote_group_go_through_a_file_and_elsewhere_if_there_is_no_room(tmp_path, monkeypatch, piece):
    spec = RobotSet(lengths=LENGTHS, features={"action": numbers(1000)}, rows_in_group=1 << 20)
    file, folder = uploaded(spec, tmp_path), tmp_path / "kept"
    real, sizes = os.pwrite, []

    def pwrite(fd, data, offset):
        if str(Path(f"/proc/self/fd/{fd}").readlink()).startswith(str(folder)):
            raise OSError(errno.ENOSPC, "No space left on device")
        sizes.append(len(data))
        return real(fd, data, offset)

    monkeypatch.setattr(parquet_ranges, "_PIECE_BYTES", piece)
    monkeypatch.setattr("epistream.sharding.lerobot_meta.parquet_ranges.os.pwrite", pwrite)
    assert wrong_episodes(spec, file, folder, WIDE) == []
    assert max(sizes) <= piece
    assert not list(folder.glob("*.rows"))


@pytest.mark.parametrize("is_remote", [False, True])
def test_a_file_that_is_replaced_while_a_group_of_it_is_kept_is_an_error_and_keeps_nothing(
    tmp_path, monkeypatch, is_remote
):
    spec = RobotSet(lengths=LENGTHS, features={"action": numbers(1000)}, rows_in_group=1 << 20)
    file = uploaded(spec, tmp_path) if is_remote else file_of(spec.write(tmp_path / "set"), spec)
    data = (tmp_path / "set" / spec.data_path(0)).read_bytes()
    real = row_groups.batches_of

    def batches_of(*arguments, **more):
        if is_remote:
            fsspec.filesystem("memory").pipe_file(file.url, data)
        yield from real(*arguments, **more)
        if not is_remote:
            replace_file(Path(file.url), data)

    monkeypatch.setattr(row_groups, "batches_of", batches_of)
    with pytest.raises(SourceChangedError):
        read(file, 3, tmp_path / "kept", (WIDE,))
    assert not list((tmp_path / "kept").glob("*.rows"))
