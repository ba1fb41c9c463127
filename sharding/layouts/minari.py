"""Minari: many episodes a file, under /episode_N, with one observation more than actions.

Source: Minari's HDF5 storage. The observation after the last action, and what ``infos`` holds, are not packed.
"""

import re

import h5py
import natsort

from epistream.errors import LayoutError
from epistream.sharding.layouts.base import (
    Field,
    SourceEpisode,
    array_field,
    check_lengths,
    datasets_in,
    feature_name,
    finished,
    frames_field,
    looks_like_frames,
    plain,
    read_attributes,
    texts,
)

_EPISODE = re.compile(r"episode_\d+")
_NAMES = {"actions": "action", "rewards": "reward", "terminations": "terminated", "truncations": "truncated"}
_LEFT_OUT = "infos"


class MinariLayout:
    """The ``main_data.hdf5`` of a Minari data set; spaces that are dicts or tuples are groups."""

    name = "minari"
    looks_for = "/episode_<n>/actions, /episode_<n>/observations"

    def matches(self, file: h5py.File) -> bool:
        """Whether `file` is of this layout."""
        return bool(self.groups(file))

    def groups(self, file: h5py.File) -> list[str]:
        """The episodes of `file`, in order."""
        names = [name for name in natsort.natsorted(file) if _EPISODE.fullmatch(name)]
        return [f"/{name}" for name in names if _is_episode(file[name])]

    def episode(self, file: h5py.File, group: str) -> SourceEpisode:
        """Describe one."""
        episode = file[group]
        observations: list[Field] = []
        others: list[Field] = []
        left_out = [f"{group}/{_LEFT_OUT}"] if _LEFT_OUT in episode else []
        for path in datasets_in(episode):
            if path.split("/", maxsplit=1)[0] not in ("observations", *_NAMES):
                continue  # not a step's
            item = _field(file, f"{group}/{path}", path)
            if item is None:
                left_out.append(f"{group}/{path}")
            else:
                (observations if path.startswith("observations") else others).append(item)
        actions = next((item.path for item in others if item.feature.name.split(".")[0] == "action"), None)
        if actions is None:
            raise LayoutError(f"{group}/actions: no numbers in it, wanted actions")
        length = len(file[actions])
        check_lengths(file, others, length, actions)
        # Some writers leave the observation after the last action out.
        for item in observations:
            if len(file[item.path]) not in (length, length + 1):
                raise LayoutError(
                    f"{item.path}: {len(file[item.path])} steps, wanted {length + 1}: one more than {actions}"
                )
        announced = plain(episode.attrs.get("total_steps", length))
        if announced != length:
            raise LayoutError(f"{group}: {length} actions, wanted {announced} as in its attribute total_steps")
        attributes, large = read_attributes(file, episode)
        return SourceEpisode(
            group,
            length,
            finished([*observations, *others], group),
            tasks=_mission(episode),
            attributes=attributes,
            left_out=(*left_out, *large),
        )


def _field(file: h5py.File, path: str, inside: str) -> Field | None:
    head, _, rest = inside.partition("/")
    rest = feature_name(rest.replace("/", "."))
    if head != "observations":
        return array_field(file, path, ".".join(filter(None, (_NAMES[head], rest))))
    if looks_like_frames(file[path]):
        return frames_field(file, path, f"observation.images.{rest or 'observation'}")
    return array_field(file, path, f"observation.{rest or 'state'}")


def _mission(episode: h5py.Group) -> tuple[str, ...]:
    """What text environments ask for, the same at every step."""
    found = episode.get("observations/mission")
    return texts(found[0]) if isinstance(found, h5py.Dataset) and found.dtype.kind in "SO" and len(found) else ()


def _is_episode(node: h5py.Group | h5py.Dataset) -> bool:
    return isinstance(node, h5py.Group) and {"actions", "observations"} <= set(node)
