"""A source of episodes that are made up by formulas, for exports to LeRobot."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from epistream.sharding.lerobot_out.model import Frames, OutFeature, Statistics
from epistream.sharding.pictures.mp4_mux import Packets
from epistream.sharding.pictures.video import VideoStream
from epistream.sharding.pictures.video_encoder import EncodedVideo, VideoEncoder, VideoQuality

TOP, FRONT = "observation.images.top", "observation.images.front"
STATE = OutFeature("observation.state", "float32", (3,), ["x", "y", "z"])
DONE = OutFeature("next.done", "bool", ())
VIDEO = OutFeature(TOP, "video", (48, 64, 3))
IMAGE = OutFeature(FRONT, "image", (30, 40, 3))
TASKS = ("pick it up", "Würfel 拾う")


@dataclass(frozen=True)
class MadeSource:
    """Episodes of numbers and pictures by formulas."""

    features: Sequence[OutFeature] = (STATE, DONE, VIDEO)
    lengths: NDArray[np.int64] = field(default_factory=lambda: np.array([5, 1, 7]))
    copied: frozenset[str] = frozenset()
    tasks: Sequence[str] = TASKS
    fps: float = 10
    robot_type: str | None = None
    splits: dict[str, tuple[int, int]] = field(default_factory=lambda: {"train": (0, 2), "val": (2, 3)})
    identity: str = "made up"
    said: dict[str, Any] = field(default_factory=dict)
    meta_files: dict[str, bytes] = field(default_factory=dict)
    # Episodes whose videos are encoded otherwise than those of the others.
    odd: frozenset[int] = frozenset()
    known: Any = None
    fails_at: int | None = None

    @contextlib.contextmanager
    def episode(self, number: int) -> Iterator["MadeEpisode"]:
        if number == self.fails_at:
            raise OSError("gone")
        yield MadeEpisode(self, number)

    def but(self, **changes: Any) -> "MadeSource":
        return replace(self, **changes)


@dataclass(frozen=True)
class MadeVideo:
    """An encoded one, as a source hands it over."""

    stream: VideoStream
    sizes: Sequence[int]
    data_of_all: bytes
    keys: Sequence[bool]

    @property
    def packets(self) -> Packets:
        count = len(self.sizes)
        return Packets(np.arange(count), np.array(self.keys, np.bool_), np.array(self.sizes, np.int64))

    def data(self) -> Iterator[bytes]:
        """In two pieces, of which neither ends where a packet does."""
        yield self.data_of_all[:7]
        yield self.data_of_all[7:]

    def ranges(self) -> None:
        return None

    def in_turn(self) -> list[tuple[int, bool, bytes]]:
        """Step, whether a key, and bytes of each packet."""
        ends = np.cumsum(self.sizes).tolist()
        pieces = (self.data_of_all[end - size : end] for size, end in zip(self.sizes, ends, strict=True))
        return list(zip(range(len(self.sizes)), self.keys, pieces, strict=True))


@dataclass(frozen=True)
class MadeEpisode:
    """One of them, open."""

    version = ""

    source: MadeSource
    number: int

    @property
    def length(self) -> int:
        return int(self.source.lengths[self.number])

    def task_index(self) -> NDArray[np.int64]:
        return made_tasks(self.number, self.length)

    def values(self, name: str) -> NDArray[Any]:
        feature = next(one for one in self.source.features if one.name == name)
        return made_values(feature, self.number, self.length)

    def column(self, name: str) -> Any:
        return pa.array(made_texts(self.length))

    def pictures(self, camera: str) -> Iterator[Frames]:
        shape = next(one for one in self.source.features if one.name == camera).shape
        return (made_picture(shape, self.number, step) for step in range(self.length))

    def video(self, camera: str) -> MadeVideo:
        shape = next(one for one in self.source.features if one.name == camera).shape
        return made_video(shape, self.number, self.length, 2 if self.number in self.source.odd else 3)

    def frames(self, camera: str, steps: Sequence[int]) -> Iterator[Frames]:
        shape = next(one for one in self.source.features if one.name == camera).shape
        encoded = encoded_video(shape, self.number, self.length, 3)
        return (picture for _, picture in encoded.pictures(shape, steps))

    def statistics(self, name: str) -> Statistics | None:
        return self.source.known if name == TOP else None


def made_tasks(number: int, length: int) -> NDArray[np.int64]:
    """The last episode has both tasks."""
    return np.array([int(number > 0 and step * 2 >= length) for step in range(length)])


def made_values(feature: OutFeature, number: int, length: int) -> NDArray[Any]:
    """In rows that grow in a way of their own for each episode."""
    count = int(np.prod(feature.shape))
    values = np.sin(np.arange(length * count) * (number + 1) / 7).reshape(length, *feature.shape) * 5
    return values > 0 if feature.dtype == "bool" else values.astype(feature.dtype)


def made_texts(length: int) -> list[str]:
    """One a step."""
    return [f"step {step} übt" for step in range(length)]


def made_picture(shape: tuple[int, ...], number: int, step: int) -> Frames:
    """A slope of colours that moves."""
    y, x, channel = np.mgrid[: shape[0], : shape[1], : shape[2]]
    return ((2 * x + 3 * y + 40 * channel + 9 * step + 50 * number) % 256).astype(np.uint8)


@cache
def encoded_video(shape: tuple[int, ...], number: int, length: int, gop: int) -> EncodedVideo:
    """The MP4 of an episode; streams of another size of groups have the same parameter sets."""
    encoder = VideoEncoder(TOP, shape, 10, VideoQuality(23, gop, "ultrafast" if gop == 2 else "veryfast"))
    for step in range(length):
        encoder.add(made_picture(shape, number, step))
    return encoder.finish()


def made_video(shape: tuple[int, ...], number: int, length: int, gop: int) -> MadeVideo:
    video = encoded_video(shape, number, length, gop)
    table = video.table
    places = zip(table.offset.tolist(), table.size.tolist(), strict=True)
    data = b"".join(video.data[offset : offset + size] for offset, size in places)
    return MadeVideo(table.stream, table.size.tolist(), data, (table.back == 0).tolist())
