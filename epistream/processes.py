"""Processes that this package starts: they end with their parent, and how one ended is said in words."""

import os
import signal
import threading
import time
from multiprocessing import parent_process
from multiprocessing.connection import wait
from types import FrameType

# How often a process looks whether its parent is still there; the time that orphans may live on.
_PARENT_CHECK_S = 0.5
_MEANINGS: dict[int, str] = {
    signal.SIGKILL: ", usually by the kernel, out of memory",
    signal.SIGBUS: ", as when a file or memory mapping shrinks under a process (a full /dev/shm)",
}


def end_with_parent(grace_s: float = 0.0) -> None:
    """Let this process, started by `multiprocessing`, end when its parent says so by SIGTERM, or has died.

    Ctrl-C does not end it: that reaches every process of the terminal, and the parent decides what it means.

    Args:
        grace_s: seconds that ``finally`` blocks may take when the parent has died: one that is stuck in a foreign
            call cannot unwind, and leaving at once frees its locks and memory. With 0 no block runs at all.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _unwind if grace_s else _leave)
    threading.Thread(target=_watch_parent, args=(os.getppid(), grace_s), daemon=True).start()


def how_it_ended(exit_code: int | None, verb: str = "killed") -> str:
    """What an exit code says about a process, after its name: "killed by SIGSEGV", or "exited with code 3".

    Args:
        exit_code: as `multiprocessing` gives it, below 0 for signals; None where it is not known.
        verb: what stands before "by".
    """
    if exit_code is None:
        return "ended unexpectedly"
    if exit_code >= 0:
        return f"exited with code {exit_code}"
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:  # real-time signals have no names
        name = f"signal {-exit_code}"
    return f"{verb} by {name}{_MEANINGS.get(-exit_code, '')}"


def _watch_parent(parent_pid: int, grace_s: float) -> None:
    parent = parent_process()
    sentinel = [] if parent is None else [parent.sentinel]
    # Two signs, because each can fail: a sibling forked later keeps the sentinel's pipe open, and under
    # forkserver the process that forked us is not the one that started us.
    while os.getppid() == parent_pid and not wait(sentinel, _PARENT_CHECK_S):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace_s)
    os._exit(1)


def _unwind(signal_number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + signal_number)


def _leave(signal_number: int, frame: FrameType | None) -> None:
    os._exit(128 + signal_number)
