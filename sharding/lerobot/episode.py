"""Makes the index of an episode of a LeRobot data set: from its rows, and from the packet tables of its videos."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epistream.errors import FormatError
from epistream.file_systems import local_path
from epistream.lazy import lazy
from epistream.sharding.files.storage import Options
from epistream.sharding.format.episode_meta import EpisodeMeta
from epistream.sharding.format.features import Feature
from epistream.sharding.format.index import ShardIndex
from epistream.sharding.format.videos import join_videos
from epistream.sharding.lerobot.files import SourceFile
from epistream.sharding.lerobot.index import EpisodeIndex, FileOfSet, PictureColumn, Places
from epistream.sharding.lerobot.rows import EpisodeRows, PictureRows, read_rows
from epistream.sharding.lerobot.seen import are_brought
from epistream.sharding.lerobot.video_tables import PacketTable, kept_packets, read_packets
from epistream.sharding.lerobot_meta.meta_files import at_once
from epistream.sharding.lerobot_meta.metadata import LeRobotMeta
from epistream.sharding.pictures.codecs import CODECS

Int64 = NDArray[np.int64]
# How far a frame may be shown from the time of its step: what LeRobot's reader allows by itself (`tolerance_s`).
TOLERANCE_S = 1e-4
ROWS = "the rows of an episode"  # what a file is, for messages


@dataclass(frozen=True, eq=False)
class SetSource:
    """A LeRobot data set whose episodes are indexed.

    Args:
        root: Absolute path or URL.
        options: For fsspec.
        meta: What it says of itself.
        features: Of the dataset, by name; `source_path` is LeRobot's key.
        folder: Where packet tables are kept.
        left_out: What the data set has beside its features, each with the reason.
        picture_bytes: By LeRobot's key of a camera that was looked at, what a picture takes on average.
    """

    root: str
    options: Options
    meta: LeRobotMeta
    features: Mapping[str, Feature]
    folder: Path
    left_out: Sequence[str] = ()
    picture_bytes: Mapping[str, int] = field(default_factory=dict)

    @lazy
    def looks(self) -> str:
        """What tells indexes of other features apart."""
        return json.dumps([[one.name, one.dtype, one.shape, one.source_path] for one in self.features.values()])

    @property
    def has_long_files(self) -> bool:
        """Whether files are of many episodes, not each of one."""
        return self.meta.info.version >= (3, 0)

    @property
    def videos(self) -> dict[str, str]:
        """LeRobot's key of each camera that is video."""
        return {name: one.source_path for name, one in self.features.items() if is_video(one)}

    def data_file(self, name: str, *, afresh: bool = False) -> SourceFile:
        """A file of rows; see `SourceFile.at`."""
        has_pictures = any(column.dtype == "image" for column in self.meta.info.columns.values())
        file = SourceFile.at(self.root, name, self.options, ROWS, afresh=afresh)
        return replace(file, is_numbers=not has_pictures)

    def files_of(self, episode: int) -> dict[str, str]:
        """The files that an episode (by its position) is read from, and what each is: of its rows, then of videos."""
        meta = self.meta
        files = {meta.data_files[int(meta.data_file_of[episode])]: ROWS}
        for key in self.videos.values():
            files[meta.video_files[key][int(meta.video_file_of[key][episode])]] = video_of(key)
        return files


def video_of(key: str) -> str:
    """What a file is, for messages."""
    return f"the video of {key}"


def is_video(feature: Feature) -> bool:
    """Whether a feature is a camera whose frames depend on each other."""
    return feature.kind == "frames" and CODECS[feature.codec].storage == "video"


def index_episode(source: SetSource, episode: int, folder: Path | None = None) -> EpisodeIndex:
    """The index of an episode.

    Args:
        source: The data set.
        episode: Position among its episodes.
        folder: Where rows are kept that had to be read with its own; that of the data set unless given.

    Raises:
        FormatError: If its files are not what the metadata say.
        SourceError, FetchError: If one is missing or cannot be read.
        SourceChangedError: If one changes meanwhile.
        CacheError, DeadlineError: As `make_once`.
    """
    data = source.data_file(next(iter(source.files_of(episode))))
    in_file = {name: one for name, one in source.features.items() if not is_video(one)}
    number = int(source.meta.number[episode])
    rows = read_rows(data, number, in_file, folder or source.folder, holds_one=not source.has_long_files)
    return _index(source, episode, data, rows)


