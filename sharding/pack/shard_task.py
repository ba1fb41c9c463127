"""One task of a packing job: reads the episodes of one shard from their sources and writes it."""

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from epistream.errors import EpistreamError, FormatError, LayoutError, SourceError
from epistream.file_systems import local_path
from epistream.sharding.files.names import index_name
from epistream.sharding.files.storage import Options
from epistream.sharding.format.episode_meta import EpisodeMeta
from epistream.sharding.format.feature_sets import describe_difference
from epistream.sharding.format.features import Feature
from epistream.sharding.format.index import ShardIndex
from epistream.sharding.format.left_out import sentence
from epistream.sharding.format.statistics import NotFinite, Summary, add_counts, merge_all
from epistream.sharding.layouts.base import SourceEpisode
from epistream.sharding.layouts.reading import open_source, read_array
from epistream.sharding.layouts.registry import described, layout_by_name
from epistream.sharding.manifest.episode_records import EpisodeRecords
from epistream.sharding.manifest.manifest_builder import ShardSummary
from epistream.sharding.manifest.record_making import Counted, RecordRules, count_episode
from epistream.sharding.opening.source_bytes import BlocksOfFile, SourceBytes
from epistream.sharding.pack.choice import PackChoice
from epistream.sharding.pack.encoding import FrameSource, Hdf5Frames
from epistream.sharding.pack.lerobot_episode import read_episode
from epistream.sharding.pack.lerobot_sets import fault_of
from epistream.sharding.pack.options import PackOptions
from epistream.sharding.pack.outputs import Output, outputs_of
from epistream.sharding.pack.plan import PlannedEpisode, SetFile, SourceFile
from epistream.sharding.pack.source_reader import SourceReader, check_unchanged, hash_source
from epistream.sharding.pictures.fidelity import Fidelity
from epistream.sharding.tar.shard_store import upload
from epistream.sharding.tar.shard_writer import ShardWriter
from epistream.sharding.tasks.pulse import Pulse


@dataclass(frozen=True)
class ShardTask:
    """Everything that a process needs to make one shard.

    Args:
        name: File name of the tar.
        url: The folder of the dataset. A remote one gets what was made in a temporary folder of the process.
        episodes: What goes into it.
        sources: Source files by `PlannedEpisode.source_index`.
        unhashed: Of these, those that no earlier task reads: their checksums are made here.
        features: Of every episode.
        options: Of the job.
        rules: What is kept of each of its episodes.
        storage_options: For `url`.
        source_options: For sources that are remote.
        must_keep: Whether another process waits for the result beside the shard, whatever comes of it.
    """

    name: str
    url: str
    episodes: tuple[PlannedEpisode, ...]
    sources: Mapping[int, SourceFile]
    unhashed: frozenset[int]
    features: Mapping[str, Feature]
    options: PackOptions
    rules: RecordRules
    storage_options: Options = None
    source_options: Options = None
    must_keep: bool = False


@dataclass
class ShardResult:
    """What became of a task: small, for it may come from another machine.

    `shard` is None if none of its episodes was good. `checksums` are those of the task's `unhashed` sources, by their
    index; a file that cannot be read has none. `key` is that of `kept_results`, empty if nothing is kept. `records` are
    those of its episodes until `shard` has them.
    """

    shard: ShardSummary | None = None
    key: str = ""
    checksums: dict[int, str] = field(default_factory=dict)
    statistics: dict[str, Summary] = field(default_factory=dict)
    not_finite: dict[str, NotFinite] = field(default_factory=dict)
    records: list[EpisodeRecords] = field(default_factory=list)
    fidelity: dict[str, Fidelity] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


def pack_shard(task: ShardTask, pulse: Pulse) -> ShardResult:
    """Make one shard. Bad episodes are left out and reported.

    Raises:
        PackError: If the disk is full, or the job was stopped; nothing of the shard is left then.
        SourceChangedError: If a source is not the file that was scanned.
    """
    folder = local_path(task.url)
    if folder is not None:
        return _pack_into(folder, task, pulse)
    with tempfile.TemporaryDirectory(prefix="epistream-pack-", ignore_cleanup_errors=True) as temporary:
        result = _pack_into(Path(temporary), task, pulse)
        # A reader of the store that sees the tar shall find its index.
        for name in (index_name(task.name), task.name) if result.shard else ():
            upload(Path(temporary) / name, task.url, task.storage_options)
    return result


