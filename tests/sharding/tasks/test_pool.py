"""The pool that runs the tasks of a packing job."""

import contextlib
import multiprocessing
import os
import re
import signal
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

import epistream
from epistream.errors import PackError, WorkerError
from epistream.sharding.tasks.pool import TaskPool

DEADLINE_S = 60


def last_one_first(task, pulse):
    """Task 0 ends when task 1 has."""
    folder, number = task
    deadline = time.monotonic() + DEADLINE_S
    while number == 0 and not (folder / "1").exists():
        assert time.monotonic() < deadline, "deadline"
        time.sleep(0.01)
    (folder / str(number)).touch()
    pulse.add(episodes=1, num_bytes=10 * number)
    return number


def test_pool_tasks_that_end_in_another_order_give_results_in_their_own(tmp_path):
    tasks = [(tmp_path, number) for number in range(5)]
    with TaskPool(2, "job") as pool:
        ticks = []
        assert list(pool.map(last_one_first, tasks, lambda *totals: ticks.append(totals))) == [0, 1, 2, 3, 4]
        assert ticks[-1] == (5, 100)
        again = []
        assert list(pool.map(last_one_first, tasks[1:3], lambda *totals: again.append(totals))) == [1, 2]
        assert again[-1] == (2, 30)


def names_in_shm():
    """What this process has open or mapped of /dev/shm, where a name stays when everybody is killed."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    mapped = {line.split(maxsplit=5)[5] for line in lines if len(line.split(maxsplit=5)) == 6}
    links = set()
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            links.add(str(link.readlink()))
    return {name for name in mapped | links if name.startswith("/dev/shm/")}


def names_of_task(task, pulse):
    pulse.add(episodes=1)
    return sorted(names_in_shm())


def test_pool_and_its_processes_have_no_names_in_shared_memory_at_any_moment():
    before, during = names_in_shm(), []
    with TaskPool(2, "job") as pool:
        ticked = pool.map(names_of_task, range(6), lambda *_: during.append(names_in_shm()))
        assert list(ticked) == [[]] * 6
    assert during
    assert all(names == before for names in during)


def test_pool_waits_for_no_process_before_it_has_told_all_of_them_to_end(tmp_path, monkeypatch):
    calls = []
    for name in ("terminate", "join"):
        real = getattr(BaseProcess, name)
        told = lambda self, *args, name=name, real=real: (calls.append(name), real(self, *args))  # noqa: E731
        monkeypatch.setattr(BaseProcess, name, told)
    with TaskPool(2, "job") as pool:
        list(pool.map(last_one_first, [(tmp_path, 0), (tmp_path, 1)]))
    assert calls == ["terminate", "terminate", "join", "join"]


class Unreadable(Exception):
    def __init__(self, one, two):
        super().__init__("both")


def fail(task, pulse):
    if task == "ours":
        raise PackError("e_1.hdf5: torn")
    if task == "unreadable":
        raise Unreadable(1, 2)
    if task == "unsendable":
        return lambda: None
    os.kill(os.getpid(), signal.SIGSEGV) if task == "dies" else sys.exit(3)
    return None


@pytest.mark.parametrize(
    ("task", "error", "words", "cause"),
    [
        ("ours", PackError, "^e_1.hdf5: torn$", "(?s)in a packing process: Traceback.*in fail"),
        ("unreadable", WorkerError, "^Unreadable: both$", "in fail"),
        ("unsendable", Exception, "pickle", "ForkingPickler"),
        ("dies", WorkerError, "^job: a packing process was ended by SIGSEGV", None),
        ("exits", WorkerError, "^job: a packing process exited with code 3", None),
    ],
)
def test_pool_task_that_fails_is_told_as_it_failed_and_the_pool_ends(task, error, words, cause):
    with TaskPool(2, "job") as pool:
        with pytest.raises(error, match=words) as caught:
            list(pool.map(fail, [task, task]))
        if cause is not None:
            assert re.search(cause, str(caught.value.__cause__))
    assert not [child for child in multiprocessing.active_children() if child.name == "epistream-pack"]


def hang(task, pulse):
    pulse.add(episodes=1)
    time.sleep(600)


def test_pool_stopped_while_a_task_hangs_kills_its_process(monkeypatch):
    monkeypatch.setattr("epistream.sharding.tasks.pool._STOP_S", 0.0)
    monkeypatch.setattr("epistream.sharding.tasks.pool._TICK_S", 0.01)

    def interrupt(num_episodes, num_bytes):
        if num_episodes == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), TaskPool(2, "job") as pool:
        list(pool.map(hang, [0, 1], interrupt))
    assert not [child for child in multiprocessing.active_children() if child.name == "epistream-pack"]


def test_sources_make_no_queue_lock_or_pool_of_processes_that_has_a_name_in_shared_memory():
    top = Path(epistream.__file__).parents[1]
    named = (
        r"ProcessPoolExecutor|SharedMemory\(|\b(multiprocessing|mp|context|_context)\.(\w*Queue|\w*Lock|\w*Semaphore"
    )
    named += r"|Condition|Event|Barrier|Value|Array|RawValue|RawArray|Manager|Pool)\("
    rooms = "epistream", "cache", "configs", "loader", "sharding"
    sources = [path for room in rooms for path in (top / room).rglob("*.py")]
    assert len(sources) > 200
    assert not [str(path) for path in sources if re.search(named, path.read_text())]
