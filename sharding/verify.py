"""Checking a dataset: every checksum, every index against its tar as tarfile reads it, every frame by decoding it."""

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from epistream.errors import EpistreamError, FormatError, OptionError
from epistream.sharding.checksums import ShardHasher, checksum, hash_file
from epistream.sharding.codecs import decode_into
from epistream.sharding.dataset import Dataset
from epistream.sharding.features import Feature, describe_difference
from epistream.sharding.foreign import index_tar
from epistream.sharding.index import ShardIndex
from epistream.sharding.local_copy import local_copy
from epistream.sharding.manifest import Manifest
from epistream.sharding.storage import list_names, parent_and_name, read_bytes

# One shard can be wrong in every frame; the first few say as much as all of them.
MAX_FAULTS_A_SHARD = 50


@dataclass(frozen=True)
class Fault:
    """One thing that is not as it should be: where, what was found, what was wanted."""

    file: str
    member: str
    found: str
    wanted: str

    def __str__(self) -> str:
        return f"{self.file}{', ' if self.member else ''}{self.member}: {self.found}, wanted {self.wanted}"


@dataclass(frozen=True)
class VerifyOptions:
    """How thoroughly to look.

    Args:
        sample: Decode at most this many frames a camera and shard, evenly spread; None for all, 0 for none.
        statistics: Compare the manifest's extremes and means with those of the values.
        num_threads: Shards checked at once. Decoding and hashing run in parallel, Python does not.
    """

    sample: int | None = None
    statistics: bool = False
    num_threads: int = 2

    def __post_init__(self) -> None:
        if (self.sample is not None and self.sample < 0) or self.num_threads < 1:
            raise OptionError(f"verify: sample {self.sample} and {self.num_threads} threads, wanted >= 0 and >= 1.")


@dataclass
class Report:
    """What was looked at, and what was wrong with it."""

    faults: list[Fault] = field(default_factory=list)
    num_shards: int = 0
    num_episodes: int = 0
    num_frames: int = 0
    num_bytes: int = 0


@dataclass
class _ShardReport:
    faults: list[Fault]
    num_frames: int = 0
    moments: dict[str, "Moments"] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Moments:
    """Sums over the finite values of an array feature, per dimension (float64)."""

    count: NDArray[Any]
    total: NDArray[Any]
    low: NDArray[Any]
    high: NDArray[Any]


def verify(
    dataset: Dataset,
    options: VerifyOptions | None = None,
    advance: Callable[[int], None] | None = None,
    report_fault: Callable[[Fault], None] | None = None,
) -> Report:
    """Look at everything a dataset promises; go on after a fault.

    Args:
        dataset: Opened, so that its manifest is whole.
        options: How thoroughly to look.
        advance: Called with bytes of tars that were dealt with, all in all the sum of `dataset.shard_bytes`. From
            several threads.
        report_fault: Called with each fault as soon as its shard is done, in the order of shards.

    Raises:
        OptionError: If the dataset is not made of tars.
    """
    options = options or VerifyOptions()
    other = next((url for url in dataset.shard_url if not url.partition("::")[0].endswith(".tar")), None)
    if other:
        raise OptionError(f"{other}: no tar. Verify checks packed datasets; pack it first: epistream pack {other} OUT")
    advance = advance or (lambda num_bytes: None)
    report = Report(num_episodes=dataset.num_episodes)

    def take(faults: list[Fault]) -> None:
        report.faults += faults
        for fault in faults:
            if report_fault:
                report_fault(fault)

    take(list(_strangers(dataset)))
    moments: list[tuple[int, dict[str, Moments]]] = []
    with ThreadPoolExecutor(options.num_threads, "verify") as pool:
        checked = pool.map(lambda shard: _check_shard(dataset, shard, options, advance), range(dataset.num_shards))
        for shard, result in enumerate(checked):
            report.num_shards += 1
            report.num_bytes += int(dataset.shard_bytes[shard])
            report.num_frames += result.num_frames
            moments.append((shard, result.moments))
            take(result.faults)
    if options.statistics:
        from epistream.sharding.verify_statistics import statistics_faults

        take(list(statistics_faults(dataset, moments)))
    return report


def whole_manifest(dataset: Dataset) -> Manifest | None:
    """The manifest that `dataset` is all of; None for a part, a list, or tars without one."""
    try:
        manifest = Manifest.read(dataset.url, dataset.storage_options)
    except EpistreamError:
        return None
    return manifest if manifest.fingerprint == dataset.fingerprint else None


