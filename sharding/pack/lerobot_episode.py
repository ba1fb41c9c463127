"""Reads an episode of a LeRobot data set for packing: its arrays, and the frames of its cameras, copied or decoded."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epistream.errors import FormatError, SourceChangedError
from epistream.sharding.files.storage import Options, join
from epistream.sharding.format.episode_meta import task_steps_of
from epistream.sharding.format.features import Feature, codec_of
from epistream.sharding.format.index import ShardIndex, check
from epistream.sharding.layouts.base import Field, SourceEpisode
from epistream.sharding.lerobot.episode import SetSource, index_episode
from epistream.sharding.lerobot.index import EpisodeIndex
from epistream.sharding.lerobot.kept import are_current
from epistream.sharding.lerobot.stored_bytes import packed_bytes, stored_pictures
from epistream.sharding.lerobot_meta.episode_statistics import ATTRIBUTE, told_plainly
from epistream.sharding.pack.lerobot_sets import ChosenSet, chosen_set, episode_of, position_of
from epistream.sharding.pack.options import PackOptions
from epistream.sharding.pack.plan import PlannedEpisode, SetFile
from epistream.sharding.pictures.codecs import CODECS
from epistream.sharding.pictures.depth import Depth
from epistream.sharding.pictures.video import VideoDecoder
from epistream.sharding.pictures.video_copy import CopiedVideo
from epistream.sharding.tasks.pulse import Pulse

# Read at once where frames are decoded, group by group.
_READ_BYTES = 4 << 20


@dataclass(frozen=True, eq=False)
class SetEpisode:
    """An episode whose rows are read.

    Args:
        episode: As the packing of HDF5 files sees it, its features as they were found.
        task_steps: See `EpisodeMeta`.
        arrays: feature -> (length, ...) values.
        cameras: feature -> its frames, read when they are asked for.
        source: What they are read from.
        files: Path in the data set and version of the files that were read.
    """

    episode: SourceEpisode
    task_steps: tuple[tuple[int, int], ...] | None
    arrays: Mapping[str, NDArray[Any]]
    cameras: Mapping[str, "CopiedPackets | StoredPictures"]
    source: SetSource
    files: Mapping[str, str]

    def check_unchanged(self) -> None:
        """See that its files still are those that were looked at.

        Raises:
            SourceChangedError: If one is not.
        """
        if not are_current(self.source, self.files, afresh=True):
            raise SourceChangedError(f"{self.source.root}: {' or '.join(self.files)}: {_CHANGED}")


_CHANGED = "changed since the job looked at it. Pack again when nothing writes to it."


def read_episode(
    file: SetFile, planned: PlannedEpisode, options: PackOptions, access: Options, pulse: Pulse
) -> SetEpisode:
    """An episode of a data file.

    Raises:
        FormatError: If its files are not what the metadata say, or its features not those of the plan.
        SourceError, FetchError: If one is missing or cannot be read.
        SourceChangedError: If one is not that which was planned with.
    """
    chosen = chosen_set(file.root, file.digest, options, access, pulse)
    source, position = chosen.source, position_of(planned.group)
    index = index_episode(source, position)
    rows = index.rows
    known = dict(file.files)
    found = {one.name: one.version for one in index.places.files}
    changed = next((name for name, version in found.items() if known.get(name) != version), None)
    if changed is not None:
        raise SourceChangedError(f"{join(file.root, changed)}: {_CHANGED}")
    check(rows, f"{file.path}: {planned.group}")
    fields = [Field(one, one.source_path, _num_bytes(rows, one)) for one in rows.features.values()]
    [told] = rows.episodes
    cameras: dict[str, CopiedPackets | StoredPictures] = {}
    for name, feature in rows.features.items():
        if feature.kind == "frames" and CODECS[feature.codec].storage == "video":
            cameras[name] = CopiedPackets(source, index, feature, f"{file.path}: {planned.group}, {name}", pulse)
        elif feature.kind == "frames":
            cameras[name] = StoredPictures(source, index, feature, f"{file.path}: {planned.group}, {name}", pulse)
    episode = episode_of(chosen, position, fields)
    attributes = {**episode.attributes, **_told_statistics(chosen, position, cameras.values())}
    return SetEpisode(
        replace(episode, tasks=told.tasks, attributes=attributes),
        task_steps_of(rows.step_task),
        {name: _values(rows, rows.features[name]) for name in rows.values},
        cameras,
        source,
        found,
    )


def _told_statistics(
    chosen: ChosenSet, position: int, cameras: Iterable["CopiedPackets | StoredPictures"]
) -> dict[str, Any]:
    """What the data set says of an episode's pictures: who exports the shards need not decode them."""
    said = {}
    for camera in cameras:
        key = camera.feature.source_path
        found = chosen.statistics.of(key, position)
        told = None if found is None else told_plainly(found)
        if told is not None:
            said[key] = told
    return {ATTRIBUTE: said} if said else {}


