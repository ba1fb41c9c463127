"""Checking one shard: its checksums, its index against manifest and tar, its frames by decoding them."""

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from epistream.errors import EpistreamError, FormatError, OptionError
from epistream.sharding.check.faults import Fault, fault_of
from epistream.sharding.episodes.shard_statistics import not_finite_in, statistics_of
from epistream.sharding.files.names import index_name
from epistream.sharding.files.storage import local_copy, parent_and_name, read_bytes
from epistream.sharding.format.checksums import CHECKSUM_BLOCK_BYTES, ShardHasher, checksum, hash_file
from epistream.sharding.format.feature_sets import describe_difference
from epistream.sharding.format.features import Feature, codec_of
from epistream.sharding.format.index import ShardIndex
from epistream.sharding.format.statistics import NotFinite, Summary
from epistream.sharding.manifest.manifest_columns import RANGES_EDITED, TASKS_EDITED
from epistream.sharding.manifest.opened_dataset import Dataset, valid_in
from epistream.sharding.pictures.codecs import CODECS, REMEDY
from epistream.sharding.pictures.video import VideoDecoder
from epistream.sharding.tar.index_tar import index_tar
from epistream.sharding.tar.step_mapping import mapping_of_index
from epistream.sharding.tar.step_tars import cast_values, choose_episodes
from epistream.sharding.tar.steps import index_steps
from epistream.sharding.tasks.engine import EngineName, EngineOptions

Int64 = NDArray[np.int64]

# One shard can be wrong in every frame; the first few say as much as all of them.
MAX_FAULTS_A_SHARD = 50


@dataclass(frozen=True)
class VerifyOptions:
    """How thoroughly to look.

    Args:
        sample: Decode at most this many frames a camera and shard, evenly spread; None for all, 0 for none.
        statistics: Compare the manifest's extremes and means with those of the values.
        num_threads: Shards checked at once. Decoding and hashing run in parallel, Python does not.
        engine: What checks them, ``local`` or ``ray``. Threads of this process, or a Ray cluster, which must see the
            dataset by the same path or URL; then `num_threads` does not count.
        address: Of Ray's cluster. ``auto``, ``HOST:PORT`` or ``ray://HOST:PORT``; None starts one here.
    """

    sample: int | None = None
    statistics: bool = False
    num_threads: int = 2
    engine: EngineName = "local"
    address: str | None = None

    def __post_init__(self) -> None:
        if (self.sample is not None and self.sample < 0) or self.num_threads < 1:
            raise OptionError(f"verify: sample {self.sample} and {self.num_threads} threads, wanted >= 0 and >= 1.")
        EngineOptions(self.engine, self.address)  # it refuses what cannot work


