"""What runs on the nodes of a Ray cluster: one task, and the count of how far all of them are."""

import socket
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from epistream._version import __version__
from epistream.errors import WorkerError
from epistream.sharding.tasks.answers import answer, failure
from epistream.sharding.tasks.pulse import Counters, Pulse

# Each report is a message to the driver's node; tasks that are done sooner send none.
_REPORT_S = 0.5


class Question(NamedTuple):
    """What a node must know of a task besides the task.

    Attributes:
        version: Of this package, where the job runs.
        token: Of the job.
        name: What its processes are called in messages.
        key: Of this attempt in the tally.
        attempt: 1 for the first.
    """

    version: str
    token: str
    name: str
    key: int
    attempt: int


class Tally:
    """An actor that keeps the last report of each running task."""

    def __init__(self) -> None:
        self._rows: dict[int, tuple[int, ...]] = {}

    def report(self, key: int, row: tuple[int, ...]) -> None:
        """Take episodes, bytes and number of reports of a task so far."""
        self._rows[key] = row

    def of(self, keys: Sequence[int]) -> dict[int, tuple[int, ...]]:
        """The reports of some tasks; all others are forgotten."""
        self._rows = {key: row for key in keys if (row := self._rows.get(key))}
        return self._rows


def run_on_node(
    question: Question, kept: Sequence[Any], tally: Any, function: Callable[[Any, Pulse], Any], task: Any
) -> tuple[Any, ...]:
    """Run a task in this process of Ray's.

    Returns:
        The bytes of its `answer`, then episodes, bytes and number of its reports.
    """
    counters = np.zeros((2, Counters.NUM_COLUMNS), np.int64)
    next_report = time.monotonic() + _REPORT_S

    def report() -> None:
        nonlocal next_report
        if time.monotonic() > next_report:
            next_report = time.monotonic() + _REPORT_S
            tally.report.remote(question.key, tuple(counters[1].tolist()))

    name = f"{question.name} on {socket.gethostname()}, attempt {question.attempt}"
    try:
        _check_version(question.version)
    except WorkerError as error:
        return (bytes(failure(error, name)), 0, 0, 0)
    mine = _kept_of(question.token)
    if "job" not in mine:
        import ray

        mine["job"] = dict(ray.get(kept[0]))
    data = answer(function, task, Pulse(counters, 1, mine["job"], report), name)
    return (bytes(data), *counters[1].tolist())


@lru_cache(maxsize=1)
def _kept_of(token: str) -> dict[str, Any]:
    """What the tasks of one job leave for each other in this process; of the job before nothing is left."""
    return {}


def _check_version(wanted: str) -> None:
    if __version__ != wanted:
        raise WorkerError(
            f"{socket.gethostname()}: epistream {__version__}, wanted {wanted} as where the job runs. Install the same "
            "release on every node."
        )
