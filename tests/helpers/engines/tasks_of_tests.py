"""Tasks that tests hand to engines, in a module that processes of Ray find too."""

import os
import signal
import sys
import time
from pathlib import Path

from epistream.errors import PackError

DEADLINE_S = 60


def wait_for(path):
    deadline = time.monotonic() + DEADLINE_S
    while not path.exists():
        assert time.monotonic() < deadline, f"deadline: {path}"
        time.sleep(0.01)


def last_one_first(task, pulse):
    """Task 0 ends when task 1 has."""
    folder, number = task
    if number == 0:
        wait_for(folder / "1")
    (folder / str(number)).touch()
    pulse.add(episodes=1, num_bytes=10 * number)
    return number


def kept(task, pulse):
    """What is kept for all tasks, and how many this process has run before."""
    mine = pulse.kept.setdefault("mine", [])
    mine.append(task)
    return pulse.kept["given"], os.getpid(), len(mine)


class UnreadableError(Exception):
    def __init__(self, one, two):
        super().__init__("both")


def fail(task, pulse):
    if task == "ours":
        raise PackError("e_1.hdf5: torn")
    if task == "unreadable":
        raise UnreadableError(1, 2)
    if task == "unsendable":
        return lambda: None
    if task == "exits":
        sys.exit(3)
    os.kill(os.getpid(), signal.SIGSEGV)
    return None


def die_once(task, pulse):
    """The first attempt of each odd task ends its process."""
    folder, number = task
    tried = folder / f"{number}-tried"
    if number % 2 and not tried.exists():
        tried.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    pulse.add(episodes=1)
    return number


def hang(task, pulse):
    """Report for ever; a file tells that it began, and one that it came to its end."""
    folder, number = Path(task[0]), task[1]
    (folder / f"{number}-began").touch()
    try:
        while True:
            pulse.add(episodes=1)
            time.sleep(0.01)
    finally:
        (folder / f"{number}-ended").touch()


def report_then_wait(task, pulse):
    """Report at once and again until the caller has seen it."""
    folder = task
    deadline = time.monotonic() + DEADLINE_S
    pulse.add(episodes=1, num_bytes=7)
    while not (folder / "seen").exists():
        assert time.monotonic() < deadline, "deadline"
        time.sleep(0.05)
        pulse.add()
    return "done"
