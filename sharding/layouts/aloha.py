"""The ALOHA family: one episode a file, cameras under /observations/images, JPEG rows or arrays.

Sources: the writers of ACT (``record_sim_episodes.py``), ALOHA (``record_episodes.py``), Mobile ALOHA and ACT++
(``compress_data.py``).
"""

from dataclasses import dataclass
from typing import Literal

import h5py
import natsort

from epistream.errors import LayoutError
from epistream.sharding.layouts.base import Choice, SourceEpisode, group_at
from epistream.sharding.layouts.draft import STATE, Draft
from epistream.sharding.layouts.names import feature_name
from epistream.sharding.layouts.values import attribute, read_attributes, small_value, texts
from epistream.sharding.opening.walking import child, names_in

IMAGES = "/observations/images"
# All of these code bases set DT = 0.02 s and do not record it.
FPS = 50.0
_STATE = "qpos"
_ACTIONS = {"/action": "action", "/base_action": "base_action"}
_INSTRUCTIONS = ("/instruction", "/language_instruction", "/language_raw")


@dataclass(frozen=True)
class AlohaLayout:
    """One member of the family. They differ in what marks them; the paths are the same.

    Args:
        name: What ``--layout`` calls it.
        rows: What the rows of a camera are.
        sim: Value of the attribute ``sim``; None is any.
        base_action: Whether there are actions of a mobile base; None is any.
    """

    name: str
    rows: Literal["jpeg", "raw"]
    sim: bool | None = None
    base_action: bool | None = None

    @property
    def looks_for(self) -> str:
        """The marks in words."""
        marks = ["/action", "/observations/qpos", f"{IMAGES}/<camera>"]
        marks.append("JPEG rows" if self.rows == "jpeg" else "uint8 (T, H, W, 3) arrays")
        if self.sim is not None:
            marks.append(f"attribute sim={self.sim}")
        if self.base_action is not None:
            marks.append("/base_action" if self.base_action else "no /base_action")
        return ", ".join(marks)

    def matches(self, file: h5py.File) -> bool:
        """Every mark is there. The attribute ``compress`` is not asked: the rows themselves say it."""
        if "/action" not in file or "/observations/qpos" not in file or not _cameras(file):
            return False
        if _has_jpeg(file) != (self.rows == "jpeg"):
            return False
        if self.sim is not None and bool(attribute(file, "sim")) != self.sim:
            return False
        return self.base_action is None or ("/base_action" in file) == self.base_action

    def groups(self, file: h5py.File) -> list[str]:
        """The episodes of `file`, in order."""
        return ["/"]

    def episode(self, file: h5py.File, group: str, choice: Choice | None = None) -> SourceEpisode:
        """Describe one."""
        draft = Draft(file, group, choice)
        cameras = natsort.natsorted(_cameras(file))
        if not cameras:
            raise LayoutError(f"{IMAGES}: no cameras, wanted at least one")
        lengths_path = "/compress_len" if "/compress_len" in file else None
        for camera in cameras:
            # OpenCV's encoder takes any array for BGR, and its decoder gives the same array back.
            draft.frames(
                f"{IMAGES}/{camera}",
                f"observation.images.{feature_name(camera)}",
                jpeg_channels="bgr",
                fps=FPS,
                lengths_path=lengths_path,
            )
        observations = group_at(file, "/observations")
        for key in names_in(observations):
            path = f"/observations/{key}"
            if isinstance(child(observations, key), h5py.Group):
                draft.left_out += [path] if path != IMAGES else []
            else:
                draft.array(path, STATE if key == _STATE else f"observation.{feature_name(key)}", fps=FPS)
        for path, name in _ACTIONS.items():
            if path in file and not isinstance(child(file, path), h5py.Group):
                draft.array(path, name, fps=FPS)
        draft.need_action("/action")
        known = {"observations", "compress_len", *(path[1:] for path in (*_ACTIONS, *_INSTRUCTIONS))}
        draft.left_out += [f"/{key}" for key in names_in(file) if key not in known]
        attributes, large = read_attributes(file)
        tasks = tuple(text for path in _INSTRUCTIONS if path in file for text in texts(small_value(file, path)))
        return draft.episode(tasks=tasks, attributes=attributes, more_left_out=large)


def _has_jpeg(file: h5py.File) -> bool:
    """Whether the rows of any camera are JPEG files: fewer axes than pictures have, and not numbers of another kind."""
    cameras = [child(file, f"{IMAGES}/{camera}") for camera in _cameras(file)]
    return any(isinstance(camera, h5py.Dataset) and 0 < camera.ndim < 3 for camera in cameras)


def _cameras(file: h5py.File) -> list[str]:
    images = child(file, IMAGES)
    if not isinstance(images, h5py.Group):
        return []
    # A link that leads nowhere is a camera too: one that cannot be opened.
    return [key for key in names_in(images) if not isinstance(child(images, key), h5py.Group)]


ALOHA_LAYOUTS = (
    AlohaLayout("mobile-aloha", "jpeg", base_action=True),
    AlohaLayout("act-plus-plus", "jpeg", base_action=False),
    AlohaLayout("act-sim", "raw", sim=True),
    AlohaLayout("aloha", "raw", sim=False),
)
