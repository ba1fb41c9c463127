"""Which episodes share a file: integers only, decided before a file is written."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from epistream.sharding.lerobot_out.jobs import Job, check_version
from epistream.sharding.lerobot_out.known_facts import KnownFacts
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
        num_bytes: Of all of them, about.
    """

    first: list[int] = field(default_factory=list)
    file: list[int] = field(default_factory=list)
    step: list[int] = field(default_factory=list)
    num_bytes: int = 0


@dataclass
class Layout:
    """Where everything lies.

    Args:
        placings: By camera, and of `ROWS`.
        without_quantiles: Cameras that have none in some episode: statistics of a source need not have them, and a
            column is of all episodes.
    """

    placings: dict[str, Placing]
    without_quantiles: set[str] = field(default_factory=set)


def lay_out(job: Job) -> Layout:
    """Place all episodes, by what is kept of them. A file ends before it would reach its size, as LeRobot has it.

    Videos share a file only if a decoder of the first one reads the others as well.

    Args:
        job: Whose facts are complete.

    Raises:
        SourceChangedError: If those of an episode are not of the same.
    """
    options = job.options
    filling = {ROWS: _Filling(options.data_files_size_in_mb * (1 << 20), options.is_one_file_an_episode)}
    most = options.video_files_size_in_mb * (1 << 20)
    filling |= {camera.name: _Filling(most, options.is_one_file_an_episode) for camera in job.videos}
    layout = Layout({name: one.placing for name, one in filling.items()})
    known = KnownFacts(job)
    for number in range(job.num_episodes):
        of_rows, length = known.of(number), job.length(number)
        size = of_rows["num_bytes"]
        for camera in job.cameras:
            facts = known.of_camera(camera, number)
            check_version(facts["version"], of_rows["version"], number)
            if not facts["has_quantiles"]:
                layout.without_quantiles.add(camera.name)
            if camera.dtype == "image":
                size += facts["num_bytes"]
            else:
                filling[camera.name].add(length, facts["num_bytes"], VideoStream.from_dict(facts["stream"]))
        filling[ROWS].add(length, size)
    return layout


@dataclass
class _Filling:
    """The file that is being filled with episodes.

    Args:
        most: Bytes.
        is_one_each: Whether no file holds two episodes.
    """

    most: float
    is_one_each: bool
    placing: Placing = field(default_factory=Placing)
    _num_bytes: int = 0
    _num_steps: int = 0
    _stream: VideoStream | None = None

    def add(self, length: int, num_bytes: int, stream: VideoStream | None = None) -> None:
        """Place the next episode."""
        placing = self.placing
        is_new = self.is_one_each or self._num_bytes + num_bytes >= self.most
        is_new = is_new or (self._stream is not None and stream is not None and not can_join(self._stream, stream))
        if not placing.first or is_new:
            placing.first.append(len(placing.file))
            self._num_bytes = self._num_steps = 0
            self._stream = stream
        placing.file.append(len(placing.first) - 1)
        placing.step.append(self._num_steps)
        placing.num_bytes += num_bytes
        self._num_bytes, self._num_steps = self._num_bytes + num_bytes, self._num_steps + length


def files_of(job: Job, layout: Layout) -> Iterator[OutFile]:
    """All files of rows and videos; the large ones first."""
    for camera in [*(camera.name for camera in job.videos), ROWS]:
        first: Sequence[int] = layout.placings[camera].first
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
