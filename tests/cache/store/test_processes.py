"""Fork, spawn and forkserver: a child neither keeps its parent's leases alive nor takes them away."""

import contextlib
import fcntl
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import xxhash
from cache_actors import DEADLINE_S, SIZE, content, fill_with, get, key_of, names, open_test_store, read_all, run_node
from web.faulty_server import serve

from epistream.cache.node import CacheOptions, NodeCache
from epistream.cache.source.entry import Entry, Part
from epistream.cache.store.descriptors import DescriptorRegistry

DATA = b"episode" * 1000


def in_child(action: Callable[[], object]) -> object:
    """Run `action` in a forked child and give what it returned; the child waits for nothing."""
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(read_fd)
            os.write(write_fd, pickle.dumps(action()))
        finally:
            os._exit(0)
    os.close(write_fd)
    with os.fdopen(read_fd, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(pid, 0)
    return pickle.loads(answer)


class SleepingChild:
    """A forked child that does nothing and holds what it inherited."""

    def __init__(self) -> None:
        read_fd, self._write_fd = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._write_fd)
            os.read(read_fd, 1)
            os._exit(0)
        os.close(read_fd)

    def end(self) -> None:
        os.close(self._write_fd)
        os.waitpid(self._pid, 0)


@pytest.fixture
def source(tmp_path: Path) -> Entry:
    file = tmp_path / "s.tar"
    file.write_bytes(DATA)
    return Entry((Part(str(file), len(DATA), xxhash.xxh3_128_hexdigest(DATA)),))


def cache_at(path: Path) -> NodeCache:
    return NodeCache(CacheOptions(mode="shm", directory=str(path)))


def test_forked_child_does_not_keep_a_lease_alive(cache_path: Path) -> None:
    store = open_test_store(cache_path, cap=SIZE)
    lease = get(store, 1)
    child = SleepingChild()
    lease.close()
    get(store, 2).close()  # evicts 1, although the child lives
    assert names(cache_path) == {"2.shard"}
    child.end()
    store.directory.leave()


def test_forked_child_that_closes_does_not_take_the_lease_away(cache_path: Path) -> None:
    store, other = open_test_store(cache_path, cap=2 * SIZE), open_test_store(cache_path)
    lease = get(store, 1)

    def close() -> str:
        lease.close()
        store.directory.leave()
        return "closed"

    assert in_child(close) == "closed"
    for number in (2, 3):
        get(other, number).close()
    assert names(cache_path) == {"1.shard", "3.shard"}
    assert read_all(lease) == content(1)
    lease.close()


def test_forked_child_cannot_read_through_an_inherited_lease(cache_path: Path) -> None:
    store = open_test_store(cache_path)
    lease = get(store, 1)
    view = lease.view(0, 10)

    def read() -> str:
        try:
            return str(bytes(view))
        except ValueError as error:
            return str(error)

    assert "released" in str(in_child(read))
    assert bytes(view) == content(1)[:10]


def test_forked_child_does_not_keep_a_fill_right_alive(cache_path: Path) -> None:
    store, other = open_test_store(cache_path), open_test_store(cache_path)
    children = []

    def fork_and_fail(fd: int) -> None:
        children.append(SleepingChild())
        raise RuntimeError("failed")

    with pytest.raises(RuntimeError, match="failed"):
        store.acquire(key_of(1), SIZE, fork_and_fail)
    assert read_all(other.acquire(key_of(1), SIZE, fill_with(1))) == content(1)
    children[0].end()


def test_forked_child_does_not_keep_the_directory_in_use(cache_path: Path) -> None:
    store = open_test_store(cache_path)
    child = SleepingChild()
    store.directory.leave()
    assert list(cache_path.parent.iterdir()) == []
    child.end()


def test_forked_child_enters_by_itself(cache_path: Path, source: Entry) -> None:
    with cache_at(cache_path) as cache:
        opened = cache.open(source)

        def use() -> tuple[bytes, int, int]:
            with cache.open(source) as mine:
                data = bytes(mine.blobs[0].read(0, 7))
            stats = cache.stats()
            cache.close()
            return data, stats.hits, stats.fills

        assert in_child(use) == (b"episode", 1, 0)
        assert bytes(opened.blobs[0].read(7, 7)) == b"episode"
        opened.close()
    assert list(cache_path.parent.iterdir()) == []


