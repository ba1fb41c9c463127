"""The first tasks of an export: what is to be known of each episode before files are laid out.

That is the statistics of its values and pictures, and of each camera the stream of its video and how large it is.
Pictures that are no video yet are encoded here, a camera of an episode at a time, and lie staged until a file of the
data set takes them up.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from epistream.errors import FormatError
from epistream.sharding.lerobot_out.jobs import Job, where_is
from epistream.sharding.lerobot_out.known_facts import facts_name, num_episodes_at_once, told_packets
from epistream.sharding.lerobot_out.model import Episode, Frames, OutFeature, Statistics
from epistream.sharding.lerobot_out.parquet import checked_column, checked_values, derived_columns, writing
from epistream.sharding.lerobot_out.statistics import (
    QUANTILES,
    PictureStatistics,
    columns_statistics,
    known_or_measured,
    sampled_steps,
)
from epistream.sharding.lerobot_out.work_folder import packed
from epistream.sharding.pictures.codecs import Png
from epistream.sharding.pictures.mp4_mux import Packets
from epistream.sharding.pictures.video import VideoStream
from epistream.sharding.pictures.video_encoder import VideoEncoder
from epistream.sharding.tasks.pulse import Pulse
from epistream.units import picture_size

_PIECE_BYTES = 1 << 20
_MOST_MM, _MM_PER_M = (1 << 16) - 1, 1000


@dataclass(frozen=True)
class FactsTask:
    """Of one camera that is encoded, or of everything else, in some episodes.

    Args:
        camera: Name; empty for everything else, of which an episode is opened once.
        first: Episode.
        stop: The one after the last.
    """

    camera: str
    first: int
    stop: int

    def name(self, job: Job) -> str:
        """Under which its facts are kept."""
        return facts_name(job, self.camera, self.first)


def facts_tasks(job: Job) -> Iterator[FactsTask]:
    """All tasks; what takes longest comes first."""
    encoded = [camera for camera in job.cameras if not job.is_copied(camera)]
    for number in range(job.num_episodes):
        for camera in encoded:
            yield FactsTask(camera.name, number, number + 1)
    size = num_episodes_at_once(job)
    for first in range(0, job.num_episodes, size):
        yield FactsTask("", first, min(first + size, job.num_episodes))


def make_facts(task: FactsTask, pulse: Pulse) -> None:
    """Run a task, and keep what it found."""
    job = Job.of(pulse)
    camera = next((one for one in job.cameras if one.name == task.camera), None)
    found = []
    for number in range(task.first, task.stop):
        with job.source.episode(number) as episode:
            if camera is not None:
                facts = _of_encoded(job, episode, camera, number, pulse)
            else:
                copied = [one for one in job.cameras if job.is_copied(one)]
                of_copied = {one.name: _of_copied(job, episode, one, number) for one in copied}
                facts = {**_of_values(job, episode, number), "copied": of_copied}
            found.append({"version": episode.version, **facts})
        if camera is None:
            pulse.add(1)
    job.folder.keep(task.name(job), found)


def _of_values(job: Job, episode: Episode, number: int) -> dict[str, Any]:
    """Values of all that is no camera and their statistics, which tasks there are, and about how large the rows are."""
    length, version = job.length(number), job.options.version
    tasks = _checked_tasks(job, episode, number)
    statistics: dict[str, Statistics] = {}
    rows: dict[str, NDArray[Any]] = {}
    num_bytes = 0
    for feature in job.source.features:
        if feature.is_camera:
            continue
        if feature.is_carried:
            num_bytes += checked_column(feature, episode.column(feature.name), length, where_is(number)).nbytes
            continue
        values = rows[feature.name] = checked_values(feature, episode.values(feature.name), length, where_is(number))
        statistics[feature.name] = known_or_measured(values, episode.statistics(feature.name), version)
        num_bytes += values.nbytes
    derived = derived_columns(number, job.first_rows[number], tasks, job.source.fps)
    statistics |= columns_statistics(derived, version)
    num_bytes += sum(column.nbytes for column in derived.values())
    return {
        "statistics": packed(statistics),
        "tasks": list(dict.fromkeys(tasks.tolist())),
        "num_bytes": num_bytes,
        "rows": packed([tasks, rows]),
    }


def _checked_tasks(job: Job, episode: Episode, number: int) -> NDArray[np.int64]:
    """(T,) numbers of the tasks of an episode's steps.

    Raises:
        FormatError: If they are none of the source's.
    """
    tasks = np.asarray(episode.task_index())
    most = max(1, len(job.source.tasks))
    if tasks.shape != (job.length(number),) or tasks.dtype.kind not in "iu" or tasks.min() < 0 or tasks.max() >= most:
        raise FormatError(
            f"{where_is(number)}: tasks as {tasks.dtype} {tasks.shape}, wanted {job.length(number)} integers of 0 to "
            f"{most - 1}. Check the source with 'epistream verify'."
        )
    return tasks.astype(np.int64)


def _of_copied(job: Job, episode: Episode, camera: OutFeature, number: int) -> dict[str, Any]:
    video = episode.video(camera.name)
    stream = video.stream
    if stream is not None and (stream.height, stream.width) != camera.shape[:2]:
        found, wanted = picture_size((stream.height, stream.width)), picture_size(camera.shape[:2])
        raise FormatError(
            f"{where_is(number, camera.name)}: a video of {found}, wanted {wanted}, since LeRobot shows all of it. "
            "Leave this camera out."
        )
    packets = video.packets
    if len(packets) != job.length(number):
        raise FormatError(
            f"{where_is(number, camera.name)}: a video of {len(packets)} pictures, wanted {job.length(number)}. "
            "Check the source with 'epistream verify'."
        )
    statistics = _known_statistics(episode.statistics(camera.name), 1 if camera.is_depth else 3, job.options.version)
    if statistics is None:
        steps = sampled_steps(job.length(number))
        measured = _measuring(camera)
        num_pictures = 0
        for picture in episode.frames(camera.name, steps):
            measured.add(_checked_picture(picture, camera, number))
            num_pictures += 1
        if num_pictures != len(steps):
            raise FormatError(
                f"{where_is(number, camera.name)}: {num_pictures} of {len(steps)} pictures decode, wanted all. "
                "Check the source with 'epistream verify'."
            )
        statistics = measured.result(job.options.version)
    ranges = video.ranges()
    return {
        "statistics": packed(statistics),
        "has_quantiles": QUANTILES.keys() <= statistics.keys(),
        "stream": stream and stream.to_dict(),
        "ranges": None if ranges is None else [list(one) for one in ranges],
        **told_packets(packets),
    }


def _measuring(camera: OutFeature) -> PictureStatistics:
    if not camera.is_depth:
        return PictureStatistics()
    unit = (camera.info or {}).get("depth_unit")
    return PictureStatistics(1, _MOST_MM + 1, _MM_PER_M if unit == "m" else 1)


def _known_statistics(found: Statistics | None, channels: int, version: str) -> dict[str, NDArray[Any]] | None:
    """What a source says of a camera's pictures, if it is as LeRobot has it."""
    names = ("min", "max", "mean", "std")
    if found is None or "count" not in found or not all(name in found for name in names):
        return None
    quantiles = [name for name in QUANTILES if name in found and version != "2.1"]
    taken = {name: np.asarray(found[name], np.float64) for name in (*names, *quantiles)}
    count = np.asarray(found["count"], np.int64)
    if count.size != 1 or count.min() < 1 or not all(value.size == channels for value in taken.values()):
        return None
    shaped = {name: value.reshape(channels, 1, 1) for name, value in taken.items()}
    return {**{name: shaped.pop(name) for name in names}, "count": count.reshape(1), **shaped}


