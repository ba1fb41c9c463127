"""The tasks of a job on a Ray cluster: handed out, begun again when a process or a node is lost, stopped.

Ray's own retries are off. What is begun again, how often, and what is said of it is decided here, where attempts can
be counted: Ray repeats without end what was ended for want of memory.
"""

import contextlib
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from epistream._version import __version__
from epistream.errors import DeadlineError, EpistreamError, OptionError, WorkerError
from epistream.sharding.tasks.answers import result_of
from epistream.sharding.tasks.pool import map_in_this_process
from epistream.sharding.tasks.pool_process import Words
from epistream.sharding.tasks.pulse import Pulse
from epistream.sharding.tasks.ray_cluster import JobOnCluster, ray_module

Task = TypeVar("Task")
Result = TypeVar("Result")

# As of the processes of one machine; a cluster that has no room for any of the tasks for so long has none either.
_STALL_TIMEOUT_S = 900.0
# A task that takes a process down with it does so each time; a node that is removed takes some of them once.
_ATTEMPTS = 4
_KNOCK_S = 10.0
# Results are small. Ray's default is a third of the memory, in /dev/shm.
_STORE_BYTES = 128 << 20


@dataclass
class _Running:
    """A task that is handed out: which one, how often it was, and what it is called in the tally."""

    position: int
    task: Any
    attempt: int = 0
    key: int = 0


