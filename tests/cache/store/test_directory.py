"""Entering, leaving, sweeping: only the last one out removes the directory, and nobody is surprised by it."""

import os
from pathlib import Path

import pytest
from cache_actors import DEADLINE_S, content, context, get, key_of, open_test_store, read_all, run_enter_leave

from epistream.cache.store.directory import ANOTHER, CacheDirectory, bury, remove_dead
from epistream.cache.store.locks import LockFile
from epistream.cache.store.markers import mark_kept
from epistream.cache.store.sweep import sweep
from epistream.errors import CacheError, DeadlineError


def test_enter_makes_a_private_directory(cache_path: Path) -> None:
    directory, sole = CacheDirectory.enter(cache_path, 1.0)
    assert sole
    assert cache_path.stat().st_mode & 0o777 == 0o700
    assert directory.share()
    _, second_is_sole = CacheDirectory.enter(cache_path, 1.0)
    assert not second_is_sole


def test_leave_removes_the_directory_only_with_the_last_user(cache_path: Path) -> None:
    first = open_test_store(cache_path)
    second = open_test_store(cache_path)
    get(first, 1).close()
    first.directory.leave()
    assert read_all(get(second, 1)) == content(1)
    second.directory.leave()
    assert list(cache_path.parent.iterdir()) == []


def test_leave_twice_is_harmless(cache_path: Path) -> None:
    store = open_test_store(cache_path)
    store.directory.leave()
    store.directory.leave()


def test_leave_with_keep_leaves_everything(cache_path: Path) -> None:
    store = open_test_store(cache_path)
    mark_kept(store.directory.dir_fd)
    get(store, 1).close()
    store.directory.leave()
    assert (cache_path / f"{key_of(1)}.shard").read_bytes() == content(1)


def test_enter_waits_for_an_exclusive_holder_no_longer_than_its_deadline(cache_path: Path) -> None:
    holder, _ = CacheDirectory.enter(cache_path, 1.0)  # not shared yet
    with pytest.raises(DeadlineError, match=rf"\.users: held exclusively by process \[{os.getpid()}\]"):
        CacheDirectory.enter(cache_path, 0.05)
    holder.leave()


def test_enter_through_a_symbolic_link_is_refused(cache_path: Path) -> None:
    target = cache_path.parent / "elsewhere"
    target.mkdir(mode=0o700)
    cache_path.symlink_to(target)
    with pytest.raises(CacheError, match="symbolic link or a file, wanted a directory of our own"):
        open_test_store(cache_path)
    assert list(target.iterdir()) == []


def test_enter_where_nothing_can_be_made_is_refused_at_once() -> None:
    with pytest.raises(
        CacheError, match=r"/proc/nothing: No such file or directory, wanted a directory to keep shards"
    ):
        CacheDirectory.enter(Path("/proc/nothing"), 3600.0)


def test_enter_a_file_is_refused(cache_path: Path) -> None:
    cache_path.write_bytes(b"mine")
    with pytest.raises(CacheError, match="wanted a directory of our own"):
        open_test_store(cache_path)
    assert cache_path.read_bytes() == b"mine"