class ShardCheck:
    """Everything about one shard: its faults, how many of its frames were decoded, and its statistics if asked for.

    `advance` is called with all its bytes, piece by piece; statistics are those of `split`, or of all if None.
    """

    def __init__(
        self,
        dataset: Dataset,
        shard: int,
        options: VerifyOptions,
        advance: Callable[[int], None],
        split: int | None = None,
    ) -> None:
        self._dataset, self._shard, self._options, self._advance = dataset, shard, options, advance
        self._split = split
        self._name = parent_and_name(dataset.shard_url[shard])[1]
        self.num_bytes = self._bytes_left = int(dataset.shard_bytes[shard])
        self.faults: list[Fault] = []
        self.num_frames = 0
        self.statistics: dict[str, Summary] = {}
        self.not_finite: dict[str, NotFinite] = {}

    def run(self) -> "ShardCheck":
        """Look at it; returns this object."""
        for fault in self._find_faults():
            self.faults.append(fault)
            if len(self.faults) == MAX_FAULTS_A_SHARD:
                self.faults.append(Fault(fault.file, "", "more faults, not looked for", "none"))
                break
        self._advance(self._bytes_left)
        return self

    def _find_faults(self) -> Iterator[Fault]:
        url, index_url = self._dataset.shard_url[self._shard], self._dataset.index_url[self._shard]
        index: ShardIndex | None = None
        try:
            index = yield from self._read_index(index_url)
        except EpistreamError as error:
            yield fault_of(parent_and_name(index_url)[1], error)
        try:
            with local_copy(url, self._dataset.storage_options) as path:
                hasher = hash_file(path, index.block_bytes if index else CHECKSUM_BLOCK_BYTES)
                yield from self._checksum_faults(hasher, index)
                yield from _index_against_tar(path, hasher, index)
                if index is not None and hasher.num_bytes == index.shard_bytes:
                    yield from self._content_faults(path, index)
        except EpistreamError as error:
            yield fault_of(self._name, error)

    def _read_index(self, url: str) -> Generator[Fault, None, ShardIndex | None]:
        """The index, after comparing it with the manifest."""
        dataset, name = self._dataset, parent_and_name(url)[1]
        data = read_bytes(url, dataset.storage_options)
        if data is None:
            yield Fault(name, "", "no such file", f"the index of {self._name}")
            return None
        found, wanted, size = checksum(data), dataset.index_checksum[self._shard], dataset.index_bytes[self._shard]
        if found != wanted or len(data) != size:
            yield Fault(name, "", f"{len(data):,} bytes with checksum {found}", f"{size:,} with {wanted}")
        index = ShardIndex.parse(data, name)
        yield from _manifest_faults(dataset, self._shard, index, name)
        return index

    def _checksum_faults(self, hasher: ShardHasher, index: ShardIndex | None) -> Iterator[Fault]:
        size, wanted = int(self._dataset.shard_bytes[self._shard]), self._dataset.shard_checksum[self._shard]
        if hasher.num_bytes != size:
            yield Fault(self._name, "", f"{hasher.num_bytes:,} bytes", f"{size:,}")
        elif hasher.checksum != wanted:
            yield Fault(self._name, "", f"checksum {hasher.checksum}", wanted)
        if index is None:
            return
        found, promised = hasher.block_checksums, index.block_checksums
        both = min(len(found), len(promised))
        for block in np.flatnonzero(found[:both] != promised[:both]).tolist():
            start = block * hasher.block_bytes
            yield Fault(
                self._name,
                f"bytes {start:,} to {min(start + hasher.block_bytes, hasher.num_bytes):,}",
                f"block checksum {found[block]:016x}",
                f"{promised[block]:016x}",
            )

    def _content_faults(self, path: Path, index: ShardIndex) -> Iterator[Fault]:
        """Decode frames, and sum up arrays."""
        called = self._called(index)
        self.not_finite = not_finite_in(path, called, valid_in(self._dataset, self._shard))
        if self._options.statistics:
            self.statistics = statistics_of(path, called, valid_in(self._dataset, self._shard, self._split))
        rows, sample = self._rows(index), self._options.sample
        if sample is not None and sample < len(rows):
            rows = rows[np.linspace(0, len(rows) - 1, sample).round().astype(np.int64)]
        with path.open("rb") as file:  # read, not mapped: a file that shrinks meanwhile is a fault, not a SIGBUS
            for feature in index.features.values():
                if feature.name in self._dataset.group_of(self._shard).dropped:
                    continue
                if feature.name in index.videos:
                    yield from self._video_faults(file, index, feature, rows)
                elif feature.kind == "frames":
                    yield from self._frame_faults(file, index, feature, rows.tolist())

    def _called(self, index: ShardIndex) -> ShardIndex:
        """The index with the features that the dataset has, as it calls them."""
        called, group = index.called(self._dataset.names_in(self._shard)), self._dataset.group_of(self._shard)
        if not group.dropped:
            return called
        return replace(called, features={name: called.features[name] for name in self._dataset.features})

    def _rows(self, index: ShardIndex) -> Int64:
        """The steps of the episodes that the dataset has of the shard: what was removed may be as bad as it is."""
        episodes = np.sort(self._dataset.episode_in_shard[self._dataset.episode_shard == self._shard])
        if len(episodes) == index.num_episodes:
            return np.arange(index.num_rows)
        parts = [np.arange(index.length[one]) + index.first_row[one] for one in episodes if one < index.num_episodes]
        return np.concatenate([np.empty(0, np.int64), *parts])

    def _frame_faults(self, file: BinaryIO, index: ShardIndex, feature: Feature, rows: list[int]) -> Iterator[Fault]:
        codec, out = codec_of(feature), np.empty(feature.shape, feature.dtype)
        for row in rows:
            start, size = index.frame_range(feature.name, row)
            member = frame_name(index, feature, row)
            where = f"{self._name}, {member}"
            try:
                file.seek(start)
                codec.decode_into(file.read(size), out, where)
            except EpistreamError as error:
                found = str(error).removeprefix(f"{where}: ").removesuffix(f" {REMEDY}").rstrip(".")
                yield Fault(self._name, member, found, "a frame that decodes")
            self.num_frames += 1
            self._bytes_left -= size
            self._advance(size)

    def _video_faults(self, file: BinaryIO, index: ShardIndex, feature: Feature, rows: Int64) -> Iterator[Fault]:
        decoder = VideoDecoder(feature.shape)
        for run in index.runs(feature.name, rows):
            first = int(index.first_row[np.searchsorted(index.first_row, run.rows[0], side="right") - 1])
            steps = run.rows - first
            member = f"{frame_name(index, feature, int(run.rows.min()))} to {steps.max()}"
            where = f"{self._name}, {member}"
            packets = zip(steps.tolist(), _packets(file, index, feature, run.rows), strict=True)
            try:
                for _ in decoder.pictures(run.stream, packets, (), where):
                    pass  # every one is decoded, and none is made a picture of
            except FormatError as error:
                found = str(error).removeprefix(f"{where}: ").removesuffix(f" {REMEDY}").rstrip(".")
                yield Fault(self._name, member, found, "frames that decode")
            num_bytes = int(index.frame_size[feature.name][run.rows].sum())
            self.num_frames += len(run.wanted)
            self._bytes_left -= num_bytes
            self._advance(num_bytes)