def _index(source: SetSource, episode: int, data: SourceFile, rows: EpisodeRows) -> EpisodeIndex:
    meta, length = source.meta, int(source.meta.length[episode])
    number = int(meta.number[episode])
    where = f"{data.url}: episode {number}"
    if len(rows.timestamp) != length:
        raise FormatError(
            f"{where}: {len(rows.timestamp)} rows, wanted {length}, as the metadata say. Download its files again."
        )
    laid = _Laying([data])
    features: dict[str, Feature] = {}
    videos = {}
    tables = _tables(source, episode)
    for name, feature in source.features.items():
        features[name] = feature
        if is_video(feature):
            file, table = tables[name]
            _refuse_late(rows.timestamp, where)
            start = float(meta.video_start[feature.source_path][episode])
            frames = _frames(table, start, rows.timestamp, f"{file.url}: episode {number}")
            _refuse_other_pictures(file, table, frames, feature, number)
            back = table.back[frames].astype(np.uint32)
            laid.add_packets(name, file, table, frames)
            videos[name] = [(table.stream, back)]
            features[name] = replace(feature, codec=table.stream.codec, group_steps=int(back.max()) + 1)
        elif feature.kind == "frames":
            laid.add_pictures(name, data, feature.source_path, rows.pictures[name])
    tasks, step_task = _tasks(meta, episode, rows, where)
    episode_meta = EpisodeMeta(length=length, episode_index=episode, tasks=tasks, source=data.url)
    index = ShardIndex(
        shard_name=meta.data_files[int(meta.data_file_of[episode])],
        shard_bytes=laid.num_bytes,
        shard_checksum="",
        features=features,
        keys=[f"episode {number}"],
        length=np.array([length], np.int64),
        array_offset={},
        frame_offset=laid.offset,
        frame_size=laid.size,
        episodes=[episode_meta],
        block_checksums=np.empty(0, np.uint64),
        values={name: _bytes_of(values) for name, values in rows.values.items()},
        videos=join_videos(videos),
        step_task=step_task,
    )
    return EpisodeIndex(index, laid.places())


def _tables(source: SetSource, episode: int) -> dict[str, tuple[SourceFile, PacketTable]]:
    """The video of each camera; over a network all are brought at the same time."""
    meta, files = source.meta, list(source.files_of(episode))

    def table_of(key: str) -> tuple[SourceFile, PacketTable]:
        path = meta.video_files[key][int(meta.video_file_of[key][episode])]
        file = SourceFile.at(source.root, path, source.options, video_of(key), afresh=False)
        depth = meta.info.columns[key].depth
        return file, kept_packets(file, source.folder, depth) if source.has_long_files else read_packets(file, depth)

    keys = list(source.videos.values())
    # Of files of many episodes the tables are most likely at hand, and so are the first bytes of others.
    is_slow = local_path(source.root) is None and not (source.has_long_files or are_brought(source.root, files[1:]))
    found = at_once(table_of, keys) if is_slow else map(table_of, keys)
    return dict(zip(source.videos, found, strict=True))


def _refuse_late(timestamp: NDArray[np.float64], where: str) -> None:
    """See that an episode's frames begin where it begins: a frame later there are some as well, of other steps."""
    if abs(timestamp[0]) >= TOLERANCE_S:
        raise FormatError(
            f"{where}, step 0: timestamp {timestamp[0]:g}, wanted 0, since its frames begin with it. Correct the "
            "timestamps, or leave this episode out (a stream does so with on_bad='skip')."
        )


def _frames(table: PacketTable, start: float, timestamp: NDArray[np.float64], where: str) -> Int64:
    """Which frame of a video is shown at each step (T,): one after the other, from a key frame on.

    Times of steps are numbers of 32 bits, whose own rounding is above the tolerance half an hour into an episode.
    """
    times = start + timestamp
    allowed = TOLERANCE_S + np.spacing(np.abs(timestamp).astype(np.float32)).astype(np.float64) / 2
    after = np.clip(np.searchsorted(table.time, times), 1, max(1, len(table.time) - 1))
    before = after - 1
    after = np.minimum(after, len(table.time) - 1)
    nearer = np.abs(table.time[before] - times) <= np.abs(table.time[after] - times)
    frames: Int64 = np.where(nearer, before, after)
    away = np.abs(table.time[frames] - times)
    if (away >= allowed).any():
        step = int(np.argmax(away >= allowed))
        raise FormatError(
            f"{where}, step {step}: no frame at {times[step]:.6f} s, the nearest is at {table.time[frames[step]]:.6f} "
            f"of {len(table.time)} up to {table.time[-1]:.6f}, wanted one within {TOLERANCE_S:g} s, as LeRobot wants "
            "it. Download the video again, or leave this episode out (a stream does so with on_bad='skip')."
        )
    if (np.diff(frames) != 1).any():
        step = int(np.argmax(np.diff(frames) != 1)) + 1
        raise FormatError(
            f"{where}, step {step}: frame {frames[step]} of the video after {frames[step - 1]}, wanted the next one. "
            "Record or convert it with one frame a step."
        )
    if table.back[frames[0]]:
        raise FormatError(
            f"{where}: begins {table.back[frames[0]]} frames after a key frame, wanted it to begin with one, as "
            "LeRobot writes them. Encode the video again with key frames only: ffmpeg -i IN -c:v libx264 -g 1 OUT.mp4."
        )
    behind = int(frames[-1]) + 1
    if (table.offset[behind:] < table.offset[frames].max()).any():
        raise FormatError(
            f"{where}: frames that need others shown after its end, wanted it to need none but its own. Encode the "
            "video again with key frames only: ffmpeg -i IN -c:v libx264 -g 1 OUT.mp4."
        )
    return frames


