"""A few columns of a Parquet file as numpy arrays; of a large remote one no more than their bytes is fetched."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epistream.errors import FormatError, SourceError
from epistream.file_systems import local_path
from epistream.plain_files import not_a_plain_file
from epistream.sharding.files.foreign import stand_in
from epistream.sharding.lerobot_meta.arrow import arrow_errors, arrow_module, numbers_of
from epistream.sharding.lerobot_meta.meta_files import MetaFiles
from epistream.sharding.lerobot_meta.parquet_ranges import RangesOfFile, ranges_of
from epistream.sharding.manifest.manifest_columns import Int64

# A remote file of this size is fetched whole: at 100 MB/s that takes as long as a few more requests.
_WHOLE_BYTES = 8 << 20
_MOST_BYTES = 1 << 40


@dataclass(frozen=True, eq=False)
class ColumnsOfFile:
    """Columns of a table of N rows.

    Args:
        numbers: (N,) by name, int64 or float64; of those that are there.
        texts: Every text of the column of lists of texts, once.
        text_counts: (N,) texts of each row.
        text_ids: Positions in `texts`, of all rows.
    """

    numbers: dict[str, NDArray[Any]]
    texts: Sequence[str]
    text_counts: Int64
    text_ids: Int64


def read_columns(files: MetaFiles, name: str, wanted: Sequence[str]) -> ColumnsOfFile | None:
    """Some columns of numbers, and of lists of texts the one called ``tasks``; None if there is no such file.

    Raises:
        SourceError: If it cannot be read.
        FormatError: If it is no whole Parquet file, or a column holds something else or has gaps.
    """
    table = read_table(files, name, wanted)
    if table is None:
        return None
    where = files.url(name)
    with arrow_errors(where):
        numbers = {one: _numbers(table.column(one), one, where) for one in table.column_names if one != "tasks"}
        if "tasks" not in table.column_names:
            return ColumnsOfFile(numbers, (), np.zeros(table.num_rows, np.int64), np.zeros(0, np.int64))
        return ColumnsOfFile(numbers, *_texts(table.column("tasks"), where))


def read_table(files: MetaFiles, name: str, wanted: Sequence[str] | Callable[[Any], Sequence[str]] | None) -> Any:
    """A `pyarrow.Table` of the wanted columns that there are, all if None; None if there is no such file.

    Which are wanted can be told when the `pyarrow.Schema` is known.

    Raises:
        SourceError, FormatError: As `read_columns`.
    """
    parquet = arrow_module("pyarrow.parquet")
    url = files.url(name)
    path = local_path(url)
    source: Any
    if path is not None:
        problem = not_a_plain_file(path)
        if problem == "no such file":
            return None
        if problem:
            raise SourceError(f"{url}: {problem}, wanted a Parquet file. Check the path.")
        with path.open("rb") as file:
            head = file.read(512)
        source = str(path)
    elif files.sizes.get(name, 0) > _WHOLE_BYTES:
        source = RangesOfFile(url, files.sizes[name], files.options)
        head = source.head
    else:
        data = files.read(name)
        if data is None:
            return None
        source, head = io.BytesIO(data), data[:512]
    foreign = stand_in(head)
    if foreign:
        raise FormatError(f"{url}: {foreign.what}, wanted a Parquet file. {foreign.advice}")
    with arrow_errors(url), parquet.ParquetFile(source) as opened:
        there = set(opened.schema_arrow.names)
        asked = wanted(opened.schema_arrow) if callable(wanted) else wanted
        chosen = None if asked is None else [one for one in asked if one in there]
        if isinstance(source, RangesOfFile):
            source.fetch(ranges_of(opened.metadata, None if chosen is None else set(chosen)))
        # Files are read beside each other: threads for the columns of one would only stand in each other's way.
        return opened.read(columns=chosen, use_threads=False)


def _numbers(column: Any, name: str, where: str) -> NDArray[Any]:
    is_time = name.endswith("_timestamp")
    values = numbers_of(column.combine_chunks())
    if values is None or not np.isfinite(values).all() or not (is_time or _are_whole(values)):
        raise FormatError(
            f"{where}: {name}: {column.type} with {column.null_count} values missing, wanted "
            f"{'seconds' if is_time else 'a whole number'} of each episode. Download the file again, or convert the "
            "data set anew."
        )
    return values.astype(np.float64 if is_time else np.int64)


def _are_whole(values: NDArray[Any]) -> bool:
    is_safe = not len(values) or max(abs(float(values.min())), abs(float(values.max()))) <= 1 << 53
    return is_safe and (values.dtype.kind != "f" or np.array_equal(values, np.trunc(values)))


def _texts(column: Any, where: str) -> tuple[Sequence[str], Int64, Int64]:
    types = arrow_module("pyarrow.types")
    is_list = types.is_list(column.type) or types.is_large_list(column.type)
    if not is_list or not (types.is_string(column.type.value_type) or types.is_large_string(column.type.value_type)):
        raise FormatError(f"{where}: tasks of {column.type}, wanted lists of texts. Download the file again.")
    lists = column.combine_chunks()
    encoded = lists.flatten().dictionary_encode()
    counts, indices = numbers_of(lists.value_lengths()), numbers_of(encoded.indices)
    if counts is None or indices is None:
        raise FormatError(
            f"{where}: tasks that are missing, wanted a list of texts of each episode. Download it again."
        )
    return encoded.dictionary.to_pylist(), counts.astype(np.int64), indices.astype(np.int64)
