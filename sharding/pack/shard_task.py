"""One task of a packing job: reads the episodes of one shard from their sources and writes it."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from epistream.errors import FormatError, LayoutError, SourceChangedError, SourceError
from epistream.file_systems import local_path
from epistream.sharding.files.names import index_name
from epistream.sharding.files.storage import Options
from epistream.sharding.format.checksums import hash_file
from epistream.sharding.format.episode_meta import EpisodeMeta
from epistream.sharding.format.features import Feature, describe_difference
from epistream.sharding.format.index import ShardIndex
from epistream.sharding.format.left_out import sentence
from epistream.sharding.format.statistics import Summary, merge_all, summarize
from epistream.sharding.layouts.base import SourceEpisode
from epistream.sharding.layouts.reading import open_source, read_array
from epistream.sharding.layouts.registry import layout_by_name
from epistream.sharding.pack.encoding import Fidelity, FrameSource
from epistream.sharding.pack.options import PackOptions
from epistream.sharding.pack.outputs import outputs_of
from epistream.sharding.pack.plan import PlannedEpisode, SourceFile
from epistream.sharding.pack.pool import Pulse
from epistream.sharding.pack.workspace import upload
from epistream.sharding.tar.shard_statistics import statistics_of
from epistream.sharding.tar.shard_writer import ShardWriter

_HASH_BYTES = 1 << 22


@dataclass(frozen=True)
class ShardTask:
    """Everything that a process needs to make one shard.

    Args:
        name: File name of the tar.
        folder: Where it is written.
        url: Where it is published, if that is not the folder.
        episodes: What goes into it.
        sources: Source files by `PlannedEpisode.source_index`.
        features: Of every episode.
        options: Of the job.
        storage_options: For `url`.
    """

    name: str
    folder: str
    url: str
    episodes: tuple[PlannedEpisode, ...]
    sources: Mapping[int, SourceFile]
    features: Mapping[str, Feature]
    options: PackOptions
    storage_options: Options = None


@dataclass
class ShardResult:
    """What became of a task. If one of its episodes was good, it `is_packed`, and its index is in the folder."""

    is_packed: bool = False
    is_resumed: bool = False
    statistics: dict[str, Summary] = field(default_factory=dict)
    fidelity: dict[str, Fidelity] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


def pack_shard(task: ShardTask, pulse: Pulse) -> ShardResult:
    """Make one shard. Bad episodes are left out and reported.

    Raises:
        PackError: If the disk is full, or the job was stopped; nothing of the shard is left then.
        SourceChangedError: If a source is not the file that was scanned.
    """
    result = ShardResult()
    done_bytes = 0
    with ShardWriter(Path(task.folder), task.name, task.features) as writer:
        for episode in task.episodes:
            try:
                _pack_episode(task, writer, episode, result, pulse)
            except (LayoutError, FormatError, SourceError) as error:
                result.faults.append(sentence(error))
            # What its frames have not reported: arrays, and all after a fault.
            done_bytes += episode.source_bytes
            pulse.add(episodes=1, num_bytes=done_bytes - pulse.num_bytes)
        if not writer.num_episodes:
            return result
        writer.finish()
    if local_path(task.url) is None:
        for name in (index_name(task.name), task.name):
            upload(Path(task.folder) / name, task.url, task.storage_options)
        (Path(task.folder) / task.name).unlink()
    result.is_packed = True
    return result


def find_complete(task: ShardTask, pulse: Pulse) -> ShardResult | None:
    """The result of a task that an interrupted job has done already, or None if it must be done (again).

    The tar is read whole: its checksum must be the index's, and its episodes those of the task.
    """
    path = Path(task.folder) / task.name
    index_path = path.with_name(index_name(task.name))
    try:
        num_bytes = path.stat().st_size
        index = ShardIndex.parse(index_path.read_bytes(), index_path.name)
    except (FileNotFoundError, FormatError):
        return None
    wanted = [(episode.episode_index, episode.length) for episode in task.episodes]
    found = [(meta.episode_index, meta.length) for meta in index.episodes]
    if found != wanted or index.shard_name != task.name or describe_difference(index.features, task.features):
        return None
    if num_bytes != index.shard_bytes or hash_file(path).checksum != index.shard_checksum:
        return None
    pulse.add(len(task.episodes), sum(episode.source_bytes for episode in task.episodes))
    return ShardResult(is_packed=True, is_resumed=True, statistics=statistics_of(path, index))


def pack_or_resume(task: ShardTask, pulse: Pulse) -> ShardResult:
    """What a task of a resumed job does."""
    return find_complete(task, pulse) or pack_shard(task, pulse)


def hash_source(path: str, pulse: Pulse) -> str:
    """XXH3-128 of a source file, for the manifest's provenance.

    Raises:
        SourceError: If it cannot be read.
    """
    hasher = xxhash.xxh3_128()
    try:
        with Path(path).open("rb", buffering=0) as file:
            while data := file.read(_HASH_BYTES):
                hasher.update(data)
                pulse.add()
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror or error}), wanted its checksum.") from error
    return hasher.hexdigest()


def _pack_episode(
    task: ShardTask, writer: ShardWriter, planned: PlannedEpisode, result: ShardResult, pulse: Pulse
) -> None:
    source = task.sources[planned.source_index]
    _check_unchanged(source)
    with open_source(source.path) as file:
        episode = layout_by_name(task.options.layout or source.layout).episode(file, planned.group)
        outputs = {output.feature.name: output for output in outputs_of(episode, task.options)}
        arrays = {
            name: read_array(file, output.source, episode.length)
            for name, output in outputs.items()
            if output.feature.kind == "array"
        }
        cameras = {
            name: FrameSource(file, output, episode.length, task.options.quality)
            for name, output in outputs.items()
            if output.feature.kind == "frames"
        }
        frames = {name: _watched(camera, pulse) for name, camera in cameras.items()}
        writer.add(_meta(episode, planned, source), arrays, frames)
    result.statistics = merge_all((result.statistics, {name: summarize(values) for name, values in arrays.items()}))
    for name, camera in cameras.items():
        if camera.fidelity.num_frames:
            result.fidelity.setdefault(name, Fidelity()).add(camera.fidelity)


def _watched(camera: FrameSource, pulse: Pulse) -> Iterator[Any]:
    """The frames of `camera` as the writer wants them, each reported, until the job is stopped."""
    num_bytes = camera.output.source.num_bytes // camera.length
    for frame in camera.frames():
        pulse.add(num_bytes=num_bytes)
        yield frame


def _meta(episode: SourceEpisode, planned: PlannedEpisode, source: SourceFile) -> EpisodeMeta:
    return EpisodeMeta(
        length=episode.length,
        episode_index=planned.episode_index,
        split=planned.split,
        tasks=episode.tasks,
        valid_ranges=episode.valid_ranges,
        source=source.name,
        source_path=episode.group,
        layout=source.layout,
        attributes=episode.attributes,
    )


def _check_unchanged(source: SourceFile) -> None:
    with contextlib.suppress(FileNotFoundError):
        status = Path(source.path).stat()
        if (status.st_size, status.st_mtime_ns) == (source.num_bytes, source.mtime_ns):
            return
    raise SourceChangedError(
        f"{source.path}: changed since the job looked at it, wanted {source.num_bytes:,} bytes as then. "
        "Pack again when nothing writes to it."
    )
