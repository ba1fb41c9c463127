"""Processes that use a shard store, and how to start them quickly; the content of a key is arithmetic."""

import multiprocessing
import os
import random
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from epistream.cache.store.budget import Limits
from epistream.cache.store.directory import Observer, ignore
from epistream.cache.store.lease import Lease
from epistream.cache.store.pressure import Relief
from epistream.cache.store.store import NoRoomError, Outcome, ShardStore, StoreOptions, open_store
from epistream.cgroups import System

PAGE = 4096
SIZE = 4 * PAGE
DEADLINE_S = 30.0
_OPENED: list[ShardStore] = []


def context() -> multiprocessing.context.ForkServerContext:
    """Children of a server that has imported the cache already: some milliseconds each."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["numpy", "epistream.cache.node"])
    return server


def options(cap: int | None = None, limits: Limits | None = None, **changes: float) -> StoreOptions:
    """Deadlines short enough for tests; they are long where nothing is expected to wait."""
    timeouts = {"fill_timeout_s": DEADLINE_S, "room_timeout_s": DEADLINE_S, "lock_timeout_s": DEADLINE_S, **changes}
    return StoreOptions(limits or Limits(), cap=cap, **timeouts)


def open_test_store(path: Path, cap: int | None = None, observe: Observer = ignore, **changes: float) -> ShardStore:
    store = open_store(path, options(cap, **changes), observe=observe)
    _OPENED.append(store)
    return store


def leave_all() -> None:
    """Leave what `open_test_store` opened since the last call, and nobody has left: each holds some descriptors."""
    while _OPENED:
        _OPENED.pop().leave()


def key_of(number: int) -> str:
    return f"{number:032x}"


def content(number: int, size: int = SIZE) -> bytes:
    """The bytes of key `number`: every byte of a page depends on the key and on the page."""
    pages = np.arange(-(-size // PAGE), dtype=np.uint64) * np.uint64(1_000_003) + np.uint64(
        (number * 97 + 1) % (1 << 64)
    )
    return np.repeat(pages, PAGE // 8).tobytes()[:size]


def fill_with(number: int, size: int = SIZE, fills: list[int] | None = None):
    def fill(fd: int) -> None:
        if fills is not None:
            fills.append(number)
        os.pwrite(fd, content(number, size), 0)

    return fill


def get(store: ShardStore, number: int, size: int = SIZE, outcome: Outcome | None = None, **more) -> Lease:
    return store.acquire(key_of(number), size, fill_with(number, size), outcome=outcome, **more)


def read_all(lease: Lease) -> bytes:
    with lease.view(0, lease.size) as view:
        return bytes(view)


def names(path: Path) -> set[str]:
    """Shards and parts of a directory as "number.kind"."""
    return {f"{int(file.stem, 16)}{file.suffix}" for file in path.iterdir() if file.suffix in (".shard", ".part")}


def counted_bytes(path: Path) -> int:
    """What the shards and parts of a directory count for: whole pages, at least one."""
    sizes = [file.stat().st_size for file in path.iterdir() if file.suffix in (".shard", ".part")]
    return sum(max(1, -(-size // PAGE)) * PAGE for size in sizes)


def noted_bytes(path: Path) -> int | None:
    """The running total that a directory's ``.lock`` tells; None where it is in doubt."""
    words = (path / ".lock").read_text().split()
    return int(words[1]) if len(words) == 3 and words[0] == "clean" else None


def note_total(path: Path, num_bytes: int, due_in_s: float = 1000.0) -> None:
    """Write a running total, right or wrong, that is believed for some seconds."""
    due_s = time.clock_gettime(time.CLOCK_BOOTTIME) + due_in_s
    (path / ".lock").write_text(f"clean {num_bytes:020d} {due_s:019.6f}\n")


class KillAt:
    """An observer that kills its process at the n-th time that a step is reached."""

    def __init__(self, step: str, count: int = 1) -> None:
        self.step = step
        self.left = count

    def __call__(self, step: str) -> None:
        if step == self.step:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


