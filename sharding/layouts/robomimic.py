"""robomimic and LIBERO: many demonstrations a file, under /data/demo_N."""

import json
from typing import Any

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
    text_attribute,
    texts,
)

# Masks that mean a split, by the split's name here. Others ("20_percent") are filters, kept as an attribute.
_SPLIT_MASKS = {"train": "train", "valid": "val", "val": "val", "test": "test"}
_NAMES = {
    "actions": "action",
    "actions_abs": "action_abs",
    "rewards": "reward",
    "dones": "done",
    "robot_states": "observation.robot_states",
}
# next_obs repeats obs one step later; states replay a simulator, they are no observation.
_LEFT_OUT = ("next_obs", "states")


class RobomimicLayout:
    """The files of robomimic, of MimicGen and of RoboCasa."""

    name = "robomimic"
    looks_for = "/data/<demo>/actions, /data/<demo>/obs/<key>"

    def matches(self, file: h5py.File) -> bool:
        """Whether `file` is of this layout."""
        return bool(self.groups(file))

    def groups(self, file: h5py.File) -> list[str]:
        """The episodes of `file`, in order."""
        data = file.get("data")
        if not isinstance(data, h5py.Group):
            return []
        names = [name for name in natsort.natsorted(data) if _is_demo(data, name)]
        return [f"/data/{name}" for name in names]

    def episode(self, file: h5py.File, group: str) -> SourceEpisode:
        """Describe one."""
        demo = file[group]
        fps = _control_hz(file["data"])
        fields: list[Field] = []
        left_out = [f"{group}/{name}" for name in _LEFT_OUT if name in demo]
        for inside in datasets_in(demo):
            if inside.split("/", maxsplit=1)[0] in _LEFT_OUT:
                continue
            path = f"{group}/{inside}"
            item = self._field(file, path, _name(inside), fps)
            if item is None:
                left_out.append(path)
            else:
                fields.append(item)
        length = len(demo["actions"])
        check_lengths(file, fields, length, f"{group}/actions")
        announced = plain(demo.attrs.get("num_samples", length))
        if announced != length:
            raise LayoutError(f"{group}: {length} actions, wanted {announced} as in its attribute num_samples")
        attributes, large = read_attributes(file["data"], demo)
        masks = _masks(file, group.rsplit("/", 1)[1])
        if masks:
            attributes["masks"] = masks
        return SourceEpisode(
            group,
            length,
            finished(fields, group),
            tasks=self.tasks(file, demo),
            split=_split(file, masks),
            attributes=attributes,
            left_out=(*left_out, *large),
        )

    def tasks(self, file: h5py.File, demo: h5py.Group) -> tuple[str, ...]:
        """The instructions of a demonstration; RoboCasa has one."""
        return texts(parse_json_map(text_attribute(demo, "ep_meta")).get("lang"))

    def _field(self, file: h5py.File, path: str, name: str, fps: float | None) -> Field | None:
        if name.startswith("observation.") and looks_like_frames(file[path]):
            camera = name.removeprefix("observation.").removesuffix("_image").removesuffix("_rgb")
            return self.turn(frames_field(file, path, f"observation.images.{camera}", fps=fps))
        return array_field(file, path, name, fps=fps)

    def turn(self, field: Field) -> Field:
        """Record how a camera must be turned to be upright."""
        return field


def _is_demo(data: h5py.Group, name: str) -> bool:
    demo = data.get(name)
    return isinstance(demo, h5py.Group) and "obs" in demo and "actions" in demo


def _name(path: str) -> str:
    head, _, rest = path.partition("/")
    if head == "obs":
        return "observation." + feature_name(rest.replace("/", "."))
    return _NAMES.get(path) or feature_name(path.replace("/", "."))


def _masks(file: h5py.File, demo: str) -> list[str]:
    """The masks that name this demonstration."""
    masks = file.get("mask")
    if not isinstance(masks, h5py.Group):
        return []
    return [name for name in masks if demo.encode() in masks[name][()].ravel().tolist()]


def _split(file: h5py.File, masks: list[str]) -> str | None:
    """The split of a demonstration, if the file's masks divide it: ``train`` and at least one other."""
    known = {_SPLIT_MASKS[name] for name in file.get("mask", ()) if name in _SPLIT_MASKS}
    if "train" not in known or len(known) < 2:
        return None
    mine = sorted({_SPLIT_MASKS[name] for name in masks if name in _SPLIT_MASKS})
    if len(mine) > 1:
        raise LayoutError(f"/mask: names this demonstration in {' and '.join(mine)}, wanted one split")
    return mine[0] if mine else "other"


def _control_hz(data: h5py.Group) -> float | None:
    value = parse_json_map(text_attribute(data, "env_args")).get("env_kwargs")
    rate = value.get("control_freq") if isinstance(value, dict) else None
    return float(rate) if isinstance(rate, int | float) and rate > 0 else None


def parse_json_map(text: str | None) -> dict[str, Any]:
    """A JSON map from an attribute; empty if there is none."""
    try:
        value = json.loads(text or "{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
