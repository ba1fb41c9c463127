"""Columns of LeRobot data sets that no feature is made of, texts and what is said at a step: for who copies them."""

from collections.abc import Sequence
from typing import Any

from epistream.errors import FormatError
from epistream.sharding.lerobot.episode import SetSource
from epistream.sharding.lerobot.files import open_parquet
from epistream.sharding.lerobot.row_groups import Keeping
from epistream.sharding.lerobot.rows import episode_pieces
from epistream.sharding.lerobot_meta.arrow import arrow_module

CARRIED = ("string", "language")
# What texts of a step may take, where rows are read together.
_ROW_BYTES = 1024


def carried_schemas(source: SetSource) -> dict[str, bytes]:
    """Those columns with one value a step, each by LeRobot's key with its Arrow schema, as Arrow writes that.

    Raises:
        FormatError, SourceError, FetchError: If the first file of rows cannot be read.
    """
    columns = source.meta.info.columns.values()
    keys = [one.key for one in columns if one.dtype in CARRIED and one.shape in ((), (1,))]
    if not keys:
        return {}
    file = source.data_file(next(iter(source.files_of(0))), afresh=True)
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
    file = source.data_file(next(iter(source.files_of(episode))), afresh=True)
    number, length = int(source.meta.number[episode]), int(source.meta.length[episode])
    keep = Keeping(source.folder, _ROW_BYTES)
    pieces = episode_pieces(file, number, keys, keep, holds_one=not source.has_long_files)
    arrow = arrow_module("pyarrow")
    mine = arrow.concat_tables([piece.table for piece in pieces])
    if mine.num_rows != length:
        raise FormatError(
            f"{file.url}: {mine.num_rows} rows of episode {number}, wanted {length}, as the metadata say. "
            "Download it again."
        )
    return {key: arrow.concat_arrays(mine.column(key).chunks) for key in keys}
