"""One episode of any dataset, open to be exported: its values, its pictures, or its videos as they are recorded."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epistream.cache.source.blob import Blob
from epistream.errors import FormatError
from epistream.loader.exporting.lerobot_sets import EpisodeOfSet
from epistream.loader.frames.frame_decoder import FrameDecoder
from epistream.loader.reading.instructions import first_task, nth_task
from epistream.sharding.format.features import Feature
from epistream.sharding.format.index import ShardIndex
from epistream.sharding.format.opened_dataset import Dataset
from epistream.sharding.lerobot_out.model import Frames, Packet, Statistics
from epistream.sharding.pictures.codecs import Png
from epistream.sharding.pictures.video import VideoStream

Int64 = NDArray[np.int64]
# Of packets that are copied, read at once.
_READ_BYTES = 1 << 20


@dataclass(frozen=True)
class OpenedEpisode:
    """An episode whose shard is open; `epistream.sharding.lerobot_out.model.Episode` says what it gives.

    Args:
        dataset: It is of.
        number: `episode_index` in the dataset.
        tar: Bytes of its shard.
        index: Of the shard.
        features: By the name that they are exported by.
        upright: Whether pictures that were recorded upside down are turned.
        no_task: The number of the task of episodes that have none.
        version: Of what it is read from.
        place: In a LeRobot data set, if it is of one.
    """

    dataset: Dataset
    number: int
    tar: Blob
    index: ShardIndex
    features: dict[str, Feature]
    upright: bool
    no_task: int
    version: str
    place: EpisodeOfSet | None = None

    def task_index(self) -> Int64:
        """As `Episode.task_index`: that of each step where the source knows it, else the first of the episode's."""
        length = int(self.dataset.episode_length[self.number])
        episodes = np.full(length, self.number)
        if self.index.step_task is not None:
            return nth_task(self.dataset, episodes, self.index.step_task[self._rows(range(length))])
        tasks = first_task(self.dataset, episodes)
        tasks[tasks < 0] = self.no_task
        return tasks

    def values(self, name: str) -> NDArray[np.generic]:
        """As `Episode.values`."""
        feature = self.features[name]
        length = int(self.dataset.episode_length[self.number])
        held = self.index.values.get(feature.name)
        if held is not None:
            first = int(self._rows([0])[0])
            data: bytes | memoryview = held[first : first + length].tobytes()
        else:
            offset = int(self.index.array_offset[feature.name][self._in_shard])
            data = self.tar.read(offset, length * feature.step_bytes)
        little = np.dtype(feature.dtype).newbyteorder("<")
        return np.frombuffer(data, little).reshape(length, *feature.shape).astype(feature.dtype)

    def column(self, name: str) -> Any:
        """As `Episode.column`."""
        assert self.place is not None  # nothing else has such columns
        return self.place.column(name)

    def video(self, camera: str) -> "CopiedVideo":
        """As `Episode.video`."""
        return CopiedVideo(self, self.features[camera])

    def pictures(self, camera: str) -> Iterator[Frames]:
        """As `Episode.pictures`."""
        feature = self.features[camera]
        is_turned = self.upright and feature.rotate == 180
        for picture in self.frames(camera, range(int(self.dataset.episode_length[self.number]))):
            yield np.ascontiguousarray(picture[::-1, ::-1]) if is_turned else picture

    def frames(self, camera: str, steps: Sequence[int]) -> Iterator[Frames]:
        """As `Episode.frames`."""
        feature = self.features[camera]
        decoder = FrameDecoder(feature, feature.shape)
        rows = self._rows(steps)
        if not decoder.is_video:
            picture = np.empty(feature.shape, feature.dtype)
            for row, step in zip(rows.tolist(), steps, strict=True):
                decoder.decode(self.tar.read(*self.index.frame_range(feature.name, row)), picture, self.where(step))
                yield picture
            return
        for run in self.index.runs(feature.name, rows):
            packets = [(row, self.tar.read(*self.index.frame_range(feature.name, row))) for row in run.rows.tolist()]
            wanted = frozenset(run.wanted.tolist())
            for _, frame in decoder.pictures(run.stream, packets, wanted, f"{self.where()}.{feature.name}"):
                yield frame

    def statistics(self, name: str) -> Statistics | None:
        """As `Episode.statistics`: what a LeRobot data set says."""
        return self.place.statistics(self.features[name].source_path) if self.place is not None else None

    @property
    def _in_shard(self) -> int:
        return int(self.dataset.episode_in_shard[self.number])

    def _rows(self, steps: Iterable[int]) -> Int64:
        return int(self.index.first_row[self._in_shard]) + np.fromiter(steps, np.int64)

    def where(self, step: int | None = None) -> str:
        """Names the episode, or a step, in messages."""
        where = f"{self.index.shard_name}, {self.index.keys[self._in_shard]}"
        return where if step is None else f"{where}, step {step}"


