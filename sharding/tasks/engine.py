"""Where the tasks of a job run: what every engine does, and the choice of one."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol, TypeVar

from epistream.errors import OptionError
from epistream.options import Range, check
from epistream.sharding.tasks.pool import TaskPool
from epistream.sharding.tasks.pool_process import Words
from epistream.sharding.tasks.pulse import Pulse

Task = TypeVar("Task")
Result = TypeVar("Result")

EngineName = Literal["local", "ray"]
Workers = Annotated[int, Range(ge=1, le=1_000_000)] | None


class Engine(Protocol):
    """Runs the tasks of one job, one `map` after the other, and tells how far they are.

    A context manager: leaving it stops whatever still runs and waits for it, so that afterwards nothing writes. The
    caller makes it and leaves it; processes and connections are the engine's, started when they are first needed.
    Functions and tasks go to processes that may be on other machines: they must be picklable, and find there what they
    read. Results come back to the calling process: they should be small.

    A task may be begun more than once, on another machine while its first attempt still lives, so it must give the same
    however often it runs, and write only what another attempt of it may write at the same time.
    """

    def __enter__(self) -> "Engine": ...

    def __exit__(self, *_: object) -> None: ...

    def map(
        self,
        function: Callable[[Task, Pulse], Result],
        tasks: Sequence[Task],
        on_tick: Callable[[int, int], None] = ...,
        min_parallel: int = 2,
    ) -> Iterator[Result]:
        """Run `function` on every task; results come in the order of the tasks.

        Args:
            function: Of a module, so that other processes can import it. What it raises is raised here.
            tasks: Picklable.
            on_tick: Called in this thread, now and then and at the end, with the episodes and bytes that all tasks have
                reported by `Pulse.add`.
            min_parallel: With fewer tasks than this, they run in the calling process.

        Raises:
            WorkerError: If a process died, as often as the engine tries.
            DeadlineError: If nothing moved for 15 minutes.
        """
        ...

    def stop(self) -> None:
        """End every task that runs, at its next report if it gives one, and wait for that."""
        ...


@dataclass(frozen=True)
class EngineOptions:
    """Where the tasks of a job run.

    Args:
        engine: what runs the tasks, ``local`` or ``ray``. Processes of this machine, or those of a Ray cluster.
        address: of Ray's cluster. ``auto`` for the one of this machine, ``HOST:PORT`` or ``ray://HOST:PORT``. None
            starts one here, which ends with the job.
        workers: tasks at once. None is the calling process alone, and with Ray as many as the cluster has CPUs for.

    Raises:
        OptionError: If any of these cannot work.
    """

    engine: EngineName = "local"
    address: str | None = None
    workers: Workers = None

    def __post_init__(self) -> None:
        check(self)
        if self.address is not None and self.engine != "ray":
            raise OptionError(f"address: {self.address!r}, which is of Ray's cluster. Give engine ray with it.")
        if self.address == "":
            raise OptionError("address: empty, wanted auto, HOST:PORT or ray://HOST:PORT.")


def make_engine(
    options: EngineOptions, what: str, kept: Mapping[str, Any] | None = None, words: Words | None = None
) -> Engine:
    """The engine of a job; nothing is started yet.

    Args:
        options: Which one.
        what: Names the job in messages.
        kept: What `Pulse.kept` of each process has from the beginning.
        words: How messages speak of the job.

    Raises:
        OptionError: If its package is not installed.
    """
    if options.engine == "local":
        return TaskPool(options.workers or 1, what, kept, words)
    from epistream.sharding.tasks.ray_engine import RayEngine  # late: Ray takes a second, and is an extra

    return RayEngine(options.workers, options.address, what, kept, words)
