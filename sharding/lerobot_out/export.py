"""Writes a LeRobot data set from the episodes of a source: facts of each, a layout, files, and ``meta/`` at the end.

Every task leaves what it found in the folder, so that an export that was killed goes on where it was; a task that is
run again gives the same bytes.
"""

import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from epistream.errors import OptionError
from epistream.sharding.lerobot_out.episode_facts import facts_tasks, make_facts
from epistream.sharding.lerobot_out.files import files_tasks, write_files
from epistream.sharding.lerobot_out.jobs import Job
from epistream.sharding.lerobot_out.layout import files_of, lay_out
from epistream.sharding.lerobot_out.metadata import write_metadata
from epistream.sharding.lerobot_out.model import OutFeature, Source
from epistream.sharding.lerobot_out.options import ExportOptions
from epistream.sharding.lerobot_out.parquet import pyarrow
from epistream.sharding.lerobot_out.work_folder import WorkFolder
from epistream.sharding.pictures.video_encoder import library_versions
from epistream.sharding.tasks.pool import TaskPool
from epistream.sharding.tasks.pool_process import Words
from epistream.units import picture_size

_WORDS = Words("an exporting process", "the same export goes on where it was.")
_log = logging.getLogger(__name__)


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
    files = [file for top in ("data", "videos") for file in (job.path / top).rglob("*") if file.is_file()]
    return ExportReport(
        path=job.path,
        num_episodes=job.num_episodes,
        num_steps=int(np.sum(source.lengths)),
        num_files=len(files),
        num_bytes=sum(file.stat().st_size for file in files),
        seconds=time.monotonic() - started,
        is_new=not is_complete,
    )


def conclude_export(path: Path) -> None:
    """Forget how a complete data set was made: it was uploaded."""
    with WorkFolder(path) as folder:
        folder.conclude()


def _export(job: Job, on_progress: Callable[[ExportProgress], None]) -> None:
    workers = job.options.workers or len(os.sched_getaffinity(0))
    with TaskPool(workers, f"{job.path}", {"job": job}, _WORDS) as pool:
        tasks = [task for task in facts_tasks(job) if job.folder.kept(task.name(job)) is None]
        _run(pool, make_facts, tasks, _Told(on_progress, "episodes", _weight(job, tasks)))
        layout = lay_out(job)
        files = list(files_of(job, layout))
        num_parts = sum(file.stop - file.first for file in files)
        _run(pool, write_files, list(files_tasks(files)), _Told(on_progress, "files", num_parts))
    on_progress(ExportProgress("publishing", 0, 1))
    write_metadata(job, layout)
    on_progress(ExportProgress("publishing", 1, 1))


@dataclass(frozen=True)
class _Told:
    """Tells how far a stage is."""

    on_progress: Callable[[ExportProgress], None]
    stage: str
    num_total: int

    def __call__(self, num_done: int, num_bytes: int) -> None:
        self.on_progress(ExportProgress(self.stage, min(num_done, self.num_total), self.num_total))


def _run(pool: TaskPool, function: Any, tasks: Sequence[Any], told: _Told) -> None:
    for _ in pool.map(function, tasks, told):
        pass


def _weight(job: Job, tasks: Sequence[Any]) -> int:
    """What the tasks report in all: an episode each, and a picture each of those that are encoded."""
    encoded = {camera.name for camera in job.cameras if not job.is_copied(camera)}
    return sum((job.length(task.first) if task.camera in encoded else task.stop - task.first) for task in tasks)


def _identity(job: Job) -> dict[str, Any]:
    encodes = any(not job.is_copied(camera) for camera in job.videos)
    versions = {"pyarrow": pyarrow().__version__, **(library_versions() if job.videos else {})}
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
