"""What ``meta/`` of a LeRobot data set says, as arrays: read and compared once, and kept for whoever opens it again."""

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from epistream.errors import FormatError
from epistream.sharding.files.pruning import mark_used
from epistream.sharding.files.storage import Options
from epistream.sharding.files.user_cache import default_folder, make_once
from epistream.sharding.format.tables import Tables, parse_tables, write_tables
from epistream.sharding.format.texts import Texts
from epistream.sharding.lerobot_meta.checks import first_problem
from epistream.sharding.lerobot_meta.episodes import EpisodeRows, Float64, read_episodes
from epistream.sharding.lerobot_meta.hub import is_pinned
from epistream.sharding.lerobot_meta.info import INFO, LeRobotInfo, parse_info
from epistream.sharding.lerobot_meta.meta_files import (
    EPISODES_V2,
    TASKS_V2,
    TASKS_V3,
    MetaFiles,
    are_now,
    look_at,
    numbered,
)
from epistream.sharding.lerobot_meta.tasks import read_tasks, with_only_task
from epistream.sharding.manifest.manifest_columns import Int64, Mapped, offsets_of

_log = logging.getLogger(__name__)

KIND = "epistream.lerobot-metadata"
# Raised when the same files would give other arrays.
RECIPE = 2
_REMEDY = "Remove it: it is made again."


@dataclass(frozen=True, eq=False)
class LeRobotMeta:
    """E episodes, in the order of their numbers. Pickles.

    Args:
        info: What ``info.json`` says.
        number: (E,) episode_index as the set has it.
        length: (E,) steps.
        first_index: (E,) dataset_from_index.
        data_files: (F,) relative paths of the Parquet files; each is made when somebody looks.
        data_file_of: (E,) the one that an episode's rows are in.
        video_files: By key of a video, likewise.
        video_file_of: (E,) by key of a video, likewise.
        video_start: (E,) by key of a video, seconds in the file at which the episode begins; 0 in v2.
        tasks: (T,) every instruction once, in the order of LeRobot's numbers.
        task_offsets: (E + 1,) where the tasks of an episode begin and end in `task_ids`.
        task_ids: Positions in `tasks`.
        task_numbers: (T,) LeRobot's task_index of each.
        digest: XXH3-128, hexadecimal, of everything above that decides what is read; no place goes in.
        root: The data set's folder, an absolute path or a URL.
        path: The file that all this is kept in.
        files: Versions of the files below ``meta/`` that it was made from, by relative path.
    """

    info: LeRobotInfo
    number: Int64
    length: Int64
    first_index: Int64
    data_files: Sequence[str]
    data_file_of: Int64
    video_files: dict[str, Sequence[str]]
    video_file_of: dict[str, Int64]
    video_start: dict[str, Float64]
    tasks: Sequence[str]
    task_offsets: Int64
    task_ids: Int64
    task_numbers: Int64
    digest: str
    root: str
    path: str
    files: dict[str, str]

    @property
    def num_episodes(self) -> int:
        """Episodes, E."""
        return len(self.number)


def keep_metadata(
    root: str,
    options: Options,
    folder: Path | None = None,
    *,
    files: MetaFiles | None = None,
    on_making: Callable[[], None] | None = None,
) -> LeRobotMeta:
    """The metadata of a data set; read now if this version of its files is not kept.

    Args:
        root: Its folder, an absolute path or a URL; of a hub with a commit as revision (see `hub.pinned`).
        options: For fsspec.
        folder: Where it is kept; ``$XDG_CACHE_HOME/epistream/indexes`` unless given. Where that cannot be used, it is
            in one for temporary files.
        files: What is known of its files, if somebody looked at them just now.
        on_making: Called if they have to be read.

    Raises:
        SourceError: If a file is missing or cannot be read.
        VersionError: If it is of a version of LeRobot's format that is not read.
        FormatError: If a file is torn, or they do not agree.
        OptionError: If pyarrow is needed and not installed.
        SourceChangedError: If the files are written to meanwhile.
        CacheError, DeadlineError: As `make_once`.
    """
    folder = folder or default_folder()
    is_fixed = is_pinned(root)  # of a commit nothing changes: where it is kept, nobody is asked anything
    files = None if is_fixed else files or look_at(root, options)
    version = files.versions[INFO] if files else ""
    name = xxhash.xxh3_128_hexdigest(f"lerobot\0{RECIPE}\0{root}\0{version}".encode())
    kept_name = f"{name}.index"
    made: dict[str, str] = {}

    def make() -> list[tuple[str, bytes]]:
        _log.info("reading the metadata of %s", root)
        if on_making is not None:
            on_making()
        data, versions = _make(files or look_at(root, options), root)
        made.update(versions)
        return [(kept_name, data)]

    return make_once(
        folder / f"{name}.lock",
        lambda place: _read(place / kept_name, files, made),
        make,
        root,
        is_unchanged=lambda: is_fixed or are_now(root, options, made),
    )


