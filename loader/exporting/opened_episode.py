"""One episode of any dataset, open to be exported: its values, its pictures, or its videos as they are recorded."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epistream.cache.source.blob import Blob
from epistream.errors import FormatError
from epistream.lazy import lazy
from epistream.loader.exporting.lerobot_sets import EpisodeOfSet
from epistream.loader.exporting.opened_shard import KnownShard
from epistream.loader.frames.frame_decoder import FrameDecoder
from epistream.loader.reading.instructions import first_task, nth_task
from epistream.sharding.format.features import Feature
from epistream.sharding.format.index import ShardIndex
from epistream.sharding.lerobot_meta.episode_statistics import told_by
from epistream.sharding.lerobot_out.model import FileRange, Frames, Statistics
from epistream.sharding.manifest.manifest_columns import TASKS_EDITED
from epistream.sharding.manifest.opened_dataset import Dataset
from epistream.sharding.pictures.codecs import Png
from epistream.sharding.pictures.mp4_mux import Packets
from epistream.sharding.pictures.video import VideoStream

Int64 = NDArray[np.int64]
# Of packets that are copied, read at once.
_READ_BYTES = 1 << 20


@dataclass(frozen=True, eq=False)
class OpenedEpisode:
    """An episode whose shard is open; `epistream.sharding.lerobot_out.model.Episode` says what it gives.

    Args:
        dataset: It is of.
        number: `episode_index` in the dataset.
        shard: It is in.
        features: By the name that they are exported by.
        upright: Whether pictures that were recorded upside down are turned.
        no_task: The number of the task of episodes that have none.
        place: In a LeRobot data set, if it is of one.
        held: Where packed bytes are held open, once they are wanted.
    """

    dataset: Dataset
    number: int
    shard: KnownShard
    features: dict[str, Feature]
    upright: bool
    no_task: int
    place: EpisodeOfSet | None
    held: ExitStack

    @property
    def version(self) -> str:
        """As `Episode.version`."""
        return self.shard.version

    @property
    def index(self) -> ShardIndex:
        """Of its shard."""
        return self.shard.index

    @lazy
    def tar(self) -> Blob:
        """The packed bytes of its shard."""
        return self.held.enter_context(self.shard.opened())

    def task_index(self) -> Int64:
        """As `Episode.task_index`: that of each step where the source knows it, else the first of the episode's."""
        length = int(self.dataset.episode_length[self.number])
        episodes = np.full(length, self.number)
        edits = self.dataset.columns.episode_edits
        is_edited = edits is not None and edits[self.number] & TASKS_EDITED  # new instructions are of all steps
        if self.index.step_task is not None and not is_edited:
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
            picture, where = np.empty(feature.shape, feature.dtype), self.where()
            for step, data in zip(steps, self._stored(feature.name, rows), strict=True):
                decoder.decode(data, picture, f"{where}, step {step}")
                yield picture
            return
        for run in self.index.runs(feature.name, rows):
            packets = [(row, self.tar.read(*self.index.frame_range(feature.name, row))) for row in run.rows.tolist()]
            wanted = frozenset(run.wanted.tolist())
            for _, frame in decoder.pictures(run.stream, packets, wanted, f"{self.where()}.{feature.name}"):
                yield frame

    def _stored(self, camera: str, rows: Int64) -> Iterator[memoryview]:
        """The bytes of some pictures, each valid until the next one; a few are read at a time."""
        offset, size = self.index.frame_offset[camera][rows].astype(np.int64), self.index.frame_size[camera][rows]
        part = np.cumsum(size, dtype=np.int64) // _READ_BYTES
        for some in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(part)) + 1):
            sizes = size[some].tolist()
            whole = memoryview(bytearray(sum(sizes)))
            ends = np.cumsum(sizes).tolist()
            pieces = [whole[end - one : end] for one, end in zip(sizes, ends, strict=True)]
            self.tar.read_each(offset[some].tolist(), pieces)
            yield from pieces

    def statistics(self, name: str) -> Statistics | None:
        """As `Episode.statistics`: what a LeRobot data set says, also one that the shard was packed from."""
        feature, attributes = self.features[name], self.shard.attributes
        if self.place is not None:
            return self.place.statistics(feature.source_path)
        if attributes is None or feature.kind != "frames":
            return None
        return told_by(attributes.of(self._in_shard), feature.source_path)

    @property
    def _in_shard(self) -> int:
        return int(self.dataset.episode_in_shard[self.number])

    def _rows(self, steps: Iterable[int]) -> Int64:
        return int(self.index.first_row[self._in_shard]) + np.fromiter(steps, np.int64)

    def where(self, step: int | None = None) -> str:
        """Names the episode, or a step, in messages."""
        where = f"{self.index.shard_name}, {self.index.keys[self._in_shard]}"
        return where if step is None else f"{where}, step {step}"


@dataclass(frozen=True, eq=False)
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

    @lazy
    def packets(self) -> Packets:
        """As `RecordedVideo.packets`."""
        index, order = self.episode.index, self._order
        video = index.videos.get(self.feature.name)
        keys = np.ones(len(order), np.bool_) if video is None else video.back[order] == 0
        size = index.frame_size[self.feature.name][order].astype(np.int64)
        return Packets(order - order.min(), keys, size)

    def data(self) -> Iterable[memoryview]:
        """As `RecordedVideo.data`; PNGs one by one, each seen to be what a reader will make of it."""
        if self.stream is None:
            offset = self._offset
            for step, size in enumerate(self.packets.size.tolist()):
                picture = self.episode.tar.read(int(offset[step]), size)
                self._refuse_other(picture, step)
                yield picture
            return
        for start, size in self._spans():
            for place in range(start, start + size, _READ_BYTES):
                yield self.episode.tar.read(place, min(_READ_BYTES, start + size - place))

    def ranges(self) -> list[FileRange] | None:
        """As `RecordedVideo.ranges`."""
        if self.stream is None:
            return None
        found: list[FileRange] = []
        for start, size in self._spans():
            ranges = self.episode.shard.ranges(start, size)
            if ranges is None:
                return None
            found += ranges
        return found

    def _spans(self) -> Iterator[tuple[int, int]]:
        """First packed byte and size of those that lie one behind the other."""
        offset, size = self._offset, self.packets.size
        firsts = np.flatnonzero(np.append(True, offset[1:] != offset[:-1] + size[:-1]))
        return zip(offset[firsts].tolist(), np.add.reduceat(size, firsts).tolist(), strict=True)

    def _refuse_other(self, data: bytes | memoryview, step: int) -> None:
        feature, where = self.feature, self.episode.where(step)
        found = Png.announced(data, where)
        if found != (feature.dtype, feature.shape):
            raise FormatError(f"{where}: a PNG of {found}, wanted {(feature.dtype, feature.shape)}. Pack it again.")

    @lazy
    def _order(self) -> Int64:
        """(T,) rows in the order of decoding: that in which they lie."""
        episode = self.episode
        first = int(episode.index.first_row[int(episode.dataset.episode_in_shard[episode.number])])
        rows = first + np.arange(int(episode.dataset.episode_length[episode.number]))
        if self.feature.name not in episode.index.videos:
            return rows
        return rows[np.argsort(episode.index.frame_offset[self.feature.name][rows], kind="stable")]

    @lazy
    def _offset(self) -> Int64:
        """(T,) packed byte at which each begins."""
        return self.episode.index.frame_offset[self.feature.name][self._order].astype(np.int64)
