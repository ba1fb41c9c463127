"""Looks into the data files of LeRobot data sets for a packing job: what metadata and the indexes of videos say."""

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from epistream.errors import FormatError, LayoutError, OptionError, SourceError
from epistream.file_systems import local_path
from epistream.sharding.files.storage import Options, join
from epistream.sharding.format.features import Feature
from epistream.sharding.layouts.base import Field
from epistream.sharding.lerobot.episode import is_video
from epistream.sharding.lerobot.files import SourceFile as FileOfSet
from epistream.sharding.lerobot.video_tables import PacketTable, kept_packets
from epistream.sharding.lerobot_meta.info import INFO
from epistream.sharding.lerobot_meta.metadata import LeRobotMeta, keep_metadata
from epistream.sharding.lerobot_meta.splits import splits_of
from epistream.sharding.pack.lerobot_sets import ChosenSet, choose, chosen_set, episode_of, fault_of, group_of
from epistream.sharding.pack.options import PackOptions
from epistream.sharding.pack.outputs import applied_options, outputs_of
from epistream.sharding.pack.plan import ScannedEpisode, ScannedFile, SetFile, ToldOfEpisode
from epistream.sharding.pictures.mp4_table import Mp4Table, read_mp4_table
from epistream.sharding.tasks.pulse import Pulse

_OF_HDF5 = ("layout", "color_order", "force_color_order", "allow_outside_files")


@dataclass(frozen=True)
class DataFile:
    """A data file that is to be looked into.

    Args:
        root: The data set, an absolute path or a URL.
        digest: Of its metadata as the job knows them.
        path: Of the file in it.
        name: What the dataset calls it.
        positions: Of the episodes whose rows are in it.
        splits: Of each.
        left_out: What of the data set is no feature; told by its first file.
    """

    root: str
    digest: str
    path: str
    name: str
    positions: tuple[int, ...] = field(repr=False)
    splits: tuple[str | None, ...] = field(repr=False)
    left_out: tuple[str, ...] = ()


def data_files(root: str, prefix: str, options: PackOptions, access: Options) -> list[DataFile]:
    """The data files of a data set, in the order of their first episodes.

    Args:
        root: Of the data set, an absolute path or a URL.
        prefix: What the dataset puts in front of the paths in it.
        options: Of the job.
        access: For fsspec.

    Raises:
        OptionError: If an option is of HDF5 files, or the data set says another rate.
        SourceError, FormatError, VersionError: If its metadata are missing, torn, or not known.
    """
    meta = keep_metadata(root, access)
    _check_options(root, meta, options)
    names, numbers = splits_of(meta.info, join(root, INFO))
    order = np.argsort(meta.data_file_of, kind="stable")
    cuts = np.flatnonzero(np.diff(meta.data_file_of[order])) + 1
    left_out = tuple(choose(root, meta, PackOptions(), access).left_out)
    found = []
    for positions in sorted((part.tolist() for part in np.split(order, cuts)), key=lambda part: part[0]):
        path = meta.data_files[int(meta.data_file_of[positions[0]])]
        splits = tuple(names[int(numbers[one])] if meta.info.splits else None for one in positions)
        found.append(DataFile(root, meta.digest, path, f"{prefix}{path}", tuple(positions), splits, left_out))
        left_out = ()
    return found


def _check_options(root: str, meta: LeRobotMeta, options: PackOptions) -> None:
    for name in _OF_HDF5:
        value = getattr(options, name)
        if value != getattr(PackOptions, name):
            raise OptionError(
                f"{name}: {value}, which is of HDF5 files, but {root} is a LeRobot data set. Leave it out."
            )
    if options.fps not in (None, meta.info.fps):
        raise OptionError(
            f"fps: {options.fps:g}, but {join(root, INFO)} says {meta.info.fps:g}, at which its videos are recorded. "
            "Leave it out."
        )


def scan_data_file(file: DataFile, options: PackOptions, access: Options, pulse: Pulse) -> ScannedFile:
    """Look into a data file and the indexes of its videos; what is wrong with these is reported, not raised.

    Raises:
        SourceChangedError: If the metadata are not those that the job knows.
    """
    chosen = chosen_set(file.root, file.digest, options, access, pulse)
    return _Scan(file, chosen, options).run()


@dataclass(frozen=True, eq=False)
class _Video:
    """What the index of a video says. T frames in the order of presentation; `ends` (T,) bytes up to each one's."""

    version: str
    codec: str
    group_steps: int
    time: NDArray[np.float64]
    ends: NDArray[np.int64]

    def num_bytes(self, start: float, stop: float) -> int:
        """Of the frames that are shown from one time up to another."""
        first, last = np.searchsorted(self.time, [start, stop]).tolist()
        return int(self.ends[last - 1] - (self.ends[first - 1] if first else 0)) if last > first else 0