def _num_bytes(rows: ShardIndex, feature: Feature) -> int:
    return int(rows.frame_size[feature.name].sum()) if feature.kind == "frames" else rows.values[feature.name].size


def _values(rows: ShardIndex, feature: Feature) -> NDArray[Any]:
    stored = np.ascontiguousarray(rows.values[feature.name])
    values: NDArray[Any] = stored.view(np.dtype(feature.dtype).newbyteorder("<"))
    return values.reshape(len(stored), *feature.shape)


@dataclass(frozen=True, eq=False)
class CopiedPackets:
    """The frames of a camera that is video in the data set, see `RecordedFrames`."""

    source: SetSource
    index: EpisodeIndex
    feature: Feature
    where: str
    pulse: Pulse

    @property
    def depth(self) -> Depth | None:
        """What its pixels stand for, if that is depth."""
        return self.index.rows.videos[self.feature.name].stream(0).depth

    def stored(self) -> Iterator[CopiedVideo]:
        """One video of all packets."""
        rows, name = self.index.rows, self.feature.name
        videos = rows.videos[name]

        def read(offset: int, size: int) -> bytes:
            data = packed_bytes(self.source, self.index, offset, offset + size)
            self.pulse.add(num_bytes=size)
            return data

        offset, size = rows.frame_offset[name].astype(np.int64), rows.frame_size[name].astype(np.int64)
        fps = self.feature.fps or 1.0
        yield CopiedVideo(videos.stream(0), fps, offset, size, np.asarray(videos.back), read, self.where)

    def arrays(self) -> Iterator[NDArray[Any]]:
        """Group by group, in order."""
        rows, name = self.index.rows, self.feature.name
        decoder = VideoDecoder(self.feature.shape)
        offset, size = rows.frame_offset[name].astype(np.int64), rows.frame_size[name].astype(np.int64)
        data, start = b"", 0
        for run in rows.runs(name, np.arange(rows.num_rows)):
            begin, end = int(offset[run.rows].min()), int((offset[run.rows] + size[run.rows]).max())
            if not start <= begin <= end <= start + len(data):
                left = int((offset + size).max()) - begin
                data = packed_bytes(self.source, self.index, begin, max(end, begin + min(_READ_BYTES, left)))
                start = begin
            view = memoryview(data)
            packets = [(row, view[int(offset[row]) - start :][: int(size[row])]) for row in run.rows.tolist()]
            for _, frame in decoder.pictures(run.stream, packets, set(run.wanted.tolist()), self.where):
                yield frame


@dataclass(frozen=True, eq=False)
class StoredPictures:
    """The frames of a camera whose pictures are in a Parquet file, see `RecordedFrames`."""

    source: SetSource
    index: EpisodeIndex
    feature: Feature
    where: str
    pulse: Pulse
    depth: None = field(default=None, init=False)

    def stored(self) -> Iterator[bytes]:
        """The bytes of each picture."""
        codec = codec_of(self.feature)
        wanted = (self.feature.dtype, self.feature.shape)
        for step, data in enumerate(stored_pictures(self.source, self.index, self.feature.name)):
            where = f"{self.where}, step {step}"
            found = codec.announced(data, where)
            if found != wanted:
                raise FormatError(f"{where}: a picture of {found[0]} {found[1]}, wanted {wanted[0]} {wanted[1]}.")
            self.pulse.add(num_bytes=len(data))
            yield data

    def arrays(self) -> Iterator[NDArray[Any]]:
        """Each decoded."""
        codec = codec_of(self.feature)
        frame = np.empty(codec.shape, codec.dtype)
        for step, data in enumerate(stored_pictures(self.source, self.index, self.feature.name)):
            codec.decode_into(data, frame, f"{self.where}, step {step}")
            yield frame
