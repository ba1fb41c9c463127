"""Two jobs of a node whose made entries do not fit together: neither drives out what the other uses."""

from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from cache_actors import DEADLINE_S, SIZE, content, context, fill_with, key_of, made_entry, open_test_store, run_job

from epistream.cache.node import CacheOptions, NodeCache
from epistream.cache.source.entry import Entry, Part, group_digits
from epistream.cache.store import claims
from epistream.cache.store.claims import group_of

CAP = 12 * SIZE


class Job:
    """A process with a cache of its own, which does what it is told."""

    def __init__(self, path: Path, group: str, num_entries: int) -> None:
        self.group = group
        self.path = path
        self.pipe, theirs = context().Pipe()
        self.process = context().Process(target=run_job, args=(str(path), CAP, group, num_entries, theirs), daemon=True)
        self.process.start()

    def do(self, order: str) -> object:
        self.pipe.send(order)
        return self.answer(self.pipe)

    @staticmethod
    def answer(pipe: Connection) -> object:
        assert pipe.poll(DEADLINE_S)
        return pipe.recv()

    def files(self) -> set[tuple[str, int]]:
        """What it made that is there: an entry that was evicted and made again is another inode."""
        begin = group_digits(self.group)
        return {(file.name, file.stat().st_ino) for file in self.path.glob(f"{begin}*.shard")}

    def kill(self) -> None:
        self.process.kill()
        self.process.join(DEADLINE_S)


@pytest.fixture
def jobs(cache_path: Path) -> Iterator[tuple[Job, Job]]:
    """Of 8 and 8 entries, with room for 12."""
    made = Job(cache_path, "decoded a", 8), Job(cache_path, "decoded b", 8)
    yield made
    for job in made:
        job.kill()


def test_jobs_that_do_not_fit_together_leave_each_others_entries_alone_in_every_epoch(jobs: tuple[Job, Job]) -> None:
    first, second = jobs
    assert first.do("claim") == 0
    assert first.do("epoch") == (0, 8, 8)
    assert second.do("claim") == 8 * SIZE
    mine = first.files()
    assert len(mine) == 8
    # The second makes what fits, and evicts of its own when it wants more: 4 at a time.
    for _ in range(3):
        assert second.do("epoch")[:2] == (0, 8)
        assert first.files() == mine
        assert len(second.files()) == 4
        assert first.do("epoch") == (0, 8, 0)
        assert first.do("claim") == 8 * SIZE
    # Whoever only takes what is free keeps what it has.
    theirs = second.files()
    for _ in range(3):
        assert second.do("epoch without eviction") == (0, 4, 0)
        assert first.do("epoch") == (0, 8, 0)
        assert (first.files(), second.files()) == (mine, theirs)


@pytest.mark.parametrize("how", ["ends", "is killed"])
def test_job_may_take_the_room_of_one_that_has_ended(jobs: tuple[Job, Job], how: str) -> None:
    first, second = jobs
    first.do("claim")
    first.do("epoch")
    assert second.do("claim") == 8 * SIZE
    second.do("epoch")
    assert len(second.files()) == 4
    if how == "ends":
        assert first.do("end") == "ended"
    else:
        first.kill()
    assert second.do("claim") == 0
    assert second.do("epoch")[:2] == (0, 8)
    theirs = second.files()
    assert len(theirs) == 8
    assert second.do("epoch") == (0, 8, 0)
    assert second.files() == theirs


def test_without_claims_jobs_evict_each_other_by_recency(jobs: tuple[Job, Job]) -> None:
    first, second = jobs
    first.do("epoch")
    second.do("epoch")
    assert (len(first.files()), len(second.files())) == (4, 8)


def test_shard_that_is_wanted_evicts_what_others_claim_after_all_else(cache_path: Path) -> None:
    job = open_test_store(cache_path, 6 * SIZE)
    other = open_test_store(cache_path, 6 * SIZE)
    claimed = 0xA << 96
    other.claims.claim("0000000a", 2 * SIZE)
    job.claims.claim("0000000b", 2 * SIZE)
    own = 0xB << 96
    numbers = (claimed, claimed + 1, 1, own, 2, own + 1)
    for number in numbers:
        job.try_acquire(key_of(number), SIZE, fill_with(number), is_made=number > 9).close()

    def left() -> set[int]:
        return {int(file.stem, 16) for file in cache_path.glob("*.shard")} & set(numbers)

    leases = []
    for number, gone in zip(range(3, 9), (1, own, 2, own + 1, claimed, claimed + 1), strict=True):
        before = left()
        leases.append(job.acquire(key_of(number), SIZE, fill_with(number)))
        assert bytes(leases[-1].view(0, SIZE)) == content(number)
        assert before - left() == {gone}
        if gone == own + 1:
            made = job.try_acquire(key_of(99), SIZE, fill_with(99), is_made=True)
            assert made is None, "nothing is left but what is leased or claimed"
    assert other.try_acquire(key_of(claimed), SIZE, fill_with(claimed), is_made=True) is None, "all are leased"
    for lease in leases:
        lease.close()


def test_claim_is_seen_by_an_eviction_that_was_surveyed_before(cache_path: Path) -> None:
    job, other = open_test_store(cache_path, 4 * SIZE), open_test_store(cache_path, 4 * SIZE)
    old = 0xA << 96
    for number in (old, old + 1, 1, 2):
        job.try_acquire(key_of(number), SIZE, fill_with(number), is_made=number > 9).close()
    job.try_acquire(key_of(3), SIZE, fill_with(3), is_made=True).close()  # surveys, and evicts the oldest
    other.claims.claim("0000000a", SIZE)
    job.try_acquire(key_of(4), SIZE, fill_with(4), is_made=True).close()
    assert {int(file.stem, 16) for file in cache_path.glob("*.shard")} == {old + 1, 2, 3, 4}
    other.leave()
    job.try_acquire(key_of(5), SIZE, fill_with(5), is_made=True).close()
    job.try_acquire(key_of(6), SIZE, fill_with(6), is_made=True).close()
    assert not (cache_path / f"{key_of(old + 1)}.shard").exists() or not (cache_path / f"{key_of(2)}.shard").exists()


def test_fills_of_a_full_cache_do_not_list_the_claims(cache_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job, other = open_test_store(cache_path, 100 * SIZE), open_test_store(cache_path, 100 * SIZE)
    for number in range(100):
        job.try_acquire(key_of(number), SIZE, fill_with(number), is_made=True).close()
    other.claims.claim("0000000a", SIZE)
    listings = []
    real = claims.claim_names
    monkeypatch.setattr(claims, "claim_names", lambda directory: listings.append(1) or real(directory))
    for number in range(100, 180):
        job.try_acquire(key_of(number), SIZE, fill_with(number), is_made=True).close()
    assert listings == []


def test_entries_without_a_group_are_nobodys(cache_path: Path) -> None:
    plain = Entry((Part("/nowhere/0.tar", 10, "0" * 32),), "made 1")
    with NodeCache(CacheOptions(mode="shm", directory=str(cache_path))) as cache:
        cache.claim("", SIZE)
        assert group_of(plain.key) != group_digits("")
        opened = cache.open_made(made_entry("g", 1), SIZE, lambda view: None)
        assert opened is not None
        opened.close()
        assert (cache_path / f"{made_entry('g', 1).key}.shard").stat().st_mode & 0o7777 == 0o1600
