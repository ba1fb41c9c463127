"""robomimic and LIBERO: many demonstrations a file, under /data/demo_N."""

import json
from collections.abc import Iterator
from typing import Any

import h5py
import natsort
import numpy as np

from epistream.errors import LayoutError
from epistream.sharding.layouts.base import Choice, Field, SourceEpisode, group_at, looks_like_frames
from epistream.sharding.layouts.draft import Draft
from epistream.sharding.layouts.names import feature_name
from epistream.sharding.layouts.values import attribute, read_attributes, text_attribute, texts, value_of
from epistream.sharding.opening.walking import child, datasets_in, go_on, names_in

# Masks that mean a split, by the split's name here. Others ("20_percent") are filters, kept as an attribute.
_SPLIT_MASKS = {"train": "train", "valid": "val", "val": "val", "test": "test"}
_NAMES = {
    "actions": "action",
    "actions_abs": "action_abs",
    "obs": "observation.state",
    "rewards": "reward",
    "dones": "done",
    "robot_states": "observation.robot_states",
}
# next_obs repeats obs one step later; states replay a simulator from initial_state, they are no observation.
_LEFT_OUT = ("next_obs", "states", "initial_state")


class RobomimicLayout:
    """The files of robomimic, of MimicGen, of RoboCasa and of Isaac Lab's recorder."""

    name = "robomimic"
    looks_for = "/data/<demo>/actions, /data/<demo>/obs/<key>"

    def matches(self, file: h5py.File) -> bool:
        """Whether `file` is of this layout."""
        return any(node is not None and "obs" in node and "actions" in node for _, node in _demos(file))

    def groups(self, file: h5py.File) -> list[str]:
        """The episodes of `file`, in order, also those that lack something: each is a fault of its own."""
        names = [name for name, node in _demos(file) if node is None or "obs" in node or "actions" in node]
        return [f"/data/{name}" for name in natsort.natsorted(names)]

    def episode(self, file: h5py.File, group: str, choice: Choice | None = None) -> SourceEpisode:
        """Describe one."""
        demo = group_at(file, group)
        fps = _control_hz(file["data"])
        draft = Draft(file, group, choice)
        draft.left_out += [f"{group}/{name}" for name in _LEFT_OUT if name in demo]
        for inside in datasets_in(demo, skip=_LEFT_OUT):
            self._take(draft, file, f"{group}/{inside}", _name(inside), fps)
        draft.need_action(f"{group}/actions")
        attributes, large = read_attributes(file["data"], demo)
        masks = _masks(file, group.rsplit("/", 1)[1])
        if masks:
            attributes["masks"] = masks
        episode = draft.episode(
            split=_split(file, masks), tasks=self.tasks(file, demo), attributes=attributes, more_left_out=large
        )
        announced = attribute(demo, "num_samples")
        announced = announced[0] if isinstance(announced, list) and len(announced) == 1 else announced
        if announced not in (None, episode.length):
            raise LayoutError(
                f"{group}: {episode.length} actions, wanted {announced} as in its attribute num_samples. "
                "Record it again"
            )
        return episode

    def tasks(self, file: h5py.File, demo: h5py.Group) -> tuple[str, ...]:
        """The instructions of a demonstration; RoboCasa has one."""
        return texts(parse_json_map(text_attribute(demo, "ep_meta")).get("lang"))

    def _take(self, draft: Draft, file: h5py.File, path: str, name: str, fps: float | None) -> None:
        if name.startswith("observation.") and looks_like_frames(file, path):
            camera = name.removeprefix("observation.").removesuffix("_image").removesuffix("_rgb")
            draft.frames(path, f"observation.images.{camera}", change=self.turn, fps=fps)
        else:
            draft.array(path, name, fps=fps)

    def turn(self, field: Field) -> Field:
        """Record how a camera must be turned to be upright."""
        return field


def _demos(file: h5py.File) -> Iterator[tuple[str, h5py.Group | None]]:
    """The groups under /data; what cannot be opened counts, as one that is empty."""
    data = child(file, "data")
    for name in names_in(data) if isinstance(data, h5py.Group) else ():
        go_on(f"/data/{name}")
        node = child(data, name)
        if not isinstance(node, h5py.Dataset):
            yield name, node


def _name(path: str) -> str:
    if path in _NAMES:
        return _NAMES[path]
    head, _, rest = path.partition("/")
    rest = feature_name(rest.replace("/", "."))
    if head == "obs":
        return f"observation.{rest}"
    return f"action.{rest}" if head == "actions" else feature_name(path.replace("/", "."))


def _masks(file: h5py.File, demo: str) -> list[str]:
    """The masks that name this demonstration."""
    masks = child(file, "mask")
    if not isinstance(masks, h5py.Group):
        return []
    found = []
    for name in names_in(masks):
        mask = child(masks, name)
        named = np.ravel(value_of(mask, f"/mask/{name}")).tolist() if isinstance(mask, h5py.Dataset) else ()
        found += [name] if demo.encode() in named or demo in named else []
    return found


def _split(file: h5py.File, masks: list[str]) -> str | None:
    """The split of a demonstration, if the file's masks divide it: ``train`` and at least one other."""
    found = child(file, "mask")
    known = {_SPLIT_MASKS[name] for name in found if name in _SPLIT_MASKS} if isinstance(found, h5py.Group) else set()
    if "train" not in known or len(known) < 2:
        return None
    mine = sorted({_SPLIT_MASKS[name] for name in masks if name in _SPLIT_MASKS})
    if len(mine) > 1:
        raise LayoutError(f"/mask: names this demonstration in {' and '.join(mine)}, wanted one split")
    return mine[0] if mine else "other"


def _control_hz(data: h5py.Group) -> float | None:
    value = parse_json_map(text_attribute(data, "env_args")).get("env_kwargs")
    rate = value.get("control_freq") if isinstance(value, dict) else None
    return float(rate) if isinstance(rate, int | float) and 0 < rate < 1e6 else None


def parse_json_map(text: str | None) -> dict[str, Any]:
    """A JSON map from an attribute; empty if there is none."""
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
