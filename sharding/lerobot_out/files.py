"""The second tasks of an export: each writes files of the data set, of rows or of a camera's videos."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from epistream.errors import FormatError
from epistream.sharding.lerobot_out.episode_facts import checked_tasks, facts_of, staged_name, staged_packets
from epistream.sharding.lerobot_out.jobs import Job, check_version, where_is
from epistream.sharding.lerobot_out.layout import ROWS, OutFile
from epistream.sharding.lerobot_out.model import DERIVED, OutFeature, Packet
from epistream.sharding.lerobot_out.parquet import (
    ParquetFile,
    checked_column,
    checked_values,
    column_of,
    columns_of,
    derived_columns,
    picture_column,
    pyarrow,
    row_schema,
)
from epistream.sharding.pictures.mp4_mux import Clip, write_mp4
from epistream.sharding.pictures.video import VideoStream
from epistream.sharding.tasks.pulse import Pulse

# Files of one episode each, which are small, are written so many a task.
_FILES_AT_ONCE = 16


@dataclass(frozen=True)
class FilesTask:
    """Some files."""

    files: tuple[OutFile, ...]


def files_tasks(files: Sequence[OutFile]) -> Iterator[FilesTask]:
    """All tasks."""
    at_once = _FILES_AT_ONCE if all(file.stop == file.first + 1 for file in files) else 1
    for start in range(0, len(files), at_once):
        yield FilesTask(tuple(files[start : start + at_once]))


def write_files(task: FilesTask, pulse: Pulse) -> None:
    """Run a task: write those files that are not there, and give up what lay staged for them."""
    job = Job.of(pulse)
    for file in task.files:
        cameras = [one for one in job.cameras if (one.name == file.camera if file.camera else one.dtype == "image")]
        if not job.folder.is_there(file.name):
            if file.camera:
                _write_videos(job, file, cameras[0], pulse)
            else:
                _write_rows(job, file, pulse)
        for camera in cameras:
            if not job.is_copied(camera):
                for number in range(file.first, file.stop):
                    job.folder.staged(staged_name(job, camera, number)).unlink(missing_ok=True)


def _write_rows(job: Job, file: OutFile, pulse: Pulse) -> None:
    """An episode after the other."""
    features = columns_of(job.source.features)
    numbers = range(file.first, file.stop)
    staged_cameras = [one.name for one in features if one.is_camera and not job.is_copied(one)]
    facts = {name: facts_of(job, name, numbers) for name in (ROWS, *staged_cameras)}
    with job.folder.new_file(file.name) as path, ParquetFile(path, row_schema(features)) as out:
        for number in numbers:
            columns = []
            with job.source.episode(number) as episode:
                check_version(episode.version, next(facts[ROWS])["version"], number)
                tasks = checked_tasks(job, episode, number)
                for feature in features:
                    if feature.is_carried:
                        column = episode.column(feature.name)
                        columns.append(checked_column(feature, column, job.length(number), where_is(number)))
                    elif job.is_copied(feature):
                        columns.append(
                            picture_column([packet.data for packet in episode.video(feature.name).packets()])
                        )
                    elif feature.is_camera:
                        staged = job.folder.staged(staged_name(job, feature, number))
                        packets = staged_packets(staged, next(facts[feature.name]))
                        columns.append(picture_column([packet.data for packet in packets]))
                    else:
                        values = episode.values(feature.name)
                        values = checked_values(feature, values, job.length(number), where_is(number))
                        columns.append(column_of(feature, values))
            derived = derived_columns(number, job.first_rows[number], tasks, job.source.fps)
            columns += [pyarrow().array(column.astype(DERIVED[name])) for name, column in derived.items()]
            out.gather(columns)
            pulse.add(1)


def _write_videos(job: Job, file: OutFile, camera: OutFeature, pulse: Pulse) -> None:
    """The videos of the episodes, one behind the other."""
    numbers = range(file.first, file.stop)

    def packets(number: int, facts: Mapping[str, Any]) -> Iterator[Packet]:
        num_packets = 0
        for packet in _packets(job, camera, number, facts):
            num_packets += 1
            yield packet
        if num_packets != job.length(number):
            raise FormatError(
                f"{where_is(number, camera.name)}: a video of {num_packets} pictures, wanted {job.length(number)}. "
                "Check the source with 'epistream verify'."
            )
        pulse.add(1)

    clips = [
        Clip(VideoStream.from_dict(facts["stream"]), job.rate, packets(number, facts))
        for number, facts in zip(numbers, facts_of(job, camera.name, numbers), strict=True)
    ]
    with job.folder.new_file(file.name) as path:
        write_mp4(path, clips, f"{file.name}, from {where_is(file.first)} on")


def _packets(job: Job, camera: OutFeature, number: int, facts: Mapping[str, Any]) -> Iterator[Packet]:
    """An episode's, of all its steps."""
    if not job.is_copied(camera):
        yield from staged_packets(job.folder.staged(staged_name(job, camera, number)), facts)
        return
    with job.source.episode(number) as episode:
        check_version(episode.version, facts["version"], number)
        yield from episode.video(camera.name).packets()
