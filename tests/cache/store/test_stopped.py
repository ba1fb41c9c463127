"""A filler that is stopped (Ctrl-Z, a debugger) and not dead: who waited for it once tells all others."""

import multiprocessing.process
import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import xxhash
from cache_actors import (
    DEADLINE_S,
    SIZE,
    content,
    context,
    counted_bytes,
    get,
    names,
    noted_bytes,
    open_test_store,
    read_all,
    run_victim,
)

from epistream.cache import stores
from epistream.cache.node import CacheOptions, NodeCache
from epistream.cache.source.entry import Entry, Part
from epistream.cache.store.store import StoreOptions
from epistream.errors import DeadlineError

SHORT_S = 0.05
Process = multiprocessing.process.BaseProcess


class StopSelfAt:
    """An observer that stops its process by SIGSTOP when a step is reached."""

    def __init__(self, step: str) -> None:
        self.step = step

    def __call__(self, step: str) -> None:
        if step == self.step:
            self.step = ""
            os.kill(os.getpid(), signal.SIGSTOP)


def wait_until_stopped(process: Process) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        assert time.monotonic() < deadline
        time.sleep(0.002)


def stopped_at(path: Path, step: str) -> Process:
    """A process that is stopped at a step of filling key 1."""
    process = context().Process(
        target=run_victim, args=(str(path), 4 * SIZE, [1], StopSelfAt(step), True, True), daemon=True
    )
    process.start()
    wait_until_stopped(process)
    return process


@pytest.fixture
def filler(cache_path: Path) -> Iterator[Process]:
    process = stopped_at(cache_path, "fill.allocated")
    yield process
    process.kill()
    process.join(DEADLINE_S)


def test_stopped_filler_is_waited_for_once_by_all(cache_path: Path, filler: Process) -> None:
    with pytest.raises(DeadlineError, match=rf"held by process \[{filler.pid}\] for 0\.05 s"):
        get(open_test_store(cache_path, fill_timeout_s=SHORT_S), 1)
    steps: list[str] = []
    given_up: list[int] = []
    patient = open_test_store(cache_path, observe=steps.append)
    for _ in range(3):
        with pytest.raises(DeadlineError, match=rf"held by process \[{filler.pid}\] for 0\.05 s"):
            get(patient, 1, before_wait=lambda: given_up.append(1))
    assert "turn.poll" not in steps, "nobody waits again"
    assert given_up == [], "nor gives up its leases to do so"
    assert read_all(get(patient, 2)) == content(2), "other keys go on"


def test_waiter_learns_of_a_stopped_filler_from_one_that_waited_less(cache_path: Path, filler: Process) -> None:
    impatient = open_test_store(cache_path, fill_timeout_s=SHORT_S)

    def observe(step: str) -> None:
        if step == "turn.poll" and steps.count(step) == 1:  # it waits already
            with pytest.raises(DeadlineError):
                get(impatient, 1)
        steps.append(step)

    steps: list[str] = []
    patient = open_test_store(cache_path, observe=observe)
    with pytest.raises(DeadlineError, match=r"for 0\.05 s"):
        get(patient, 1)


@pytest.mark.parametrize("is_killed", [False, True])
def test_stopped_filler_that_goes_on_or_dies_is_stuck_no_more(
    cache_path: Path, filler: Process, is_killed: bool
) -> None:
    store = open_test_store(cache_path, cap=4 * SIZE)
    with pytest.raises(DeadlineError):
        get(open_test_store(cache_path, fill_timeout_s=SHORT_S), 1)
    os.kill(filler.pid or 0, signal.SIGKILL if is_killed else signal.SIGCONT)
    filler.join(DEADLINE_S)
    assert read_all(get(store, 1)) == content(1)
    assert names(cache_path) == {"1.shard"}
    assert list(cache_path.glob("*.fill")) == []
    assert noted_bytes(cache_path) == counted_bytes(cache_path) == SIZE


def test_reader_beside_a_stopped_filler_reads_directly_and_keeps_its_leases(tmp_path: Path, cache_path: Path) -> None:
    source = tmp_path / "s.tar"
    source.write_bytes(b"episode" * 1000)
    entry = Entry((Part(str(source), 7000, xxhash.xxh3_128_hexdigest(source.read_bytes())),))
    options = CacheOptions(mode="shm", directory=str(cache_path), fill_timeout_s=SHORT_S)
    process = context().Process(
        target=open_and_close, args=(NodeCache(options, observe=StopSelfAt("fill.allocated")), entry), daemon=True
    )
    process.start()
    wait_until_stopped(process)
    given_up: list[str] = []
    with NodeCache(options) as cache:
        for _ in range(5):
            with cache.open(entry, before_wait=lambda: given_up.append("leases")) as opened:
                assert opened.tier == "direct"
                assert bytes(opened.blobs[0].read(0, 7)) == b"episode"
        assert len(given_up) == 1
        assert cache.stats().bypasses == 5
        os.kill(process.pid or 0, signal.SIGCONT)
        process.join(DEADLINE_S)
        assert process.exitcode == 0
        with cache.open(entry) as opened:
            assert opened.tier == "shm"


def test_nothing_is_made_beside_a_stopped_accountant_and_nobody_ends_for_it(
    tmp_path: Path, cache_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "s.tar"
    source.write_bytes(b"episode" * 1000)
    parts = (Part(str(source), 7000, xxhash.xxh3_128_hexdigest(source.read_bytes())),)
    options = CacheOptions(mode="shm", directory=str(cache_path))
    process = context().Process(
        target=open_and_close,
        args=(NodeCache(options, observe=StopSelfAt("reserve.created")), Entry(parts)),
        daemon=True,
    )
    monkeypatch.setattr(stores, "StoreOptions", partial(StoreOptions, lock_timeout_s=SHORT_S))
    with NodeCache(options) as cache:
        cache.budget()  # enters the directory
        process.start()
        wait_until_stopped(process)
        made = Entry(parts, "made")
        try:
            assert cache.open_made(made, SIZE, lambda view: None) is None
        finally:
            process.kill()
            process.join(DEADLINE_S)
        opened = cache.open_made(made, SIZE, lambda view: None)
        assert opened is not None
        opened.close()


def open_and_close(cache: NodeCache, entry: Entry) -> None:
    cache.open(entry).close()
    cache.close()


def test_stopped_accountant_is_waited_for_once(cache_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_test_store(cache_path, cap=4 * SIZE)
    process = stopped_at(cache_path, "reserve.created")
    waited_s: list[float] = []
    now = [0.0]
    # A clock that only waiting moves: it is counted, not measured.
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr("time.sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    try:
        for _ in range(3):
            before = now[0]
            with (
                pytest.raises(DeadlineError, match=rf"\.lock: held by process \[{process.pid}\]"),
                store.directory.locked(DEADLINE_S),
            ):
                pass
            waited_s.append(now[0] - before)
    finally:
        monkeypatch.undo()
        process.kill()
        process.join(DEADLINE_S)
    assert waited_s == pytest.approx([DEADLINE_S, SHORT_S, SHORT_S])
    assert read_all(get(store, 2)) == content(2)
    assert read_all(get(store, 1)) == content(1)
    assert noted_bytes(cache_path) == counted_bytes(cache_path) == 2 * SIZE
