"""The long lists of a manifest as arrays: what is known of each shard and of each episode, and their fingerprint."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, overload

import numpy as np
import xxhash
from numpy.typing import NDArray

from epistream.sharding.format.features import Feature

T = TypeVar("T")
Int64 = NDArray[np.int64]
UInt8 = NDArray[np.uint8]
# The columns by what they are of: shards; episodes; and lists of each episode, offsets beside their flat values.
OF_SHARDS = ("shard_bytes", "shard_checksums", "index_bytes", "index_checksums", "shard_split")
OF_EPISODES = ("episode_shard", "episode_in_shard", "episode_length")
LISTS = (("range_offsets", "ranges"), ("task_offsets", "task_ids"))
# Those that only some datasets have: edited ones, and files that are divided where they are.
MORE_OF_SHARDS = ("shard_num_episodes", "shard_group")
MORE_OF_EPISODES = ("episode_split", "episode_edits", "episode_record")

# What of an episode is not as its shard says: bits of `ManifestColumns.episode_edits`.
TASKS_EDITED, RANGES_EDITED, SPLIT_EDITED = 1, 2, 4


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
        episode_split: (E,) uint8, position in the dataset's splits; None where it is that of the episode's shard.
        episode_edits: (E,) uint8, what was edited of the episode: `TASKS_EDITED` and the like; None for nothing.
        episode_record: (E,) row of the episode among the dataset's records; None where row e is of episode e.
        shard_num_episodes: (S,) episodes in the shard's index; None where the dataset has all of them.
        shard_group: (S,) position in the dataset's groups of shards; None where all are of the first.
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
    episode_split: UInt8 | None = None
    episode_edits: UInt8 | None = None
    episode_record: Int64 | None = None
    shard_num_episodes: Int64 | None = None
    shard_group: Int64 | None = None

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

    @property
    def split_of(self) -> UInt8:
        """(E,) uint8, position of each episode's split."""
        return self.shard_split[self.episode_shard] if self.episode_split is None else self.episode_split

    @property
    def edits(self) -> UInt8:
        """`episode_edits`, written out where it is None."""
        return np.zeros(self.num_episodes, np.uint8) if self.episode_edits is None else self.episode_edits

    @property
    def record_of(self) -> Int64:
        """`episode_record`, written out where it is None."""
        return np.arange(self.num_episodes) if self.episode_record is None else self.episode_record

    @property
    def group_of(self) -> Int64:
        """`shard_group`, written out where it is None."""
        return np.zeros(self.num_shards, np.int64) if self.shard_group is None else self.shard_group

    @property
    def num_in_shard(self) -> Int64:
        """(S,) episodes in the index of each shard."""
        if self.shard_num_episodes is not None:
            return self.shard_num_episodes
        return np.bincount(self.episode_shard, minlength=self.num_shards)

    def ranges_of(self, episode: int) -> Int64:
        """(n, 2) valid ranges of one episode."""
        if self.range_offsets is None or self.ranges is None:
            return np.array([[0, self.episode_length[episode]]])
        return self.ranges[self.range_offsets[episode] : self.range_offsets[episode + 1]]

    def tasks_of(self, episode: int) -> list[int]:
        """The positions of one episode's instructions in the manifest's."""
        found: list[int] = self.task_ids[self.task_offsets[episode] : self.task_offsets[episode + 1]].tolist()
        return found

    def select(self, shards: Sequence[int]) -> "ManifestColumns":
        """The columns of some shards, in the order given, and of their episodes, in the order of the dataset."""
        chosen = np.asarray(shards, np.int64)
        return self._select(chosen, np.flatnonzero(np.isin(self.episode_shard, chosen)))

    def keep(self, episodes: NDArray[np.bool_]) -> "ManifestColumns":
        """The columns of some episodes, (E,) whether each is kept, and of the shards that have any of them."""
        keep = np.flatnonzero(episodes)
        whole = self if self.shard_num_episodes is not None else replace(self, shard_num_episodes=self.num_in_shard)
        kept = whole._select(np.unique(self.episode_shard[keep]), keep)
        is_whole = np.bincount(kept.episode_shard, minlength=kept.num_shards) == kept.num_in_shard
        return replace(kept, shard_num_episodes=None) if is_whole.all() else kept

    def _select(self, shards: Int64, episodes: Int64) -> "ManifestColumns":
        """Some shards, in this order, and the episodes (n,), all of which are of these shards."""
        new_index = np.full(self.num_shards, -1, np.int64)
        new_index[shards] = np.arange(len(shards))
        values: dict[str, NDArray[Any]] = {"episode_record": self.record_of[episodes]}
        for names, rows in (((*OF_SHARDS, *MORE_OF_SHARDS), shards), ((*OF_EPISODES, *MORE_OF_EPISODES), episodes)):
            there = [name for name in names if getattr(self, name) is not None]
            values = {name: getattr(self, name)[rows] for name in there} | values
        values["episode_shard"] = new_index[values["episode_shard"]]
        for offsets, flat in LISTS:
            if getattr(self, offsets) is not None:
                values[offsets], taken = _select_lists(getattr(self, offsets), episodes)
                values[flat] = getattr(self, flat)[taken]
        return ManifestColumns(names=tuple(self.names[shard] for shard in shards), **values)


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
    parts: Sequence[ManifestColumns],
    split_numbers: Sequence[UInt8],
    task_numbers: Sequence[Int64],
    first_group: Sequence[int] | None = None,
    first_record: Sequence[int] | None = None,
) -> ManifestColumns:
    """The columns of one dataset after the other.

    Args:
        parts: Theirs.
        split_numbers: For each part, the new number of each of its splits.
        task_numbers: For each part, the new number of each of its tasks.
        first_group: For each part, the new number of its first group of shards; None where all is one group.
        first_record: For each part, the new number of its first record; None where nobody has records.
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
    if any(part.episode_split is not None for part in parts):
        values["episode_split"] = np.concatenate([n[p.split_of] for p, n in zip(parts, split_numbers, strict=True)])
    if any(part.episode_edits is not None for part in parts):
        values["episode_edits"] = np.concatenate([part.edits for part in parts])
    if any(part.shard_num_episodes is not None for part in parts):
        values["shard_num_episodes"] = np.concatenate([part.num_in_shard for part in parts])
    if first_group is not None:
        values["shard_group"] = np.concatenate([p.group_of + n for p, n in zip(parts, first_group, strict=True)])
    if first_record is not None:
        records = [np.where(p.record_of < 0, -1, p.record_of + n) for p, n in zip(parts, first_record, strict=True)]
        values["episode_record"] = np.concatenate(records)
    for name in {*OF_SHARDS, *OF_EPISODES} - values.keys():
        values[name] = np.concatenate([getattr(part, name) for part in parts])
    return ManifestColumns(names=tuple(name for part in parts for name in part.names), **values)


def without_records(columns: ManifestColumns) -> ManifestColumns:
    """The same where nothing is known of single episodes."""
    return replace(columns, episode_record=np.full(columns.num_episodes, -1, np.int64))


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


def fingerprint(
    features: Mapping[str, Feature], splits: Sequence[str], columns: ManifestColumns, edited: Sequence[bytes] = ()
) -> str:
    """XXH3-128, hexadecimal, of what decides which bytes an epoch reads.

    What goes in, in this order:

    1. JSON of {features, splits}: every field of every feature but its `source_path`, sorted by name; split names.
    2. For each shard its size, checksum and split.
    3. For each episode its shard, its position there and its length.
    4. The valid ranges of every episode, written out where they are the default.
    5. Of edited datasets what is edited: the split of every episode where it is not the shard's, and `edited`.

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
    if columns.episode_split is not None:
        lists.append(columns.episode_split)
    lists += [np.frombuffer(text, np.uint8) for text in edited]
    hasher = xxhash.xxh3_128(b"epistream fingerprint 1\n")
    for values in lists:
        data = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
        hasher.update(data.nbytes.to_bytes(8, "little"))
        hasher.update(data.data)
    return hasher.hexdigest()


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