def _pack_into(folder: Path, task: ShardTask, pulse: Pulse) -> ShardResult:
    result = ShardResult()
    done_bytes = 0
    with ShardWriter(folder, task.name, task.features) as writer:
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
        index = writer.finish()
    records, result.records = EpisodeRecords.join(result.records), []
    result.shard = ShardSummary.of(ShardIndex.parse(index, index_name(task.name)), index, records)
    return result


def _pack_episode(
    task: ShardTask, writer: ShardWriter, planned: PlannedEpisode, result: ShardResult, pulse: Pulse
) -> None:
    source = task.sources[planned.source_index]
    if isinstance(source, SetFile):
        _pack_of_set(task, writer, planned, source, result, pulse)
        return
    reader: SourceReader = pulse.kept.setdefault("sources", SourceReader(task.source_options))
    if local_path(source.path) is None:
        _pack_remote(task, writer, planned, reader, result, pulse)
        return
    check_unchanged(source)
    if planned.source_index in task.unhashed and planned.source_index not in result.checksums:
        result.checksums[planned.source_index] = reader.read(source, pulse)
    content = reader.content(source)
    try:
        _copy_episode(task, writer, planned, (source.path, content), result, pulse)
    except EpistreamError:
        if content is None or not content.names_others:
            raise
        _copy_episode(task, writer, planned, (source.path, None), result, pulse)
    if content is None or content.names_others:
        check_unchanged(source)


def _pack_remote(
    task: ShardTask,
    writer: ShardWriter,
    planned: PlannedEpisode,
    reader: SourceReader,
    result: ShardResult,
    pulse: Pulse,
) -> None:
    """Write one episode of a remote file, from a copy."""
    source = task.sources[planned.source_index]
    path, checksum = reader.bring(source, pulse)
    if planned.source_index in task.unhashed:
        result.checksums[planned.source_index] = checksum
    content = reader.content(source)
    try:
        with content if isinstance(content, BlocksOfFile) else contextlib.nullcontext():
            _copy_episode(task, writer, planned, (str(path), content), result, pulse)
    except (LayoutError, FormatError, SourceError) as error:
        raise type(error)(str(error).replace(str(path), source.path)) from error


def _copy_episode(
    task: ShardTask,
    writer: ShardWriter,
    planned: PlannedEpisode,
    where: tuple[str, SourceBytes | None],
    result: ShardResult,
    pulse: Pulse,
) -> None:
    """Write one episode, read from a file, or the bytes of it that are in memory."""
    source = task.sources[planned.source_index]
    path, content = where
    with open_source(path, content, allow_outside=task.options.allow_outside_files) as file:
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
                Hdf5Frames(file, output, episode.length, content),
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
        _refuse_others(content, path)
        meta = _meta(episode, planned, source)
        writer.add(meta, arrays, frames)
    _count(result, count_episode(arrays, meta, task.rules), cameras)


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
    _count(result, count_episode(arrays, meta, task.rules), cameras)


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


def _count(result: ShardResult, counted: Counted, cameras: Mapping[str, FrameSource]) -> None:
    """Add what came of an episode that was written."""
    result.statistics = merge_all((result.statistics, counted.statistics))
    result.not_finite = add_counts((result.not_finite, counted.not_finite))
    result.records.append(counted.records)
    for name, camera in cameras.items():
        if camera.fidelity.num_frames:
            result.fidelity.setdefault(name, Fidelity()).add(camera.fidelity)


def _watched(camera: FrameSource, content: SourceBytes | None) -> Iterator[Any]:
    """The frames of `camera` as the writer wants them, until the job is stopped."""
    yield from camera.frames()
    _refuse_others(content, camera.output.source.path)


def _refuse_others(content: SourceBytes | None, where: str) -> None:
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