def _packets(file: BinaryIO, index: ShardIndex, feature: Feature, rows: Int64) -> Iterator[bytes]:
    for row in rows.tolist():
        start, size = index.frame_range(feature.name, row)
        file.seek(start)
        yield file.read(size)


def _manifest_faults(dataset: Dataset, shard: int, index: ShardIndex, name: str) -> Iterator[Fault]:
    promised = (int(dataset.shard_bytes[shard]), dataset.shard_checksum[shard])
    if (index.shard_bytes, index.shard_checksum) != promised:
        yield Fault(name, "", f"index of a tar of {index.shard_bytes} bytes, {index.shard_checksum}", f"{promised}")
    group = dataset.group_of(shard)
    found = {name: one for name, one in index.features.items() if name not in group.dropped}
    difference = describe_difference(replace(index, features=found).called(group.renamed).features, dataset.features)
    if difference:
        yield Fault(name, "", difference, "the features of the manifest")
    num_episodes = int(dataset.columns.num_in_shard[shard])
    if num_episodes != index.num_episodes:
        yield Fault(name, "", f"{index.num_episodes} episodes", f"{num_episodes} as in the manifest")
        return
    rows = np.flatnonzero(dataset.episode_shard == shard)
    for row, episode in zip(rows.tolist(), dataset.episode_in_shard[rows].tolist(), strict=True):
        meta, edits = index.episodes[episode], int(dataset.columns.edits[row])
        ranges, tasks = _of_episode(dataset, row)
        own_ranges = ((0, meta.length),) if meta.valid_ranges is None else meta.valid_ranges
        said = (meta.length, ranges if edits & RANGES_EDITED else own_ranges)
        wanted = (int(dataset.episode_length[row]), ranges)
        if said != wanted or (meta.tasks != tasks and not edits & TASKS_EDITED):
            yield Fault(
                name, index.keys[episode], f"length, valid ranges {said} and tasks {meta.tasks}", f"{wanted}, {tasks}"
            )


def _of_episode(dataset: Dataset, row: int) -> tuple[tuple[tuple[int, int], ...], tuple[str, ...]]:
    task_offsets, ids = dataset.episode_tasks
    pairs = dataset.columns.ranges_of(row).tolist()
    names = ids[task_offsets[row] : task_offsets[row + 1]].tolist()
    return tuple((start, stop) for start, stop in pairs), tuple(dataset.tasks[number] for number in names)


def _index_against_tar(path: Path, hasher: ShardHasher, index: ShardIndex | None) -> Iterator[Fault]:
    """Compare with an index made from the tar's own headers, by code that shares nothing with the packing."""
    name = path.name
    try:
        real = index_tar(path, hasher) if index is None or index.steps is None else _of_steps(path, hasher, index)
    except FormatError as error:
        yield fault_of(name, error)
        return
    if index is None:
        return
    if list(real.keys) != list(index.keys) or real.length.tolist() != index.length.tolist():
        yield Fault(name, "", f"episodes {_episodes(real)}", f"{_episodes(index)} as in the index")
        return
    mine, others = index.step_task, real.step_task
    is_same = mine is others if mine is None or others is None else np.array_equal(mine, others)
    if not is_same:
        yield Fault(name, "", "other instructions of steps in the index", "those of the tar")
    for feature in index.features.values():
        if feature.name not in real.features:
            yield Fault(name, feature.name, "no such members", "what the index points at")
            continue
        yield from _place_faults(name, feature, index, real)


