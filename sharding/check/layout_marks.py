"""Which marks of a layout a file lacks: why it was not recognised."""

import h5py

from epistream.sharding.layouts.aloha import IMAGES, AlohaLayout
from epistream.sharding.layouts.base import Layout
from epistream.sharding.layouts.libero import LiberoLayout
from epistream.sharding.layouts.mapping import MappingLayout
from epistream.sharding.layouts.minari import MinariLayout
from epistream.sharding.layouts.robomimic import RobomimicLayout
from epistream.sharding.layouts.values import attribute
from epistream.sharding.opening.walking import child, names_in


def lacking(layout: Layout, file: h5py.File) -> list[str]:
    """The marks of `layout` that `file` lacks, in words; none if it is of this layout."""
    if layout.matches(file):
        return []
    if isinstance(layout, MappingLayout):
        return layout.lacking(file)
    if isinstance(layout, AlohaLayout):
        return _aloha(layout, file)
    if isinstance(layout, RobomimicLayout | MinariLayout):
        return _demonstrations(layout, file)
    return [layout.looks_for]


def _aloha(layout: AlohaLayout, file: h5py.File) -> list[str]:
    paths = [path for path in ("/action", "/observations/qpos", IMAGES) if path not in file]
    images = child(file, IMAGES)
    if paths or not isinstance(images, h5py.Group):
        return paths or [f"a group {IMAGES}"]
    found = [child(images, name) for name in names_in(images)]
    cameras = [camera for camera in found if not isinstance(camera, h5py.Group)]
    if not cameras:
        return [f"a camera in {IMAGES}"]
    has_jpeg = any(camera is not None and camera.ndim < 3 for camera in cameras)
    marks = []
    if has_jpeg != (layout.rows == "jpeg"):
        marks.append("cameras of JPEG rows" if layout.rows == "jpeg" else "cameras of (T, H, W, C) arrays")
    if layout.sim is not None and bool(attribute(file, "sim")) != layout.sim:
        marks.append(f"an attribute sim that is {layout.sim}")
    if layout.base_action is not None and ("/base_action" in file) != layout.base_action:
        marks.append("/base_action" if layout.base_action else "no /base_action")
    return marks or [layout.looks_for]


def _demonstrations(layout: RobomimicLayout | MinariLayout, file: h5py.File) -> list[str]:
    """Of files with a group for each of many episodes: what the first group has not."""
    is_minari = isinstance(layout, MinariLayout)
    parent = file if is_minari else child(file, "data")
    if not isinstance(parent, h5py.Group):
        return ["a group /data"]
    if not is_minari and RobomimicLayout().groups(file):  # all but what tells LIBERO from robomimic
        return ["an attribute bddl_file_name or macros_image_convention of /data"]
    groups = [name for name in names_in(parent) if isinstance(child(parent, name), h5py.Group)]
    groups = [name for name in groups if name.startswith("episode_")] if is_minari else groups
    if not groups:
        return ["groups /episode_<n>" if is_minari else "groups in /data"]
    first = parent[groups[0]]
    wanted = ("actions", "observations") if is_minari else ("actions", "obs")
    marks = [f"{first.name}/{name}" for name in wanted if name not in first]
    if isinstance(layout, LiberoLayout):
        marks.append("an attribute bddl_file_name or macros_image_convention of /data")
    return marks or [layout.looks_for]