class StopAt:
    """An observer that tells a pipe that a step is reached, and then waits for a byte (or for SIGKILL)."""

    def __init__(self, step: str, pipe: Connection) -> None:
        self.step = step
        self.pipe = pipe

    def __call__(self, step: str) -> None:
        if step == self.step:
            self.step = ""
            self.pipe.send(step)
            self.pipe.recv()


def run_failing_victim(path: str, cap: int, number: int, observe: Observer) -> None:
    """Open a store, and fail to fill a key."""
    store = open_test_store(Path(path), cap, observe)

    def fail(fd: int) -> None:
        raise RuntimeError("a bug")

    try:
        store.acquire(key_of(number), SIZE, fail)
    except RuntimeError:
        os._exit(0)


def run_victim(path: str, cap: int, keys: list[int], observe: Observer, leave: bool, release: bool) -> None:
    """Open a store, acquire keys one after the other, and leave."""
    store = open_test_store(Path(path), cap, observe)
    leases = []
    for number in keys:
        leases.append(get(store, number))
        if release:
            leases.pop().close()
    if leave:
        store.directory.leave()
    os._exit(0)


def run_claimer(path: str, group: str, num_bytes: int, results: Connection, observe: Observer = ignore) -> None:
    """Claim a group, tell what others claim, and go on existing."""
    store = open_test_store(Path(path), None, observe)
    results.send(store.claims.claim(group, num_bytes))
    time.sleep(10 * DEADLINE_S)


def run_relief(path: str, proc: str, step: str) -> None:
    """Give back what the memory of a made-up machine wants, and die at a step of it."""
    limits = Limits(system=System(Path(proc), Path(proc).parent))
    store = open_store(Path(path), options(limits=limits), observe=KillAt(step))
    Relief().look(store)


def run_counter(path: str, number: int, start: float, results: Connection) -> None:
    """Acquire one key at an agreed time, and tell (filled, bytes right)."""
    store = open_test_store(Path(path))
    outcome = Outcome()
    while time.monotonic() < start:
        pass
    lease = get(store, number, outcome=outcome)
    results.send((outcome.filled, read_all(lease) == content(number)))
    lease.close()
    store.directory.leave()


def run_stress(path: str, cap: int, seed: int, rounds: int, num_keys: int, results: Connection) -> None:
    """Acquire keys at random, some much more often than others, hold a few, and check every byte."""
    draw = random.Random(seed)
    store = open_test_store(Path(path), cap)
    wrong = bypassed = fills = 0
    held: list[Lease] = []
    for _ in range(rounds):
        number = min(int(draw.paretovariate(0.7)) - 1, num_keys - 1)
        outcome = Outcome()

        def give_up() -> None:
            while held:
                held.pop().close()

        try:
            lease = get(store, number, before_wait=give_up, outcome=outcome)
        except NoRoomError:
            bypassed += 1
            continue
        fills += outcome.filled
        wrong += read_all(lease) != content(number)
        held.append(lease)
        if len(held) > 2:
            held.pop(0).close()
    while held:
        held.pop().close()
    store.directory.leave()
    results.send((wrong, bypassed, fills))


def run_enter_leave(path: str, rounds: int, number: int, results: Connection) -> None:
    """Enter, fill one shard, see that it stays until the end of the lease, and leave; over and over."""
    lost = 0
    for _ in range(rounds):
        store = open_test_store(Path(path))
        lease = get(store, number)
        # The directory that we are in is the one that the path names, and our shard is in it.
        lost += not (Path(path) / f"{key_of(number)}.shard").exists()
        lost += read_all(lease) != content(number)
        lease.close()
        store.directory.leave()
    results.send(lost)


