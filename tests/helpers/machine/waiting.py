"""Waiting in tests for what other processes and threads do."""

import time

import psutil


def wait_until(condition, what: str, seconds: float = 60) -> None:
    """Look again and again until a condition holds; an error that says what was waited for if it never does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.005)


def is_gone(pid: int) -> bool:
    """Whether a process has ended, reaped or not."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