class _Scan:
    """Of one data file."""

    def __init__(self, file: DataFile, chosen: ChosenSet, options: PackOptions) -> None:
        self._file, self._chosen, self._options = file, chosen, options
        self._source = chosen.source
        self._videos: dict[str, _Video | Exception] = {}
        self._rows = int(self._source.meta.length[list(file.positions)].sum())

    def run(self) -> ScannedFile:
        """All episodes of it."""
        url = join(self._file.root, self._file.path)
        episodes: list[ScannedEpisode] = []
        faults: list[str] = []
        applied: frozenset[str] = frozenset()
        try:
            data = FileOfSet.at(self._file.root, self._file.path, self._source.options, "the rows of episodes")
        except SourceError as error:
            data = FileOfSet(self._file.path, url, "", 0)
            faults = [fault_of(url, group_of(one), error) for one in self._file.positions]
        for position, split in zip(self._file.positions, self._file.splits, strict=True) if not faults else ():
            group = group_of(position)
            try:
                episode = episode_of(self._chosen, position, list(self._fields(data, position)))
                outputs = outputs_of(episode, self._options)
            except (LayoutError, FormatError, SourceError) as error:
                faults.append(fault_of(url, group, error))
                continue
            applied |= applied_options(episode, outputs, self._options)
            episodes.append(
                ScannedEpisode(
                    group=group,
                    length=episode.length,
                    split=split,
                    source_bytes=sum(one.source.num_bytes for one in outputs),
                    estimated_bytes=sum(one.estimated_bytes for one in outputs),
                    features=tuple(one.feature for one in outputs),
                    told=ToldOfEpisode.of(episode, self._options),
                )
            )
        return ScannedFile(self._found(data), tuple(episodes), tuple(faults), self._file.left_out, applied)

    def _found(self, data: FileOfSet) -> SetFile:
        path = local_path(data.url)
        status = path.stat() if path is not None and data.version else None
        versions = {path: video.version for path, video in self._videos.items() if isinstance(video, _Video)}
        major, minor = self._source.meta.info.version
        return SetFile(
            path=data.url,
            name=self._file.name,
            layout=f"LeRobot v{major}.{minor}",
            num_bytes=data.num_bytes,
            mtime_ns=status.st_mtime_ns if status else 0,
            inode=status.st_ino if status else 0,
            root=self._file.root,
            digest=self._file.digest,
            files=((data.name, data.version), *sorted(versions.items())),
        )

    def _fields(self, data: FileOfSet, position: int) -> list[Field]:
        length = int(self._source.meta.length[position])
        pictures = [one for one in self._source.features.values() if one.kind == "frames" and not is_video(one)]
        fields = []
        for feature in self._source.features.values():
            seen, num_bytes = feature, length * feature.step_bytes
            if feature in pictures:  # they are most of the file
                num_bytes = data.num_bytes * length // max(1, self._rows * len(pictures))
            elif is_video(feature):
                seen, num_bytes = self._seen(feature, position)
            fields.append(Field(seen, seen.source_path, num_bytes))
        return fields

    def _seen(self, feature: Feature, position: int) -> tuple[Feature, int]:
        """A camera as the video of an episode has it, and bytes of its frames."""
        meta, key = self._source.meta, feature.source_path
        path = meta.video_files[key][int(meta.video_file_of[key][position])]
        if path not in self._videos:
            try:
                self._videos[path] = self._look(path, key)
            except (FormatError, SourceError) as error:
                self._videos[path] = error
        video = self._videos[path]
        if isinstance(video, Exception):
            raise video
        start = float(meta.video_start[key][position]) - 0.5 / meta.info.fps
        num_bytes = video.num_bytes(start, start + int(meta.length[position]) / meta.info.fps)
        return replace(feature, codec=video.codec, group_steps=video.group_steps), num_bytes

    def _look(self, path: str, key: str) -> _Video:
        """The index of a video; of one of many episodes it is kept for whoever packs these."""
        source = self._source
        file = FileOfSet.at(source.root, path, source.options, f"the video of {key}")
        table: Mp4Table | PacketTable
        if source.meta.info.version < (3, 0):
            table = read_mp4_table(file.read, file.num_bytes, file.url)
        else:
            table = kept_packets(file, source.folder, source.meta.info.columns[key].depth)
        codec = table.codec if isinstance(table, Mp4Table) else table.stream.codec
        steps = int(table.back.max()) + 1
        return _Video(file.version, codec, steps, table.time, np.cumsum(table.size.astype(np.int64)))
