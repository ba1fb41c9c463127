"""Writes a LeRobot data set from the episodes of a source: facts of each, a layout, files, and ``meta/`` at the end.

Every task leaves what it found in the folder, so that an export that was killed goes on where it was; a task that is
run again gives the same bytes.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from epistream.errors import OptionError
from epistream.sharding.files.arrow import arrow_module as pyarrow
from epistream.sharding.lerobot_out.episode_facts import FactsTask, facts_tasks, make_facts
from epistream.sharding.lerobot_out.files import files_tasks, give_up_staged, write_files
from epistream.sharding.lerobot_out.jobs import Job, check_version
from epistream.sharding.lerobot_out.known_facts import FACTS_VERSION
from epistream.sharding.lerobot_out.layout import Layout, OutFile, files_of, lay_out
from epistream.sharding.lerobot_out.metadata import write_metadata
from epistream.sharding.lerobot_out.model import OutFeature, Source
from epistream.sharding.lerobot_out.options import ExportOptions
from epistream.sharding.lerobot_out.work_folder import WorkFolder
from epistream.sharding.pictures.video_encoder import library_versions
from epistream.sharding.tasks.engine import Engine, make_engine
from epistream.sharding.tasks.pool_process import Words
from epistream.units import picture_size

_WORDS = Words("an exporting process", "the same export goes on where it was.")
# An idle process takes half a second until its first task. Where all is copied, an episode takes about so long, to be
# looked at and its rows to be written, and a file, and its bytes.
_WORTH_PROCESSES_S, _EPISODE_S, _FILE_S, _BYTES_PER_S = 1.5, 0.003, 0.0005, 1e9


@dataclass(frozen=True)
class ExportProgress:
    """How far an export is. `stage` is episodes, files or publishing; counted are pictures to encode, and episodes."""

    stage: str
    num_done: int
    num_total: int


@dataclass(frozen=True)
class ExportReport:
    """What an export did.

    Args:
        path: The folder of the data set.
        num_episodes: In it.
        num_steps: Of all episodes.
        num_files: Of rows and videos.
        num_bytes: Of these.
        seconds: Wall time.
        is_new: False if it had been complete before.
    """

    path: Path
    num_episodes: int
    num_steps: int
    num_files: int
    num_bytes: int
    seconds: float
    is_new: bool


def export_lerobot(
    source: Source,
    path: Path,
    options: ExportOptions | None = None,
    on_progress: Callable[[ExportProgress], None] = lambda progress: None,
    *,
    concludes: bool = True,
) -> ExportReport:
    """Write a data set, or go on with one that was interrupted.

    Args:
        source: Of the episodes.
        path: A folder that is empty or not there, or holds the same export, interrupted.
        options: See `ExportOptions`.
        on_progress: Called now and then.
        concludes: Whether that is all; else the same may be written again, which finds it complete, until somebody
            calls `conclude_export`.

    Raises:
        OptionError: If the source cannot be written so, or a package is missing.
        DatasetExistsError: If there is something else in the folder.
        PackError: If it cannot be written.
        FormatError: If an episode is not what the source says of it.
    """
    started = time.monotonic()
    job = Job(source, options or ExportOptions(), path)
    _check(job)
    identity = _identity(job)
    with WorkFolder(path) as folder:
        job = Job(source, job.options, folder.path)
        is_complete = folder.begin(identity)
        if not is_complete:
            _export(job, on_progress)
        if concludes:
            folder.conclude()
        files = folder.files()
    return ExportReport(
        path=job.path,
        num_episodes=job.num_episodes,
        num_steps=int(np.sum(source.lengths)),
        num_files=len(files),
        num_bytes=sum(files.values()),
        seconds=time.monotonic() - started,
        is_new=not is_complete,
    )


def conclude_export(path: Path) -> None:
    """Forget how a complete data set was made: it was uploaded."""
    with WorkFolder(path) as folder:
        folder.conclude()


def _export(job: Job, on_progress: Callable[[ExportProgress], None]) -> None:
    is_light = _is_light(job)
    with make_engine(job.options.engine_options, f"{job.path}", {"job": job}, _WORDS) as engine:
        tasks: list[FactsTask] = []
        known: list[FactsTask] = []
        for task in facts_tasks(job):
            (tasks if job.folder.kept(task.name(job)) is None else known).append(task)
        if tasks:  # whose facts would be put beside those of another run
            _refuse_changed(job, known)
        fewest = _fewest_to_share(tasks, job.num_episodes * _EPISODE_S if is_light else math.inf)
        _run(engine, make_facts, tasks, _Told(on_progress, "episodes", _weight(job, tasks)), fewest)
        layout = lay_out(job)
        files = _missing(job, layout)
        num_parts = sum(file.stop - file.first for file in files)
        num_bytes = sum(placing.num_bytes for placing in layout.placings.values())
        seconds = len(files) * _FILE_S + job.num_episodes * _EPISODE_S / 2 + num_bytes / _BYTES_PER_S
        written = list(files_tasks(job, files))
        fewest = _fewest_to_share(written, seconds if is_light else math.inf)
        _run(engine, write_files, written, _Told(on_progress, "files", num_parts), fewest)
    on_progress(ExportProgress("publishing", 0, 1))
    write_metadata(job, layout)
    on_progress(ExportProgress("publishing", 1, 1))


def _refuse_changed(job: Job, known: Sequence[FactsTask]) -> None:
    """See that episodes still are what their facts were taken of: rows are written from these.

    Raises:
        SourceChangedError: If one is not.
    """
    for task in known:
        for number, facts in enumerate(job.folder.kept(task.name(job)), task.first):
            with job.source.episode(number) as episode:
                check_version(episode.version, facts["version"], number)


def _missing(job: Job, layout: Layout) -> list[OutFile]:
    """The files that are not complete; of the others nothing stays staged."""
    there, missing = job.folder.files(), []
    for file in files_of(job, layout):
        if file.name not in there:
            missing.append(file)
        else:
            give_up_staged(job, file)
    return missing


def _is_light(job: Job) -> bool:
    """Whether nothing is encoded, nor decoded for statistics."""
    if not all(map(job.is_copied, job.cameras)):
        return False
    with job.source.episode(0) as episode:
        return all(episode.statistics(camera.name) is not None for camera in job.cameras)


def _fewest_to_share(tasks: Sequence[Any], seconds: float) -> int:
    """Of how many tasks on processes are started: of so many never, where they would begin when all is done."""
    return 2 if seconds > _WORTH_PROCESSES_S else len(tasks) + 1


@dataclass(frozen=True)
class _Told:
    """Tells how far a stage is."""

    on_progress: Callable[[ExportProgress], None]
    stage: str
    num_total: int

    def __call__(self, num_done: int, num_bytes: int) -> None:
        self.on_progress(ExportProgress(self.stage, min(num_done, self.num_total), self.num_total))


def _run(engine: Engine, function: Any, tasks: Sequence[Any], told: _Told, fewest: int) -> None:
    for _ in engine.map(function, tasks, told, fewest):
        pass


def _weight(job: Job, tasks: Sequence[Any]) -> int:
    """What the tasks report in all: an episode each, and a picture each of those that are encoded."""
    encoded = {camera.name for camera in job.cameras if not job.is_copied(camera)}
    return sum((job.length(task.first) if task.camera in encoded else task.stop - task.first) for task in tasks)


def _identity(job: Job) -> dict[str, Any]:
    encodes = any(not job.is_copied(camera) for camera in job.videos)
    versions = {"facts": FACTS_VERSION, "pyarrow": pyarrow().__version__}
    versions |= library_versions() if job.videos else {}
    if any(camera.dtype == "image" and not job.is_copied(camera) for camera in job.cameras):
        versions["pillow"] = PIL.__version__
    return {"source": job.source.identity, "options": job.options.deciding(encodes=encodes), "versions": versions}


def _check(job: Job) -> None:
    """What no data set can be written from.

    Raises:
        OptionError: If the source is that.
    """
    source = job.source
    names = [feature.name for feature in source.features]
    if len(set(names)) != len(names):
        raise OptionError(f"features {', '.join(names)}: a name twice, wanted each once. Rename one.")
    if not job.num_episodes or int(np.min(source.lengths)) < 1:
        raise OptionError(f"{job.num_episodes} episodes, wanted at least one, each of at least one step.")
    if not 0 < source.fps < 1e6:
        raise OptionError(f"{source.fps} steps a second, wanted more than 0: LeRobot's steps have times. Give the fps.")
    if len(set(source.tasks)) != len(source.tasks):
        raise OptionError("two tasks with the same text, wanted each once.")
    for camera in job.cameras:
        if problem := _problem(camera, is_copied=job.is_copied(camera)):
            raise OptionError(f"{camera.name}: {problem}.")


def _problem(camera: OutFeature, *, is_copied: bool) -> str:
    height, width, channels = camera.shape
    if camera.dtype == "image" or is_copied:
        return ""
    if channels != 3:
        return f"pictures with {channels} channel to be encoded, wanted 3. Export it as dtype image"
    if height % 2 or width % 2:
        size = picture_size((height, width))
        return (
            f"pictures of {size} to be encoded, wanted even sides: H.264 halves them. Export them as PNG, with "
            "pictures='image' or --pictures image"
        )
    return ""
