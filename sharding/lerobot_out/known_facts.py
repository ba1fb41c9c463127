"""What was kept of episodes, read again: by whoever lays files out, and writes them and ``meta/``."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from epistream.errors import FormatError
from epistream.sharding.lerobot_out.jobs import Job
from epistream.sharding.lerobot_out.model import FileRange, OutFeature
from epistream.sharding.lerobot_out.work_folder import unpacked
from epistream.sharding.pictures.mp4_mux import Packets

# Raised when other facts are kept: no export goes on with those of another release.
FACTS_VERSION = 2
# Episodes of a task that encodes nothing, at most, and tasks that they are for at least, where there are enough.
_MOST_EPISODES, _FEWEST_TASKS = 64, 32
# Of their rows, about: they are held, and kept until files are made of them.
_MOST_BYTES = 16 << 20
_VALUES = "values"


def num_episodes_at_once(job: Job) -> int:
    """Of a task that encodes nothing; whoever goes on with other processes has the same."""
    step_bytes = sum(np.dtype(one.dtype).itemsize * int(np.prod(one.shape)) for one in job.numbers)
    episode_bytes = step_bytes * int(np.mean(job.source.lengths)) + 1
    return max(1, min(_MOST_EPISODES, job.num_episodes // _FEWEST_TASKS, _MOST_BYTES // episode_bytes))


def facts_name(job: Job, camera: str, first: int) -> str:
    """Under which the facts of a task are kept."""
    position = [one.name for one in job.cameras].index(camera) if camera else _VALUES
    return f"{position}-{first:08d}"


class KnownFacts:
    """The facts of all episodes; those that are kept together with others stay at hand until others are asked for.

    Args:
        job: Whose tasks kept them.
    """

    def __init__(self, job: Job) -> None:
        self._job, self._at_once = job, num_episodes_at_once(job)
        self._name = ""
        self._kept: list[Mapping[str, Any]] = []

    def of(self, number: int) -> Mapping[str, Any]:
        """Of an episode, all but those of cameras that are encoded.

        Raises:
            FormatError: If somebody took them away.
        """
        name = facts_name(self._job, "", number // self._at_once * self._at_once)
        if name != self._name:
            self._kept, self._name = self._read(name), name
        facts: Mapping[str, Any] = self._kept[number % self._at_once]
        return facts

    def of_camera(self, camera: OutFeature, number: int) -> Mapping[str, Any]:
        """Of a camera in an episode, with the version of what they are of.

        Raises:
            FormatError: As `of`.
        """
        if not self._job.is_copied(camera):
            facts: Mapping[str, Any] = self._read(facts_name(self._job, camera.name, number))[0]
            return facts
        shared = self.of(number)
        return {**shared["copied"][camera.name], "version": shared["version"]}

    def _read(self, name: str) -> list[Mapping[str, Any]]:
        kept: list[Mapping[str, Any]] | None = self._job.folder.kept(name)
        if kept is None:
            raise FormatError(
                f"{self._job.folder.work}: facts {name} are missing, wanted what was kept a moment ago. Run the same "
                "again."
            )
        return kept


def statistics_of(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Of a camera's pictures, or of all else by feature: nobody unpacks them who does not need them."""
    statistics: dict[str, Any] = unpacked(facts["statistics"])
    return statistics


class Rows(NamedTuple):
    """Rows of an episode as they are kept. T steps.

    Attributes:
        tasks: (T,) int64 numbers of tasks.
        values: (T, ...) by feature, of those that are numbers.
    """

    tasks: NDArray[np.int64]
    values: Mapping[str, NDArray[Any]]


def rows_of(facts: Mapping[str, Any]) -> Rows:
    """Those of an episode: nobody unpacks them who does not need them."""
    return Rows(*unpacked(facts["rows"]))


def packets_of(facts: Mapping[str, Any]) -> Packets:
    """Those of a camera."""
    size = facts["sizes"].astype(np.int64)
    steps = facts["steps"]
    return Packets(np.arange(len(size)) if steps is None else steps, facts["is_key"], size)


def ranges_of(facts: Mapping[str, Any]) -> list[FileRange] | None:
    """Where those of a camera lie."""
    return None if facts["ranges"] is None else [FileRange(*one) for one in facts["ranges"]]


def told_packets(packets: Packets) -> dict[str, Any]:
    """The inverse of `packets_of`."""
    is_in_order = bool((np.diff(packets.step) == 1).all())
    return {
        "num_bytes": packets.num_bytes,
        "sizes": packets.size.astype(np.uint32),
        "is_key": packets.is_key,
        "steps": None if is_in_order else packets.step,
    }
