"""Minari: many episodes a file, under /episode_N, with one observation more than actions.

Source: Minari's HDF5 storage. The observation after the last action, and what ``infos`` holds, are not packed.
"""

import re
from dataclasses import replace
from typing import Any

import h5py
import natsort

from epistream.errors import LayoutError
from epistream.sharding.layouts.base import Choice, Field, SourceEpisode, group_at, looks_like_frames
from epistream.sharding.layouts.draft import Draft
from epistream.sharding.layouts.judging import why_no_rows
from epistream.sharding.layouts.names import feature_name
from epistream.sharding.layouts.values import attribute, read_attributes, texts
from epistream.sharding.opening.walking import CANNOT_OPEN, child, datasets_in, go_on, names_in

_EPISODE = re.compile(r"episode_\d+")
_NAMES = {"actions": "action", "rewards": "reward", "terminations": "terminated", "truncations": "truncated"}
_LEFT_OUT = "infos"
_MISSION = "observations/mission"


class MinariLayout:
    """The ``main_data.hdf5`` of a Minari data set; spaces that are dicts or tuples are groups."""

    name = "minari"
    looks_for = "/episode_<n>/actions, /episode_<n>/observations"

    def matches(self, file: h5py.File) -> bool:
        """Whether `file` is of this layout."""
        return any(_is_episode(child(file, name)) for name in _episodes(file))

    def groups(self, file: h5py.File) -> list[str]:
        """The episodes of `file`, in order, also those that lack something: each is a fault of its own."""
        return [f"/{name}" for name in natsort.natsorted(_episodes(file))]

    def episode(self, file: h5py.File, group: str, choice: Choice | None = None) -> SourceEpisode:
        """Describe one."""
        episode = group_at(file, group)
        draft = Draft(file, group, choice)
        draft.left_out += [f"{group}/{_LEFT_OUT}"] if _LEFT_OUT in episode else []
        for path in datasets_in(episode, skip=(_LEFT_OUT,)):
            if path.split("/", maxsplit=1)[0] in ("observations", *_NAMES):  # else not a step's
                _take(draft, file, f"{group}/{path}", path)
        draft.need_action(f"{group}/actions")
        attributes, large = read_attributes(file, episode)
        described = draft.episode(tasks=_mission(episode), attributes=attributes, more_left_out=large)
        announced = attribute(episode, "total_steps")
        if announced not in (None, described.length):
            raise LayoutError(
                f"{group}: {described.length} actions, wanted {announced} as in its attribute total_steps. "
                "Record it again"
            )
        return described


def _take(draft: Draft, file: h5py.File, path: str, inside: str) -> None:
    head, _, rest = inside.partition("/")
    rest = feature_name(rest.replace("/", "."))
    if head != "observations":
        draft.array(path, ".".join(filter(None, (_NAMES[head], rest))))
    elif inside == _MISSION and _is_texts(child(file, path)):
        draft.left_out.append(path)
    # Some writers leave the observation after the last action out.
    elif looks_like_frames(file, path):
        draft.frames(path, f"observation.images.{rest or 'observation'}", change=_with_spare_row)
    else:
        draft.array(path, f"observation.{rest or 'state'}", spare_rows=1)


def _with_spare_row(field: Field) -> Field:
    return replace(field, spare_rows=1)


def _episodes(file: h5py.File) -> list[str]:
    names = []
    for name in names_in(file):
        go_on(f"/{name}")
        if _EPISODE.fullmatch(name):
            names.append(name)
    return names


def _mission(episode: h5py.Group) -> tuple[str, ...]:
    """What text environments ask for, the same at every step."""
    try:
        found: Any = child(episode, _MISSION)
        return texts(found[0]) if _is_texts(found) else ()
    except CANNOT_OPEN:
        return ()


def _is_texts(node: h5py.Group | h5py.Dataset | None) -> bool:
    if not isinstance(node, h5py.Dataset) or why_no_rows(node) is not None:
        return False
    return node.dtype.kind in "SO" and len(node) > 0


def _is_episode(node: h5py.Group | h5py.Dataset | None) -> bool:
    return isinstance(node, h5py.Group) and "actions" in node and "observations" in node