@dataclass(frozen=True)
class CopiedVideo:
    """The packets or PNGs of a camera of an episode, see `epistream.sharding.lerobot_out.model.RecordedVideo`."""

    episode: OpenedEpisode
    feature: Feature

    @property
    def stream(self) -> VideoStream | None:
        """As `RecordedVideo.stream`."""
        video = self.episode.index.videos.get(self.feature.name)
        if video is None:
            return None
        return video.stream(int(self.episode.dataset.episode_in_shard[self.episode.number]))

    @property
    def num_bytes(self) -> int:
        """As `RecordedVideo.num_bytes`."""
        return int(self.episode.index.frame_size[self.feature.name][self._rows()].sum())

    def packets(self) -> Iterable[Packet]:
        """As `RecordedVideo.packets`."""
        index, rows = self.episode.index, self._rows()
        offset, size = index.frame_offset[self.feature.name], index.frame_size[self.feature.name]
        video = index.videos.get(self.feature.name)
        order = rows if video is None else rows[np.argsort(offset[rows], kind="stable")]
        keys = np.ones(len(rows), bool) if video is None else video.back[order] == 0
        steps = (order - rows[0]).tolist()
        data = _in_turn(self.episode.tar, offset[order].astype(np.int64), size[order].astype(np.int64))
        for step, is_key, packet in zip(steps, keys.tolist(), data, strict=True):
            if video is None:
                self._refuse_other(packet, step)
            yield Packet(step, is_key, packet)

    def _refuse_other(self, data: bytes | memoryview, step: int) -> None:
        """See that a picture is what a reader will make of it."""
        feature, where = self.feature, self.episode.where(step)
        found = Png.announced(data, where)
        if found != (feature.dtype, feature.shape):
            raise FormatError(f"{where}: a PNG of {found}, wanted {(feature.dtype, feature.shape)}. Pack it again.")

    def _rows(self) -> Int64:
        episode = self.episode
        first = int(episode.index.first_row[int(episode.dataset.episode_in_shard[episode.number])])
        return first + np.arange(int(episode.dataset.episode_length[episode.number]))


def _in_turn(tar: Blob, offset: Int64, size: Int64) -> Iterator[bytes]:
    """Pieces of a shard; those that lie one behind the other are read together."""
    is_apart = np.append(True, offset[1:] != offset[:-1] + size[:-1])
    part = np.cumsum(size) // _READ_BYTES
    firsts = np.flatnonzero(is_apart | np.append(True, part[1:] != part[:-1]))
    starts, ends = offset[firsts].tolist(), np.append(firsts[1:], len(offset)).tolist()
    for first, stop, start in zip(firsts.tolist(), ends, starts, strict=True):
        data = tar.read(start, int(size[first:stop].sum()))
        place = 0
        for one in size[first:stop].tolist():
            yield bytes(data[place : place + one])
            place += one
