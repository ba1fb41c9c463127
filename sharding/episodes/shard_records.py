"""Records of episodes that lie in shards: of datasets that were packed without, and of steps that were chosen since."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice, repeat
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from epistream.errors import FormatError
from epistream.file_systems import local_path
from epistream.sharding.episodes.packed_attributes import packed_attributes
from epistream.sharding.files.storage import Options, errors_of, read_bytes, read_range
from epistream.sharding.format.checksums import checksum
from epistream.sharding.format.features import Feature
from epistream.sharding.format.index import ShardIndex
from epistream.sharding.format.ragged import Int64
from epistream.sharding.format.texts import Texts
from epistream.sharding.manifest.episode_records import REMEDY, EpisodeRecords
from epistream.sharding.manifest.opened_dataset import Dataset
from epistream.sharding.manifest.record_batches import count_episodes
from epistream.sharding.manifest.record_making import RecordRules, describe_attributes, identity_in_records

# Requests at once. A server that answers in 50 ms gives 10,000 episodes in half a minute.
_AT_ONCE = 16
# Of episodes whose arrays lie apart, as in tars of others, each array is read by itself.
_MOST_BETWEEN = 64 << 10
# Of values that are looked at together: they are widened to float64 and copied some times.
_BATCH_BYTES = 4 << 20

Read = Callable[[int, int], NDArray[np.uint8]]  # so many bytes from one on; fewer where there are no more
Ranges = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class RecordsTask:
    """The episodes of one shard that records are wanted of. Picklable.

    Args:
        url: The tar.
        index_url: Its index.
        index_checksum: XXH3-128 of that, hexadecimal.
        positions: Of the episodes, in the index.
        ranges: Of each episode the steps that count, half-open; all of them if None.
        features: Array features, by their names in the dataset.
        names: Those that the shard calls otherwise: name in the dataset -> name in the shard.
        rules: What is kept of each.
        described: Their attributes, where they are known: nothing but values is read then.
        options: For fsspec.
    """

    url: str
    index_url: str
    index_checksum: str
    positions: tuple[int, ...]
    ranges: tuple[Ranges | None, ...]
    features: tuple[str, ...]
    names: dict[str, str]
    rules: RecordRules
    described: Texts | None = field(default=None, repr=False)
    options: Options = field(default=None, repr=False)


class Pool(Protocol):
    """Whatever runs tasks and gives their results in order, as `sharding.tasks` does."""

    def map(self, function: Any, tasks: Sequence[Any]) -> Iterator[Any]:
        """The results."""


def records_from_shards(
    dataset: Dataset, rows: Int64, pool: Pool | None = None, described: Texts | None = None
) -> EpisodeRecords:
    """The records (n,) of some episodes, read from their shards: by ranges, and none of their pictures.

    Args:
        dataset: Of shards, local or remote.
        rows: (n,) int64, the episodes; their steps that count are those within `Dataset.valid_ranges`.
        pool: Runs a task a shard; in this process if None.
        described: (n,) scalar attributes of each, of earlier records; read from the shards if None.

    Raises:
        FormatError: If an index or an array is not what the dataset says.
        SourceError, FetchError: If a shard cannot be read.
    """
    if not len(rows):
        return EpisodeRecords.join([])
    shards = dataset.episode_shard[rows]
    order = np.argsort(shards, kind="stable")
    grouped = np.split(order, np.flatnonzero(np.diff(shards[order])) + 1)
    tasks = [
        _task(dataset, rows[members], len(rows), None if described is None else described.select(members))
        for members in grouped
    ]
    made = map(records_of_task, tasks) if pool is None else pool.map(records_of_task, tasks)
    return EpisodeRecords.join(list(made)).select(np.argsort(order))


def _task(dataset: Dataset, rows: Int64, num_wanted: int, described: Texts | None) -> RecordsTask:
    shard = int(dataset.episode_shard[rows[0]])
    columns, arrays = dataset.columns, {n: f for n, f in dataset.features.items() if f.kind == "array"}
    is_whole = columns.ranges is None
    ranges = tuple(None if is_whole else _pairs(columns.ranges_of(row)) for row in rows.tolist())
    return RecordsTask(
        url=dataset.shard_url[shard],
        index_url=dataset.index_url[shard],
        index_checksum=dataset.index_checksum[shard],
        positions=tuple(dataset.episode_in_shard[rows].tolist()),
        ranges=ranges,
        features=tuple(arrays),
        names=dict(dataset.names_in(shard)),
        rules=RecordRules.of(arrays, num_wanted),
        described=described,
        options=dataset.storage_options,
    )


def _pairs(ranges: Int64) -> Ranges:
    return tuple((int(start), int(stop)) for start, stop in ranges)


def records_of_task(task: RecordsTask, pulse: object = None) -> EpisodeRecords:
    """The records of the episodes of one task, in its order; errors are those of `records_from_shards`."""
    data = read_bytes(task.index_url, task.options)
    if data is None or checksum(data) != task.index_checksum:
        found = "no such file" if data is None else f"checksum {checksum(data)}"
        raise FormatError(
            f"{task.index_url}: {found}, wanted the index with {task.index_checksum}. Write it again: "
            "epistream index URL --overwrite"
        )
    index = ShardIndex.parse(data, task.index_url).called(task.names)
    described = task.described
    if described is None:
        attributes = packed_attributes(index, task.url, task.options, task.positions)
        described = Texts.of(map(describe_attributes, attributes), "attributes", REMEDY)
    path = local_path(task.url)
    if path is not None:
        with errors_of(task.url, "wanted the values of its episodes.", task.options):
            return _counted(task, index, described, repeat(_reader(path)))
    with ThreadPoolExecutor(_AT_ONCE, "epistream-records") as pool:
        fetched = pool.map(lambda position: _fetched(task, index, position), task.positions)
        return _counted(task, index, described, fetched)


def _reader(path: Path) -> Read:
    """Reads a tar in small pieces, each of which would be two calls of the system if it were not mapped."""
    tar = np.asarray(np.memmap(path, np.uint8, "r")) if path.stat().st_size else np.empty(0, np.uint8)
    return lambda start, size: tar[start : start + size]


def _counted(task: RecordsTask, index: ShardIndex, described: Texts, every: Iterator[Read]) -> EpisodeRecords:
    """The records of episodes that are read one after the other: some MB of values are looked at together."""
    metas = [index.episodes[position] for position in task.positions]
    step_bytes = sum(index.features[name].step_bytes for name in task.features)
    batch_of = np.cumsum([meta.length * step_bytes for meta in metas]) // _BATCH_BYTES
    parts = []
    for members in np.split(np.arange(len(metas)), np.flatnonzero(np.diff(batch_of)) + 1):
        numbers: list[int] = members.tolist()
        batch = [
            _Episode(
                task.positions[one], ((0, metas[one].length),) if (ranges := task.ranges[one]) is None else ranges, read
            )
            for one, read in zip(numbers, islice(every, len(numbers)), strict=True)
        ]
        parts.append(
            count_episodes(
                {name: _values(index, index.features[name], batch) for name in task.features},
                np.array([one.num_steps for one in batch], np.int64),
                [identity_in_records(metas[one]) for one in numbers],
                described.select(members),
                task.rules,
            )
        )
    return EpisodeRecords.join(parts)


class _Episode(NamedTuple):
    """One of a tar: its position, the steps that count, and what reads its values."""

    position: int
    ranges: Ranges
    read: Read

    @property
    def num_steps(self) -> int:
        return sum(stop - start for start, stop in self.ranges)


def _values(index: ShardIndex, feature: Feature, batch: Sequence[_Episode]) -> NDArray[Any]:
    """The values (S, ...) of a feature at the steps that count, one episode after the other."""
    step_bytes = feature.step_bytes
    if feature.name in index.values:
        rows, first = index.values[feature.name], index.first_row
        found = [rows[first[e.position] + a : first[e.position] + b] for e in batch for a, b in e.ranges]
    else:
        begin = index.array_offset[feature.name].tolist()
        found = [e.read(begin[e.position] + a * step_bytes, (b - a) * step_bytes) for e in batch for a, b in e.ranges]
        sizes = ((e, (b - a) * step_bytes) for e in batch for a, b in e.ranges)
        for piece, (episode, wanted) in zip(found, sizes, strict=True):
            if len(piece) != wanted:
                raise FormatError(
                    f"{index.shard_name}, {index.keys[episode.position]}: {len(piece):,} bytes of {feature.name}, "
                    f"wanted {wanted:,}. Run 'epistream verify'."
                )
    data = np.concatenate(found) if found else np.empty(0, np.uint8)
    values: NDArray[Any] = data.reshape(-1).view(np.dtype(feature.dtype).newbyteorder("<"))
    return values.reshape(len(data.reshape(-1)) // step_bytes, *feature.shape)


def _fetched(task: RecordsTask, index: ShardIndex, position: int) -> Read:
    """Reads the arrays of one episode of a remote tar, brought in one request where they lie together."""
    length = int(index.length[position])
    spans = sorted(
        (int(index.array_offset[name][position]), length * index.features[name].step_bytes)
        for name in task.features
        if name not in index.values
    )
    together: list[tuple[int, int]] = []
    for start, size in spans:
        if together and start - sum(together[-1]) <= _MOST_BETWEEN:
            together[-1] = (together[-1][0], start + size - together[-1][0])
        else:
            together.append((start, size))
    parts = [
        (start, np.frombuffer(read_range(task.url, start, size, task.options), np.uint8)) for start, size in together
    ]

    def read(start: int, size: int) -> NDArray[np.uint8]:
        for begin, data in parts:
            if begin <= start < begin + len(data):
                return data[start - begin : start - begin + size]
        return np.empty(0, np.uint8)

    return read
