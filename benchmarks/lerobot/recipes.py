"""What the small data sets of the tests hold: features, and every step of every episode by a formula."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Step = dict[str, np.ndarray]
# More than int32 and float32 hold exactly, and a square that int64 still holds: LeRobot's statistics need it.
_TICKS = 3_000_000_000
CUBE, DICE = "pick up the cube", "Würfel 拾う"


@dataclass(frozen=True)
class Camera:
    """One camera.

    Attributes:
        height: pixels.
        width: pixels.
        dtype: "video", or "image" for PNG in Parquet.
    """

    height: int
    width: int
    dtype: str = "video"


@dataclass(frozen=True)
class Recipe:
    """One data set.

    Attributes:
        fps: frames per second.
        lengths: steps of each episode.
        cameras: by their feature's name.
        tasks: of each episode; with several, an episode's steps share them out, in order.
        versions: codebase versions that it is written in.
        group: frames from one key frame to the next; above 2, x264 puts B-frames between them.
        numbers: features that are no pictures: name, dtype, shape, names.
        files_mb: sizes at which LeRobot begins a new data file and a new video file (v3.0); none for its own.
        deltas: steps around the present one that items are read with, by feature.
        has_digests: what is kept of the pictures is their SHA-256.
    """

    fps: int
    lengths: tuple[int, ...]
    cameras: dict[str, Camera]
    tasks: tuple[tuple[str, ...], ...]
    versions: tuple[str, ...] = ("2.1", "3.0")
    group: int = 2
    numbers: tuple[tuple[str, str, tuple[int, ...], Any], ...] = field(default_factory=lambda: _PLAIN)
    files_mb: tuple[float, float] | None = None
    deltas: dict[str, list[int]] = field(default_factory=lambda: dict(_DELTAS))
    has_digests: bool = False

    def features(self) -> dict[str, dict[str, Any]]:
        """As LeRobot's `create` wants them."""
        features = {
            name: {"dtype": dtype, "shape": shape, "names": names} for name, dtype, shape, names in self.numbers
        }
        for name, camera in self.cameras.items():
            shape = (camera.height, camera.width, 3)
            features[name] = {"dtype": camera.dtype, "shape": shape, "names": ["height", "width", "channels"]}
        return features

    def episodes(self) -> Iterator[list[tuple[Step, str]]]:
        """Steps and their tasks, episode by episode."""
        for episode, (length, tasks) in enumerate(zip(self.lengths, self.tasks, strict=True)):
            yield [(self._step(episode, step, length), tasks[step * len(tasks) // length]) for step in range(length)]

    def _step(self, episode: int, step: int, length: int) -> Step:
        time = episode + step / self.fps
        values = {
            "observation.state": np.sin(time * np.arange(1, 7)),
            "action": np.cos(time * np.arange(1, 5)).astype(np.float32),
            "observation.force": np.array([time * time], np.float32),
            "observation.pose": (time * np.arange(6).reshape(2, 3)).astype(np.float32),
            "observation.ticks": _TICKS + np.array([step, episode, step * episode], np.int64),
            "next.reward": np.array([step / length], np.float32),
            "next.done": np.array([step == length - 1]),
        }
        frame = {
            name: values[name].astype(feature["dtype"])
            for name, feature in self.features().items()
            if name not in self.cameras
        }
        for number, (name, camera) in enumerate(self.cameras.items()):
            frame[name] = picture(camera, number + episode, step)
        return frame


def picture(camera: Camera, phase: int, step: int) -> np.ndarray:
    """A ball that rolls over a slope of colours, uint8 (H, W, 3)."""
    y, x = np.mgrid[: camera.height, : camera.width].astype(np.float64)
    slope = np.stack([255 * x / camera.width, 255 * y / camera.height, 128 + 100 * np.sin(phase + x / 20)], -1)
    ball_y = camera.height * (0.5 + 0.3 * np.sin(phase + step / 4))
    ball_x = camera.width * ((0.1 + 0.05 * step + 0.2 * phase) % 1)
    is_ball = (y - ball_y) ** 2 + (x - ball_x) ** 2 < (camera.height / 6) ** 2
    slope[is_ball] = 255 - slope[is_ball]
    return np.clip(slope, 0, 255).astype(np.uint8)


_TOP, _WRIST, _FRONT = "observation.images.top", "observation.images.wrist", "observation.images.front"
_DELTAS = {"observation.state": [-1, 0], "action": [0, 1, 2, 3]}
_MOTORS = {"motors": ["waist", "shoulder", "elbow", "wrist"]}
_PLAIN = (
    ("observation.state", "float32", (6,), None),
    ("action", "float32", (4,), _MOTORS),
)
_MANY = (
    ("observation.state", "float64", (6,), ["a", "b", "c", "d", "e", "f"]),
    ("action", "float32", (4,), _MOTORS),
    ("observation.force", "float32", (1,), None),
    ("observation.ticks", "int64", (3,), None),
    ("next.reward", "float32", (1,), None),
    ("next.done", "bool", (1,), None),
)
# LeRobot 0.4.4 cannot write an episode of one step that has a feature of two axes: its statistics get another shape.
_POSE = (*_PLAIN, ("observation.pose", "float32", (2, 3), None))

RECIPES = {
    "cameras": Recipe(
        fps=10,
        # LeRobot 0.4.4 cannot put a video behind one of a single frame, so that stands last, or last in its file.
        lengths=(7, 12, 3, 5, 1),
        # 60 x 84 is no multiple of the 16 pixels that H.264 reckons in: the stream says what to cut off.
        cameras={_TOP: Camera(64, 96), _WRIST: Camera(60, 84)},
        tasks=((CUBE,), (DICE,), (DICE,), (CUBE,), (DICE,)),
        numbers=_MANY,
        deltas={**_DELTAS, _TOP: [-2, 0], "observation.ticks": [0, 5]},
        has_digests=True,
    ),
    "images": Recipe(
        fps=15,
        lengths=(5, 2, 4),
        cameras={_TOP: Camera(48, 64), _FRONT: Camera(36, 50, "image")},
        tasks=((CUBE,), (DICE,), (CUBE,)),
        numbers=_POSE,
        deltas={**_DELTAS, "observation.pose": [0, 1], _FRONT: [-1, 0]},
    ),
    "files": Recipe(
        fps=30,
        lengths=(6, 9, 4, 8, 7, 5, 3, 1),
        cameras={_TOP: Camera(96, 128), _WRIST: Camera(48, 64)},
        tasks=((CUBE,), (CUBE,), (DICE,), (CUBE,), (DICE,), (CUBE,), (CUBE,), (DICE,)),
        versions=("3.0",),
        files_mb=(0.003, 0.008),
        has_digests=True,
    ),
    "steps": Recipe(
        fps=20,
        lengths=(6, 5),
        cameras={_TOP: Camera(48, 64)},
        tasks=((CUBE, DICE), ("open the drawer", CUBE, "close it")),
        versions=("2.0", "2.1", "3.0"),
    ),
    "numbers": Recipe(fps=50, lengths=(8, 1, 6), cameras={}, tasks=((CUBE,), (CUBE,), (DICE,))),
    "groups": Recipe(
        fps=24,
        lengths=(14, 9, 1),
        cameras={_TOP: Camera(64, 96)},
        tasks=((CUBE,), (CUBE,), (CUBE,)),
        group=12,
        deltas={**_DELTAS, _TOP: [-3, 0]},
        has_digests=True,
    ),
}
