"""What one job has on a Ray cluster: its running tasks, and how far they are."""

import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from epistream._version import __version__
from epistream.errors import OptionError
from epistream.sharding.tasks.pulse import Pulse
from epistream.sharding.tasks.ray_task import Question, Tally, run_on_node

_TICK_S = 0.2
# Tasks that were told to stop end at the next instruction of Python; the process of one that has not is killed.
_STOP_S = 60.0
# An idle process gets its next task at once; a job of 100,000 tasks does not queue them all.
_QUEUED_PER_CPU = 2
_LOOK_AT_CPUS_S = 10.0


def ray_module() -> Any:
    """``ray``.

    Raises:
        OptionError: If it is not installed.
    """
    try:
        import ray
        import ray.util.scheduling_strategies
    except ImportError as error:
        raise OptionError(
            f"engine ray: {error}, wanted Ray, which runs tasks on a cluster. Run: pip install 'epistream[ray]'."
        ) from error
    return ray


class JobOnCluster:
    """What one job has on a cluster that this process is connected to."""

    def __init__(self, ray: Any, kept: Mapping[str, Any], name: str, workers: int | None) -> None:
        self._ray, self._name, self._workers = ray, name, workers
        self._token = f"{time.time_ns()}-{id(self)}"
        # In a list Ray does not unpack it for each task.
        self._kept = [ray.put(dict(kept))]
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        # Where this process is: any other node may be removed.
        self._tally = ray.remote(Tally).options(num_cpus=0, scheduling_strategy=here, max_restarts=-1).remote()
        self._run = ray.remote(run_on_node).options(num_cpus=1, max_retries=0)
        self._keys = 0
        self._asked: Any = None
        self._running: dict[int, tuple[int, ...]] = {}
        self._done = np.zeros(3, np.int64)
        self._cpus, self._looked = 1, -np.inf

    def begin(self) -> None:
        """Count from nothing on."""
        self._done[:] = 0

    def room(self) -> int:
        """How many tasks may be handed out at a time."""
        if self._workers is not None:
            return self._workers
        if time.monotonic() - self._looked > _LOOK_AT_CPUS_S:  # a cluster can grow
            self._cpus, self._looked = max(1, int(self._ray.cluster_resources().get("CPU", 0))), time.monotonic()
        return self._cpus * _QUEUED_PER_CPU

    def submit(self, function: Callable[[Any, Pulse], Any], task: Any, attempt: int) -> tuple[Any, int]:
        """Hand out a task; the reference of its answer, and its key."""
        self._keys += 1
        question = Question(__version__, self._token, self._name, self._keys, attempt)
        return self._run.remote(question, self._kept, self._tally, function, task), self._keys

    def wait(self, references: list[Any]) -> list[Any]:
        """Those that ended, after a moment at most."""
        if not self._ray.wait(references, num_returns=1, timeout=_TICK_S)[0]:
            return []
        done: list[Any] = self._ray.wait(references, num_returns=len(references), timeout=0)[0]
        return done

    def take(self, reference: Any, key: int) -> bytes:
        """The answer of a task that ended.

        Raises:
            RayError: If there is none.
        """
        data, *counted = self._ray.get(reference)
        self._running.pop(key, None)
        self._done += np.array(counted, np.int64)
        answer: bytes = data
        return answer

    def progress(self, keys: list[int]) -> tuple[tuple[int, ...], ...]:
        """What is known of the running tasks. Nothing here waits for the tally, and all goes on without it."""
        with contextlib.suppress(self._ray.exceptions.RayError):
            if self._asked is not None and self._ray.wait([self._asked], timeout=0)[0]:
                asked, self._asked = self._asked, None
                self._running = self._ray.get(asked)
            if self._asked is None:
                self._asked = self._tally.of.remote(keys)
        return tuple(self._running.get(key, ()) for key in keys)

    def totals(self) -> list[int]:
        """Episodes and bytes, of tasks that ended and that run."""
        return [int(self._done[column] + sum(row[column] for row in self._running.values())) for column in range(2)]

    def cancel(self, references: list[Any]) -> None:
        """Interrupt tasks, wait for their end, and kill the processes of those that go on."""
        ray = self._ray
        for force in (False, True):
            with contextlib.suppress(ray.exceptions.RayError, ValueError):
                for reference in references:
                    ray.cancel(reference, force=force)
                _, references = ray.wait(references, num_returns=len(references), timeout=_STOP_S)
            if not references:
                break

    def told_of_cpus(self) -> str:
        """How many CPUs there are, for messages."""
        free, every = (what().get("CPU", 0) for what in (self._ray.available_resources, self._ray.cluster_resources))
        return f"{free:.0f} of {every:.0f} CPUs free"