def _strangers(dataset: Dataset) -> Iterator[Fault]:
    """Tars in a dataset's folder that its manifest does not name: a brace pattern would read them."""
    manifest = whole_manifest(dataset)
    if manifest is None:
        return
    known = set(manifest.columns.names)
    for name in list_names(dataset.url, dataset.storage_options) or ():
        if name.endswith(".tar") and name not in known:
            yield Fault(name, "", "a tar that the manifest does not name", "no other tars in the dataset's folder")


def _check_shard(dataset: Dataset, shard: int, options: VerifyOptions, advance: Callable[[int], None]) -> _ShardReport:
    result = _ShardReport([])
    done = 0

    def decoded(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        advance(num_bytes)

    for fault in _shard_faults(dataset, shard, options, decoded, result):
        result.faults.append(fault)
        if len(result.faults) == MAX_FAULTS_A_SHARD:
            result.faults.append(Fault(fault.file, "", "more faults, not looked for", "none"))
            break
    advance(int(dataset.shard_bytes[shard]) - done)
    return result


def _shard_faults(
    dataset: Dataset,
    shard: int,
    options: VerifyOptions,
    decoded: Callable[[int], None],
    result: _ShardReport,
) -> Iterator[Fault]:
    name = parent_and_name(dataset.shard_url[shard])[1]
    index: ShardIndex | None = None
    try:
        index = yield from _read_index(dataset, shard)
    except EpistreamError as error:
        yield _from_error(parent_and_name(dataset.index_url[shard])[1], error)
    try:
        with local_copy(dataset.shard_url[shard], dataset.storage_options) as path:
            hasher = hash_file(path)
            yield from _checksum_faults(dataset, shard, name, hasher, index)
            yield from _index_against_tar(path, hasher, index)
            if index is not None and hasher.num_bytes == index.shard_bytes:
                yield from _content_faults(path, index, options, decoded, result)
    except EpistreamError as error:
        yield _from_error(name, error)


def _from_error(file: str, error: EpistreamError) -> Fault:
    """An error of ours as a fault: its text says found and wanted itself."""
    text = str(error)
    found, _, wanted = text.partition(", wanted ")
    head, _, rest = found.rpartition("/")
    found = rest if head and rest.startswith(file) else found
    return Fault(file, "", found.removeprefix(file).lstrip(":, ").rstrip("."), (wanted or "it to be whole").rstrip("."))


def _read_index(dataset: Dataset, shard: int) -> Generator[Fault, None, ShardIndex | None]:
    """The index, after comparing it with the manifest."""
    url = dataset.index_url[shard]
    name = parent_and_name(url)[1]
    data = read_bytes(url, dataset.storage_options)
    if data is None:
        yield Fault(name, "", "no such file", "the index of " + parent_and_name(dataset.shard_url[shard])[1])
        return None
    found, wanted = checksum(data), dataset.index_checksum[shard]
    if found != wanted or len(data) != dataset.index_bytes[shard]:
        yield Fault(
            name, "", f"{len(data):,} bytes with checksum {found}", f"{dataset.index_bytes[shard]:,} with {wanted}"
        )
    index = ShardIndex.parse(data, name)
    yield from _manifest_faults(dataset, shard, index, name)
    return index


def _manifest_faults(dataset: Dataset, shard: int, index: ShardIndex, name: str) -> Iterator[Fault]:
    promised = (int(dataset.shard_bytes[shard]), dataset.shard_checksum[shard])
    if (index.shard_bytes, index.shard_checksum) != promised:
        yield Fault(name, "", f"index of a tar of {index.shard_bytes} bytes, {index.shard_checksum}", f"{promised}")
    difference = describe_difference(index.features, dataset.features)
    if difference:
        yield Fault(name, "", difference, "the features of the manifest")
    rows = np.flatnonzero(dataset.episode_shard == shard)
    rows = rows[np.argsort(dataset.episode_in_shard[rows])]
    if len(rows) != index.num_episodes:
        yield Fault(name, "", f"{index.num_episodes} episodes", f"{len(rows)} as in the manifest")
        return
    for episode, row in enumerate(rows.tolist()):
        meta = index.episodes[episode]
        ranges, tasks = _of_episode(dataset, row)
        own_ranges = ((0, meta.length),) if meta.valid_ranges is None else meta.valid_ranges
        said = (meta.length, own_ranges)
        wanted = (int(dataset.episode_length[row]), ranges)
        if said != wanted or meta.tasks != tasks:
            yield Fault(
                name, index.keys[episode], f"length, valid ranges {said} and tasks {meta.tasks}", f"{wanted}, {tasks}"
            )


def _of_episode(dataset: Dataset, row: int) -> tuple[tuple[tuple[int, int], ...], tuple[str, ...]]:
    offsets, ranges = dataset.valid_ranges
    task_offsets, ids = dataset.episode_tasks
    pairs = ranges[offsets[row] : offsets[row + 1]].tolist()
    names = ids[task_offsets[row] : task_offsets[row + 1]].tolist()
    return tuple((start, stop) for start, stop in pairs), tuple(dataset.tasks[number] for number in names)


def _checksum_faults(
    dataset: Dataset, shard: int, name: str, hasher: ShardHasher, index: ShardIndex | None
) -> Iterator[Fault]:
    size, wanted = int(dataset.shard_bytes[shard]), dataset.shard_checksum[shard]
    if hasher.num_bytes != size:
        yield Fault(name, "", f"{hasher.num_bytes:,} bytes", f"{size:,}")
    elif hasher.checksum != wanted:
        yield Fault(name, "", f"checksum {hasher.checksum}", wanted)
    if index is None or index.block_bytes != hasher.block_bytes:
        return
    found, promised = hasher.block_checksums, index.block_checksums
    both = min(len(found), len(promised))
    for block in np.flatnonzero(found[:both] != promised[:both]).tolist():
        start = block * hasher.block_bytes
        yield Fault(
            name,
            f"bytes {start:,} to {min(start + hasher.block_bytes, hasher.num_bytes):,}",
            f"block checksum {found[block]:016x}",
            f"{promised[block]:016x}",
        )


def _index_against_tar(path: Path, hasher: ShardHasher, index: ShardIndex | None) -> Iterator[Fault]:
    """Compare with an index made from the tar's own headers, by code that shares nothing with the packing."""
    name = path.name
    try:
        real = index_tar(path, hasher)
    except FormatError as error:
        yield _from_error(name, error)
        return
    if index is None:
        return
    if list(real.keys) != list(index.keys) or real.length.tolist() != index.length.tolist():
        yield Fault(name, "", f"episodes {_episodes(real)}", f"{_episodes(index)} as in the index")
        return
    for feature in index.features.values():
        if feature.name not in real.features:
            yield Fault(name, feature.name, "no such members", "what the index points at")
            continue
        yield from _place_faults(name, feature, index, real)


def _episodes(index: ShardIndex) -> str:
    return ", ".join(f"{key} ({length})" for key, length in zip(index.keys, index.length.tolist(), strict=True))[:200]


def _place_faults(name: str, feature: Feature, index: ShardIndex, real: ShardIndex) -> Iterator[Fault]:
    if real.features[feature.name].kind != feature.kind:
        yield Fault(name, feature.name, f"{real.features[feature.name].kind} in the tar", f"{feature.kind}")
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


def frame_name(index: ShardIndex, feature: Feature, row: int) -> str:
    """The member, and for raw cameras the step, that holds a row."""
    episode = int(np.searchsorted(index.first_row, row, side="right")) - 1
    step = row - int(index.first_row[episode])
    if feature.codec == "raw":
        return f"{index.keys[episode]}.{feature.name}.npy, step {step}"
    return f"{index.keys[episode]}.{feature.name}.{step:06d}{feature.suffix}"


def _content_faults(
    path: Path, index: ShardIndex, options: VerifyOptions, decoded: Callable[[int], None], result: _ShardReport
) -> Iterator[Fault]:
    """Decode frames, and sum up arrays."""
    with path.open("rb") as file:  # read, not mapped: a file that shrinks meanwhile is a fault, not a SIGBUS
        for feature in index.features.values():
            if feature.kind == "frames":
                yield from _frame_faults(file, path.name, index, feature, options.sample, decoded, result)
            elif options.statistics:
                from epistream.sharding.verify_statistics import sum_up

                result.moments[feature.name] = sum_up(file, index, feature)


def _frame_faults(
    file: BinaryIO,
    name: str,
    index: ShardIndex,
    feature: Feature,
    sample: int | None,
    decoded: Callable[[int], None],
    result: _ShardReport,
) -> Iterator[Fault]:
    rows = np.arange(index.num_rows)
    if sample is not None and sample < len(rows):
        rows = np.linspace(0, len(rows) - 1, sample).round().astype(np.int64)
    out = np.empty(feature.shape, feature.dtype)
    starts, sizes = index.frame_offset[feature.name], index.frame_size[feature.name]
    for row in rows.tolist():
        start, size = int(starts[row]), int(sizes[row])
        member = frame_name(index, feature, row)
        try:
            file.seek(start)
            decode_into(feature, file.read(size), out, f"{name}, {member}")
        except EpistreamError as error:
            yield Fault(
                name, member, str(error).removeprefix(f"{name}, {member}: ").rstrip("."), "a frame that decodes"
            )
        result.num_frames += 1
        decoded(size)
