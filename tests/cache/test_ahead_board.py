"""What processes tell each other of the files that are read ahead: by locks, and so until they end."""

import errno
import fcntl
import os
import signal
from pathlib import Path

import pytest
from cache_actors import DEADLINE_S, context

from epistream.cache.ahead_board import AheadBoard, number_of
from epistream.cache.source.entry import Entry, Part


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "shard-000000.index"
    file.write_bytes(b"x")
    return file


def lead_and_wait(path: Path, ready) -> None:
    board = AheadBoard(path)
    assert board.try_lead()
    board.expect(3)
    board.tell(1, 2)
    ready.set()
    signal.pause()


def test_board_tells_others_what_is_expected_and_that_work_goes_on(path: Path) -> None:
    leader, reader = AheadBoard(path), AheadBoard(path)
    assert leader.try_lead()
    assert not reader.try_lead()
    assert reader.told() is None
    leader.expect(7)
    leader.expect(8)
    leader.tell(1, 26)
    assert (reader.is_expected(6), reader.is_expected(7), reader.is_expected(8)) == (False, True, True)
    assert reader.told() == (1, 26)
    leader.arrive(7)
    leader.tell(2, 1000)
    assert (reader.is_expected(7), reader.is_expected(8), reader.told()) == (False, True, (2, 255))
    leader.forget()
    assert (reader.is_expected(8), reader.told()) == (False, None)
    leader.close()
    leader.close()
    assert reader.try_lead()
    reader.close()


def test_board_of_a_process_that_is_killed_is_empty(path: Path) -> None:
    ready = context().Event()
    process = context().Process(target=lead_and_wait, args=(path, ready), daemon=True)
    process.start()
    assert ready.wait(DEADLINE_S)
    reader = AheadBoard(path)
    assert (reader.is_expected(3), reader.told(), reader.try_lead()) == (True, (1, 2), False)
    process.kill()
    process.join(DEADLINE_S)
    assert (reader.is_expected(3), reader.told(), reader.try_lead()) == (False, None, True)
    reader.close()


def test_forked_child_neither_keeps_nor_drops_what_its_parent_tells(path: Path) -> None:
    leader, reader = AheadBoard(path), AheadBoard(path)
    assert leader.try_lead()
    leader.expect(3)
    ready, go_on = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        leader.close()
        os.write(ready[1], b"x")
        os.read(go_on[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    assert (reader.is_expected(3), reader.try_lead()) == (True, False)
    leader.close()
    assert (reader.is_expected(3), reader.try_lead()) == (False, True), "the child lives, and holds nothing"
    os.write(go_on[1], b"x")
    os.waitpid(child, 0)
    reader.close()
    for fd in (*ready, *go_on):
        os.close(fd)


def test_file_system_without_locks_makes_everybody_lead_and_nobody_wait(path: Path, monkeypatch) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    monkeypatch.setattr(fcntl, "flock", refuse)
    first, second = AheadBoard(path), AheadBoard(path)
    assert first.try_lead()
    assert second.try_lead()
    first.expect(1)
    first.tell(1, 1)
    assert (second.is_expected(1), second.told()) == (False, None)
    first.close()
    second.close()


def test_board_of_a_file_without_write_permission_works(path: Path) -> None:
    path.chmod(0o444)
    board = AheadBoard(path)
    board.expect(0)
    other = AheadBoard(path)
    assert other.is_expected(0)
    board.close()
    other.close()


def test_number_is_the_same_wherever_an_entry_is_opened_and_fits_a_board() -> None:
    entries = [Entry((Part(f"/data/{n}.tar", 10, "aa"),)) for n in range(50)]
    numbers = [number_of(entry) for entry in entries]
    assert numbers == [number_of(Entry(entry.parts)) for entry in entries]
    assert len(set(numbers)) == 50
    assert max(numbers) < 1 << 40
