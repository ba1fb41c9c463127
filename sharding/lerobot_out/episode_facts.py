"""The first tasks of an export: what is to be known of each episode before files are laid out.

That is the statistics of its values and pictures, and of each camera the stream of its video and how large it is.
Pictures that are no video yet are encoded here, a camera of an episode at a time, and lie staged until a file of the
data set takes them up.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from epistream.errors import FormatError
from epistream.sharding.lerobot_out.jobs import Job, where_is
from epistream.sharding.lerobot_out.model import Episode, Frames, OutFeature, Packet, Statistics
from epistream.sharding.lerobot_out.parquet import checked_column, checked_values, derived_columns, writing
from epistream.sharding.lerobot_out.statistics import QUANTILES, PictureStatistics, array_statistics, sampled_steps
from epistream.sharding.lerobot_out.work_folder import packed, unpacked
from epistream.sharding.pictures.codecs import Png
from epistream.sharding.pictures.video import VideoStream
from epistream.sharding.pictures.video_encoder import VideoEncoder
from epistream.sharding.tasks.pulse import Pulse
from epistream.units import picture_size

# Episodes of a task that encodes nothing, at most, and tasks that they are for at least, where there are enough.
_MOST_EPISODES, _FEWEST_TASKS = 64, 32
_VALUES = "values"
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
        return _facts_name(job, self.camera, self.first)


def facts_tasks(job: Job) -> Iterator[FactsTask]:
    """All tasks; what takes longest comes first."""
    encoded = [camera for camera in job.cameras if not job.is_copied(camera)]
    for number in range(job.num_episodes):
        for camera in encoded:
            yield FactsTask(camera.name, number, number + 1)
    size = _num_episodes(job)
    for first in range(0, job.num_episodes, size):
        yield FactsTask("", first, min(first + size, job.num_episodes))


def _num_episodes(job: Job) -> int:
    """Of a task that encodes nothing; whoever goes on with other processes has the same."""
    return max(1, min(_MOST_EPISODES, job.num_episodes // _FEWEST_TASKS))


def _facts_name(job: Job, camera: str, first: int) -> str:
    position = [one.name for one in job.cameras].index(camera) if camera else _VALUES
    return f"{position}-{first:08d}"


def facts_of(job: Job, camera: str, numbers: Iterable[int]) -> Iterator[Mapping[str, Any]]:
    """What was kept of a camera, or of everything else, in these episodes.

    Raises:
        FormatError: If somebody took it away.
    """
    is_copied = any(one.name == camera and job.is_copied(one) for one in job.cameras)
    is_apart = bool(camera) and not is_copied
    size = 1 if is_apart else _num_episodes(job)
    name, kept = "", None
    for number in numbers:
        wanted = _facts_name(job, camera if is_apart else "", number // size * size)
        if wanted != name:
            name, kept = wanted, job.folder.kept(wanted)
        if kept is None:
            raise FormatError(
                f"{job.folder.work}: facts {name} are missing, wanted what was kept a moment ago. Run the same again."
            )
        facts = kept[number % size]
        yield {**facts["copied"][camera], "version": facts["version"]} if is_copied else facts


def statistics_of(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Of a camera's pictures, or of all else by feature: nobody unpacks them who does not need them."""
    statistics: dict[str, Any] = unpacked(facts["statistics"])
    return statistics


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
    """Statistics of all that is no camera, which tasks there are, and about how large the rows are."""
    length, version = job.length(number), job.options.version
    tasks = checked_tasks(job, episode, number)
    statistics: dict[str, Statistics] = {}
    num_bytes = 0
    for feature in job.source.features:
        if feature.is_camera:
            continue
        if feature.is_carried:
            num_bytes += checked_column(feature, episode.column(feature.name), length, where_is(number)).nbytes
            continue
        values = checked_values(feature, episode.values(feature.name), length, where_is(number))
        statistics[feature.name] = _as_known(array_statistics(values, version), episode.statistics(feature.name))
        num_bytes += values.nbytes
    for name, column in derived_columns(number, job.first_rows[number], tasks, job.source.fps).items():
        statistics[name] = array_statistics(column, version)
        num_bytes += column.nbytes
    return {
        "statistics": packed({name: dict(found) for name, found in statistics.items()}),
        "tasks": list(dict.fromkeys(tasks.tolist())),
        "num_bytes": num_bytes,
    }


