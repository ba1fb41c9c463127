"""The folder of a user's indexes stays small, and nothing that somebody uses is taken away."""

import os
import threading
import time
from pathlib import Path

import pytest

import epistream as es
from epistream.errors import CacheError
from epistream.sharding.files import pruning
from epistream.sharding.files.locks import locked
from epistream.sharding.files.pruning import Limits, mark_used, prune, prune_daily
from epistream.sharding.files.user_cache import make_once

DAY_S = 86_400
LEROBOT = Path(__file__).resolve().parents[3] / "examples" / "data" / "lerobot" / "aloha"
DEADLINE_S = 60


def keep(folder, number, days_ago, size=100, parts=1):
    """An index of some parts, last used some days ago; gives its names."""
    used = time.time() - days_ago * DAY_S
    names = [f"{number:032x}.{part}.index" for part in range(parts)]
    for name in names:
        (folder / name).write_bytes(bytes(size))
        os.utime(folder / name, (used, used))
    return names


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_nobody_opened_for_long_goes(tmp_path):
    old, fresh = keep(tmp_path, 1, 91, parts=3), keep(tmp_path, 2, 89)
    assert prune(tmp_path, Limits()) == old
    assert names(tmp_path) == fresh


def test_what_is_kept_of_a_lerobot_data_set_goes_likewise(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    stream = es.EpisodeStream(LEROBOT, batch_size=10)
    assert len(next(iter(stream))["action"]) == 10
    here = tmp_path / "epistream" / "indexes"
    (here / f"{1:032x}.footer.tables").write_bytes(b"of a remote one")
    (here / f"{2:032x}.rows").write_bytes(b"of a row group of many episodes")
    (here / f".{3:032x}.pictures.7.tmp").write_bytes(b"of one that was killed")
    assert {name.partition(".")[2] for name in names(here)} >= {"index", "looks.json", "packets.tables"}
    for path in here.iterdir():
        os.utime(path, (1, 1))
    prune(here, Limits())
    assert names(here) == [".pruned"]


def test_what_was_opened_longest_ago_goes_until_the_rest_fits(tmp_path):
    kept = [keep(tmp_path, number, days_ago)[0] for number, days_ago in ((7, 60), (3, 50), (9, 40), (1, 30))]
    assert prune(tmp_path, Limits(max_bytes=250)) == kept[:2]
    assert names(tmp_path) == sorted(kept[2:])


def test_what_was_used_lately_stays_however_large_it_is(tmp_path):
    kept = [keep(tmp_path, number, 1, size=10_000)[0] for number in range(5)]
    assert prune(tmp_path, Limits(max_bytes=0)) == []
    assert names(tmp_path) == kept


def test_marking_is_a_use_and_no_change(tmp_path):
    (name,) = keep(tmp_path, 1, 100)
    modified = (tmp_path / name).stat().st_mtime_ns
    mark_used(tmp_path / name)
    assert (tmp_path / name).stat().st_mtime_ns == modified
    assert prune(tmp_path, Limits(max_bytes=0)) == []
    with pytest.raises(FileNotFoundError):
        mark_used(tmp_path / "gone")


def test_files_of_others_are_left_alone(tmp_path):
    for name in ("notes.txt", "a.index", f"{1:032x}.tar", f"{1:031x}.index", "x.lock"):
        (tmp_path / name).write_text("mine")
        os.utime(tmp_path / name, (1, 1))
    before = names(tmp_path)
    assert prune(tmp_path, Limits(max_bytes=0)) == []
    assert names(tmp_path) == before


def test_what_killed_processes_left_goes(tmp_path):
    left = [
        f".{1:032x}.0.index.123.tmp",
        f"{2:032x}.lock",
        f"{3:032x}.statistics-1.json",
        f"{3:032x}.statistics-1.lock",
    ]
    for name in left:
        (tmp_path / name).write_text("")
        os.utime(tmp_path / name, (1, 1))
    assert sorted(prune(tmp_path, Limits())) == sorted(left)
    assert names(tmp_path) == []


def test_what_another_process_makes_just_now_stays(tmp_path):
    (name,) = keep(tmp_path, 1, 100)
    lock = tmp_path / f"{1:032x}.lock"
    with locked(lock, 0.0):
        os.utime(lock, (1, 1))
        assert prune(tmp_path, Limits()) == []
    assert names(tmp_path) == [name, lock.name]


def test_file_that_is_opened_while_it_is_put_aside_is_put_back(tmp_path, monkeypatch):
    (name,) = keep(tmp_path, 1, 100)
    real = pruning._time_of

    def opened_now(path):
        if path.name.startswith("."):  # put aside: whoever read it just before has marked it
            os.utime(path)
        return real(path)

    monkeypatch.setattr(pruning, "_time_of", opened_now)
    assert prune(tmp_path, Limits()) == []
    assert names(tmp_path) == [name]


def test_folder_is_pruned_once_a_day_by_whoever_makes_something(tmp_path, monkeypatch):
    pruned = []
    monkeypatch.setattr(pruning, "prune", lambda folder, limits: pruned.append((folder, limits)))

    def make(name):
        path = tmp_path / name
        return make_once(
            tmp_path / f"{name}.lock",
            lambda place: path.read_bytes() if path.exists() else None,
            lambda: [(name, b"1")],
            "a",
        )

    for name in ("a", "b", "c", "a"):
        assert make(name) == b"1"
    assert pruned == [(tmp_path, Limits())]
    os.utime(tmp_path / ".pruned", (time.time() - DAY_S - 1,) * 2)
    make("a")
    assert len(pruned) == 1  # who only reads does not look
    make("d")
    assert len(pruned) == 2


def test_folder_that_another_process_prunes_is_left_to_it(tmp_path, monkeypatch):
    monkeypatch.setattr(pruning, "prune", lambda folder, limits: pytest.fail("pruned twice"))
    with locked(tmp_path / ".pruned", 0.0):
        os.utime(tmp_path / ".pruned", (1, 1))
        prune_daily(tmp_path)


def test_lock_of_what_was_made_is_gone(tmp_path):
    path = tmp_path / "value"
    read = lambda place: path.read_bytes() if path.exists() else None  # noqa: E731
    make_once(tmp_path / "value.lock", read, lambda: [("value", b"made")], "a.tar")
    assert (tmp_path / "value").exists()
    assert not (tmp_path / "value.lock").exists()


def test_readers_and_makers_get_what_they_ask_for_while_everything_is_pruned(tmp_path):
    end, failed, found = threading.Event(), [], []

    def ask(seed):
        try:
            for step in range(60):
                number = (seed * 7 + step) % 5
                first = tmp_path / f"{number:032x}.0.index"

                def read(place, first=first):
                    try:
                        data = [first.with_name(first.name.replace(".0.", f".{part}.")).read_bytes() for part in (0, 1)]
                        mark_used(first)
                    except FileNotFoundError:
                        return None
                    return data

                def make(number=number, first=first):
                    return [(first.name.replace(".0.", f".{part}."), bytes([number, part])) for part in (1, 0)]

                try:
                    found.append(make_once(tmp_path / f"{number:032x}.lock", read, make, "a", deadline_s=30))
                except CacheError:  # taken away before its maker has read it back: with days between, it never is
                    continue
                assert found[-1] == [bytes([number, 0]), bytes([number, 1])]
        except BaseException as error:
            failed.append(error)

    def take_away():
        while not end.is_set():
            prune(tmp_path, Limits(max_bytes=0, safe_days=0))

    pruner = threading.Thread(target=take_away)
    askers = [threading.Thread(target=ask, args=(seed,)) for seed in range(3)]
    for thread in (pruner, *askers):
        thread.start()
    for thread in askers:
        thread.join(DEADLINE_S)
    end.set()
    pruner.join(DEADLINE_S)
    assert failed == []
    assert len(found) > 50