def _refuse_other_pictures(file: SourceFile, table: PacketTable, frames: Int64, feature: Feature, number: int) -> None:
    """See that an episode's frames are all in the file, and of the size that the metadata say."""
    stream, (height, width) = table.stream, feature.shape[:2]
    if (stream.height, stream.width) != (height, width):
        raise FormatError(
            f"{file.url}: pictures of {stream.width}x{stream.height} (width x height), wanted {width}x{height}, as "
            f"info.json says of {feature.source_path!r}. Correct info.json, or convert the data set again."
        )
    ends = np.minimum(table.offset[frames], 1 << 62).astype(np.int64) + table.size[frames]
    if (ends > file.num_bytes).any():
        raise FormatError(
            f"{file.url}: episode {number}: {file.num_bytes:,} bytes, wanted {int(ends.max()):,} or more for its "
            "frames. The file is cut off: download it again."
        )


def _tasks(
    meta: LeRobotMeta, episode: int, rows: EpisodeRows, where: str
) -> tuple[tuple[str, ...], NDArray[np.uint32] | None]:
    """The instructions of an episode, and which of them each step has, where there are several."""
    ids = meta.task_ids[int(meta.task_offsets[episode]) : int(meta.task_offsets[episode + 1])]
    tasks = tuple(meta.tasks[one] for one in ids.tolist())
    if rows.task_index is None or not len(meta.tasks):
        return tasks, None
    if not tasks:  # there would be no text beside its steps
        raise FormatError(
            f"{where}: task {rows.task_index[0]}, but the metadata give the episode none, wanted its tasks in the "
            "table of episodes. Convert the data set with LeRobot, or download its metadata again."
        )
    numbers = meta.task_numbers[ids]
    order = np.argsort(numbers, kind="stable")
    place = np.minimum(np.searchsorted(numbers[order], rows.task_index), len(order) - 1)
    step_task = order[place]
    if (numbers[step_task] != rows.task_index).any():
        step = int(np.argmax(numbers[step_task] != rows.task_index))
        raise FormatError(
            f"{where}, step {step}: task {rows.task_index[step]}, wanted one of {numbers.tolist()}, which the metadata "
            "give the episode. Download its files again."
        )
    return tasks, step_task.astype(np.uint32) if len(tasks) > 1 else None


def _bytes_of(values: NDArray[Any]) -> NDArray[np.uint8]:
    """(T, bytes of a step), little endian."""
    little = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    return little.reshape(len(values), -1).view(np.uint8)


class _Laying:
    """Lays packed bytes out, and notes where they lie in their files."""

    def __init__(self, files: Sequence[SourceFile]) -> None:
        self._files: dict[SourceFile, int] = {file: number for number, file in enumerate(files)}
        self._columns: list[PictureColumn] = []
        self._pieces: list[tuple[Int64, Int64, Int64]] = []
        self.num_bytes = 0
        self.offset: dict[str, NDArray[np.uint64]] = {}
        self.size: dict[str, NDArray[np.uint32]] = {}

    def add_packets(self, name: str, file: SourceFile, table: PacketTable, frames: Int64) -> None:
        """Packets of a video, in the order of the file: that in which they are decoded."""
        number = self._files.setdefault(file, len(self._files))
        place, size = table.offset[frames].astype(np.int64), table.size[frames].astype(np.int64)
        order = np.argsort(place, kind="stable")
        start = self.num_bytes + np.cumsum(size[order]) - size[order]
        offset = np.empty(len(frames), np.uint64)
        offset[order] = start
        self.offset[name], self.size[name] = offset, size.astype(np.uint32)
        ordered = place[order]
        begins = np.append(True, ordered[1:] != ordered[:-1] + size[order][:-1])
        self._pieces.append((start[begins], np.full(int(begins.sum()), number), ordered[begins]))
        self.num_bytes += int(size.sum())

    def add_pictures(self, name: str, file: SourceFile, column: str, rows: PictureRows) -> None:
        """Pictures of a column."""
        start = self.num_bytes + np.cumsum(rows.size) - rows.size
        self.offset[name], self.size[name] = start.astype(np.uint64), rows.size.astype(np.uint32)
        self._columns.append(PictureColumn(self._files[file], column, rows.groups, rows.first, len(rows.size)))
        self._pieces.append((start[:1], np.array([-len(self._columns)]), np.zeros(1, np.int64)))
        self.num_bytes += int(rows.size.sum())

    def places(self) -> Places:
        """Where all of them lie."""
        parts = list(zip(*self._pieces, strict=True)) if self._pieces else [[np.empty(0, np.int64)]] * 3
        start, file, place = (np.concatenate(part).astype(np.int64) for part in parts)
        files = tuple(FileOfSet(one.name, one.version, one.num_bytes) for one in self._files)
        return Places(files, tuple(self._columns), start, file, place, self.num_bytes)