class RayEngine:
    """The `Engine` of Ray.

    With an address, the cluster is the user's: it must have the same release of this package on its nodes, and see the
    files of the job by the same paths. If this process is connected already, that connection is used and left.

    Args:
        workers: Tasks at once; None is as many as there are CPUs.
        address: Of the cluster; None starts one on this machine when it is first needed, which ends with the job.
        what: Names the job in messages.
        kept: What `Pulse.kept` of each process has from the beginning: sent once a process, not once a task.
        words: How messages speak of the job.

    Raises:
        OptionError: If Ray is not installed.
    """

    def __init__(
        self,
        workers: int | None,
        address: str | None,
        what: str,
        kept: Mapping[str, Any] | None = None,
        words: Words | None = None,
    ) -> None:
        self._ray = ray_module()
        self._workers, self._address, self._what, self._kept = workers, address, what, dict(kept or {})
        self._words = words or Words()
        self._held = contextlib.ExitStack()
        self._job: JobOnCluster | None = None
        self._handed_out: set[Any] = set()  # of all that is mapped

    def __enter__(self) -> "RayEngine":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Cancel what runs and wait for that; end the cluster that this started."""
        job, self._job = self._job, None
        pending, self._handed_out = list(self._handed_out), set()
        try:
            if job is not None and pending:
                job.cancel(pending)
        finally:
            self._held.close()

    def map(
        self,
        function: Callable[[Task, Pulse], Result],
        tasks: Sequence[Task],
        on_tick: Callable[[int, int], None] = lambda num_episodes, num_bytes: None,
        min_parallel: int = 2,
    ) -> Iterator[Result]:
        """Run `function` on every task; results come in the order of the tasks.

        Raises:
            OptionError: If there is no such cluster.
            WorkerError: If a task ended its process, or lost its node, four times.
            DeadlineError: If nothing moved for 15 minutes.
        """
        if len(tasks) < min_parallel:
            return map_in_this_process(function, tasks, on_tick, self._kept)
        return self._map_on_cluster(function, tasks, on_tick)

    def _map_on_cluster(
        self, function: Callable[[Task, Pulse], Result], tasks: Sequence[Task], on_tick: Callable[[int, int], None]
    ) -> Iterator[Result]:
        job = self._job = self._job or self._connect()
        job.begin()
        todo = iter(enumerate(tasks))
        pending: dict[Any, _Running] = {}
        early: dict[int, Result] = {}
        position, last, since = 0, None, time.monotonic()
        while True:
            while len(pending) < job.room() and (item := next(todo, None)):
                self._hand_out(job, pending, function, _Running(item[0], item[1]))
            if not pending:
                return
            done = job.wait(list(pending))
            now = job.progress([one.key for one in pending.values()])
            if done or now != last:
                last, since = now, time.monotonic()
            elif time.monotonic() - since > _STALL_TIMEOUT_S:
                raise DeadlineError(
                    f"{self._what}: no progress for {_STALL_TIMEOUT_S:.0f} s while waiting for a task on the Ray "
                    f"cluster ({job.told_of_cpus()}). Check that it has free CPUs, and the file system that holds the "
                    "sources."
                )
            for reference in done:
                one = pending.pop(reference)
                self._handed_out.discard(reference)
                found = self._result(job, reference, one)
                if found is None:
                    self._hand_out(job, pending, function, one)
                else:
                    early[one.position] = found[0]
            on_tick(*job.totals())
            while position in early:
                yield early.pop(position)
                position += 1

    def _hand_out(
        self,
        job: JobOnCluster,
        pending: dict[Any, _Running],
        function: Callable[[Task, Pulse], Result],
        one: _Running,
    ) -> None:
        one.attempt += 1
        reference, one.key = job.submit(function, one.task, one.attempt)
        pending[reference] = one
        self._handed_out.add(reference)

    def _result(self, job: JobOnCluster, reference: Any, one: _Running) -> tuple[Any] | None:
        """The result of a task that ended; None if it is to be begun again."""
        exceptions = self._ray.exceptions
        try:
            data = job.take(reference, one.key)
        except exceptions.RayTaskError as error:  # it did not get as far as to run
            raise WorkerError(
                f"{self._what}: a node of the Ray cluster: {_in_short(error)}. {_SAME_RELEASE}"
            ) from error
        except exceptions.RayError as error:
            if isinstance(error, exceptions.TaskCancelledError) or one.attempt == _ATTEMPTS:
                raise WorkerError(
                    f"{self._what}: {self._words.process} on the Ray cluster ended without a result, at attempt "
                    f"{one.attempt} of {_ATTEMPTS} ({_in_short(error)}). If memory ran out, use fewer --workers; "
                    f"{self._words.after_a_death}"
                ) from error
            return None
        return (result_of(data),)

    def _connect(self) -> JobOnCluster:
        """Begin to use the cluster."""
        ray = self._ray
        if not ray.is_initialized():
            self._held.enter_context(_same_signals())
            where: dict[str, Any] = {"address": self._address or "local"}
            if self._address is None:
                where |= {"num_cpus": self._workers, "include_dashboard": False, "object_store_memory": _STORE_BYTES}
            try:
                _knock(self._address or "")
                # What its processes print is none of ours, and a traceback that is raised here is told once.
                ray.init(**where, log_to_driver=False, logging_level="ERROR")
            except Exception as error:  # Ray raises whatever its layers do
                if isinstance(error, EpistreamError):
                    raise
                raise OptionError(
                    f"address {self._address or 'None'}: no Ray cluster there ({_in_short(error)}), wanted one. Start "
                    "it with 'ray start --head', or give no address: then one is started for the job."
                ) from error
            self._held.callback(ray.shutdown)
        return JobOnCluster(ray, self._kept, self._words.process, self._workers)


_SAME_RELEASE = f"Install epistream {__version__} on every node, as it is here."


def _knock(address: str) -> None:
    """See that something listens there: Ray tries for minutes, and then ends the process.

    Raises:
        OSError: If nothing does.
    """
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), _KNOCK_S).close()


@contextlib.contextmanager
def _same_signals() -> Iterator[None]:
    """Ray takes SIGTERM over, and keeps it; afterwards it is as it was."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # not the main thread, where Ray cannot take it either
            signal.signal(signal.SIGTERM, before)


def _in_short(error: BaseException) -> str:
    """The last line that says something: of those of a remote task, its own error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"[:300].rstrip(" .:")