def _of_encoded(job: Job, episode: Episode, camera: OutFeature, number: int, pulse: Pulse) -> dict[str, Any]:
    """Encode a camera's pictures, and take their statistics as they come, before they lose anything."""
    path = job.folder.staged(staged_name(job, camera, number))
    sampled = set(sampled_steps(job.length(number)))
    measured = PictureStatistics()

    def pictures() -> Iterator[Frames]:
        step = -1
        for step, picture in enumerate(episode.pictures(camera.name)):
            _checked_picture(picture, camera, number)
            if step in sampled:
                measured.add(picture)
            yield picture
            pulse.add(1, picture.nbytes)
        if step + 1 != job.length(number):
            raise FormatError(
                f"{where_is(number, camera.name)}: {step + 1} pictures, wanted {job.length(number)}. "
                "Check the source with 'epistream verify'."
            )

    with writing(path), path.open("wb") as file:
        if camera.dtype == "image":
            stream, packets = _staged_pngs(pictures(), camera, file)
        else:
            stream, packets = _staged_video(pictures(), camera, job, file)
        file.flush()
        os.fsync(file.fileno())  # what is kept of it must not outlive it when power is cut
    return {
        "statistics": packed(measured.result(job.options.version)),
        "has_quantiles": job.options.version != "2.1",
        "stream": stream and stream.to_dict(),
        **told_packets(packets),
    }


def _checked_picture(picture: Frames, camera: OutFeature, number: int) -> Frames:
    dtype = "uint16" if camera.is_depth else "uint8"
    if picture.shape != camera.shape or picture.dtype != dtype:
        raise FormatError(
            f"{where_is(number, camera.name)}: a picture of {picture.dtype} {picture.shape}, wanted {dtype} "
            f"{camera.shape}. Check the source with 'epistream verify'."
        )
    return picture


Staged = tuple[VideoStream | None, Packets]


def _staged_pngs(pictures: Iterable[Frames], camera: OutFeature, file: BinaryIO) -> Staged:
    codec = Png(camera.name, "uint8", camera.shape, None)
    sizes = np.array([file.write(codec.encode(picture, 0)) for picture in pictures], np.int64)
    return None, Packets(np.arange(len(sizes)), np.ones(len(sizes), np.bool_), sizes)


def _staged_video(pictures: Iterable[Frames], camera: OutFeature, job: Job, file: BinaryIO) -> Staged:
    encoder = VideoEncoder(camera.name, camera.shape, job.source.fps, job.options.video)
    for picture in pictures:
        encoder.add(picture)
    video = encoder.finish()
    table = video.table  # without B-frames: the order of decoding is that of presentation
    whole = memoryview(video.data)
    for offset, size in zip(table.offset.tolist(), table.size.tolist(), strict=True):
        file.write(whole[offset : offset + size])
    return table.stream, Packets(np.arange(len(table.size)), table.back == 0, table.size.astype(np.int64))


def staged_name(job: Job, camera: OutFeature, number: int) -> str:
    """The file of a camera's encoded pictures."""
    return f"{job.cameras.index(camera)}-{number:08d}"


def staged_data(path: Path, packets: Packets) -> Iterator[bytes]:
    """The bytes of encoded pictures, in pieces.

    Raises:
        FormatError: If they are not as they were written.
    """
    left = packets.num_bytes
    with path.open("rb", buffering=0) as file:
        while left and (data := file.read(min(left, _PIECE_BYTES))):
            yield data
            left -= len(data)
    if left:
        step = int(np.searchsorted(np.cumsum(packets.size), packets.num_bytes - left, side="right"))
        raise FormatError(f"{path}: ends at step {step}, wanted {len(packets)}. Begin the export again.")
