"""The ALOHA family: one episode a file, cameras under /observations/images, JPEG rows or arrays.

Sources: the writers of ACT (``record_sim_episodes.py``), ALOHA (``record_episodes.py``), Mobile ALOHA and ACT++
(``compress_data.py``).
"""

from dataclasses import dataclass
from typing import Literal

import h5py
import natsort

from epistream.errors import LayoutError
from epistream.sharding.layouts.base import (
    Field,
    SourceEpisode,
    array_field,
    check_lengths,
    feature_name,
    finished,
    frames_field,
    read_attributes,
    texts,
)

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
        found = [file[IMAGES].get(camera) for camera in _cameras(file)]
        has_jpeg = any(camera is not None and camera.ndim < 3 for camera in found)
        if has_jpeg != (self.rows == "jpeg"):
            return False
        if self.sim is not None and bool(file.attrs.get("sim", False)) != self.sim:
            return False
        return self.base_action is None or ("/base_action" in file) == self.base_action

    def groups(self, file: h5py.File) -> list[str]:
        """The episodes of `file`, in order."""
        return ["/"]

    def episode(self, file: h5py.File, group: str) -> SourceEpisode:
        """Describe one."""
        fields, left_out = [], []
        lengths_path = "/compress_len" if "/compress_len" in file else None
        for camera in natsort.natsorted(_cameras(file)):
            name = f"observation.images.{feature_name(camera)}"
            path = f"{IMAGES}/{camera}"
            fields.append(
                # OpenCV's encoder takes any array for BGR, and its decoder gives the same array back.
                frames_field(file, path, name, jpeg_channels="bgr", fps=FPS, lengths_path=lengths_path)
            )
        if not fields:
            raise LayoutError(f"{IMAGES}: no cameras, wanted at least one")
        for key in file["/observations"]:
            if key == "images":
                continue
            name = "observation.state" if key == _STATE else f"observation.{feature_name(key)}"
            item = self._numbers(file, f"/observations/{key}", name)
            left_out += [] if item else [f"/observations/{key}"]
            fields += [item] if item else []
        for path, name in _ACTIONS.items():
            item = self._numbers(file, path, name) if path in file else None
            fields += [item] if item else []
        known = {"observations", "compress_len", *(path[1:] for path in (*_ACTIONS, *_INSTRUCTIONS))}
        left_out += [f"/{key}" for key in file if key not in known]
        length = len(file["/action"])
        check_lengths(file, fields, length, "/action")
        attributes, large = read_attributes(file)
        tasks = tuple(text for path in _INSTRUCTIONS if path in file for text in texts(file[path][()]))
        return SourceEpisode(
            "/", length, finished(fields, group), tasks, attributes=attributes, left_out=(*left_out, *large)
        )

    def _numbers(self, file: h5py.File, path: str, name: str) -> Field | None:
        return None if isinstance(file.get(path), h5py.Group) else array_field(file, path, name, fps=FPS)


def _cameras(file: h5py.File) -> list[str]:
    images = file.get(IMAGES)
    if not isinstance(images, h5py.Group):
        return []
    # A link that leads nowhere is a camera too: one that cannot be opened.
    return [key for key in images if not isinstance(images.get(key), h5py.Group)]


ALOHA_LAYOUTS = (
    AlohaLayout("mobile-aloha", "jpeg", base_action=True),
    AlohaLayout("act-plus-plus", "jpeg", base_action=False),
    AlohaLayout("act-sim", "raw", sim=True),
    AlohaLayout("aloha", "raw", sim=False),
)
