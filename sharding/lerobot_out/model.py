"""What a LeRobot data set is written from: features as its ``info.json`` has them, and episodes of any source.

Nothing here knows a source: it is handed over as a `Source`, which whoever reads episodes implements.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from epistream.errors import FormatError
from epistream.sharding.pictures.mp4_mux import Packets
from epistream.sharding.pictures.video import VideoStream

Statistics = Mapping[str, NDArray[Any]]
Frames = NDArray[np.uint8]

# Columns that follow from where a step stands, and in which order LeRobot has them.
DERIVED = {"timestamp": "float32", "frame_index": "int64", "episode_index": "int64", "index": "int64"} | {
    "task_index": "int64"
}
# Texts, and lists of what is said at a step: nothing is made of them but the same column.
CARRIED = ("string", "language")
_NUMBERS = frozenset(
    "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64".split()  # noqa: SIM905
)
# A name becomes a folder of videos, and a part of the column names of ``meta/episodes``, which "/" divides.
_NAME = re.compile(r"(?!\.)[^/\\\x00-\x1f]{1,200}")
_MOST_AXES = 5


@dataclass(frozen=True)
class OutFeature:
    """A feature as ``info.json`` describes it.

    Args:
        name: For example ``observation.images.top``.
        dtype: numpy's name of numbers, ``video`` and ``image`` for cameras, or ``string`` and ``language``, which are
            carried over as they are.
        shape: Of one step, at most five axes; (H, W, C) of cameras. () is written as (1,).
        names: Of the values, as LeRobot has them: a list, a map or None.
        info: What a camera's ``info`` says; made from the first video if None.
        stored: Of what is carried over, the Arrow schema of its column alone, as Arrow writes it.

    Raises:
        FormatError: If LeRobot has no such feature.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    names: Any = None
    info: Mapping[str, Any] | None = None
    stored: bytes | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape) or (1,))
        problem = next(_problems(self), None)
        if problem:
            raise FormatError(f"feature {self.name!r}: {problem}.")

    @property
    def is_camera(self) -> bool:
        """Whether its steps are pictures."""
        return self.dtype in ("video", "image")

    @property
    def is_depth(self) -> bool:
        """Whether its pictures are distances."""
        return self.dtype == "video" and self.shape[2] == 1

    @property
    def is_carried(self) -> bool:
        """Whether its column is carried over as it is."""
        return self.dtype in CARRIED


def _problems(feature: OutFeature) -> Iterator[str]:
    if not _NAME.fullmatch(feature.name) or feature.name in DERIVED:
        yield f"LeRobot has no such name, wanted one without '/' and none of {', '.join(DERIVED)}. Rename it"
    if feature.dtype not in _NUMBERS and feature.dtype not in ("video", "image", *CARRIED):
        yield f"dtype {feature.dtype!r}, wanted a numpy name of numbers, string, video or image. Leave it out"
    sides = feature.shape
    if len(sides) > _MOST_AXES or not all(type(side) is int and 0 < side < 1 << 31 for side in sides):
        yield f"shape {sides}, wanted at most {_MOST_AXES} axes of at least 1. Leave it out"
    if feature.is_camera and (len(sides) != 3 or sides[2] not in (1, 3)):
        yield f"pictures of shape {sides}, wanted (height, width, 1 or 3). Leave it out"
    if feature.is_carried and sides != (1,):
        yield f"texts of shape {sides}, wanted one a step. Leave it out"
    if feature.dtype == "language" and feature.stored is None:
        yield "no type of its column, wanted that of the source. Leave it out"


class FileRange(NamedTuple):
    """Bytes of a file of this machine, copied as they are.

    Attributes:
        path: Of the file.
        version: See `epistream.plain_files.version_of_file`; who copies them sees that it is the same.
        offset: First byte.
        size: Bytes.
    """

    path: str
    version: str
    offset: int
    size: int


class RecordedVideo(Protocol):
    """The video of a camera and episode as it lies in the source, or its PNGs; it is copied."""

    @property
    def stream(self) -> VideoStream | None:
        """Of its packets; None of PNGs."""

    @property
    def packets(self) -> Packets:
        """Those of all steps. Where files begin is decided by their sizes, before a byte of them is read."""

    def data(self) -> Iterable[bytes | memoryview]:
        """Their bytes, one behind the other, in pieces of any size; each is valid until the next one."""

    def ranges(self) -> Sequence[FileRange] | None:
        """Where the same bytes lie, one behind the other; None if they do not, or not on this machine."""


class Episode(Protocol):
    """One episode of T steps, open while it is used."""

    @property
    def version(self) -> str:
        """Of what it is read from: changes when that is replaced or written to."""

    def task_index(self) -> NDArray[np.integer[Any]]:
        """(T,) positions in the source's `tasks`."""

    def values(self, name: str) -> NDArray[Any]:
        """(T, ...) of a feature that is numbers, of its dtype."""

    def column(self, name: str) -> Any:
        """(T,) Arrow array of a feature that is carried over."""

    def video(self, camera: str) -> RecordedVideo:
        """Of a camera that is copied."""

    def pictures(self, camera: str) -> Iterator[Frames]:
        """(H, W, C) uint8, RGB, one a step; of a camera that is encoded. Each is valid until the next one."""

    def frames(self, camera: str, steps: Sequence[int]) -> Iterator[Frames]:
        """(H, W, C) uint8, RGB, of some steps of a camera that is copied, decoded; of depth uint16. Steps rise.

        Asked for once an episode and camera, unless `statistics` has them: the steps that LeRobot takes statistics of,
        about T ** 0.75 of them, at least 100. With groups of two frames that decodes as many frames twice over; with
        long groups, all of the episode.
        """

    def statistics(self, name: str) -> Statistics | None:
        """Those of numbers, or of a camera that is copied, as LeRobot has them, if the source holds them.

        Nothing is decoded of a camera then.
        """


class Source(Protocol):
    """A set of episodes. Picklable: every process gets it once, and opens for itself what it reads from."""

    @property
    def features(self) -> Sequence[OutFeature]:
        """Without the columns that follow from where a step stands. In the order of the files."""

    @property
    def copied(self) -> frozenset[str]:
        """Names of those cameras whose videos or PNGs are copied; the other cameras are encoded."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(E,) steps of each episode, at least 1."""

    @property
    def tasks(self) -> Sequence[str]:
        """Every task once, in the order of their numbers."""

    @property
    def fps(self) -> float:
        """Steps a second."""

    @property
    def robot_type(self) -> str | None:
        """If known."""

    @property
    def said(self) -> Mapping[str, Any]:
        """What ``info.json`` says beside all that, by name."""

    @property
    def meta_files(self) -> Mapping[str, bytes]:
        """What lies in ``meta/`` beside what every set has, by name."""

    @property
    def splits(self) -> Mapping[str, tuple[int, int]]:
        """Name -> (first, stop) of episodes; what of them is in no split belongs to nobody."""

    @property
    def identity(self) -> str:
        """Changes when anything of the source does. An export that was interrupted goes on with the same only."""

    def episode(self, number: int) -> AbstractContextManager[Episode]:
        """Open one."""
