"""Columns of LeRobot data sets that no feature is made of, texts and what is said at a step: for who copies them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from epistream.errors import FormatError
from epistream.sharding.lerobot.episode import SetSource
from epistream.sharding.lerobot.files import SourceFile, open_parquet
from epistream.sharding.lerobot.rows import episode_numbers, groups_of
from epistream.sharding.lerobot_meta.arrow import arrow_module

CARRIED = ("string", "language")
_NUMBER = "episode_index"
_ROWS = "the rows of an episode"


def carried_schemas(source: SetSource) -> dict[str, bytes]:
    """Those columns with one value a step, each by LeRobot's key with its Arrow schema, as Arrow writes that.

    Raises:
        FormatError, SourceError, FetchError: If the first file of rows cannot be read.
    """
    columns = source.meta.info.columns.values()
    keys = [one.key for one in columns if one.dtype in CARRIED and one.shape in ((), (1,))]
    if not keys:
        return {}
    file = SourceFile.at(source.root, next(iter(source.files_of(0))), source.options, _ROWS)
    with open_parquet(file, source.folder if source.has_long_files else None) as opened:
        schema = opened.file.schema_arrow
    there = [key for key in keys if schema.get_field_index(key) >= 0]
    schemas = {key: arrow_module("pyarrow").schema([schema.field(key)], schema.metadata) for key in there}
    return {key: bytes(one.serialize()) for key, one in schemas.items()}


def read_carried(source: SetSource, episode: int, keys: Sequence[str]) -> dict[str, Any]:
    """(T,) Arrow arrays of an episode, by its position, and by LeRobot's key.

    Raises:
        FormatError: If the file is torn, lacks a column, or has not the episode's rows in one place.
        SourceError, FetchError: If it cannot be read.
    """
    file = SourceFile.at(source.root, next(iter(source.files_of(episode))), source.options, _ROWS)
    number, length = int(source.meta.number[episode]), int(source.meta.length[episode])
    arrow = arrow_module("pyarrow")
    with open_parquet(file, source.folder if source.has_long_files else None) as opened:
        parquet = opened.file
        groups = groups_of(parquet, number) if source.has_long_files else range(parquet.metadata.num_row_groups)
        there = set(parquet.schema_arrow.names)
        lacking = next((key for key in keys if key not in there), None)
        if lacking is not None:
            raise FormatError(f"{file.url}: no column {lacking!r}, wanted it as in the first file. Download it again.")
        table = opened.read(list(groups), [*([_NUMBER] if _NUMBER in there else []), *keys])
        numbers = episode_numbers(table, file, number, holds_one=not source.has_long_files)
        rows = np.flatnonzero(numbers == number)
        if len(rows) != length or rows[-1] - rows[0] != length - 1:
            raise FormatError(
                f"{file.url}: {len(rows)} rows of episode {number}, wanted {length} one after the other. "
                "Download it again."
            )
        mine = table.slice(int(rows[0]), length)
        return {key: arrow.concat_arrays(mine.column(key).chunks) for key in keys}
