"""What the tasks of an export share: what is exported, with which options, into which folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path

import numpy as np

from epistream.errors import SourceChangedError
from epistream.sharding.lerobot_out.model import OutFeature, Source
from epistream.sharding.lerobot_out.options import ExportOptions
from epistream.sharding.lerobot_out.work_folder import WorkFolder
from epistream.sharding.tasks.pulse import Pulse

# A rate is no stranger than 30000/1001.
_MOST_DENOMINATOR = 1001


@dataclass(frozen=True)
class Job:
    """Picklable: every process of an export gets it once.

    Args:
        source: Of the episodes.
        options: See `ExportOptions`.
        path: The folder of the data set.
    """

    source: Source
    options: ExportOptions
    path: Path

    @classmethod
    def of(cls, pulse: Pulse) -> "Job":
        """That of a task."""
        job: Job = pulse.kept["job"]
        return job

    @cached_property
    def folder(self) -> WorkFolder:
        """The folder, for who holds its lock or was started by who does."""
        return WorkFolder(self.path)

    @cached_property
    def cameras(self) -> list[OutFeature]:
        """In the order of the features."""
        return [feature for feature in self.source.features if feature.is_camera]

    @cached_property
    def videos(self) -> list[OutFeature]:
        """Cameras that become videos."""
        return [camera for camera in self.cameras if camera.dtype == "video"]

    @cached_property
    def numbers(self) -> list[OutFeature]:
        """Features that are numbers, in their order."""
        return [feature for feature in self.source.features if not feature.is_camera and not feature.is_carried]

    @cached_property
    def first_rows(self) -> Sequence[int]:
        """(E,) steps of all episodes before each."""
        lengths = np.asarray(self.source.lengths)
        return [int(row) for row in np.cumsum(lengths) - lengths]

    @cached_property
    def rate(self) -> Fraction:
        """Steps a second, as videos have it."""
        return Fraction(self.source.fps).limit_denominator(_MOST_DENOMINATOR)

    @property
    def num_episodes(self) -> int:
        """E."""
        return len(self.source.lengths)

    def length(self, number: int) -> int:
        """Steps of an episode."""
        return int(self.source.lengths[number])

    def is_copied(self, camera: OutFeature) -> bool:
        """Whether its videos are copied."""
        return camera.name in self.source.copied


def check_version(found: str, wanted: str, number: int) -> None:
    """See that an episode is still what its facts were taken of.

    Raises:
        SourceChangedError: If not.
    """
    if found != wanted:
        raise SourceChangedError(
            f"{where_is(number)}: replaced or written to since the export began, wanted it as it was: its statistics "
            "are of that. Begin the export again, in an empty folder."
        )


def where_is(number: int, name: str = "") -> str:
    """An episode in messages."""
    return f"episode {number}" + (f", {name}" if name else "")
