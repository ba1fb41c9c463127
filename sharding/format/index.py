"""The index of one shard: where every step of every feature lies in its tar, as arrays that ranks can map."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from epistream.errors import FormatError
from epistream.sharding.files.names import UNPACKED_SUFFIXES, shard_name_problem
from epistream.sharding.format.checksums import CHECKSUM_BLOCK_BYTES
from epistream.sharding.format.episode_meta import ALL_TASKS, EpisodeMeta, episode_meta_from_dict, parse_json
from epistream.sharding.format.features import Feature, features_from_list
from epistream.sharding.format.tables import Names, Parsed, Tables, parse_tables, write_tables
from epistream.sharding.format.videos import Run, Videos, streams_from
from epistream.sharding.pictures.codecs import CODECS

KIND = "epistream.shard-index"
_MAX_BLOCK_BYTES = 1 << 30

T = TypeVar("T")
Int64 = NDArray[np.int64]
UInt64 = NDArray[np.uint64]

_REMEDY = "Re-create the index with 'epistream index URL --overwrite'."


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """Where everything in one shard lies. E episodes; rows = sum(length), one a step, episode after episode.

    Args:
        shard_name: File name of the tar.
        shard_bytes: Size of the tar.
        shard_checksum: XXH3-128 of the tar, hexadecimal.
        features: By name.
        keys: (E,) what the members of each episode begin with, ``ep-000000123``; decoded on first use.
        length: (E,) steps.
        array_offset: feature -> (E,) byte of the tar at which the values of step 0 begin; the others follow.
        frame_offset: camera -> (rows,) byte of the tar at which a frame begins.
        frame_size: camera -> (rows,) bytes of a frame.
        episodes: (E,) what the manifest says of each; decoded on first use.
        block_checksums: XXH3-64 of each block of the tar.
        block_bytes: Size of a block.
        values: feature -> (rows, bytes of a step) values of array features that the index holds itself, little endian;
            then it holds those of all, and `array_offset` is empty.
        steps: How the tar's samples became steps, for tars with one sample a step; see `sharding/tar/steps.py`.
        videos: camera -> how its frames depend on each other, of those that are stored as video.
        step_task: (rows,) uint32, which of its episode's instructions a step has, `ALL_TASKS` for all; None where an
            episode's are all of every step.

    All arrays of a parsed index are read-only views into the bytes that it was parsed from.
    """

    shard_name: str
    shard_bytes: int
    shard_checksum: str
    features: dict[str, Feature]
    keys: Sequence[str]
    length: Int64
    array_offset: dict[str, UInt64]
    frame_offset: dict[str, UInt64]
    frame_size: dict[str, NDArray[np.uint32]]
    episodes: Sequence[EpisodeMeta]
    block_checksums: UInt64
    block_bytes: int = CHECKSUM_BLOCK_BYTES
    values: dict[str, NDArray[np.uint8]] = field(default_factory=dict)
    steps: dict[str, Any] | None = None
    videos: dict[str, Videos] = field(default_factory=dict)
    step_task: NDArray[np.uint32] | None = None
    renamed: Mapping[str, str] = field(default_factory=dict)
    first_row: Int64 = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "first_row", np.cumsum(self.length) - self.length)

    @property
    def num_episodes(self) -> int:
        """Episodes in the shard."""
        return len(self.length)

    @property
    def num_rows(self) -> int:
        """Steps in the shard."""
        return int(self.length.sum())

    def frame_range(self, camera: str, row: int) -> tuple[int, int]:
        """Offset in the tar and size of the bytes that a frame is decoded from, of a video together with others."""
        return int(self.frame_offset[camera][row]), int(self.frame_size[camera][row])

    def called(self, names: Mapping[str, str]) -> "ShardIndex":
        """The same shard, whose features are called as a dataset does: by its names, those in the tar that differ."""
        if not names:
            return self
        taken = {*names, *names.values()}
        stored = {name: name for name in self.features if name not in taken} | dict(names)
        known = {name: was for name, was in stored.items() if was in self.features}

        def of(tables: Mapping[str, T]) -> dict[str, T]:
            return {name: tables[was] for name, was in known.items() if was in tables}

        return replace(
            self,
            features={name: replace(self.features[was], name=name) for name, was in known.items()},
            array_offset=of(self.array_offset),
            frame_offset=of(self.frame_offset),
            frame_size=of(self.frame_size),
            values=of(self.values),
            videos=of(self.videos),
            renamed=dict(names),
        )

    def runs(self, camera: str, rows: Int64) -> Iterator[Run]:
        """Of a camera that is stored as video: what to decode for some rows (n,), each group once."""
        return self.videos[camera].runs(self.first_row, self.frame_offset[camera], rows)

    def to_bytes(self) -> bytes:
        """The index as a file.

        Raises:
            FormatError: If `check` finds a fault: a writer never publishes what a reader refuses.
        """
        check(self, self.shard_name)
        return write_tables(KIND, *self.to_tables())

    def to_tables(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """The small values and the arrays of the file, unchecked."""
        meta = {
            "shard": {"name": self.shard_name, "bytes": self.shard_bytes, "checksum": self.shard_checksum},
            "block_bytes": self.block_bytes,
            "num_episodes": self.num_episodes,
            "num_rows": self.num_rows,
            "features": [feature.to_dict() for feature in self.features.values()],
        }
        if self.steps is not None:
            meta["steps"] = self.steps
        if self.videos:
            meta["videos"] = {name: videos.to_dict() for name, videos in self.videos.items()}
        described = json.dumps([episode.to_dict() for episode in self.episodes], ensure_ascii=False)
        arrays: dict[str, NDArray[Any]] = {
            "block_checksums": self.block_checksums.astype("<u8"),
            "length": self.length.astype("<i8"),
            "keys": Names.pack(self.keys),
            "episodes": np.frombuffer(described.encode(), np.uint8),
        }
        for name, feature in self.features.items():
            if name in self.values:
                arrays[f"values:{name}"] = self.values[name]
            elif feature.kind == "array":
                arrays[f"offset:{name}"] = self.array_offset[name].astype("<u8")
            else:
                arrays[f"offset:{name}"] = self.frame_offset[name].astype("<u8")
                arrays[f"size:{name}"] = self.frame_size[name].astype("<u4")
        for name, videos in self.videos.items():
            arrays[f"back:{name}"] = videos.back.astype("<u4")
            arrays[f"stream:{name}"] = videos.stream_of.astype("<u4")
        if self.step_task is not None:
            arrays["step_task"] = self.step_task.astype("<u4")
        return meta, arrays

    @classmethod
    def parse(cls, buffer: memoryview | bytes, where: str, *, validate: bool = True) -> "ShardIndex":
        """An index whose arrays are views into `buffer`, which must stay as it is while they are in use.

        Args:
            buffer: The whole file.
            where: Its name, for messages.
            validate: Check every range against the shard's size. Without it, for bytes whose checksum is the
                manifest's, only what a view needs is checked.

        Raises:
            VersionError: If the index is of a later version.
            FormatError: If it is torn, or says anything that cannot be.
        """
        tables = parse_tables(buffer, KIND, where, _REMEDY, verify_body=validate)
        try:
            index = build_index(tables, where)
        except (KeyError, TypeError) as error:
            raise FormatError(f"{where}: lacks {error}, wanted a whole shard index. {_REMEDY}") from error
        if validate:
            check(index, where)
        return index


class _Episodes(Parsed[EpisodeMeta]):
    def _parse(self) -> tuple[EpisodeMeta, ...]:
        values = parse_json(self._blob.tobytes(), self._where)
        if not isinstance(values, list) or len(values) != self._count:
            raise FormatError(f"{self._where}: 'episodes' is no list of {self._count}. {_REMEDY}")
        return tuple(episode_meta_from_dict(value, self._where) for value in values)


def build_index(tables: Tables, where: str) -> ShardIndex:
    """An unchecked index of views. KeyError and TypeError mean that something is missing or of another type."""
    meta = tables.meta
    features = features_from_list(meta["features"], where)
    num_episodes, num_rows = _count(meta, "num_episodes"), _count(meta, "num_rows")

    def table(name: str, dtype: str, rows: int | None = None) -> NDArray[Any]:
        array = tables.arrays[name]
        wanted = array.shape if rows is None else (rows,)
        if array.dtype != np.dtype(dtype) or array.shape != wanted or array.ndim != 1:
            raise FormatError(
                f"{where}: table {name!r} is {array.dtype} {array.shape}, wanted {np.dtype(dtype)} {wanted}. {_REMEDY}"
            )
        return array

    arrays = [name for name, feature in features.items() if feature.kind == "array"]
    cameras = [name for name, feature in features.items() if feature.kind == "frames"]
    values = {name: tables.arrays[f"values:{name}"] for name in arrays if f"values:{name}" in tables.arrays}
    for name, found in values.items():
        wanted = (num_rows, features[name].step_bytes)
        if found.dtype != np.uint8 or found.shape != wanted:
            raise FormatError(
                f"{where}: values of {name!r} are {found.dtype} {found.shape}, wanted uint8 {wanted}. {_REMEDY}"
            )
    arrays = [name for name in arrays if name not in values]
    steps = meta.get("steps")
    if not (steps is None or isinstance(steps, dict)):
        raise TypeError("steps as a map")
    stored = [name for name in cameras if CODECS[features[name].codec].storage == "video"]
    videos = {
        name: Videos(
            streams_from(meta["videos"][name]),
            table(f"stream:{name}", "<u4", num_episodes),
            table(f"back:{name}", "<u4", num_rows),
        )
        for name in stored
    }
    name, digest = meta["shard"]["name"], meta["shard"]["checksum"]
    if not isinstance(name, str) or not isinstance(digest, str):
        raise TypeError("the shard's name and checksum as texts")
    return ShardIndex(
        shard_name=name,
        shard_bytes=_count(meta["shard"], "bytes"),
        shard_checksum=digest,
        features=features,
        keys=Names(table("keys", "<u1"), num_episodes, where),
        length=table("length", "<i8", num_episodes),
        array_offset={name: table(f"offset:{name}", "<u8", num_episodes) for name in arrays},
        frame_offset={name: table(f"offset:{name}", "<u8", num_rows) for name in cameras},
        frame_size={name: table(f"size:{name}", "<u4", num_rows) for name in cameras},
        episodes=_Episodes(table("episodes", "<u1"), num_episodes, where),
        block_checksums=table("block_checksums", "<u8"),
        block_bytes=_count(meta, "block_bytes"),
        values=values,
        steps=steps,
        videos=videos,
        step_task=table("step_task", "<u4", num_rows) if "step_task" in tables.arrays else None,
    )


def _count(meta: Mapping[str, Any], name: str) -> int:
    value = meta[name]
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise TypeError(f"{name} as a count (found {value!r:.40})")
    return value


def check(index: ShardIndex, where: str) -> None:
    """Compare every number of `index` with every other, vectorised.

    Raises:
        FormatError: At the first that cannot be; the message names feature, episode or step.
    """
    problem = next(_problems(index), None)
    if problem:
        raise FormatError(f"{where}: {problem}. {_REMEDY}")


def _problems(index: ShardIndex) -> Iterator[str]:
    """What cannot be; later checks rely on the earlier ones."""
    # What is read where it lies has no tar: nothing has read all its bytes, so there are no checksums of blocks.
    is_tar = not index.shard_name.endswith(UNPACKED_SUFFIXES)
    if is_tar and (problem := shard_name_problem(index.shard_name)):
        yield problem
    yield from _episode_problems(index)
    size = index.block_bytes
    if not 512 <= size <= _MAX_BLOCK_BYTES or size & (size - 1):
        yield f"blocks of {size} bytes, wanted a power of two from 512 to 1 GiB"
    wanted = -(-index.shard_bytes // size) if is_tar else 0
    if len(index.block_checksums) != wanted:
        yield f"{len(index.block_checksums)} block checksums, wanted {wanted} for {index.shard_bytes} bytes"
    digest = index.shard_checksum
    if is_tar and (len(digest) != 32 or set(digest) - set("0123456789abcdef")):
        yield f"shard checksum {digest!r:.80}, wanted 32 hexadecimal digits"
    if index.values and index.array_offset:
        yield f"values of {', '.join(index.values)} without those of {', '.join(index.array_offset)}"
    for feature in index.features.values():
        if feature.name in index.values:
            shape = index.values[feature.name].shape
            if shape != (index.num_rows, feature.step_bytes):
                yield f"{feature.name}: values of {shape} bytes, wanted {(index.num_rows, feature.step_bytes)}"
        else:
            yield from _range_problems(index, feature)


def _episode_problems(index: ShardIndex) -> Iterator[str]:
    num_episodes = index.num_episodes
    if not num_episodes or not index.features:
        yield f"{num_episodes} episodes and {len(index.features)} features, wanted at least one of each"
    shortest, longest = int(index.length.min()), int(index.length.max())
    # Every step takes at least a byte, of the shard or of the index; the limits keep the sum of the lengths in 62 bits.
    held = sum(values.size for values in index.values.values())
    limits = longest <= index.shard_bytes + held <= 1 << 40 and num_episodes <= 1 << 22
    if shortest < 1 or not limits:
        yield (
            f"{num_episodes} episodes of {shortest} to {longest} steps in {index.shard_bytes} bytes, "
            "wanted at most 4,194,304 episodes in 1 TiB"
        )
    keys, described = tuple(index.keys), list(index.episodes)
    if len(keys) != num_episodes or len(set(keys)) != num_episodes or not all(map(str.isascii, keys)):
        yield f"{len(set(keys))} different keys, wanted {num_episodes}, all ASCII"
    if [episode.length for episode in described] != index.length.tolist():
        yield "lengths in 'episodes' that are not those of the table 'length'"
    if len({episode.split for episode in described}) != 1:
        yield "episodes of several splits in one shard, wanted one"
    if index.step_task is not None:
        known = np.repeat([len(episode.tasks) for episode in described], index.length)
        wrong = (index.step_task >= known) & (index.step_task != ALL_TASKS)
        if wrong.any():
            row = int(np.argmax(wrong))
            yield f"row {row}: instruction {index.step_task[row]} of an episode that has {known[row]}"


def _range_problems(index: ShardIndex, feature: Feature) -> Iterator[str]:
    """Ranges of `feature` that are not inside the shard. Nothing here can overflow 64 bits."""
    shard_bytes = np.uint64(index.shard_bytes)
    if feature.kind == "array":
        offset = index.array_offset[feature.name]
        rows = len(index.length)
        if int(index.length.max()) > index.shard_bytes // feature.step_bytes:
            yield f"{feature.name}: {index.length.max()} steps of {feature.step_bytes} bytes, more than the tar"
        size = index.length.astype(np.uint64) * np.uint64(feature.step_bytes)
        unit = "episode"
    else:
        offset, size = index.frame_offset[feature.name], index.frame_size[feature.name].astype(np.uint64)
        rows = index.num_rows
        unit = "row"
        is_pixels = CODECS[feature.codec].storage == "array"
        if len(size) == rows and is_pixels and (size != feature.step_bytes).any():
            row = int(np.argmax(size != feature.step_bytes))
            yield f"{feature.name}, row {row}: {size[row]} bytes, wanted {feature.step_bytes}"
    if len(offset) != rows or len(size) != rows:
        yield f"{feature.name}: {len(offset)} offsets and {len(size)} sizes, wanted {rows}"
    bad = (size == 0) | (offset > shard_bytes) | (size > shard_bytes - np.minimum(offset, shard_bytes))
    if bad.any():
        row = int(np.argmax(bad))
        yield (
            f"{feature.name}, {unit} {row}: {size[row]} bytes at {offset[row]}, wanted at least one byte, "
            f"all within the shard's {index.shard_bytes}"
        )
    if feature.kind == "frames" and CODECS[feature.codec].storage == "video":
        if feature.name not in index.videos:
            yield f"{feature.name}: no groups of its video, wanted them"
        else:
            yield from index.videos[feature.name].problems(feature, index.first_row, index.length)
