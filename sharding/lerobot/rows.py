"""Rows of episodes in LeRobot's Parquet files: low-dimensional columns as arrays, pictures as places in row groups."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from epistream.errors import FormatError
from epistream.sharding.format.features import Feature
from epistream.sharding.lerobot.files import SourceFile, open_parquet
from epistream.sharding.lerobot_meta.arrow import arrow_module, numbers_of

Int64 = NDArray[np.int64]
# Episodes of one row group that are read together: those whose indexes are made at once.
MOST_AT_ONCE = 64
_BUFFER_BYTES = 1 << 20
_AGAIN = "Download the file again, or finalise the recording with LeRobot."


@dataclass(frozen=True, eq=False)
class PictureRows:
    """Pictures of one episode in a column of a file, as stored. T steps.

    Args:
        size: (T,) bytes of each.
        groups: Row groups that hold them, ascending.
        first: Row of the first of these groups at which the episode begins.
    """

    size: Int64
    groups: tuple[int, ...]
    first: int


@dataclass(frozen=True, eq=False)
class EpisodeRows:
    """What a file holds of one episode. T steps.

    Args:
        values: By feature (T, *shape) in its dtype.
        timestamp: (T,) seconds since the episode began.
        task_index: (T,) LeRobot's numbers of tasks; None if the file has none.
        pictures: By feature.
    """

    values: dict[str, NDArray[Any]]
    timestamp: NDArray[np.float64]
    task_index: Int64 | None
    pictures: dict[str, PictureRows] = field(default_factory=dict)


def read_rows(
    file: SourceFile, number: int, features: Mapping[str, Feature], folder: Path | None
) -> dict[int, EpisodeRows]:
    """An episode's rows, and those of its neighbours that had to be read with them.

    Args:
        file: A data file.
        number: LeRobot's episode_index.
        features: Arrays, and cameras whose pictures are in the file; `source_path` is the column.
        folder: Where to keep its footer, of a file of many episodes; None for one of this episode alone.

    Returns:
        By number; `number` is among them.

    Raises:
        FormatError: If the file is torn, lacks a column, or holds something else than the features say.
        SourceError, FetchError: If it cannot be read.
    """
    holds_one = folder is None
    with open_parquet(file, folder) as opened:
        parquet = opened.file
        groups = list(range(parquet.metadata.num_row_groups)) if holds_one else groups_of(parquet, number)
        there = set(parquet.schema_arrow.names)
        _refuse_lacking(file, there, [feature.source_path for feature in features.values()])
        told = [name for name in ("episode_index", "frame_index", "timestamp", "task_index") if name in there]
        columns = list(dict.fromkeys([*told, *(one.source_path for one in features.values())]))
        table = opened.read(groups, columns)
        sizes = [parquet.metadata.row_group(group).num_rows for group in groups]
    numbers = episode_numbers(table, file, number, holds_one=holds_one)
    found: dict[int, EpisodeRows] = {}
    for one, start, stop in _episodes_in(numbers, number, file):
        where = f"{file.url}: episode {one}"
        try:
            rows = _rows_of(table.slice(start, stop - start), features, where)
        except FormatError:
            if one == number:
                raise
            continue  # it is told when somebody wants that episode
        places = {name: _place_of(size, groups, sizes, start) for name, size in rows.picture_size.items()}
        found[one] = EpisodeRows(rows.values, rows.timestamp, rows.task_index, places)
    if number not in found:
        raise FormatError(f"{file.url}: no rows of episode {number}, wanted them, as the metadata say. {_AGAIN}")
    return found


class _Rows(NamedTuple):
    values: dict[str, NDArray[Any]]
    timestamp: NDArray[np.float64]
    task_index: Int64 | None
    picture_size: dict[str, Int64]


def _rows_of(piece: Any, features: Mapping[str, Feature], where: str) -> _Rows:
    """What the rows of one episode say."""
    timestamp = _timestamps(piece, where)
    task_index = _integers(piece, "task_index", where) if "task_index" in piece.column_names else None
    values, picture_size = {}, {}
    for name, feature in features.items():
        if feature.kind == "frames":
            picture_size[name] = _picture_sizes(piece, feature, where)
        else:
            values[name] = _values(piece, feature, where)
    return _Rows(values, timestamp, task_index, picture_size)


def read_pictures(file: SourceFile, column: str, group: int) -> tuple[NDArray[np.uint8], Int64]:
    """All pictures of a row group, one after the other, and where each begins: (n + 1,) bytes."""
    with open_parquet(file) as opened:
        return _packed(_bytes_column(opened.read([group], [column]), column, file.url))


def first_pictures(file: SourceFile, columns: Sequence[str], folder: Path | None = None) -> dict[str, bytes]:
    """The picture of the first row in each of some columns; little more than them is read.

    Raises:
        FormatError: If the file is torn, or lacks a column.
        SourceError, FetchError: If it cannot be read.
    """
    found: dict[str, bytes] = {}
    with open_parquet(file, folder, buffer_bytes=_BUFFER_BYTES) as opened:
        _refuse_lacking(file, opened.file.schema_arrow.names, columns)
        for column in columns:
            for batch in opened.file.iter_batches(1, columns=[column], use_threads=False):
                table = arrow_module("pyarrow").Table.from_batches([batch])
                found[column] = _packed(_bytes_column(table, column, file.url))[0].tobytes()
                break
    return found


def groups_of(parquet: Any, number: int) -> list[int]:
    """The row groups that may hold an episode: those whose smallest and largest number do not rule it out."""
    position = parquet.schema_arrow.get_field_index("episode_index")
    if position < 0:
        return list(range(parquet.metadata.num_row_groups))
    leaf = next(i for i in range(parquet.metadata.num_columns) if parquet.schema.column(i).path == "episode_index")
    wanted = []
    for group in range(parquet.metadata.num_row_groups):
        told = parquet.metadata.row_group(group).column(leaf).statistics
        if told is None or not told.has_min_max or told.min <= number <= told.max:
            wanted.append(group)
    return wanted


def _refuse_lacking(file: SourceFile, there: Collection[str], wanted: Sequence[str]) -> None:
    lacking = next((name for name in wanted if name not in there), None)
    if lacking is not None:
        found = ", ".join(sorted(there))
        raise FormatError(f"{file.url}: columns {found:.300}, wanted {lacking!r}, which info.json names. {_AGAIN}")


def episode_numbers(table: Any, file: SourceFile, number: int, *, holds_one: bool) -> Int64:
    """The episode of each row that was read; all are of `number` in a file that holds one and does not say it.

    Raises:
        FormatError: If they are not told.
    """
    if "episode_index" not in table.column_names:
        if holds_one:
            return np.full(table.num_rows, number, np.int64)
        raise FormatError(f"{file.url}: no column episode_index, wanted it. {_AGAIN}")
    return _integers(table, "episode_index", file.url)


def _episodes_in(numbers: Int64, wanted: int, file: SourceFile) -> Iterator[tuple[int, int, int]]:
    """Number and half-open rows of each episode, the wanted one first.

    Those at the borders of what was read may go on elsewhere, and are left out unless they are wanted.
    """
    cuts = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(numbers)]
    pieces = [(int(numbers[a]), a, b) for a, b in pairwise(cuts) if a < b]
    mine = [piece for piece in pieces if piece[0] == wanted]
    if len(mine) > 1:
        raise FormatError(
            f"{file.url}: rows of episode {wanted} in {len(mine)} places, wanted them one after the other. {_AGAIN}"
        )
    yield from mine
    if mine:
        here = pieces.index(mine[0])
        near = pieces[max(1, here - MOST_AT_ONCE // 2) : min(len(pieces) - 1, here + MOST_AT_ONCE // 2)]
        counts = [one[0] for one in pieces]
        yield from (piece for piece in near if piece is not mine[0] and counts.count(piece[0]) == 1)


def _integers(table: Any, name: str, where: str) -> Int64:
    values = _flat(table.column(name), where, name)
    if values.dtype.kind not in "iu" or len(values) != table.num_rows:
        raise FormatError(f"{where}: {name} as {table.column(name).type}, wanted a whole number a step. {_AGAIN}")
    return values.astype(np.int64)


def _timestamps(table: Any, where: str) -> NDArray[np.float64]:
    if "frame_index" in table.column_names:
        frames = _integers(table, "frame_index", where)
        if (frames != np.arange(len(frames))).any():
            step = int(np.argmax(frames != np.arange(len(frames))))
            raise FormatError(f"{where}, step {step}: frame_index {frames[step]}, wanted {step}. {_AGAIN}")
    if "timestamp" not in table.column_names:
        raise FormatError(f"{where}: no column timestamp, wanted it. {_AGAIN}")
    times = _flat(table.column("timestamp"), where, "timestamp")
    if times.dtype.kind not in "iuf" or len(times) != table.num_rows or not np.isfinite(times).all():
        kind = table.column("timestamp").type
        raise FormatError(f"{where}: timestamp as {kind}, not all of them numbers, wanted finite seconds. {_AGAIN}")
    return times.astype(np.float64)


def _values(table: Any, feature: Feature, where: str) -> NDArray[Any]:
    """(T, *shape) values of an array feature."""
    column = feature.source_path
    values = _flat(table.column(column), where, column)
    wanted = (table.num_rows, *feature.shape)
    if values.dtype.kind not in "biuf":
        kind = table.column(column).type
        raise FormatError(f"{where}: {column!r} as {kind}, wanted {feature.dtype}. {_AGAIN}")
    if values.size != np.prod(wanted, dtype=np.int64):
        each = values.size / max(1, table.num_rows)
        raise FormatError(f"{where}: {each:g} values a step of {column!r}, wanted {feature.shape}. {_AGAIN}")
    with np.errstate(over="ignore", invalid="ignore"):
        cast = values.astype(feature.dtype)
    changed = _changed(values, cast)
    if changed.any():
        step = int(np.argmax(changed)) * table.num_rows // len(values)
        raise FormatError(
            f"{where}, step {step}: {values[np.argmax(changed)]} of {column!r}, wanted what {feature.dtype} can hold, "
            "the dtype that info.json names. Correct it there."
        )
    return np.ascontiguousarray(cast.reshape(wanted))


def _changed(values: NDArray[Any], cast: NDArray[Any]) -> NDArray[np.bool_]:
    """Which values are others in another dtype; where that has a point, rounded ones are not."""
    changed: NDArray[np.bool_] = np.zeros(len(values), np.bool_)
    if cast.dtype.kind == "f":
        changed = np.isinf(cast) & np.isfinite(values)
    elif cast.dtype != values.dtype:
        changed = cast != values
    return changed


def _flat(column: Any, where: str, name: str) -> NDArray[Any]:
    """The values of a column of scalars or of lists that all are of one length."""
    arrow = arrow_module("pyarrow")
    array = column.combine_chunks()
    if isinstance(array, arrow.ChunkedArray):
        array = arrow.concat_arrays(array.chunks) if array.num_chunks else arrow.array([], array.type)
    while True:
        if isinstance(array, arrow.ExtensionArray):
            array = array.storage
        if array.null_count:
            raise FormatError(f"{where}: {array.null_count} missing values of {name!r}, wanted one a step. {_AGAIN}")
        if arrow.types.is_fixed_size_list(array.type):
            array = array.flatten()
        elif arrow.types.is_list(array.type) or arrow.types.is_large_list(array.type):
            lengths: NDArray[Any] = np.diff(_numbers_of(array.offsets))
            if len(lengths) and (lengths != lengths[0]).any():
                raise FormatError(
                    f"{where}: {lengths.min()} to {lengths.max()} values of {name!r}, wanted as many each. {_AGAIN}"
                )
            array = array.flatten()
        else:
            break
    if arrow.types.is_boolean(array.type):  # a bit each
        bits = array.buffers()[1] if len(array) else b""
        found = np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little")
        return found[array.offset : array.offset + len(array)].astype(np.bool_)
    return _numbers_of(array)


def _numbers_of(array: Any) -> NDArray[Any]:
    """The numbers of an array without gaps; objects where it holds none."""
    values = numbers_of(array)
    return np.empty(len(array), np.object_) if values is None else values


def _picture_sizes(table: Any, feature: Feature, where: str) -> Int64:
    _, cuts = _packed(_bytes_column(table, feature.source_path, where))
    sizes: Int64 = np.diff(cuts)
    if len(sizes) and sizes.min() < 1:
        step = int(np.argmin(sizes))
        raise FormatError(f"{where}, step {step}: an empty picture of {feature.source_path!r}, wanted one. {_AGAIN}")
    return sizes


def _bytes_column(table: Any, column: str, where: str) -> Any:
    """The binary array of a column of pictures: a struct of their bytes and a path."""
    arrow = arrow_module("pyarrow")
    array = table.column(column)
    array = arrow.concat_arrays(array.chunks) if array.num_chunks != 1 else array.chunk(0)
    if isinstance(array, arrow.ExtensionArray):
        array = array.storage
    if arrow.types.is_struct(array.type):
        array = array.field("bytes") if array.type.get_field_index("bytes") >= 0 else array
    if not (arrow.types.is_binary(array.type) or arrow.types.is_large_binary(array.type)) or array.null_count:
        state = f"{array.null_count} without bytes" if array.null_count else f"as {array.type}"
        raise FormatError(
            f"{where}: pictures of {column!r} {state}, wanted the bytes of each. Write the data set with pictures "
            "inside its Parquet files, as LeRobot's embed_images() does."
        )
    return array.cast(arrow.large_binary())


def _packed(array: Any) -> tuple[NDArray[np.uint8], Int64]:
    _, offsets, data = array.buffers()
    cuts = np.frombuffer(offsets, np.int64, len(array) + 1, array.offset * 8)
    held = np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8)
    return held[int(cuts[0]) : int(cuts[-1])], cuts - cuts[0]


def _place_of(size: Int64, groups: Sequence[int], group_rows: Sequence[int], start: int) -> PictureRows:
    """Where rows from `start` of some row groups lie among these."""
    ends = np.cumsum(group_rows)
    first = int(np.searchsorted(ends, start, side="right"))
    last = int(np.searchsorted(ends, start + len(size) - 1, side="right"))
    before = int(ends[first - 1]) if first else 0
    return PictureRows(size, tuple(groups[first : last + 1]), start - before)
