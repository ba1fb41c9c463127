"""The pool that runs the tasks of a packing job."""

import time

from epistream.sharding.pack.pool import TaskPool

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
