"""Many processes at once: no wrong byte, one fetch, the budget kept, nothing left, whoever is killed."""

import multiprocessing.process
import random
import time
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path

import pytest
import xxhash
from cache_actors import DEADLINE_S, SIZE, context, open_test_store, run_counter, run_epochs, run_rank, run_stress
from faulty_server import serve

from epistream.cache.entry import Entry, Part
from epistream.cache.room import FILL, survey

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


def assert_stress(path: Path, rounds: int, num_kills: int, seed: int) -> None:
    """8 processes, 40 keys, room for 12; some are killed and replaced; the directory is sampled all along."""
    draw = random.Random(seed)
    cap = 12 * SIZE
    observer = open_test_store(path, cap)
    running = [start(run_stress, str(path), cap, draw.random(), rounds, 40) for _ in range(8)]
    results: list[tuple] = []
    highest = 0
    deadline = time.monotonic() + 20 * DEADLINE_S
    while running:
        assert time.monotonic() < deadline, "a process did not finish"
        with observer.directory.locked(DEADLINE_S):
            highest = max(highest, sum(item.charge_bytes for item in survey(observer.directory) if item.kind != FILL))
        if num_kills and draw.random() < 0.2:
            num_kills -= 1
            process, pipe = running.pop(draw.randrange(len(running)))
            process.kill()
            process.join(DEADLINE_S)
            pipe.close()
            running.append(start(run_stress, str(path), cap, draw.random(), rounds, 40))
        ready = wait([pipe for _, pipe in running], timeout=0.01)
        for process, pipe in [each for each in running if each[1] in ready]:
            results.append(pipe.recv())
            process.join(DEADLINE_S)
            running.remove((process, pipe))
    assert len(results) == 8
    assert sum(wrong for wrong, _, _ in results) == 0
    assert sum(bypassed for _, bypassed, _ in results) == 0
    assert 0 < highest <= cap
    observer.give_back()
    assert [file.name for file in path.iterdir() if file.suffix in (".part", ".shard")] == []
    observer.directory.leave()
    assert list(path.parent.iterdir()) == []


def test_eight_processes_with_kills_keep_every_promise(cache_path: Path) -> None:
    assert_stress(cache_path, rounds=600, num_kills=14, seed=1)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(5))
def test_eight_processes_with_many_kills_keep_every_promise(cache_path: Path, seed: int) -> None:
    assert_stress(cache_path, rounds=10_000, num_kills=200, seed=seed)
