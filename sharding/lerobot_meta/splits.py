"""The splits of a LeRobot data set, as slices of its episodes."""

import logging
import re

import numpy as np

from epistream.errors import FormatError
from epistream.sharding.format.episode_meta import NO_SPLIT
from epistream.sharding.lerobot_meta.info import LeRobotInfo
from epistream.sharding.manifest.manifest_columns import UInt8

_log = logging.getLogger(__name__)

_SLICE = re.compile(r"\s*(\d{0,12})\s*:\s*(\d{0,12})\s*")
_MOST_SPLITS = 256


def splits_of(info: LeRobotInfo, where: str) -> tuple[tuple[str, ...], UInt8]:
    """Names of splits, ``train`` first, and the position in them of each episode.

    ======================================== ==========================================================
    ``splits`` of ``info.json``              what that means here
    ======================================== ==========================================================
    nothing                                  one split, called as that of shards without any
    one, ``{"train": "0:50"}``               all episodes, as LeRobot reads them, also where they grew
    several that have each episode once      these
    several, an episode in two or in none    a FormatError; so is a slice that is none or ends too late
    ======================================== ==========================================================

    Args:
        info: Of the data set.
        where: The URL of its ``info.json``, for messages.

    Returns:
        The names, and (E,) uint8.

    Raises:
        FormatError: See above.
    """
    num_episodes = info.total_episodes
    named = sorted(info.splits, key=lambda name: name != "train")
    slices = {name: _slice(name, info.splits[name], num_episodes, where) for name in named}
    if len(named) > _MOST_SPLITS:
        raise FormatError(f"{where}: {len(named)} splits, wanted at most {_MOST_SPLITS}. Correct it.")
    if not named:
        return (NO_SPLIT,), np.zeros(num_episodes, np.uint8)
    if len(named) == 1:
        [(name, (start, stop))] = slices.items()
        if (start, stop) != (0, num_episodes):
            _log.warning(
                "%s: the only split, %s, has the episodes %d to %d of %d: all are taken for it, as LeRobot does.",
                where,
                name,
                start,
                stop,
                num_episodes,
            )
        return (name,), np.zeros(num_episodes, np.uint8)
    divided = np.zeros(num_episodes, np.uint8)
    times = np.zeros(num_episodes, np.int64)
    for position, (name, (start, stop)) in enumerate(slices.items()):
        if stop > num_episodes:
            raise FormatError(
                f"{where}: split {name} is {info.splits[name]!r}, but there are {num_episodes} episodes. Correct it."
            )
        divided[start:stop] = position
        times[start:stop] += 1
    if (times != 1).any():
        episode = int(np.argmax(times != 1))
        raise FormatError(
            f"{where}: episode {episode} is in {times[episode]} of the splits {', '.join(named)}, wanted each in one. "
            "Correct it, so that nothing is trained on that should validate."
        )
    kept = [name for position, name in enumerate(slices) if (divided == position).any()]
    renumbered = np.array([kept.index(name) if name in kept else 0 for name in slices], np.uint8)
    return tuple(kept), renumbered[divided]


def _slice(name: str, value: object, num_episodes: int, where: str) -> tuple[int, int]:
    found = _SLICE.fullmatch(value) if isinstance(value, str) else None
    if found is None or not name or not name.isprintable():
        raise FormatError(f"{where}: split {name!r:.80} is {value!r:.80}, wanted a slice such as '0:50'. Correct it.")
    return int(found[1] or 0), int(found[2] or num_episodes)
