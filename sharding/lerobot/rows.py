"""Rows of episodes in LeRobot's Parquet files: low-dimensional columns as arrays, pictures as places in row groups."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from epistream.errors import FormatError
from epistream.sharding.format.features import Feature
from epistream.sharding.lerobot.files import SourceFile, open_parquet
from epistream.sharding.lerobot.picture_groups import group_pictures, refuse_lacking
from epistream.sharding.lerobot.row_groups import AGAIN, NUMBER, Keeping, bounds_of, runs_of, shared_runs
from epistream.sharding.lerobot_meta.arrow import arrow_module, numbers_of

Int64 = NDArray[np.int64]
_FOLLOW = (NUMBER, "frame_index", "timestamp", "task_index")


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
    file: SourceFile, number: int, features: Mapping[str, Feature], folder: Path, *, holds_one: bool
) -> EpisodeRows:
    """An episode's rows.

    Args:
        file: A data file.
        number: LeRobot's episode_index.
        features: Arrays, and cameras whose pictures are in the file; `source_path` is the column.
        folder: Where row groups are kept that the episode shares with others, and the footers of remote files.
        holds_one: Whether the file is of this episode alone; it need not say so then.

    Raises:
        FormatError: If the file is torn, lacks a column, or holds something else than the features say.
        SourceError, FetchError, SourceChangedError: If it cannot be read, or changes meanwhile.
        CacheError, DeadlineError: As `make_once`.
    """
    arrays = {name: one for name, one in features.items() if one.kind != "frames"}
    columns = [one.source_path for one in arrays.values()]
    keep = Keeping(folder, 8 * len(_FOLLOW) + sum(one.step_bytes for one in arrays.values()))
    cameras = {name: one for name, one in features.items() if one.kind == "frames"}
    pieces = episode_pieces(
        file, number, columns, keep, holds_one=holds_one, also=[one.source_path for one in cameras.values()]
    )
    where = f"{file.url}: episode {number}"
    table = arrow_module("pyarrow").concat_tables([piece.table for piece in pieces])
    timestamp = _timestamps(table, where)
    task_index = _integers(table, "task_index", where) if "task_index" in table.column_names else None
    values = {name: _values(table, one, where) for name, one in arrays.items()}
    pictures = {name: _pictures(file, one.source_path, pieces, folder, where) for name, one in cameras.items()}
    return EpisodeRows(values, timestamp, task_index, pictures)


class Piece(NamedTuple):
    """Rows of an episode in one row group.

    Attributes:
        group: Its number.
        start: The first row there.
        table: A `pyarrow.Table` of the rows.
    """

    group: int
    start: int
    table: Any


def episode_pieces(
    file: SourceFile,
    number: int,
    columns: Sequence[str],
    keep: Keeping,
    *,
    holds_one: bool,
    also: Sequence[str] = (),
) -> list[Piece]:
    """Some columns of an episode's rows, by row group, with those that tell its number, times and tasks.

    Args:
        file: A data file.
        number: LeRobot's episode_index.
        columns: Their names.
        keep: How row groups are kept that it shares with others.
        holds_one: Whether the file is of this episode alone.
        also: Other columns that must be there, and are read afterwards.

    Raises:
        FormatError: If the file is torn, lacks a column, or has no rows of the episode or has them in several places.
        SourceError, FetchError, SourceChangedError, CacheError, DeadlineError: As `read_rows`.
    """
    # Of a file that is opened once its footer is not worth keeping.
    with open_parquet(file, None if holds_one and not also else keep.folder) as opened:
        there = opened.file.schema_arrow.names
        _refuse_lacking(file, set(there), [*columns, *also])
        read = list(dict.fromkeys([*(one for one in _FOLLOW if one in there), *columns]))
        chosen = _groups(opened.file, number, holds_one=holds_one)
        before = _rows_before(opened.file, [group for group, _ in chosen])
        own = {group: opened.read([group], read) for group, is_of_others in chosen if not is_of_others}
    found: list[Piece] = []
    end = None  # of the last row that was found, among those of the file
    for group, _ in chosen:
        if group in own:
            numbers = _episode_numbers(own[group], file, number, holds_one=holds_one)
            runs = [(start, own[group].slice(start, stop - start)) for start, stop in runs_of(numbers, number)]
        else:
            runs = [(run.start, run.table) for run in shared_runs(file, group, read, number, keep)]
        for start, table in runs:
            if end not in (None, before[group] + start):
                raise FormatError(
                    f"{file.url}: rows of episode {number} in several places, wanted them one after the other. {AGAIN}"
                )
            end = before[group] + start + table.num_rows
            found.append(Piece(group, start, table))
    if not found:
        raise FormatError(f"{file.url}: no rows of episode {number}, wanted them, as the metadata say. {AGAIN}")
    return found


def _groups(parquet: Any, number: int, *, holds_one: bool) -> list[tuple[int, bool]]:
    """The row groups that may hold an episode, and whether others may be there too."""
    groups = range(parquet.metadata.num_row_groups)
    bounds = [(number, number) for _ in groups] if holds_one else bounds_of(parquet, groups)
    chosen = [(group, told) for group, told in enumerate(bounds) if told is None or told[0] <= number <= told[1]]
    is_empty = {group: not parquet.metadata.row_group(group).num_rows for group, _ in chosen}
    return [(group, told is None or told[0] != told[1]) for group, told in chosen if not is_empty[group]]


def _rows_before(parquet: Any, groups: Sequence[int]) -> dict[int, int]:
    """How many rows there are before some row groups, from the first of these on."""
    every = range(groups[0], groups[-1]) if groups else ()
    counts = [parquet.metadata.row_group(group).num_rows for group in every]
    ends = dict(zip(every, np.cumsum(counts).tolist(), strict=True))
    return {group: ends.get(group - 1, 0) for group in groups}


def _pictures(file: SourceFile, column: str, pieces: Sequence[Piece], folder: Path, where: str) -> PictureRows:
    """Where the pictures of an episode are."""
    sizes: list[Int64] = []
    for piece in pieces:
        size = group_pictures(file, column, piece.group, folder).size[piece.start : piece.start + piece.table.num_rows]
        if (size < 1).any():
            row = int(np.argmax(size < 1))
            place = f"{where}, step {sum(len(one) for one in sizes) + row}"
            if size[row] < 0:
                refuse_lacking(file, column, piece.group, piece.start + row, place)
            raise FormatError(f"{place}: an empty picture of {column!r}, wanted one. {AGAIN}")
        sizes.append(size)
    return PictureRows(np.concatenate(sizes), tuple(piece.group for piece in pieces), pieces[0].start)


def _refuse_lacking(file: SourceFile, there: Collection[str], wanted: Sequence[str]) -> None:
    lacking = next((name for name in wanted if name not in there), None)
    if lacking is not None:
        found = ", ".join(sorted(there))
        raise FormatError(f"{file.url}: columns {found:.300}, wanted {lacking!r}, which info.json names. {AGAIN}")


def _episode_numbers(table: Any, file: SourceFile, number: int, *, holds_one: bool) -> Int64:
    """The episode of each row that was read; all are of `number` in a file that holds one and does not say it.

    Raises:
        FormatError: If they are not told.
    """
    if NUMBER not in table.column_names:
        if holds_one:
            return np.full(table.num_rows, number, np.int64)
        raise FormatError(f"{file.url}: no column {NUMBER}, wanted it. {AGAIN}")
    return _integers(table, NUMBER, file.url)


def _integers(table: Any, name: str, where: str) -> Int64:
    values = _flat(table.column(name), where, name)
    if values.dtype.kind not in "iu" or len(values) != table.num_rows:
        raise FormatError(f"{where}: {name} as {table.column(name).type}, wanted a whole number a step. {AGAIN}")
    return values.astype(np.int64)


def _timestamps(table: Any, where: str) -> NDArray[np.float64]:
    if "frame_index" in table.column_names:
        frames = _integers(table, "frame_index", where)
        if (frames != np.arange(len(frames))).any():
            step = int(np.argmax(frames != np.arange(len(frames))))
            raise FormatError(f"{where}, step {step}: frame_index {frames[step]}, wanted {step}. {AGAIN}")
    if "timestamp" not in table.column_names:
        raise FormatError(f"{where}: no column timestamp, wanted it. {AGAIN}")
    times = _flat(table.column("timestamp"), where, "timestamp")
    if times.dtype.kind not in "iuf" or len(times) != table.num_rows or not np.isfinite(times).all():
        kind = table.column("timestamp").type
        raise FormatError(f"{where}: timestamp as {kind}, not all of them numbers, wanted finite seconds. {AGAIN}")
    return times.astype(np.float64)


def _values(table: Any, feature: Feature, where: str) -> NDArray[Any]:
    """(T, *shape) values of an array feature."""
    column = feature.source_path
    values = _flat(table.column(column), where, column)
    wanted = (table.num_rows, *feature.shape)
    if values.dtype.kind not in "biuf":
        kind = table.column(column).type
        raise FormatError(f"{where}: {column!r} as {kind}, wanted {feature.dtype}. {AGAIN}")
    if values.size != np.prod(wanted, dtype=np.int64):
        each = values.size / max(1, table.num_rows)
        raise FormatError(f"{where}: {each:g} values a step of {column!r}, wanted {feature.shape}. {AGAIN}")
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
            raise FormatError(f"{where}: {array.null_count} missing values of {name!r}, wanted one a step. {AGAIN}")
        if arrow.types.is_fixed_size_list(array.type):
            array = array.flatten()
        elif arrow.types.is_list(array.type) or arrow.types.is_large_list(array.type):
            lengths: NDArray[Any] = np.diff(_numbers_of(array.offsets))
            if len(lengths) and (lengths != lengths[0]).any():
                raise FormatError(
                    f"{where}: {lengths.min()} to {lengths.max()} values of {name!r}, wanted as many each. {AGAIN}"
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
