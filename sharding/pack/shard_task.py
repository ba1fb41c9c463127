"""One task of a packing job: reads the episodes of one shard from their sources and writes it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from epistream.errors import EpistreamError, FormatError, LayoutError, SourceError
from epistream.file_systems import local_path
from epistream.sharding.files.names import index_name
from epistream.sharding.files.storage import Options
from epistream.sharding.format.episode_meta import EpisodeMeta
from epistream.sharding.format.feature_sets import describe_difference
from epistream.sharding.format.features import Feature
from epistream.sharding.format.left_out import sentence
from epistream.sharding.format.statistics import NotFinite, Summary, add_counts, count_not_finite, merge_all, summarize
from epistream.sharding.layouts.base import SourceEpisode
from epistream.sharding.layouts.reading import open_source, read_array
from epistream.sharding.layouts.registry import described, layout_by_name
from epistream.sharding.opening.source_bytes import BytesInMemory
from epistream.sharding.pack.choice import PackChoice
from epistream.sharding.pack.encoding import FrameSource, Hdf5Frames
from epistream.sharding.pack.lerobot_episode import read_episode
from epistream.sharding.pack.lerobot_sets import fault_of
from epistream.sharding.pack.options import PackOptions
from epistream.sharding.pack.outputs import Output, outputs_of
from epistream.sharding.pack.plan import PlannedEpisode, SetFile, SourceFile
from epistream.sharding.pack.source_reader import SourceReader, check_unchanged, hash_source
from epistream.sharding.pack.workspace import upload
from epistream.sharding.pictures.fidelity import Fidelity
from epistream.sharding.tar.shard_writer import ShardWriter
from epistream.sharding.tasks.pulse import Pulse


@dataclass(frozen=True)
class ShardTask:
    """Everything that a process needs to make one shard.

    Args:
        name: File name of the tar.
        folder: Where it is written.
        url: Where it is published, if that is not the folder.
        episodes: What goes into it.
        sources: Source files by `PlannedEpisode.source_index`.
        unhashed: Of these, those that no earlier task reads: their checksums are made here.
        features: Of every episode.
        options: Of the job.
        storage_options: For `url`.
        source_options: For sources that are remote.
    """

    name: str
    folder: str
    url: str
    episodes: tuple[PlannedEpisode, ...]
    sources: Mapping[int, SourceFile]
    unhashed: frozenset[int]
    features: Mapping[str, Feature]
    options: PackOptions
    storage_options: Options = None
    source_options: Options = None


@dataclass
class ShardResult:
    """What became of a task. If one of its episodes was good, it `is_packed`, and its index is in the folder.

    `checksums` are those of the task's `unhashed` sources, by their index; a file that cannot be read has none. `key`
    is that of `kept_results`, empty if nothing is kept.
    """

    is_packed: bool = False
    key: str = ""
    checksums: dict[int, str] = field(default_factory=dict)
    statistics: dict[str, Summary] = field(default_factory=dict)
    not_finite: dict[str, NotFinite] = field(default_factory=dict)
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
                source = task.sources[episode.source_index]
                is_of_set = isinstance(source, SetFile)
                fault = fault_of(source.path, episode.group, error) if is_of_set else sentence(error)
                result.faults.append(fault)
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


def _pack_episode(
    task: ShardTask, writer: ShardWriter, planned: PlannedEpisode, result: ShardResult, pulse: Pulse
) -> None:
    source = task.sources[planned.source_index]
    if isinstance(source, SetFile):
        _pack_of_set(task, writer, planned, source, result, pulse)
        return
    reader: SourceReader = pulse.kept.setdefault("sources", SourceReader())
    check_unchanged(source)
    if planned.source_index in task.unhashed and planned.source_index not in result.checksums:
        result.checksums[planned.source_index] = reader.read(source, pulse)
    content = reader.content(source)
    try:
        _copy_episode(task, writer, planned, content, result, pulse)
    except EpistreamError:
        if content is None or not content.names_others:
            raise
        _copy_episode(task, writer, planned, None, result, pulse)
    if content is None or content.names_others:
        check_unchanged(source)


def _copy_episode(
    task: ShardTask,
    writer: ShardWriter,
    planned: PlannedEpisode,
    content: BytesInMemory | None,
    result: ShardResult,
    pulse: Pulse,
) -> None:
    """Write one episode, read from `content` or else from its file."""
    source = task.sources[planned.source_index]
    with open_source(source.path, content, allow_outside=task.options.allow_outside_files) as file:
        layout = layout_by_name(task.options.layout or source.layout)
        episode = described(layout, file, planned.group, PackChoice(task.options))
        outputs = {output.feature.name: output for output in outputs_of(episode, task.options)}
        arrays = {
            name: read_array(file, output.source, episode.length)
            for name, output in outputs.items()
            if output.feature.kind == "array"
        }
        cameras = {
            name: FrameSource(
                Hdf5Frames(file, output, episode.length),
                output,
                episode.length,
                task.options.quality,
                task.options.video,
                partial(pulse.add, num_bytes=output.source.num_bytes // episode.length),
            )
            for name, output in outputs.items()
            if output.feature.kind == "frames"
        }
        frames = {name: _watched(camera, content) for name, camera in cameras.items()}
        _refuse_others(content, source.path)
        writer.add(_meta(episode, planned, source), arrays, frames)
    _count(result, arrays, cameras)


def _pack_of_set(
    task: ShardTask, writer: ShardWriter, planned: PlannedEpisode, source: SetFile, result: ShardResult, pulse: Pulse
) -> None:
    """Write one episode of a LeRobot data set."""
    if planned.source_index in task.unhashed and planned.source_index not in result.checksums:
        result.checksums[planned.source_index] = hash_source(source, pulse)
    found = read_episode(source, planned, task.options, task.source_options, pulse)
    outputs = {output.feature.name: output for output in outputs_of(found.episode, task.options)}
    _refuse_others_than_planned(outputs, task.features, f"{source.path}: {planned.group}")
    sources = {name: output.source.feature.name for name, output in outputs.items()}
    cameras = {
        name: FrameSource(
            found.cameras[sources[name]],
            output,
            found.episode.length,
            task.options.quality,
            task.options.video,
            # What is copied reports its bytes itself.
            partial(pulse.add, num_bytes=0 if output.is_copy else output.source.num_bytes // found.episode.length),
        )
        for name, output in outputs.items()
        if output.feature.kind == "frames"
    }
    arrays = {name: found.arrays[sources[name]] for name in outputs if name not in cameras}
    copied = {
        name: found.cameras[sources[name]].depth
        for name, output in outputs.items()
        if output.is_copy and name in cameras
    }
    meta = replace(
        _meta(found.episode, planned, source),
        task_steps=found.task_steps,
        depth={name: depth for name, depth in copied.items() if depth is not None},
    )
    frames = {name: camera.frames() for name, camera in cameras.items()}
    if frames:
        last = list(cameras)[-1]
        frames[last] = _and_then(frames[last], found.check_unchanged)
    else:
        found.check_unchanged()
    writer.add(meta, arrays, frames)
    _count(result, arrays, cameras)


def _and_then(frames: Iterator[Any], look: Callable[[], None]) -> Iterator[Any]:
    yield from frames
    look()


def _refuse_others_than_planned(outputs: Mapping[str, Output], wanted: Mapping[str, Feature], where: str) -> None:
    found = {name: output.feature for name, output in outputs.items()}
    difference = describe_difference(found, wanted)
    if difference:
        raise FormatError(f"{where}: {difference}, wanted what the indexes of its videos said.")
    for name, feature in found.items():
        if (feature.group_steps or 0) > (wanted[name].group_steps or 0):
            raise FormatError(f"{where}: {name}: groups of {feature.group_steps}, wanted {wanted[name].group_steps}.")


def _count(result: ShardResult, arrays: Mapping[str, NDArray[Any]], cameras: Mapping[str, FrameSource]) -> None:
    """Add what came of an episode that was written."""
    result.statistics = merge_all((result.statistics, {name: summarize(values) for name, values in arrays.items()}))
    result.not_finite = add_counts((result.not_finite, count_not_finite(arrays)))
    for name, camera in cameras.items():
        if camera.fidelity.num_frames:
            result.fidelity.setdefault(name, Fidelity()).add(camera.fidelity)


def _watched(camera: FrameSource, content: BytesInMemory | None) -> Iterator[Any]:
    """The frames of `camera` as the writer wants them, until the job is stopped."""
    yield from camera.frames()
    _refuse_others(content, camera.output.source.path)


def _refuse_others(content: BytesInMemory | None, where: str) -> None:
    """Some versions of HDF5 give the fill value for what a virtual dataset has in a file that they cannot open."""
    if content is not None and content.names_others:
        raise SourceError(f"{where}: is in another file, wanted it to be read there.")


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
