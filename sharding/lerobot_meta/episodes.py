"""The episodes of a LeRobot data set, from its tables: lengths, tasks, and where rows and videos lie."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epistream.errors import FormatError, SourceError
from epistream.file_systems import local_path
from epistream.sharding.lerobot_meta.info import LeRobotInfo
from epistream.sharding.lerobot_meta.meta_files import EPISODES_V2, MetaFiles, at_once, numbered
from epistream.sharding.lerobot_meta.parquet import ColumnsOfFile, read_columns
from epistream.sharding.manifest.manifest_columns import Int64, offsets_of

Float64 = NDArray[np.float64]
Array = NDArray[Any]
_MOST_AT_ONCE = 16


@dataclass(frozen=True, eq=False)
class EpisodeRows:
    """E episodes as the tables have them, in any order; what they say is not compared with anything yet.

    Args:
        number: (E,) episode_index.
        length: (E,) steps.
        first_index: (E,) position of the first step in the whole set.
        data_place: (E, 2) chunk and file of the rows.
        video_place: (E, 2) by key of a video.
        video_start: (E,) seconds, likewise.
        task_texts: Each text once.
        task_offsets: (E + 1,) into `task_ids`.
        task_ids: Positions in `task_texts`.
        files: Relative paths of the tables that were read.
    """

    number: Int64
    length: Int64
    first_index: Int64
    data_place: Int64
    video_place: dict[str, Int64]
    video_start: dict[str, Float64]
    task_texts: Sequence[str]
    task_offsets: Int64
    task_ids: Int64
    files: Sequence[str]


def read_episodes(info: LeRobotInfo, files: MetaFiles) -> EpisodeRows:
    """The episodes of any version.

    Raises:
        SourceError: If a table is missing or cannot be read.
        FormatError: If one is torn, or lacks a column.
    """
    return _read_v2(info, files) if info.version[0] == 2 else _read_v3(info, files)


def _read_v2(info: LeRobotInfo, files: MetaFiles) -> EpisodeRows:
    data, where = files.read(EPISODES_V2), files.url(EPISODES_V2)
    if data is None:
        raise SourceError(f"{where}: no such file, wanted it beside info.json. Download the data set again.")
    rows = parse_lines(data, where)
    try:
        number = _integers([row["episode_index"] for row in rows])
        length = _integers([row["length"] for row in rows])
        tasks = [row["tasks"] for row in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(
            f"{where}: {type(error).__name__}: {str(error)[:80]}; wanted episode_index, length and tasks of each "
            "episode. Download it again."
        ) from error
    ids: dict[str, int] = {}
    flat: list[int] = []
    counts: list[int] = []
    for line, mine in enumerate(tasks):
        texts = [mine] if isinstance(mine, str) else mine
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise FormatError(f"{where}: line {line + 1}: tasks {mine!r:.80}, wanted a list of texts. Correct it.")
        counts.append(len(texts))
        flat += [ids.setdefault(text, len(ids)) for text in texts]
    place = np.stack([number // info.chunks_size, number], axis=1)
    order = np.argsort(number, kind="stable")
    first = np.empty(len(length), np.int64)
    first[order] = offsets_of(length[order])[:-1]
    return EpisodeRows(
        number=number,
        length=length,
        first_index=first,
        data_place=place,
        video_place=dict.fromkeys(info.video_keys, place),
        video_start=dict.fromkeys(info.video_keys, np.zeros(len(number))),
        task_texts=tuple(ids),
        task_offsets=offsets_of(counts),
        task_ids=np.array(flat, np.int64),
        files=(EPISODES_V2,),
    )


def parse_lines(data: bytes, where: str) -> list[Any]:
    """The values of a file with one JSON value a line.

    Raises:
        FormatError: If a line is no JSON.
    """
    lines = data.split(b"\n")
    try:
        # All at once: 100,000 calls take twice as long.
        return list(json.loads(b"[" + b",".join(line for line in lines if line.strip()) + b"]"))
    except (ValueError, RecursionError):
        pass
    for number, line in enumerate(lines):
        try:
            if line.strip():
                json.loads(line)
        except (ValueError, RecursionError) as error:
            raise FormatError(
                f"{where}: line {number + 1}: {line[:60]!r}, wanted JSON ({str(error)[:80]}). Download it again."
            ) from error
    raise FormatError(f"{where}: lines that are no JSON together, wanted one value a line. Download it again.")


def _integers(values: Sequence[object]) -> Int64:
    array = np.array(values)
    if array.ndim != 1 or (len(array) and array.dtype.kind != "i"):
        raise ValueError(f"{values[:3]!r:.60}")
    return array.astype(np.int64)


def _read_v3(info: LeRobotInfo, files: MetaFiles) -> EpisodeRows:
    scalars = ["episode_index", "length", "data/chunk_index", "data/file_index", "dataset_from_index"]
    optional = ["dataset_to_index"]
    for key in info.video_keys:
        scalars += [f"videos/{key}/{name}" for name in ("chunk_index", "file_index", "from_timestamp")]
    names = files.episode_files()
    wanted = [*scalars, *optional, "tasks"]
    if names:
        parts = at_once(
            lambda name: _read_table(files, name, wanted, scalars), names, is_local=local_path(files.root) is not None
        )
    else:
        names, parts = _probe(info, files, wanted, scalars)
    if not names:
        raise SourceError(
            f"{files.url(numbered(info, 0, 1)[0])}: no such file, wanted the episodes of a data set of LeRobot's v3. "
            "Download it again, or finish the recording with finalize()."
        )
    columns = {name: np.concatenate([part.numbers[name] for part in parts]) for name in scalars}
    texts: dict[str, int] = {}
    ids = []
    for part in parts:
        mine = np.array([texts.setdefault(text, len(texts)) for text in part.texts], np.int64)
        ids.append(mine[part.text_ids] if len(mine) else part.text_ids)
    length = columns["length"]
    if all("dataset_to_index" in part.numbers for part in parts):
        last = np.concatenate([part.numbers["dataset_to_index"] for part in parts])
        wrong = np.flatnonzero(last - columns["dataset_from_index"] != length)
        if len(wrong):
            one = int(wrong[0])
            raise FormatError(
                f"{files.url('meta/episodes')}: episode {columns['episode_index'][one]}: rows "
                f"{columns['dataset_from_index'][one]} to {last[one]}, but length {length[one]}, wanted as many. "
                "Correct it, or download the data set again."
            )
    return EpisodeRows(
        number=columns["episode_index"],
        length=length,
        first_index=columns["dataset_from_index"],
        data_place=_places(columns, "data"),
        video_place={key: _places(columns, f"videos/{key}") for key in info.video_keys},
        video_start={key: columns[f"videos/{key}/from_timestamp"].astype(np.float64) for key in info.video_keys},
        task_texts=tuple(texts),
        task_offsets=offsets_of(np.concatenate([part.text_counts for part in parts])),
        task_ids=np.concatenate(ids),
        files=names,
    )


def _places(columns: Mapping[str, Array], of: str) -> Int64:
    return np.stack([columns[f"{of}/chunk_index"], columns[f"{of}/file_index"]], axis=1)


def _read_table(files: MetaFiles, name: str, wanted: Sequence[str], needed: Sequence[str]) -> ColumnsOfFile:
    found = _read_if_there(files, name, wanted, needed)
    if found is None:
        raise SourceError(f"{files.url(name)}: no such file, but it was listed. Open the data set again.")
    return found


def _read_if_there(files: MetaFiles, name: str, wanted: Sequence[str], needed: Sequence[str]) -> ColumnsOfFile | None:
    found = read_columns(files, name, wanted)
    missing = [one for one in needed if found is not None and one not in found.numbers]
    if missing:
        raise FormatError(
            f"{files.url(name)}: without {', '.join(missing[:3])}, wanted them of each episode, as LeRobot's v3 has "
            "them. Convert the data set with LeRobot, or download it again."
        )
    return found


def _probe(
    info: LeRobotInfo, files: MetaFiles, wanted: Sequence[str], needed: Sequence[str]
) -> tuple[list[str], list[ColumnsOfFile]]:
    """The tables of a web server, which lists none: by their numbers, until all episodes are there."""
    names: list[str] = []
    parts: list[ColumnsOfFile] = []
    if files.is_listed:
        return names, parts
    num_episodes, count = 0, 1
    while num_episodes < info.total_episodes:
        asked = numbered(info, len(names), count)
        for name, part in zip(
            asked, at_once(lambda name: _read_if_there(files, name, wanted, needed), asked), strict=True
        ):
            if part is None:
                return names, parts
            names.append(name)
            parts.append(part)
            num_episodes += len(part.text_counts)
        count = min(2 * count, _MOST_AT_ONCE)
    return names, parts
