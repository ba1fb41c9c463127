"""What a LeRobot data set says of each episode beside what every set says: columns that somebody added."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from epistream.errors import FormatError
from epistream.sharding.files.storage import Options
from epistream.sharding.lerobot_meta.arrow import arrow_module
from epistream.sharding.lerobot_meta.episodes import parse_lines
from epistream.sharding.lerobot_meta.meta_files import EPISODES_V2, look_at, numbered
from epistream.sharding.lerobot_meta.metadata import LeRobotMeta
from epistream.sharding.lerobot_meta.parquet import read_table

_INDEX = "episode_index"
_USUAL = (_INDEX, "tasks", "length", "dataset_from_index", "dataset_to_index")
# As of attributes of HDF5 files: simulator models ride in them.
_MOST_CHARACTERS = 10_000
_USUAL_GROUPS = ("data/", "videos/", "meta/", "stats/")


def lerobot_attributes(meta: LeRobotMeta, options: Options) -> list[Mapping[str, Any]]:
    """What is said of each episode (E,), in the order of their numbers: texts, finite numbers and truth values.

    ``robot_type`` is the whole set's.

    Raises:
        SourceError: If the metadata cannot be read.
        FormatError: If they are torn.
    """
    files = look_at(meta.root, options)
    shared = {"robot_type": meta.info.robot_type} if meta.info.robot_type else {}
    by_number: dict[int, Mapping[str, Any]] = {}
    if meta.info.version[0] == 2:
        rows = parse_lines(files.read(EPISODES_V2) or b"", files.url(EPISODES_V2))
        for row in rows:
            if isinstance(row, dict) and type(row.get(_INDEX)) is int:
                added = {name: value for name, value in row.items() if not _is_usual(name) and _is_scalar(value)}
                by_number[row[_INDEX]] = added
    else:
        for name in files.episode_files() or _numbered(meta):
            table = read_table(files, name, _added_columns)
            if table is None:
                break  # of a web server, which lists none, there are no more
            by_number |= _of_table(table, files.url(name))
    return [shared | dict(by_number.get(number, {})) for number in meta.number.tolist()]


def _is_usual(name: str) -> bool:
    return name in _USUAL or name.startswith(_USUAL_GROUPS)


def _added_columns(schema: Any) -> list[str]:
    """The number of an episode, and columns of scalars that LeRobot does not write."""
    types = arrow_module("pyarrow.types")
    kinds = (types.is_boolean, types.is_integer, types.is_floating, types.is_string, types.is_large_string)
    added = [one.name for one in schema if not _is_usual(one.name) and any(is_kind(one.type) for is_kind in kinds)]
    return [_INDEX, *added]


def _of_table(table: Any, where: str) -> dict[int, Mapping[str, Any]]:
    if _INDEX not in table.column_names or len(set(table.column_names)) != len(table.column_names):
        raise FormatError(f"{where}: without {_INDEX}, or with two columns of one name. Download the file again.")
    columns: dict[str, Sequence[Any]] = {name: table.column(name).to_pylist() for name in table.column_names}
    numbers = columns.pop(_INDEX)
    rows = zip(*columns.values(), strict=True) if columns else ((),) * len(numbers)
    return {
        number: {name: value for name, value in zip(columns, values, strict=True) if _is_scalar(value)}
        for number, values in zip(numbers, rows, strict=True)
        if number is not None
    }


def _is_scalar(value: Any) -> bool:
    if type(value) is float:
        return math.isfinite(value)
    return type(value) in (bool, int) or (type(value) is str and len(value) <= _MOST_CHARACTERS)


def _numbered(meta: LeRobotMeta) -> list[str]:
    return numbered(meta.info, 0, meta.num_episodes)
