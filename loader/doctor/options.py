"""How thoroughly episodes are looked at."""

from dataclasses import dataclass
from typing import Annotated

from epistream.options import Range, check
from epistream.sharding.tasks.engine import EngineName, EngineOptions, Workers


@dataclass(frozen=True)
class DoctorOptions:
    """What is looked at, and how.

    Args:
        only: Codes of the checks to make; all if empty.
        skip: Codes of checks to leave out.
        frames: Look at pictures, too.
        sample: Pictures to decode of each camera and episode.
        workers: tasks at once. None is the calling process alone, and with Ray as many as the cluster has CPUs for.
        engine: what runs the tasks, ``local`` or ``ray``. Processes of this machine, or those of a Ray cluster.
        address: of Ray's cluster. As `EngineOptions` takes it.

    Raises:
        OptionError: If any of these cannot work.
    """

    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    frames: bool = True
    sample: Annotated[int, Range(ge=2, le=10_000)] = 8
    workers: Workers = None
    engine: EngineName = "local"
    address: str | None = None

    def __post_init__(self) -> None:
        check(self)
        _ = self.engine_options  # it refuses what cannot work

    @property
    def engine_options(self) -> EngineOptions:
        """Where the tasks run."""
        return EngineOptions(self.engine, self.address, self.workers)
