"""Cold readers and fillers of partial entries, in the store's own terms and in the node cache's."""

import os
import signal
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import xxhash
from cache_actors import DEADLINE_S, PAGE, KillAt, content, context, key_of, open_test_store

from epistream.cache.store.directory import Observer
from epistream.cache.store.lease import Lease
from epistream.cache.store.partial import GRANULE_BYTES, Partial, Places
from epistream.cache.store.store import Outcome, ShardStore

# A part of whole granules and a bit, and a small one after it.
PLACES: Places = [(0, 3 * GRANULE_BYTES + 100), (3 * GRANULE_BYTES + 128, 5000)]
SIZE = sum(PLACES[-1])
CHARGE = -(-SIZE // PAGE) * PAGE
# More than one wait of a test's process lasts, and less than a test may.
PATIENCE_S = 20.0


def data_of(number: int, place: tuple[int, int]) -> bytes:
    return content(number, SIZE)[place[0] : sum(place)]


def whole(number: int) -> list[bytes]:
    """What the parts of an entry hold."""
    return [data_of(number, place) for place in PLACES]


def parts_of(lease: Lease) -> list[bytes]:
    return [bytes(lease.view(*place)) for place in PLACES]


def bring(partial: Partial, number: int, patience_s: float = PATIENCE_S, only_part: int | None = None) -> int:
    """Bring what is absent, as whoever checks it does; bytes that were brought."""
    brought = 0
    for index, (place, shared) in enumerate(zip(PLACES, partial.parts, strict=True)):
        if only_part not in (None, index):
            continue
        data, size = data_of(number, place), place[1]
        while True:
            with shared.turn(0, size, GRANULE_BYTES, patience_s) as runs:
                for start, stop in runs if runs is not None else shared.absent(0, size):
                    shared.write(start, data[start:stop])
                    brought += stop - start
            if not runs:
                break
    return brought


def have_of(partial: Partial) -> list[list[tuple[int, int]]]:
    """Absent runs of each part."""
    return [shared.absent(0, place[1]) for place, shared in zip(PLACES, partial.parts, strict=True)]


def join(store: ShardStore, number: int) -> Lease | Partial | None:
    return store.joining.join(key_of(number), PLACES, Outcome())


def fill(store: ShardStore, number: int, brought: list[int] | None = None, patience_s: float = PATIENCE_S) -> Lease:
    """A lease of an entry, filled by one who goes on with what is there, and looks at all of it at the end."""

    def fill_it(fd: int) -> None:
        with closing(store.joining.share(key_of(number), PLACES)) as partial:
            num_bytes = bring(partial, number, patience_s)
        if brought is not None:
            brought.append(num_bytes)
        for place, expected in zip(PLACES, whole(number), strict=True):
            assert os.pread(fd, place[1], place[0]) == expected

    return store.acquire(key_of(number), SIZE, fill_it)


def run_reader(path: str, cap: int, number: int, observe: Observer) -> None:
    """Join an entry, bring all of it, and end without leaving."""
    store = open_test_store(Path(path), cap, observe)
    found = join(store, number)
    assert isinstance(found, Partial)
    bring(found, number)
    found.close()
    os._exit(0)


def run_filler(path: str, cap: int, number: int, observe: Observer) -> None:
    """Fill an entry, and end without leaving."""
    fill(open_test_store(Path(path), cap, observe), number)
    os._exit(0)


class FreezeAt:
    """An observer that tells a pipe that a step is reached, and stops its process there by SIGSTOP, once."""

    def __init__(self, step: str, pipe: Connection) -> None:
        self.step = step
        self.pipe = pipe

    def __call__(self, step: str) -> None:
        if step == self.step:
            self.step = ""
            self.pipe.send(os.getpid())
            os.kill(os.getpid(), signal.SIGSTOP)


def cold_epochs_of(count: int, path: Path, entries: list, datas: list[bytes]) -> list[int]:
    """`run_cold_epochs` in so many processes of a node at once: the sums of what they tell."""
    pipes = [context().Pipe() for _ in range(count)]
    for seed, (_, theirs) in enumerate(pipes):
        arguments = (str(path), entries, datas, seed, theirs)
        context().Process(target=run_cold_epochs, args=arguments, daemon=True).start()
    answers = []
    for ours, _ in pipes:
        assert ours.poll(2 * DEADLINE_S)
        answers.append(ours.recv())
    return [sum(column) for column in zip(*answers, strict=True)]


def run_cold_epochs(path: str, entries: list, datas: list[bytes], seed: int, results: Connection) -> None:
    """Read blocks of every entry before it is there, then all of it, twice; tell wrong reads and counted bytes."""
    from epistream.cache.node import CacheOptions, NodeCache
    from epistream.cache.source import ranged

    ranged._PATIENCE_S = 10 * DEADLINE_S
    draw = np.random.default_rng(seed)
    wrong = 0
    with NodeCache(CacheOptions(mode="shm", directory=path, keep=True)) as cache:
        for _ in range(2):
            for number in draw.permutation(len(entries)).tolist():
                wrong += not read_blocks(cache, entries[number], datas[number], draw)
        for _ in range(2):
            for entry, data in zip(entries, datas, strict=True):
                with cache.open(entry) as opened:
                    wrong += bytes(opened.blobs[0].read(0, len(data))) != data
        stats = cache.stats()
    results.send((wrong, stats.bytes_fetched, stats.bytes_ranged))


def read_blocks(cache: object, entry: object, data: bytes, draw: np.random.Generator) -> bool:
    """Whether some ranges of an entry, read as a cold start reads them, are right."""
    with cache.open(entry, wait=False) as opened:  # type: ignore[attr-defined]
        tar, index = opened.blobs
        is_right = bytes(index.read(0, index.size)) == data[: index.size]
        if entry.parts[0].remote_pieces is None:  # type: ignore[attr-defined]
            tar.check_with(block_sums(data), GRANULE_BYTES)
        starts = draw.integers(0, len(data) - 9, 8)
        for request in tar.requests(starts, np.full(8, 9)):
            request()
        for request in tar.requests_left():
            request()
        return is_right and all(bytes(tar.read(at, 9)) == data[at : at + 9] for at in starts.tolist())


def run_killed(path: str, entry: object, data: bytes, step: str, *, fills: bool) -> None:
    """Read blocks of an entry before it is there, or fill it, and die at a step."""
    from epistream.cache.node import CacheOptions, NodeCache

    cache = NodeCache(CacheOptions(mode="shm", directory=path), observe=KillAt(step))
    if fills:
        cache.open(entry).close()  # type: ignore[arg-type]
    else:
        read_blocks(cache, entry, data, np.random.default_rng(0))


def block_sums(data: bytes) -> np.ndarray:
    starts = range(0, len(data), GRANULE_BYTES)
    return np.array([xxhash.xxh3_64_intdigest(data[at : at + GRANULE_BYTES]) for at in starts], np.uint64)
