"""Which episodes share a file: integers only, decided before a file is written."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from epistream.sharding.lerobot_out.episode_facts import facts_of
from epistream.sharding.lerobot_out.jobs import Job, check_version
from epistream.sharding.pictures.mp4_mux import can_join
from epistream.sharding.pictures.video import VideoStream

ROWS = ""
# LeRobot's patterns of file names.
DATA_PATHS = {
    "3.0": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
    "2.1": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
}
VIDEO_PATHS = {
    "3.0": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    "2.1": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
}


@dataclass(frozen=True)
class OutFile:
    """A file of rows, or of a camera's videos, of some neighbouring episodes.

    Args:
        name: In the data set's folder.
        camera: Name; `ROWS` for rows.
        first: Episode.
        stop: The one after the last.
    """

    name: str
    camera: str
    first: int
    stop: int


@dataclass
class Placing:
    """Where the episodes lie in the files of rows, or of one camera.

    Args:
        first: Episode of each file.
        file: (E,) number of each episode's file.
        step: (E,) steps of the file before each episode.
    """

    first: list[int] = field(default_factory=list)
    file: list[int] = field(default_factory=list)
    step: list[int] = field(default_factory=list)


Layout = dict[str, Placing]


def lay_out(job: Job) -> Layout:
    """Place all episodes, by what is kept of them. A file ends before it would reach its size, as LeRobot has it.

    Videos share a file only if a decoder of the first one reads the others as well.

    Args:
        job: Whose facts are complete.

    Raises:
        SourceChangedError: If those of an episode are not of the same.
    """
    options = job.options
    most = {ROWS: options.data_files_size_in_mb * (1 << 20)}
    most |= {camera.name: options.video_files_size_in_mb * (1 << 20) for camera in job.videos}
    images = [camera.name for camera in job.cameras if camera.dtype == "image"]
    versions = [facts["version"] for facts in facts_of(job, ROWS, range(job.num_episodes))]
    layout = {}
    for name, limit in most.items():
        placing = layout[name] = Placing()
        num_bytes = num_steps = 0
        stream: VideoStream | None = None
        beside = [facts_of(job, image, range(job.num_episodes)) for image in images if name == ROWS]
        for number, facts in enumerate(facts_of(job, name, range(job.num_episodes))):
            size = facts["num_bytes"]
            for image in map(next, beside):
                size += image["num_bytes"]
                check_version(image["version"], versions[number], number)
            check_version(facts["version"], versions[number], number)
            is_new = options.is_one_file_an_episode or num_bytes + size >= limit
            its_stream = VideoStream.from_dict(facts["stream"]) if name != ROWS else None
            is_new = is_new or (stream is not None and its_stream is not None and not can_join(stream, its_stream))
            if not placing.first or is_new:
                placing.first.append(number)
                num_bytes = num_steps = 0
                stream = its_stream
            placing.file.append(len(placing.first) - 1)
            placing.step.append(num_steps)
            num_bytes, num_steps = num_bytes + size, num_steps + job.length(number)
    return layout


def files_of(job: Job, layout: Layout) -> Iterator[OutFile]:
    """All files of rows and videos; the large ones first."""
    for camera in [*(camera.name for camera in job.videos), ROWS]:
        first: Sequence[int] = layout[camera].first
        for file, (start, stop) in enumerate(zip(first, [*first[1:], job.num_episodes], strict=True)):
            patterns = VIDEO_PATHS if camera else DATA_PATHS
            chunk, position = place_of(job, file)
            name = patterns[job.options.version].format(
                video_key=camera,
                chunk_index=chunk,
                file_index=position,
                episode_chunk=chunk,
                episode_index=start,
            )
            yield OutFile(name, camera, start, stop)


def place_of(job: Job, file: int) -> tuple[int, int]:
    """The folder of a file, and its number there."""
    return divmod(file, job.options.chunks_size)
