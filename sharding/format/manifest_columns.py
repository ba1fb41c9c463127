"""The long lists of a manifest as arrays: what is known of each shard and of each episode, and their fingerprint."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, overload

import numpy as np
import xxhash
from numpy.typing import NDArray

from epistream.sharding.files.names import shard_name_problem
from epistream.sharding.format.features import Feature

T = TypeVar("T")
Int64 = NDArray[np.int64]
UInt8 = NDArray[np.uint8]
# Limits that keep every sum below within 64 bits.
_MAX_EPISODES = 1 << 28
_MAX_LENGTH = 1 << 34
_MAX_SHARD_BYTES = 1 << 40

# The columns by what they are of: shards; episodes; and lists of each episode, offsets beside their flat values.
OF_SHARDS = ("shard_bytes", "shard_checksums", "index_bytes", "index_checksums", "shard_split")
OF_EPISODES = ("episode_shard", "episode_in_shard", "episode_length")
LISTS = (("range_offsets", "ranges"), ("task_offsets", "task_ids"))


@dataclass(frozen=True, eq=False)
class ManifestColumns:
    """S shards and E episodes, in the order of the dataset. All numbers are int64 where nothing else is said.

    Args:
        names: (S,) file names of the tars, or of HDF5 files.
        shard_bytes: (S,) sizes of the tars.
        shard_checksums: (S, 16) uint8, XXH3-128.
        index_bytes: (S,) sizes of the indexes.
        index_checksums: (S, 16) uint8, XXH3-128.
        shard_split: (S,) uint8, position in the manifest's splits.
        episode_shard: (E,) shard that holds the episode.
        episode_in_shard: (E,) position in that shard's index.
        episode_length: (E,) steps.
        task_offsets: (E + 1,) where the tasks of an episode begin and end in `task_ids`.
        task_ids: flat positions in the manifest's tasks.
        range_offsets: (E + 1,) where the valid ranges of an episode begin and end in `ranges`; None, and `ranges` too,
            where every step of every episode is valid.
        ranges: (R, 2) half-open step ranges.
    """

    names: Sequence[str]
    shard_bytes: Int64
    shard_checksums: UInt8
    index_bytes: Int64
    index_checksums: UInt8
    shard_split: UInt8
    episode_shard: Int64
    episode_in_shard: Int64
    episode_length: Int64
    task_offsets: Int64
    task_ids: Int64
    range_offsets: Int64 | None = None
    ranges: Int64 | None = None

    @property
    def num_shards(self) -> int:
        """Shards."""
        return len(self.shard_bytes)

    @property
    def num_episodes(self) -> int:
        """Episodes."""
        return len(self.episode_length)

    @property
    def num_steps(self) -> int:
        """Steps of all episodes."""
        return int(self.episode_length.sum())

    @property
    def valid_ranges(self) -> tuple[Int64, Int64]:
        """`range_offsets` and `ranges`, written out where they are None: 24 bytes an episode, made at each call."""
        if self.range_offsets is None or self.ranges is None:
            return default_ranges(self.episode_length)
        return self.range_offsets, self.ranges

    def ranges_of(self, episode: int) -> Int64:
        """(n, 2) valid ranges of one episode."""
        if self.range_offsets is None or self.ranges is None:
            return np.array([[0, self.episode_length[episode]]])
        return self.ranges[self.range_offsets[episode] : self.range_offsets[episode + 1]]

    def select(self, shards: Sequence[int]) -> "ManifestColumns":
        """The columns of some shards, in the order given, and of their episodes, in the order of the dataset."""
        chosen = np.asarray(shards, np.int64)
        new_index = np.full(self.num_shards, -1, np.int64)
        new_index[chosen] = np.arange(len(chosen))
        keep = np.flatnonzero(new_index[self.episode_shard] >= 0)
        values = {name: getattr(self, name)[chosen] for name in OF_SHARDS}
        values |= {name: getattr(self, name)[keep] for name in OF_EPISODES}
        values["episode_shard"] = new_index[values["episode_shard"]]
        for offsets, flat in LISTS:
            if getattr(self, offsets) is not None:
                values[offsets], rows = _select_lists(getattr(self, offsets), keep)
                values[flat] = getattr(self, flat)[rows]
        return ManifestColumns(names=tuple(self.names[shard] for shard in chosen), **values)


def _select_lists(offsets: Int64, keep: Int64) -> tuple[Int64, Int64]:
    """New offsets, and the flat rows of the kept lists."""
    counts = np.diff(offsets)[keep]
    new = offsets_of(counts)
    rows = np.repeat(offsets[keep] - new[:-1], counts) + np.arange(new[-1])
    return new, rows


def offsets_of(counts: Sequence[int] | Int64) -> Int64:
    """Where lists of so many values begin and end in their flat values."""
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def join_columns(
    parts: Sequence[ManifestColumns], split_numbers: Sequence[UInt8], task_numbers: Sequence[Int64]
) -> ManifestColumns:
    """The columns of one dataset after the other.

    Args:
        parts: Theirs.
        split_numbers: For each part, the new number of each of its splits.
        task_numbers: For each part, the new number of each of its tasks.
    """
    first_shard = np.cumsum([0] + [part.num_shards for part in parts])[:-1]
    # One column after the other: those of millions of episodes are large, and so are their parts.
    values = {
        "shard_split": np.concatenate([n[part.shard_split] for part, n in zip(parts, split_numbers, strict=True)]),
        "episode_shard": np.concatenate([p.episode_shard + n for p, n in zip(parts, first_shard, strict=True)]),
        "task_ids": np.concatenate([n[part.task_ids] for part, n in zip(parts, task_numbers, strict=True)]),
    }
    values["task_offsets"] = _join_offsets([part.task_offsets for part in parts])
    if any(part.ranges is not None for part in parts):
        values["range_offsets"] = _join_offsets([part.valid_ranges[0] for part in parts])
        values["ranges"] = np.concatenate([part.valid_ranges[1] for part in parts])
    for name in {*OF_SHARDS, *OF_EPISODES} - values.keys():
        values[name] = np.concatenate([getattr(part, name) for part in parts])
    return ManifestColumns(names=tuple(name for part in parts for name in part.names), **values)


def _join_offsets(parts: Sequence[Int64]) -> Int64:
    """Where the lists of one part after the other begin and end."""
    starts = np.cumsum([0] + [int(offsets[-1]) for offsets in parts])
    pieces = [offsets[:-1] + start for offsets, start in zip(parts, starts[:-1], strict=True)]
    return np.concatenate([*pieces, starts[-1:]])


def default_ranges(length: Int64) -> tuple[Int64, Int64]:
    """Offsets and ranges that make every step of every episode valid."""
    ranges = np.zeros((len(length), 2), np.int64)
    ranges[:, 1] = length
    return np.arange(len(length) + 1, dtype=np.int64), ranges


def fingerprint(features: Mapping[str, Feature], splits: Sequence[str], columns: ManifestColumns) -> str:
    """XXH3-128, hexadecimal, of what decides which bytes an epoch reads.

    What goes in, in this order:

    1. JSON of {features, splits}: every field of every feature but its `source_path`, sorted by name; split names.
    2. For each shard its size, checksum and split.
    3. For each episode its shard, its position there and its length.
    4. The valid ranges of every episode, written out where they are the default.

    Numbers go in as little-endian int64 (checksums and splits as bytes), each list after its own size in bytes.
    Names of shards, tasks, statistics, sources and versions of libraries stay out: a dataset that is moved,
    renamed or packed again to the same bytes keeps its caches and resume states.
    """
    described = [
        {key: value for key, value in features[name].to_dict().items() if key != "source_path"}
        for name in sorted(features)
    ]
    text = json.dumps({"features": described, "splits": list(splits)}, sort_keys=True)
    lists: list[NDArray[Any]] = [
        np.frombuffer(text.encode(), np.uint8),
        columns.shard_bytes,
        columns.shard_checksums,
        columns.shard_split,
        columns.episode_shard,
        columns.episode_in_shard,
        columns.episode_length,
        *columns.valid_ranges,
    ]
    hasher = xxhash.xxh3_128(b"epistream fingerprint 1\n")
    for values in lists:
        data = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
        hasher.update(data.nbytes.to_bytes(8, "little"))
        hasher.update(data.data)
    return hasher.hexdigest()


def column_problems(columns: ManifestColumns, num_splits: int, num_tasks: int) -> Iterator[str]:
    """Everything in `columns` that cannot be, vectorised; later checks rely on the earlier ones."""
    num_shards, num_episodes = columns.num_shards, columns.num_episodes
    if not num_shards or not num_episodes or num_episodes > _MAX_EPISODES:
        yield f"{num_shards} shards and {num_episodes} episodes, wanted 1 or more of each"
    for name in ("shard_checksums", "index_checksums"):
        if getattr(columns, name).shape != (num_shards, 16):
            yield f"{name} of shape {getattr(columns, name).shape}, wanted {(num_shards, 16)}"
    for name in ("index_bytes", "shard_split", "names"):
        if len(getattr(columns, name)) != num_shards:
            yield f"{len(getattr(columns, name))} {name}, wanted {num_shards}"
    for name in ("episode_shard", "episode_in_shard"):
        if len(getattr(columns, name)) != num_episodes:
            yield f"{len(getattr(columns, name))} of {name}, wanted {num_episodes}"
    yield from out_of_range("shard_bytes", columns.shard_bytes, 1, _MAX_SHARD_BYTES)
    yield from out_of_range("index_bytes", columns.index_bytes, 1, _MAX_SHARD_BYTES)
    yield from out_of_range("shard_split", columns.shard_split, 0, num_splits - 1)
    yield from out_of_range("episode_length", columns.episode_length, 1, _MAX_LENGTH)
    yield from out_of_range("episode_shard", columns.episode_shard, 0, num_shards - 1)
    yield from filter(None, map(shard_name_problem, columns.names))
    if len(set(columns.names)) != num_shards:
        yield f"{len(set(columns.names))} different shard names, wanted {num_shards}"
    yield from _position_problems(columns)
    yield from _ragged_problems("tasks", columns.task_offsets, len(columns.task_ids), num_episodes)
    yield from out_of_range("task_ids", columns.task_ids, 0, num_tasks - 1)
    if columns.range_offsets is not None and columns.ranges is not None:
        yield from _ragged_problems("valid ranges", columns.range_offsets, len(columns.ranges), num_episodes)
        yield from _range_problems(columns.range_offsets, columns.ranges, columns.episode_length)


def out_of_range(name: str, values: NDArray[Any], low: int, high: int) -> Iterator[str]:
    """The first of `values` that is not from `low` to `high`, as a sentence."""
    if len(values) and (int(values.min()) < low or int(values.max()) > high):
        position = int(np.argmax((values < low) | (values > high)))
        yield f"{name}[{position}] is {values[position]}, wanted {low} to {high}"


def _position_problems(columns: ManifestColumns) -> Iterator[str]:
    """Every place in every shard must be taken by exactly one episode."""
    counts = np.bincount(columns.episode_shard, minlength=columns.num_shards)
    if int(counts.min()) == 0:
        yield f"shard {columns.names[int(np.argmin(counts))]} without episodes, wanted at least one"
    position = columns.episode_in_shard
    bad = (position < 0) | (position >= counts[columns.episode_shard])
    if bad.any():
        episode = int(np.argmax(bad))
        yield f"episode {episode} at position {position[episode]} of its shard, which has fewer episodes"
        return
    place = (np.cumsum(counts) - counts)[columns.episode_shard]
    place += position
    taken = np.zeros(columns.num_episodes, np.bool_)
    taken[place] = True
    if not taken.all():
        yield "two episodes at one position of a shard, wanted each position once"


def _ragged_problems(name: str, offsets: Int64, num_rows: int, num_episodes: int) -> Iterator[str]:
    if (
        len(offsets) != num_episodes + 1
        or int(offsets[0]) != 0
        or int(offsets[-1]) != num_rows
        or (offsets[1:] < offsets[:-1]).any()
    ):
        yield f"offsets of {name} that do not rise from 0 to {num_rows} in {num_episodes + 1} entries"


def _range_problems(offsets: Int64, ranges: Int64, length: Int64) -> Iterator[str]:
    if ranges.ndim != 2 or ranges.shape[1] != 2:
        yield f"valid ranges of shape {ranges.shape}, wanted (R, 2)"
        return
    episode = np.repeat(np.arange(len(length)), np.diff(offsets))
    start, stop = ranges[:, 0], ranges[:, 1]
    bad = (start < 0) | (stop <= start) | (stop > length[episode])
    same = episode[1:] == episode[:-1]
    bad[1:] |= same & (start[1:] < stop[:-1])
    if bad.any():
        row = int(np.argmax(bad))
        yield (
            f"episode {episode[row]}: valid range [{start[row]}, {stop[row]}), wanted ascending ranges within "
            f"its {length[episode[row]]} steps"
        )


class Mapped(Sequence[T]):
    """What `make` gives for each of `items`, made when somebody looks: a manifest may name 1e5 shards."""

    def __init__(self, make: Callable[[Any], T], items: Sequence[Any] | NDArray[Any]) -> None:
        self._make, self._items = make, items

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> "Mapped[T]": ...
    def __getitem__(self, index: int | slice) -> "T | Mapped[T]":
        found = self._items[index]
        return Mapped(self._make, found) if isinstance(index, slice) else self._make(found)


def row_hex(row: UInt8) -> str:
    """16 bytes as 32 hexadecimal digits."""
    return row.tobytes().hex()


def hex_rows(digests: Sequence[str]) -> UInt8:
    """The inverse of `row_hex`, of many: (S, 16)."""
    return np.frombuffer(bytes.fromhex("".join(digests)), np.uint8).reshape(len(digests), 16)