def _of_steps(path: Path, hasher: ShardHasher, index: ShardIndex) -> ShardIndex:
    """The index of a tar with one sample a step, by the mapping that `index` names, without the episodes it leaves out.

    Raises:
        FormatError: If the tar does not fit the mapping, or the mapping is none.
    """
    mapping = mapping_of_index((index.steps or {}).get("mapping"), index_name(path.name))
    real = cast_values(index_steps(path, mapping, hasher).index, index.features)
    names = {meta.source_path for meta in index.episodes}
    mine = [at for at, meta in enumerate(real.episodes) if meta.source_path in names]
    return choose_episodes(real, mine) if mine else real


def _episodes(index: ShardIndex) -> str:
    return ", ".join(f"{key} ({length})" for key, length in zip(index.keys, index.length.tolist(), strict=True))[:200]


def _place_faults(name: str, feature: Feature, index: ShardIndex, real: ShardIndex) -> Iterator[Fault]:
    if real.features[feature.name].kind != feature.kind:
        yield Fault(name, feature.name, f"{real.features[feature.name].kind} in the tar", f"{feature.kind}")
    elif feature.name in index.values and feature.name in real.values:
        for row in np.flatnonzero((index.values[feature.name] != real.values[feature.name]).any(axis=1)).tolist():
            yield Fault(name, frame_name(index, feature, row), "another value in the index", "that of the tar")
    elif feature.kind == "array" and (feature.name in index.values) != (feature.name in real.values):
        yield Fault(name, feature.name, "values and offsets in the index", "one of both, as in the tar")
    elif feature.kind == "array":
        found, wanted = index.array_offset[feature.name], real.array_offset[feature.name]
        for episode in np.flatnonzero(found != wanted).tolist():
            member = f"{index.keys[episode]}.{feature.name}.npy"
            yield Fault(name, member, f"byte {found[episode]} in the index", f"{wanted[episode]} as in the tar")
    else:
        starts, sizes = index.frame_offset[feature.name], index.frame_size[feature.name]
        real_starts, real_sizes = real.frame_offset[feature.name], real.frame_size[feature.name]
        for row in np.flatnonzero((starts != real_starts) | (sizes != real_sizes)).tolist():
            found_at = f"{sizes[row]} bytes at {starts[row]} in the index"
            yield Fault(name, frame_name(index, feature, row), found_at, f"{real_sizes[row]} at {real_starts[row]}")
        if feature.name in index.videos:
            yield from _group_faults(name, feature, index, real)


def _group_faults(name: str, feature: Feature, index: ShardIndex, real: ShardIndex) -> Iterator[Fault]:
    if feature.name not in real.videos:
        yield Fault(name, feature.name, "a video in the index", "other frames, as in the tar")
        return
    mine, other = index.videos[feature.name], real.videos[feature.name]
    for row in np.flatnonzero(mine.back != other.back).tolist():
        found = f"{mine.back[row]} steps back to a key frame in the index"
        yield Fault(name, frame_name(index, feature, row), found, f"{other.back[row]} as in the tar")
    for episode in range(index.num_episodes):
        if mine.stream(episode) != other.stream(episode):
            member = frame_name(index, feature, int(index.first_row[episode]))
            yield Fault(name, member, "other parameters of its stream in the index", "those of the tar")


def frame_name(index: ShardIndex, feature: Feature, row: int) -> str:
    """The member, and where it holds many steps also the step, that a row is."""
    episode = int(np.searchsorted(index.first_row, row, side="right")) - 1
    step = row - int(index.first_row[episode])
    if index.steps is not None:
        return f"episode {index.keys[episode]}, step {step}, {feature.name}"
    codec, member = CODECS[feature.codec], f"{index.keys[episode]}.{feature.name}"
    if codec.storage == "members":
        return f"{member}.{step:06d}{codec.suffixes[0]}"
    return f"{member}{codec.suffixes[0]}, step {step}"
