"""Measurements as frozen dataclasses of arrays with a row an episode: joined, and cut, all alike."""

from collections.abc import Iterable, Sequence
from dataclasses import fields
from itertools import chain
from typing import Any, TypeVar

import numpy as np

Table = TypeVar("Table")


def chained(lists: Iterable[list[Any]]) -> list[Any]:
    """One list of several."""
    return list(chain.from_iterable(lists))


def joined(parts: Sequence[Table]) -> Table:
    """One table of several of a class: arrays row after row, lists likewise.

    Args:
        parts: At least one.
    """
    first = parts[0]
    values: dict[str, Any] = {}
    for one in fields(first):  # type: ignore[arg-type]
        columns = [getattr(part, one.name) for part in parts]
        is_list = isinstance(columns[0], list)
        values[one.name] = chained(columns) if is_list else np.concatenate(columns)
    return type(first)(**values)
