"""Many processes at once: no wrong byte, one fetch, the budget kept, nothing left, whoever is killed."""

import faulthandler
import multiprocessing.process
import random
import time
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path

import pytest
import xxhash
from cache_actors import (
    DEADLINE_S,
    SIZE,
    content,
    context,
    get,
    noted_bytes,
    open_test_store,
    read_all,
    run_counter,
    run_epochs,
    run_rank,
    run_stress,
)
from web.faulty_server import serve

from epistream.cache.source.entry import Entry, Part
from epistream.cache.store.survey import FILL, charge, survey

Started = tuple[multiprocessing.process.BaseProcess, Connection]


def start(target: Callable[..., None], *arguments: object) -> Started:
    mine, theirs = context().Pipe(duplex=False)
    process = context().Process(target=target, args=(*arguments, theirs), daemon=True)
    process.start()
    theirs.close()
    return process, mine


def results_of(started: list[Started]) -> list[tuple]:
    results = []
    for process, pipe in started:
        assert pipe.poll(4 * DEADLINE_S), "a process did not finish"
        results.append(pipe.recv())
        process.join(DEADLINE_S)
        assert process.exitcode == 0
    return results


def test_acquire_by_eight_processes_at_once_fills_once(cache_path: Path) -> None:
    keeper = open_test_store(cache_path)  # or the last of eight might leave before the first has come
    for number in range(3):
        begin = time.monotonic() + 0.3
        started = [start(run_counter, str(cache_path), number, begin) for _ in range(8)]
        results = results_of(started)
        assert sorted(results) == [(False, True)] * 7 + [(True, True)]
    keeper.directory.leave()


def test_ranks_out_of_step_with_room_for_exactly_their_resident_shards_do_not_stall(cache_path: Path) -> None:
    started = [start(run_rank, str(cache_path), 3 * SIZE, 3, seed) for seed in range(4)]
    assert results_of(started) == [(0, 0)] * 4
    assert list(cache_path.parent.iterdir()) == []


def test_four_ranks_with_two_workers_fetch_every_byte_once_and_nothing_in_the_second_epoch(cache_path: Path) -> None:
    datas = [bytes([number]) * (200_000 + number) for number in range(10)]
    sums = [xxhash.xxh3_128_hexdigest(data) for data in datas]
    total = sum(len(data) for data in datas)
    keeper = open_test_store(cache_path)
    with serve() as server:
        server.files = {f"/{number}.tar": data for number, data in enumerate(datas)}
        parts = [Part(f"{server.url}/{i}.tar", len(data), sums[i]) for i, data in enumerate(datas)]
        entries = [Entry((part,)) for part in parts]
        started = [start(run_epochs, str(cache_path), 2 * total, entries, sums, seed) for seed in range(8)]
        results = results_of(started)
        assert server.num_bytes == total, "the ratio is 1.00"
        assert len(server.requests) == 10
    keeper.directory.leave()
    assert [wrong for wrong, _, _, _ in results] == [0] * 8
    assert sum(fills for _, fills, _, _ in results) == 10
    assert sum(fetched for _, _, fetched, _ in results) == total
    assert sum(bypasses for _, _, _, bypasses in results) == 0


class Stress:
    """8 processes, 40 keys, room for 12, for so many seconds. Who ends is replaced, whether it left or was killed.

    Meanwhile the directory is sampled, and now and then a part of it is given back, as under memory pressure.
    """

    def __init__(self, path: Path, seed: int) -> None:
        self.path = path
        self.draw = random.Random(seed)
        self.cap = 12 * SIZE
        self.observer = open_test_store(path, self.cap)
        self.running: list[Started] = []
        self.results: list[tuple] = []
        self.num_killed = 0
        self.highest = 0

    def run(self, seconds: float) -> None:
        faulthandler.cancel_dump_traceback_later()  # pytest's, after two minutes: here they are no sign of a hang
        stop = time.monotonic() + seconds
        while time.monotonic() < stop:
            self.turn(replace=True)
        deadline = time.monotonic() + 4 * DEADLINE_S
        while self.running:
            assert time.monotonic() < deadline, "a process did not finish"
            self.turn(replace=False)

    def turn(self, *, replace: bool) -> None:
        while replace and len(self.running) < 8:
            rounds = self.draw.randrange(100, 1500)
            self.running.append(start(run_stress, str(self.path), self.cap, self.draw.random(), rounds, 40))
        directory = self.observer.directory
        with directory.locked(DEADLINE_S):
            held = sum(charge(item.size) for item in survey(directory) if item.kind != FILL)
            # Where nobody was killed in the middle of it, the running total is what the files count for.
            assert noted_bytes(self.path) in (None, held)
        self.highest = max(self.highest, held)
        chance = self.draw.random()
        if replace and chance < 0.02:
            process, pipe = self.running.pop(self.draw.randrange(len(self.running)))
            process.kill()
            process.join(DEADLINE_S)
            pipe.close()
            self.num_killed += 1
        elif chance > 0.99:
            self.observer.give_back(3 * SIZE)
        ready = wait([pipe for _, pipe in self.running], timeout=0.01)
        for process, pipe in [each for each in self.running if each[1] in ready]:
            self.results.append(pipe.recv())
            process.join(DEADLINE_S)
            assert process.exitcode == 0
            self.running.remove((process, pipe))

    def check(self) -> None:
        """What must hold when all is over, whatever happened on the way."""
        assert self.num_killed > 0
        assert len(self.results) >= 8
        assert [wrong for wrong, _, _ in self.results] == [0] * len(self.results)
        assert [bypassed for _, bypassed, _ in self.results] == [0] * len(self.results)
        assert sum(fills for _, _, fills in self.results) > 12, "something was evicted and came again"
        assert 0 < self.highest <= self.cap
        # Each entry is there and right, or comes in again: no lock, note or hollow file of the dead is in the way.
        for number in range(40):
            lease = get(self.observer, number)
            assert read_all(lease) == content(number)
            lease.close()
        self.observer.give_back()
        assert [file.name for file in self.path.iterdir() if file.suffix in (".part", ".shard")] == []
        self.observer.directory.leave()
        assert list(self.path.parent.iterdir()) == []


@pytest.mark.timeout(400)
def test_eight_processes_for_half_a_minute_with_kills_keep_every_promise(cache_path: Path) -> None:
    stress = Stress(cache_path, seed=1)
    stress.run(30)
    stress.check()


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(3))
def test_eight_processes_for_ten_minutes_with_kills_keep_every_promise(cache_path: Path, seed: int) -> None:
    stress = Stress(cache_path, seed)
    stress.run(600)
    stress.check()
