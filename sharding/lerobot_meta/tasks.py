"""The instructions of a LeRobot data set: their texts, LeRobot's numbers of them, and which an episode has."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from epistream.errors import FormatError
from epistream.sharding.lerobot_meta.arrow import arrow_errors
from epistream.sharding.lerobot_meta.episodes import EpisodeRows, parse_lines
from epistream.sharding.lerobot_meta.info import LeRobotInfo
from epistream.sharding.lerobot_meta.meta_files import TASKS_V2, TASKS_V3, MetaFiles
from epistream.sharding.lerobot_meta.parquet import read_table
from epistream.sharding.manifest.manifest_columns import Int64


def read_tasks(info: LeRobotInfo, files: MetaFiles, rows: EpisodeRows) -> tuple[list[str], Int64, Int64]:
    """Every task once, by LeRobot's numbers; these numbers; and `rows.task_ids` as positions among them.

    Without a file of tasks they are numbered as LeRobot's writers do, in the order in which episodes have them, as
    long as no episode has several: which of these a step has, only that file could tell.

    Raises:
        FormatError: If the file is torn or lacks a task that an episode has, or it is missing and would be needed.
    """
    name = TASKS_V2 if info.version[0] == 2 else TASKS_V3
    where = files.url(name)
    found = _tasks_of_lines(files) if info.version[0] == 2 else _tasks_of_table(files)
    if found is None:
        if (np.diff(rows.task_offsets) > 1).any():
            raise FormatError(
                f"{where}: no such file, but episodes have several tasks, wanted their numbers. Download it again."
            )
        return _by_appearance(rows)
    numbers = [number for number, _ in found]
    texts = [text for _, text in found]
    if len(set(numbers)) != len(numbers) or len(set(texts)) != len(texts):
        raise FormatError(f"{where}: a task or its number twice, wanted each once. Correct it, or download it again.")
    position = {text: place for place, text in enumerate(texts)}
    missing = [text for text in rows.task_texts if text not in position]
    if missing:
        raise FormatError(
            f"{where}: no task {missing[0]!r:.120}, but an episode has it, wanted all that episodes have. Correct it, "
            "or download the data set again."
        )
    new = np.array([position[text] for text in rows.task_texts], np.int64)
    return texts, np.array(numbers, np.int64), new[rows.task_ids] if len(new) else rows.task_ids


def with_only_task(rows: EpisodeRows, tasks: Sequence[str]) -> EpisodeRows:
    """Of a data set of one task whose table of episodes names none: that it is every episode's, as rows number it."""
    if len(tasks) != 1 or rows.task_offsets[-1]:
        return rows
    each = len(rows.number)
    return replace(rows, task_texts=tasks, task_offsets=np.arange(each + 1), task_ids=np.zeros(each, np.int64))


def _by_appearance(rows: EpisodeRows) -> tuple[list[str], Int64, Int64]:
    order = np.argsort(rows.number, kind="stable")
    order = order[np.diff(rows.task_offsets)[order] > 0]
    seen = rows.task_ids[rows.task_offsets[order]]
    new = np.zeros(len(rows.task_texts), np.int64)
    kept = list(dict.fromkeys(seen.tolist()))
    new[kept] = np.arange(len(kept))
    return [rows.task_texts[one] for one in kept], np.arange(len(kept)), new[rows.task_ids]


def _tasks_of_lines(files: MetaFiles) -> list[tuple[int, str]] | None:
    data, where = files.read(TASKS_V2), files.url(TASKS_V2)
    if data is None:
        return None
    tasks = []
    for number, line in enumerate(parse_lines(data, where)):
        index, text = (line.get("task_index"), line.get("task")) if isinstance(line, dict) else (None, None)
        tasks.append(_task(index, text, f"{where}: task {number}"))
    return sorted(tasks)


def _tasks_of_table(files: MetaFiles) -> list[tuple[int, str]] | None:
    table = read_table(files, TASKS_V3, None)
    if table is None:
        return None
    where = files.url(TASKS_V3)
    with arrow_errors(where):
        name = _text_column(table.schema)
        if name is None or "task_index" not in table.column_names:
            raise FormatError(
                f"{where}: columns {', '.join(table.column_names)[:120]}, wanted task_index and the texts as pandas' "
                "index. Download it again."
            )
        pairs = zip(table.column("task_index").to_pylist(), table.column(name).to_pylist(), strict=True)
        return sorted(_task(index, text, f"{where}: task {number}") for number, (index, text) in enumerate(pairs))


def _text_column(schema: Any) -> str | None:
    """Where the texts are: pandas' index, which only its own notes in the schema tell; else the column ``task``."""
    names: Sequence[str] = schema.names
    try:
        notes = json.loads((schema.metadata or {}).get(b"pandas", b"{}"))
        named = [one for one in notes.get("index_columns", ()) if isinstance(one, str)]
    except (ValueError, AttributeError, TypeError, RecursionError):
        named = []
    candidates = [*named, "task", "__index_level_0__"]
    return next((one for one in candidates if one in names and one != "task_index"), None)


def _task(index: object, text: object, where: str) -> tuple[int, str]:
    if type(index) is not int or not 0 <= index < 1 << 48 or not isinstance(text, str):
        raise FormatError(f"{where}: {index!r:.40} is {text!r:.80}, wanted a number and a text. Download it again.")
    return index, text