def _make(files: MetaFiles, root: str) -> tuple[bytes, dict[str, str]]:
    """The file that is kept, and the versions of what it was made from."""
    said = files.read(INFO)
    if said is None:
        raise FormatError(f"{files.url(INFO)}: removed while the data set was opened. Open it again.")
    info = parse_info(said, files.url(INFO))
    if info.version[0] == 2:
        files.hold([EPISODES_V2, TASKS_V2])
    else:
        files.hold([*numbered(info, 0, 1), TASKS_V3])
    rows = read_episodes(info, files)
    tasks, task_numbers, task_ids = read_tasks(info, files, rows)
    named = with_only_task(rows, tasks)
    if named is not rows:
        rows, task_ids = named, named.task_ids
    problem = first_problem(info, rows)
    if problem:
        raise FormatError(f"{files.url('meta')}: {problem} Correct it, or download the data set again.")
    arrays = _arrays(info, rows, tasks, task_numbers, task_ids)
    versions = dict(files.versions)
    if not files.is_listed:
        others = [*rows.files, _tasks_name(info)]
        versions |= {name: files.told[name] for name in others if name in files.told}
    arrays["info"] = np.frombuffer(said, np.uint8)
    arrays["versions"] = np.frombuffer(json.dumps(versions).encode(), np.uint8)
    return write_tables(KIND, {"recipe": RECIPE, "root": root}, arrays), versions


def _tasks_name(info: LeRobotInfo) -> str:
    return TASKS_V2 if info.version[0] == 2 else TASKS_V3


def _arrays(
    info: LeRobotInfo, rows: EpisodeRows, tasks: Sequence[str], task_numbers: Int64, task_ids: Int64
) -> dict[str, NDArray[Any]]:
    """Everything in the order of the episodes; places as positions among those that there are."""
    order = np.argsort(rows.number, kind="stable")
    counts = np.diff(rows.task_offsets)[order]
    offsets = offsets_of(counts)
    flat = np.repeat(rows.task_offsets[:-1][order] - offsets[:-1], counts) + np.arange(offsets[-1])
    texts, text_offsets = Texts.of(tasks, "tasks").arrays
    arrays: dict[str, NDArray[Any]] = {
        "number": rows.number[order],
        "length": rows.length[order],
        "first_index": rows.first_index[order],
        "task_offsets": offsets,
        "task_ids": task_ids[flat],
        "task_numbers": task_numbers,
        "tasks": texts,
        "text_offsets": text_offsets,
    }
    if info.version[0] == 2:
        return arrays  # one file an episode, by its number
    arrays["data_places"], arrays["data_file_of"] = _distinct(rows.data_place[order])
    for number, key in enumerate(info.video_keys):
        arrays[f"video_places.{number}"], arrays[f"video_file_of.{number}"] = _distinct(rows.video_place[key][order])
        arrays[f"video_start.{number}"] = rows.video_start[key][order]
    return arrays


def _distinct(places: Int64) -> tuple[Int64, Int64]:
    """(F, 2) places, and which of them each is. As one number each, which sorts 50 times faster than pairs."""
    found, inverse = np.unique(places[:, 0] << 31 | places[:, 1], return_inverse=True)
    return np.stack([found >> 31, found & (1 << 31) - 1], axis=1), inverse.astype(np.int64)