def _as_known(measured: Statistics, known: Statistics | None) -> Statistics:
    """Those of numbers as the source says, where it has them in this form: versions round them in their own ways."""
    names = ("min", "max", "mean", "std", "count")
    if known is None or any(name not in known or known[name].shape != measured[name].shape for name in names):
        return measured
    if not (known["count"] == measured["count"]).all():
        return measured
    said = {name: known[name].astype(measured[name].dtype) for name in names}
    more = {name: known[name] for name in QUANTILES if name in measured and name in known}
    return {**measured, **said, **more}


def checked_tasks(job: Job, episode: Episode, number: int) -> NDArray[np.int64]:
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
    return {
        "statistics": packed(statistics),
        "has_quantiles": QUANTILES.keys() <= statistics.keys(),
        "stream": stream and stream.to_dict(),
        "num_bytes": video.num_bytes,
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
            stream, sizes, keys = _staged_pngs(pictures(), camera, file)
        else:
            stream, sizes, keys = _staged_video(pictures(), camera, job, file)
        file.flush()
        os.fsync(file.fileno())  # what is kept of it must not outlive it when power is cut
    return {
        "statistics": packed(measured.result(job.options.version)),
        "has_quantiles": job.options.version != "2.1",
        "stream": stream and stream.to_dict(),
        "num_bytes": int(sizes.sum()),
        "sizes": sizes,
        "is_key": keys,
    }


def _checked_picture(picture: Frames, camera: OutFeature, number: int) -> Frames:
    dtype = "uint16" if camera.is_depth else "uint8"
    if picture.shape != camera.shape or picture.dtype != dtype:
        raise FormatError(
            f"{where_is(number, camera.name)}: a picture of {picture.dtype} {picture.shape}, wanted {dtype} "
            f"{camera.shape}. Check the source with 'epistream verify'."
        )
    return picture


Staged = tuple[VideoStream | None, NDArray[np.uint32], NDArray[np.bool_]]


def _staged_pngs(pictures: Iterable[Frames], camera: OutFeature, file: BinaryIO) -> Staged:
    codec = Png(camera.name, "uint8", camera.shape, None)
    sizes = np.array([file.write(codec.encode(picture, 0)) for picture in pictures], np.uint32)
    return None, sizes, np.ones(len(sizes), bool)


def _staged_video(pictures: Iterable[Frames], camera: OutFeature, job: Job, file: BinaryIO) -> Staged:
    encoder = VideoEncoder(camera.name, camera.shape, job.source.fps, job.options.video)
    for picture in pictures:
        encoder.add(picture)
    video = encoder.finish()
    table = video.table  # without B-frames: the order of decoding is that of presentation
    whole = memoryview(video.data)
    for offset, size in zip(table.offset.tolist(), table.size.tolist(), strict=True):
        file.write(whole[offset : offset + size])
    return table.stream, table.size, table.back == 0


def staged_name(job: Job, camera: OutFeature, number: int) -> str:
    """The file of a camera's encoded pictures."""
    return f"{job.cameras.index(camera)}-{number:08d}"


def staged_packets(path: Path, facts: Mapping[str, Any]) -> Iterator[Packet]:
    """Encoded pictures, one at a time.

    Raises:
        FormatError: If they are not as they were written.
    """
    with path.open("rb") as file:
        for step, (size, is_key) in enumerate(zip(facts["sizes"].tolist(), facts["is_key"].tolist(), strict=True)):
            data = file.read(size)
            if len(data) != size:
                raise FormatError(f"{path}: ends at step {step}, wanted {len(facts['sizes'])}. Begin the export again.")
            yield Packet(step, is_key, data)