def run_rank(path: str, cap: int, num_resident: int, seed: int, results: Connection) -> None:
    """Walk over shards as a reader does: a window of `num_resident` shards, leases kept from batch to batch."""
    draw = random.Random(seed)
    store = open_test_store(Path(path), cap)
    held: dict[int, Lease] = {}
    bypassed = wrong = 0

    def give_up() -> None:
        while held:
            held.popitem()[1].close()

    for batch in range(60):
        resident = range(batch // 4, batch // 4 + num_resident)
        for number in draw.sample(list(resident), num_resident):
            if number not in held:
                try:
                    held[number] = get(store, number, before_wait=give_up)
                except NoRoomError:
                    bypassed += 1
                    continue
            wrong += read_all(held[number]) != content(number)
        for number in [number for number in held if number not in resident]:
            held.pop(number).close()
    give_up()
    store.directory.leave()
    results.send((wrong, bypassed))


def run_node(cache: object, entry: object, results: Connection) -> None:
    """Use a NodeCache that was sent here: (bytes, hits, fills)."""
    with cache.open(entry) as opened:  # type: ignore[attr-defined]
        data = bytes(opened.blobs[0].read(0, opened.blobs[0].size))
    stats = cache.stats()  # type: ignore[attr-defined]
    results.send((data, stats.hits, stats.fills))
    # No close(): the end of the process leaves.


def run_prefetcher(path: str, cap: int, entries: list, step: str, results: Connection) -> None:
    """Prefetch the first three entries, tell so, and go on existing; or die at a step."""
    from epistream.cache.node import CacheOptions, NodeCache

    options = CacheOptions(mode="shm", directory=path, budget_bytes=cap)
    cache = NodeCache(options, observe=KillAt(step))
    prefetcher = cache.prefetcher("p", entries, ahead=3)
    prefetcher.start()
    while cache.stats().prefetches < 3:
        time.sleep(0.005)
    results.send("filled")
    time.sleep(10 * DEADLINE_S)


def run_epochs(path: str, cap: int, entries: list, datas: list[str], seed: int, results: Connection) -> None:
    """Read every entry in an order of one's own, twice; tell the wrong ones and the statistics."""
    import xxhash

    from epistream.cache.node import CacheOptions, NodeCache

    draw = random.Random(seed)
    cache = NodeCache(CacheOptions(mode="shm", directory=path, budget_bytes=cap, request_timeout_s=DEADLINE_S))
    wrong = 0
    for _ in range(2):
        order = list(range(len(entries)))
        draw.shuffle(order)
        for number in order:
            with cache.open(entries[number]) as opened:
                blob = opened.blobs[0]
                wrong += xxhash.xxh3_128_hexdigest(bytes(blob.read(0, blob.size))) != datas[number]
    stats = cache.stats()
    cache.close()
    results.send((wrong, stats.fills, stats.bytes_fetched, stats.bypasses))


def made_entry(group: str, number: int) -> object:
    """An entry that a job makes."""
    from epistream.cache.source.entry import Entry, Part

    return Entry((Part("/nowhere/0.tar", 10, "0" * 32),), f"made {number}", group)


def run_job(path: str, cap: int, group: str, num_entries: int, pipe: Connection) -> None:
    """Do as told: "claim" its entries and tell what others claim, or read an "epoch" of them, made where need be.

    Of an epoch it tells (entries that were wrong, served by the cache, made).
    """
    from epistream.cache.node import CacheOptions, NodeCache

    cache = NodeCache(CacheOptions(mode="shm", directory=path, budget_bytes=cap))
    for order in iter(pipe.recv, "end"):
        if order == "claim":
            pipe.send(cache.claim(group, num_entries * SIZE))
            continue
        wrong = served = 0
        before = cache.stats().made_fills
        for number in range(num_entries):

            def fill(view: memoryview, number: int = number) -> None:
                view[:] = content(number)

            opened = cache.open_made(made_entry(group, number), SIZE, fill, may_evict=order == "epoch")
            if opened is not None:
                served += 1
                wrong += bytes(opened.blobs[0].read(0, SIZE)) != content(number)
                opened.close()
        pipe.send((wrong, served, cache.stats().made_fills - before))
    cache.close()
    pipe.send("ended")