def read_kept(path: Path) -> LeRobotMeta | None:
    """What was kept, as it was when the data set was opened; None if it is gone or torn."""
    try:
        return _meta_of(parse_tables(path.read_bytes(), KIND, str(path), _REMEDY), str(path))
    except (OSError, FormatError, KeyError, ValueError):
        return None


def _read(path: Path, files: MetaFiles | None, made: Mapping[str, str]) -> LeRobotMeta | None:
    """What is kept, if it is whole and of the files as they are, unless these are None; anything else is made again.

    Files of the versions that it was `made` of just now need not be asked for theirs.
    """
    try:
        tables = parse_tables(path.read_bytes(), KIND, str(path), _REMEDY)
        versions = json.loads(tables.arrays["versions"].tobytes())
        is_current = files is None or versions == made or files.are_still(versions)
        if tables.meta.get("recipe") != RECIPE or not is_current:
            return None
        meta = _meta_of(tables, str(path))
        mark_used(path)
    except FileNotFoundError:
        return None
    except (OSError, FormatError, KeyError, ValueError) as error:
        _log.info("making %s again: %s", path, error)
        return None
    return meta


def _meta_of(tables: Tables, where: str) -> LeRobotMeta:
    arrays: Mapping[str, NDArray[Any]] = tables.arrays
    info = parse_info(arrays["info"].tobytes(), where)
    number = arrays["number"]
    if info.version[0] == 2:
        places = np.stack([number // info.chunks_size, number], axis=1)
        each = np.arange(len(number), dtype=np.int64)
        data, videos = (places, each), {key: (places, each) for key in info.video_keys}
        starts = dict.fromkeys(info.video_keys, np.zeros(len(number)))
    else:
        data = arrays["data_places"], arrays["data_file_of"]
        keys = list(enumerate(info.video_keys))
        videos = {key: (arrays[f"video_places.{one}"], arrays[f"video_file_of.{one}"]) for one, key in keys}
        starts = {key: arrays[f"video_start.{one}"] for one, key in keys}
    return LeRobotMeta(
        info=info,
        number=number,
        length=arrays["length"],
        first_index=arrays["first_index"],
        data_files=Mapped(partial(_data_file, info), data[0]),
        data_file_of=data[1],
        video_files={key: Mapped(partial(_video_file, info, key), place) for key, (place, _) in videos.items()},
        video_file_of={key: file_of for key, (_, file_of) in videos.items()},
        video_start=starts,
        tasks=Texts(arrays["tasks"], arrays["text_offsets"], where, _REMEDY),
        task_offsets=arrays["task_offsets"],
        task_ids=arrays["task_ids"],
        task_numbers=arrays["task_numbers"],
        digest=_digest(info, arrays),
        root=str(tables.meta["root"]),
        path=where,
        files=json.loads(arrays["versions"].tobytes()),
    )


def _data_file(info: LeRobotInfo, place: Int64) -> str:
    return info.data_file(int(place[0]), int(place[1]))


def _video_file(info: LeRobotInfo, key: str, place: Int64) -> str:
    return info.video_file(key, int(place[0]), int(place[1]))


def _digest(info: LeRobotInfo, arrays: Mapping[str, NDArray[Any]]) -> str:
    columns = {key: [one.dtype, one.shape, one.names, dict(one.info)] for key, one in info.columns.items()}
    said = [info.version, info.fps, columns, info.splits, info.chunks_size, info.data_path, info.video_path]
    hasher = xxhash.xxh3_128(b"epistream lerobot 1\n")
    for name, data in _pieces(json.dumps(said, sort_keys=True).encode(), arrays):
        hasher.update(f"{name} {len(data)}\n".encode())
        hasher.update(data)
    return hasher.hexdigest()


def _pieces(said: bytes, arrays: Mapping[str, NDArray[Any]]) -> Iterator[tuple[str, bytes]]:
    yield "said", said
    for name in sorted(arrays):
        if name not in ("info", "versions"):
            yield name, arrays[name].tobytes()
