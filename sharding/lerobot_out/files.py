"""The second tasks of an export: each writes files of the data set, of rows or of a camera's videos."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from epistream.sharding.lerobot_out.arrow_columns import column_of, numbers_column, picture_column
from epistream.sharding.lerobot_out.copying import RangeReader
from epistream.sharding.lerobot_out.episode_facts import staged_data, staged_name
from epistream.sharding.lerobot_out.jobs import Job, check_version, where_is
from epistream.sharding.lerobot_out.known_facts import KnownFacts, packets_of, ranges_of, rows_of
from epistream.sharding.lerobot_out.layout import OutFile
from epistream.sharding.lerobot_out.model import DERIVED, Episode, OutFeature
from epistream.sharding.lerobot_out.parquet import (
    ParquetFile,
    checked_column,
    columns_of,
    derived_columns,
    row_schema,
)
from epistream.sharding.lerobot_out.settling import Settling
from epistream.sharding.pictures.mp4_mux import Clip, Packets, write_mp4
from epistream.sharding.pictures.video import VideoStream
from epistream.sharding.tasks.pulse import Pulse

# Files of one episode each, which are small, are written so many a task; of version 2.1 those of so many episodes, in
# so many tasks at least.
_FILES_AT_ONCE, _EPISODES_AT_ONCE, _FEWEST_TASKS = 16, 64, 8


@dataclass(frozen=True)
class FilesTask:
    """Some files."""

    files: tuple[OutFile, ...]


def files_tasks(job: Job, files: Sequence[OutFile]) -> Iterator[FilesTask]:
    """All tasks; where each episode has files of its own, those of some episodes, one episode after the other."""
    if job.options.is_one_file_an_episode:
        files = sorted(files, key=lambda file: file.first)
        at_once = min(_EPISODES_AT_ONCE, -(-job.num_episodes // _FEWEST_TASKS)) * (1 + len(job.videos))
    else:
        at_once = _FILES_AT_ONCE if all(file.stop == file.first + 1 for file in files) else 1
    for start in range(0, len(files), at_once):
        yield FilesTask(tuple(files[start : start + at_once]))


def write_files(task: FilesTask, pulse: Pulse) -> None:
    """Run a task: write files, and give up what lay staged for them."""
    job = Job.of(pulse)
    with _Writer(job, pulse) as writer:
        for file in task.files:
            if (job.folder.path / file.name).is_file():  # by an attempt that died before it could say so
                pulse.add(file.stop - file.first)
            else:
                writer.write(file)
    for file in task.files:
        give_up_staged(job, file)


def give_up_staged(job: Job, file: OutFile) -> None:
    """Remove what lay staged for a file that is complete."""
    for camera in job.cameras:
        is_mine = camera.name == file.camera if file.camera else camera.dtype == "image"
        if is_mine and not job.is_copied(camera):
            for number in range(file.first, file.stop):
                job.folder.staged(staged_name(job, camera, number)).unlink(missing_ok=True)


@dataclass
class _Writer:
    """Writes files. A context manager; when it is left, they are where they belong."""

    job: Job
    pulse: Pulse
    _settling: Settling = field(init=False, default_factory=Settling)
    _reader: RangeReader = field(init=False, default_factory=RangeReader)

    def __post_init__(self) -> None:
        self._facts = KnownFacts(self.job)
        self._columns = columns_of(self.job.source.features)
        self._schema = row_schema(self.job.source.features)
        # Of these no values are kept.
        self._from_source = [one for one in self._columns if one.is_carried or self.job.is_copied(one)]

    def __enter__(self) -> "_Writer":
        self._settling.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._reader.close()
        self._settling.__exit__(*error)

    def write(self, file: OutFile) -> None:
        """Write a file."""
        with self.job.folder.new_file(file.name, self._settling) as path:
            if not file.camera:
                with ParquetFile(path, self._schema) as out:
                    for number in range(file.first, file.stop):
                        out.gather(self._rows(number))
                        self.pulse.add(1)
                return
            camera = next(one for one in self.job.cameras if one.name == file.camera)
            clips = [self._clip(camera, number) for number in range(file.first, file.stop)]
            write_mp4(path, clips, f"{file.name}, from {where_is(file.first)} on", publishes=False)

    def _rows(self, number: int) -> list[Any]:
        """The columns of an episode."""
        job = self.job
        facts = self._facts.of(number)
        rows = rows_of(facts)
        taken = {}
        if self._from_source:
            with job.source.episode(number) as episode:
                check_version(episode.version, facts["version"], number)
                taken = {one.name: self._column(episode, one, number) for one in self._from_source}
        columns = []
        for feature in self._columns:
            if feature.name in taken:
                columns.append(taken[feature.name])
            elif feature.is_camera:
                packets = packets_of(self._facts.of_camera(feature, number))
                data = staged_data(job.folder.staged(staged_name(job, feature, number)), packets)
                columns.append(picture_column(data, packets.size, where_is(number, feature.name)))
            else:
                columns.append(column_of(feature, rows.values[feature.name]))
        derived = derived_columns(number, job.first_rows[number], rows.tasks, job.source.fps)
        return columns + [numbers_column(column.astype(DERIVED[name])) for name, column in derived.items()]

    def _column(self, episode: Episode, feature: OutFeature, number: int) -> Any:
        if feature.is_carried:
            found = episode.column(feature.name)
            return checked_column(feature, found, self.job.length(number), where_is(number))
        video = episode.video(feature.name)
        return picture_column(video.data(), video.packets.size, where_is(number, feature.name))

    def _clip(self, camera: OutFeature, number: int) -> Clip:
        facts = self._facts.of_camera(camera, number)
        stream, packets = VideoStream.from_dict(facts["stream"]), packets_of(facts)
        return Clip(stream, self.job.rate, packets, self._data(camera, number, facts, packets))

    def _data(
        self, camera: OutFeature, number: int, facts: Mapping[str, Any], packets: Packets
    ) -> Iterator[bytes | memoryview]:
        """The packets of an episode; nothing is opened before the first one is wanted."""
        job = self.job
        if not job.is_copied(camera):
            yield from staged_data(job.folder.staged(staged_name(job, camera, number)), packets)
        elif (ranges := ranges_of(facts)) is not None:
            yield from self._reader.read(ranges, where_is(number, camera.name))
        else:
            with job.source.episode(number) as episode:
                check_version(episode.version, facts["version"], number)
                yield from episode.video(camera.name).data()
        self.pulse.add(1)