def test_forked_child_fetches_over_http_although_its_parent_has(cache_path: Path) -> None:
    with serve() as server:
        server.files = {"/0.tar": DATA, "/1.tar": DATA[::-1]}
        sums = [xxhash.xxh3_128_hexdigest(server.files[f"/{number}.tar"]) for number in range(2)]
        entries = [Entry((Part(f"{server.url}/{number}.tar", len(DATA), sums[number]),)) for number in range(2)]
        with NodeCache(CacheOptions(mode="shm", directory=str(cache_path), fetch_timeout_s=DEADLINE_S)) as cache:
            cache.open(entries[0]).close()

            def fetch() -> tuple[bytes, int]:
                with cache.open(entries[1]) as opened:
                    data = bytes(opened.blobs[0].read(0, len(DATA)))
                return data, cache.stats().bytes_fetched

            assert in_child(fetch) == (DATA[::-1], len(DATA))
            with cache.open(entries[1]) as opened:
                assert bytes(opened.blobs[0].read(0, 3)) == DATA[::-1][:3]
            assert cache.stats().hits == 1


def test_fork_while_other_threads_open_and_close_leaves_the_child_nothing(cache_path: Path) -> None:
    store = open_test_store(cache_path)
    get(store, 1).close()
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            get(store, 1).close()

    threads = [threading.Thread(target=churn) for _ in range(3)]
    for thread in threads:
        thread.start()

    def inherited() -> list[str]:
        links = []
        for fd in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # the listing's own
                links.append(str(fd.readlink()))
        return [link for link in links if str(cache_path) in link]

    try:
        for _ in range(15):
            assert in_child(inherited) == []
    finally:
        stop.set()
        for thread in threads:
            thread.join(DEADLINE_S)
    store.directory.leave()


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_cache_sent_to_a_child_fills_once_and_is_left_at_its_end(cache_path: Path, source: Entry, method: str) -> None:
    cache = cache_at(cache_path)
    if method == "fork":
        cache.open(source).close()  # used before: the child must not go on with the parent's
    context = multiprocessing.get_context(method)
    for _ in range(2):
        mine, theirs = context.Pipe(duplex=False)
        process = context.Process(target=run_node, args=(cache, source, theirs))
        process.start()
        theirs.close()
        assert mine.poll(DEADLINE_S)
        data, hits, fills = mine.recv()
        process.join(DEADLINE_S)
        assert process.exitcode == 0
        assert data == DATA
        assert (hits, fills) == ((1, 0) if method == "fork" else (0, 1))
        if method != "fork":
            assert not cache_path.exists(), "the child was alone, and left at its end"
    cache.close()
    assert list(cache_path.parent.iterdir()) == []


def test_cache_is_left_at_the_end_of_a_plain_process(cache_path: Path, source: Entry) -> None:
    code = (
        "import sys\n"
        "from epistream.cache.node import CacheOptions, NodeCache\n"
        "from epistream.cache.source.entry import Entry, Part\n"
        "cache = NodeCache(CacheOptions(mode='shm', directory=sys.argv[1]))\n"
        "part = Part(sys.argv[2], int(sys.argv[3]), sys.argv[4])\n"
        "opened = cache.open(Entry((part,)))\n"
        "print(bytes(opened.blobs[0].read(0, 7)).decode())\n"
    )
    part = source.parts[0]
    command = [sys.executable, "-c", code, str(cache_path), part.url, str(part.size), str(part.checksum)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=True)
    assert done.stdout == "episode\n"
    assert done.stderr == ""
    assert list(cache_path.parent.iterdir()) == []


def test_unused_cache_does_nothing(cache_path: Path) -> None:
    cache = cache_at(cache_path)
    assert cache.stats().fills == 0
    cache.close()
    assert pickle.loads(pickle.dumps(cache)).options == cache.options
    assert not cache_path.exists()


def test_registry_closes_only_its_own(tmp_path: Path) -> None:
    registry = DescriptorRegistry()
    fd = registry.open(tmp_path / "x", os.O_RDWR | os.O_CREAT)
    assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    registry.close(fd)
    registry.close(fd)
    registry.close_slowly(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_registry_forgets_what_is_gone(tmp_path: Path) -> None:
    class Aware:
        def after_fork_in_child(self) -> None:
            raise AssertionError("no fork here")

    registry = DescriptorRegistry()
    alive = [Aware() for _ in range(5)]
    for each in alive:
        registry.watch(each)
    for _ in range(10_000):
        registry.watch(Aware())
    assert len(registry._aware) < 200
    assert {ref() for ref in registry._aware} >= set(alive)
