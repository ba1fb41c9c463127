"""An independent reader of the example episodes: h5py and a JPEG decoder, nothing of the project."""

from functools import lru_cache
from pathlib import Path

import h5py
import numpy as np
import simplejpeg

CAMERAS = ("angle", "top")


def jpeg_frame(row):
    """The array that the recording program handed to its encoder: OpenCV takes what it gets for BGR."""
    data = row.tobytes()
    return simplejpeg.decode_jpeg(data[: data.rindex(b"\xff\xd9") + 2], "BGR")


@lru_cache(maxsize=4)
def aloha_episode(path: Path) -> dict[str, np.ndarray]:
    """All steps of an ALOHA file with JPEG cameras, by feature name."""
    with h5py.File(path) as file:
        episode = {
            f"observation.images.{camera}": np.stack([jpeg_frame(row) for row in file[f"observations/images/{camera}"]])
            for camera in CAMERAS
        }
        episode["observation.state"] = file["observations/qpos"][:]
        episode["observation.qvel"] = file["observations/qvel"][:]
        episode["action"] = file["action"][:]
    return episode


def window(episode: dict[str, np.ndarray], anchor: int, obs, action, pad: str) -> dict[str, np.ndarray]:
    """One window, step by step, under the keys of a batch."""
    out = {}
    for name, values in episode.items():
        items, mask = [], []
        for offset in action if name == "action" else obs:
            step = anchor + offset
            outside = step < 0 or step >= len(values)
            nearest = values[0 if step < 0 else len(values) - 1 if step >= len(values) else step]
            items.append(np.zeros_like(nearest) if outside and pad == "zero" else nearest)
            mask.append(outside)
        out[name], out[f"{name}_is_pad"] = np.stack(items), np.array(mask)
    return out