def test_enter_a_directory_that_others_may_read_is_refused(cache_path: Path) -> None:
    cache_path.mkdir()
    cache_path.chmod(0o750)
    with pytest.raises(CacheError, match="mode 750, wanted 700"):
        open_test_store(cache_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make a foreign directory")
def test_enter_a_foreign_directory_is_refused(cache_path: Path) -> None:
    cache_path.mkdir(mode=0o700)
    os.chown(cache_path, 12345, 12345)
    with pytest.raises(CacheError, match="owned by user id 12345, wanted 0"):
        open_test_store(cache_path)


def test_enter_below_a_directory_without_write_permission_is_refused(tmpfs_path: Path) -> None:
    tmpfs_path.chmod(0o555)
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            if os.geteuid() == 0:
                os.setuid(65534)
            CacheDirectory.enter(tmpfs_path / "cache", 1.0)
        except CacheError as error:
            os.write(write_fd, str(error).encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    message = os.read(read_fd, 4096).decode()
    os.close(read_fd)
    os.close(write_fd)
    tmpfs_path.chmod(0o700)
    assert message == (f"{tmpfs_path / 'cache'}: Permission denied, wanted a directory to keep shards in. {ANOTHER}")


def test_sweep_removes_the_unheld_and_nothing_else(tmpfs_path: Path) -> None:
    own = tmpfs_path / "fam"
    unheld = tmpfs_path / "fam-2"
    held = tmpfs_path / "fam-3"
    kept = tmpfs_path / "fam-4"
    other_name = tmpfs_path / "family"
    no_users = tmpfs_path / "fam-5"
    for path in (own, unheld, held, kept, other_name, no_users):
        path.mkdir(mode=0o700)
        (path / "x.shard").write_bytes(b"x")
        if path != no_users:
            (path / ".users").touch()
    (kept / ".keep").touch()
    holder, _ = CacheDirectory.enter(held, 1.0)
    dead = tmpfs_path / ".dead-fam-1-0123abcd"
    dead.mkdir(mode=0o700)
    (dead / "y.shard").write_bytes(b"y")
    not_ours = tmpfs_path / ".dead-fam-photos"
    not_ours.mkdir(mode=0o700)
    removed = sweep(own, "fam")
    assert sorted(removed) == sorted([unheld, dead])
    assert sorted(path.name for path in tmpfs_path.iterdir()) == sorted(
        ["fam", "fam-3", "fam-4", "family", "fam-5", ".dead-fam-photos"]
    )
    holder.leave()


def test_sweep_leaves_a_directory_alone_whose_keep_cannot_be_read(tmpfs_path: Path) -> None:
    neighbour = tmpfs_path / "fam-2"
    neighbour.mkdir(mode=0o700)
    (neighbour / ".users").touch()
    (neighbour / ".keep").symlink_to("elsewhere")
    assert sweep(tmpfs_path / "fam", "fam") == []
    assert (neighbour / ".keep").is_symlink()


def test_sweep_beside_a_directory_that_the_user_named_touches_no_neighbour(tmpfs_path: Path) -> None:
    (tmpfs_path / "mine").mkdir(mode=0o700)
    neighbour = tmpfs_path / "mine-2"
    neighbour.mkdir(mode=0o700)
    assert sweep(tmpfs_path / "mine", None) == []
    assert neighbour.is_dir()


def test_remove_dead_bears_others_removing_it_at_the_same_time(tmpfs_path: Path) -> None:
    dead = tmpfs_path / ".dead-x-1-00000000"
    dead.mkdir(mode=0o700)
    for name in ("a.shard", "b.shard", ".users"):
        (dead / name).touch()
    remove_dead(dead, lambda step: remove_dead(dead))
    assert not dead.exists()


def test_enter_just_before_the_last_one_renames_ends_in_the_new_directory(cache_path: Path) -> None:
    # The classical race, step by step: B has opened .users, A removes the directory, then B locks.
    first = open_test_store(cache_path)
    raced = []

    def observe(step: str) -> None:
        if step == "enter.opened" and not raced:
            raced.append(step)
            first.directory.leave()

    second = open_test_store(cache_path, observe=observe)
    assert raced
    assert os.fstat(second.directory.dir_fd).st_ino == cache_path.stat().st_ino
    get(second, 1).close()
    second.directory.leave()
    assert list(cache_path.parent.iterdir()) == []


def test_enter_into_a_directory_that_was_buried_with_others_in_it_ends_in_a_new_one(cache_path: Path) -> None:
    first = open_test_store(cache_path)  # its shared lock makes the second one no sole user
    buried = []

    def observe(step: str) -> None:
        if step == "enter.opened" and not buried:
            buried.append(bury(cache_path))

    second = open_test_store(cache_path, observe=observe)
    assert os.fstat(second.directory.dir_fd).st_ino == cache_path.stat().st_ino
    get(second, 1).close()
    second.directory.leave()
    first.directory.leave()
    assert not cache_path.exists()


def test_leave_while_another_enters_does_not_take_the_directory_away(cache_path: Path) -> None:
    entered = []

    def observe(step: str) -> None:
        if step == "leave.begin" and not entered:
            entered.append(open_test_store(cache_path))

    first = open_test_store(cache_path, observe=observe)
    first.directory.leave()
    assert read_all(get(entered[0], 1)) == content(1)
    assert os.fstat(entered[0].directory.dir_fd).st_ino == cache_path.stat().st_ino
    entered[0].directory.leave()


def race(path: Path, num_processes: int, rounds: int) -> int:
    pipes, processes = [], []
    for number in range(num_processes):
        mine, theirs = context().Pipe(duplex=False)
        process = context().Process(target=run_enter_leave, args=(str(path), rounds, number, theirs), daemon=True)
        process.start()
        theirs.close()
        pipes.append(mine)
        processes.append(process)
    lost = 0
    for pipe, process in zip(pipes, processes, strict=True):
        assert pipe.poll(20 * DEADLINE_S)
        lost += pipe.recv()
        process.join(DEADLINE_S)
    return lost


def test_enter_and_leave_by_four_processes_at_once_lose_no_shard(cache_path: Path) -> None:
    assert race(cache_path, 4, 150) == 0
    assert list(cache_path.parent.iterdir()) == []


@pytest.mark.soak
def test_enter_and_leave_by_eight_processes_at_once_lose_no_shard(cache_path: Path) -> None:
    assert race(cache_path, 8, 5000) == 0
    assert list(cache_path.parent.iterdir()) == []


def test_lock_of_an_unlinked_file_is_recognised(tmpfs_path: Path) -> None:
    dir_fd = os.open(tmpfs_path, os.O_RDONLY)
    lock = LockFile("x.fill", dir_fd)
    assert lock.is_named()
    (tmpfs_path / "x.fill").unlink()
    assert not lock.is_named()
    (tmpfs_path / "x.fill").touch()
    assert not lock.is_named()
    lock.close()
    os.close(dir_fd)
