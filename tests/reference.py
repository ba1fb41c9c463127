"""An independent reader of the example episodes: h5py and a JPEG decoder, nothing of the project."""

from pathlib import Path

import h5py
import numpy as np
import simplejpeg

CAMERAS = ("angle", "top")


def jpeg_frame(row):
    """The array that the recording program handed to its encoder: OpenCV takes what it gets for BGR."""
    data = row.tobytes()
    return simplejpeg.decode_jpeg(data[: data.rindex(b"\xff\xd9") + 2], "BGR")


def padded(read, anchor, offsets, length, pad):
    """Stack `read(step)` over the offsets; returns (array, is_pad)."""
    items, mask = [], []
    for offset in offsets:
        step = anchor + offset
        outside = step < 0 or step >= length
        item = read(0 if step < 0 else length - 1 if step >= length else step)
        items.append(np.zeros_like(item) if outside and pad == "zero" else item)
        mask.append(outside)
    return np.stack(items), np.array(mask)


def aloha_window(path: Path, anchor: int, obs, action, pad: str) -> dict:
    """One window of an ALOHA file with JPEG cameras, under the keys of a batch."""
    with h5py.File(path) as file:
        length = len(file["action"])
        out = {}

        def put(name, read, offsets):
            out[name], out[f"{name}_is_pad"] = padded(read, anchor, offsets, length, pad)

        for camera in CAMERAS:
            rows = file[f"observations/images/{camera}"]
            put(f"observation.images.{camera}", lambda step, rows=rows: jpeg_frame(rows[step]), obs)
        put("observation.state", lambda step: file["observations/qpos"][step], obs)
        put("observation.qvel", lambda step: file["observations/qvel"][step], obs)
        put("action", lambda step: file["action"][step], action)
    return out
