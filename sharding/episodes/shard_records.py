"""Records of episodes that lie in shards: of datasets that were packed without, and of steps that were chosen since."""

import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from epistream.errors import FormatError
from epistream.file_systems import local_path
from epistream.sharding.episodes.packed_attributes import packed_attributes
from epistream.sharding.episodes.shard_statistics import array_of
from epistream.sharding.files.storage import Options, errors_of, read_bytes, read_range
from epistream.sharding.format.checksums import checksum
from epistream.sharding.format.features import Feature
from epistream.sharding.format.index import ShardIndex
from epistream.sharding.format.ragged import Int64
from epistream.sharding.manifest.episode_records import EpisodeRecords
from epistream.sharding.manifest.opened_dataset import Dataset
from epistream.sharding.manifest.record_making import RecordRules, count_episode

# Requests at once. A server that answers in 50 ms gives 10,000 episodes in half a minute.
_AT_ONCE = 16
# Of episodes whose arrays lie apart, as in tars of others, each array is read by itself.
_MOST_BETWEEN = 64 << 10


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
        options: For fsspec.
    """

    url: str
    index_url: str
    index_checksum: str
    positions: tuple[int, ...]
    ranges: tuple[tuple[tuple[int, int], ...] | None, ...]
    features: tuple[str, ...]
    names: dict[str, str]
    rules: RecordRules
    options: Options = field(default=None, repr=False)


class Pool(Protocol):
    """Whatever runs tasks and gives their results in order, as `sharding.tasks` does."""

    def map(self, function: Any, tasks: Sequence[Any]) -> Iterator[Any]:
        """The results."""


def records_from_shards(dataset: Dataset, rows: Int64, pool: Pool | None = None) -> EpisodeRecords:
    """The records (n,) of some episodes, read from their shards: by ranges, and none of their pictures.

    Args:
        dataset: Of shards, local or remote.
        rows: (n,) int64, the episodes; their steps that count are those within `Dataset.valid_ranges`.
        pool: Runs a task a shard; in this process if None.

    Raises:
        FormatError: If an index or an array is not what the dataset says.
        SourceError, FetchError: If a shard cannot be read.
    """
    if not len(rows):
        return EpisodeRecords.join([])
    shards = dataset.episode_shard[rows]
    order = np.argsort(shards, kind="stable")
    grouped = np.split(order, np.flatnonzero(np.diff(shards[order])) + 1)
    tasks = [_task(dataset, rows[members], len(rows)) for members in grouped]
    made = map(records_of_task, tasks) if pool is None else pool.map(records_of_task, tasks)
    return EpisodeRecords.join(list(made)).select(np.argsort(order))


def _task(dataset: Dataset, rows: Int64, num_wanted: int) -> RecordsTask:
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
        options=dataset.storage_options,
    )


def _pairs(ranges: Int64) -> tuple[tuple[int, int], ...]:
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
    attributes = packed_attributes(index, task.url, task.options, task.positions)

    def record(number: int, values: dict[str, NDArray[Any]]) -> EpisodeRecords:
        meta = replace(
            index.episodes[task.positions[number]], valid_ranges=task.ranges[number], attributes=attributes[number]
        )
        return count_episode(values, meta, task.rules).records

    features = [index.features[name] for name in task.features]
    path = local_path(task.url)
    if path is not None:
        with errors_of(task.url, "wanted the values of its episodes.", task.options), path.open("rb") as file:
            every = (_arrays(file, index, features, position) for position in task.positions)
            return EpisodeRecords.join([record(number, values) for number, values in enumerate(every)])
    with ThreadPoolExecutor(_AT_ONCE, "epistream-records") as pool:
        fetched = pool.map(lambda position: _fetched(task, index, features, position), task.positions)
        return EpisodeRecords.join([record(number, values) for number, values in enumerate(fetched)])


def _arrays(file: BinaryIO, index: ShardIndex, features: Sequence[Feature], position: int) -> dict[str, NDArray[Any]]:
    try:
        return {one.name: array_of(file, index, one, position) for one in features}
    except ValueError as error:
        raise FormatError(
            f"{index.shard_name}, {index.keys[position]}: {error}, wanted its values. Run 'epistream verify'."
        ) from error


def _fetched(
    task: RecordsTask, index: ShardIndex, features: Sequence[Feature], position: int
) -> dict[str, NDArray[Any]]:
    """The arrays of one episode of a remote tar: in one request where they lie together."""
    length = int(index.length[position])
    spans = sorted(
        (int(index.array_offset[one.name][position]), length * one.step_bytes)
        for one in features
        if one.name not in index.values
    )
    together: list[tuple[int, int]] = []
    for start, size in spans:
        if together and start - sum(together[-1]) <= _MOST_BETWEEN:
            together[-1] = (together[-1][0], start + size - together[-1][0])
        else:
            together.append((start, size))
    parts = [(start, read_range(task.url, start, size, task.options)) for start, size in together]
    return _arrays(_Parts(parts), index, features, position)


class _Parts(io.BytesIO):
    """Some ranges of a file, as the file itself."""

    def __init__(self, parts: Sequence[tuple[int, bytes]]) -> None:
        super().__init__()
        self._parts, self._at = parts, 0

    def seek(self, offset: int, whence: int = 0) -> int:
        """To a byte of one of the parts."""
        self._at = offset
        return offset

    def read(self, size: int | None = -1) -> bytes:
        """From there on, within the part."""
        for start, data in self._parts:
            if start <= self._at < start + len(data):
                return data[self._at - start : self._at - start + (size or 0)]
        return b""
