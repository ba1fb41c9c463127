"""Whether what the tables of a LeRobot data set say can be, and agrees with its ``info.json``."""

from collections.abc import Iterator

import numpy as np

from epistream.sharding.lerobot_meta.episodes import EpisodeRows
from epistream.sharding.lerobot_meta.info import LeRobotInfo
from epistream.sharding.manifest.column_checks import out_of_range
from epistream.sharding.manifest.manifest_columns import Int64

_MOST_STEPS = 1 << 34
_MOST_CHUNKS = (1 << 31) - 1
_MOST_SECONDS = 1e9


def first_problem(info: LeRobotInfo, rows: EpisodeRows) -> str | None:
    """What is wrong, as a sentence; None if nothing is."""
    found = next(_problems(info, rows), None)
    return found and f"{found}."


def _problems(info: LeRobotInfo, rows: EpisodeRows) -> Iterator[str]:
    """Vectorised; later checks rely on the earlier ones."""
    yield from _number_problems(info, rows.number)
    yield from out_of_range("length", rows.length, 1, _MOST_STEPS)
    total = int(rows.length.sum())
    if total != info.total_frames:
        yield f"episodes of {total:,} steps together, but info.json says total_frames {info.total_frames:,}"
    yield from out_of_range("dataset_from_index", rows.first_index, 0, 1 << 48)
    if info.version[0] == 2:
        return
    yield from out_of_range("data chunk_index and file_index", rows.data_place.reshape(-1), 0, _MOST_CHUNKS)
    for key in info.video_keys:
        places = rows.video_place[key]
        yield from out_of_range(f"videos/{key} chunk_index and file_index", places.reshape(-1), 0, _MOST_CHUNKS)
        yield from _start_problems(info, rows, key)


def _number_problems(info: LeRobotInfo, number: Int64) -> Iterator[str]:
    if len(number) != info.total_episodes:
        yield f"{len(number):,} episodes in its tables, but info.json says total_episodes {info.total_episodes:,}"
    yield from out_of_range("episode_index", number, 0, len(number) - 1)
    counts = np.bincount(number, minlength=len(number))
    if (counts != 1).any():
        twice, none = int(np.argmax(counts)), int(np.argmin(counts))
        yield f"episode_index {twice} {counts[twice]} times and {none} never, wanted each from 0 once"


def _start_problems(info: LeRobotInfo, rows: EpisodeRows, key: str) -> Iterator[str]:
    """An episode's frames begin in the video where those of the one before it are over."""
    start, places = rows.video_start[key], rows.video_place[key]
    wrong = ~((start >= 0) & (start < _MOST_SECONDS))
    if wrong.any():
        one = int(np.argmax(wrong))
        yield f"episode {rows.number[one]}: videos/{key}/from_timestamp {start[one]}, wanted seconds from 0"
    order = np.lexsort((start, places[:, 1], places[:, 0]))
    stop = start + rows.length / info.fps
    first, second = order[:-1], order[1:]
    is_same = (places[first] == places[second]).all(axis=1)
    # Half a step: durations of containers are rounded, and frames are found to the nearest.
    bad = is_same & (start[second] < stop[first] - 0.5 / info.fps)
    if bad.any():
        one, two = int(first[np.argmax(bad)]), int(second[np.argmax(bad)])
        yield (
            f"{key}: episode {rows.number[two]} begins at {start[two]:.6g} s of a video in which episode "
            f"{rows.number[one]} ends at {stop[one]:.6g} s, wanted one after the other"
        )
