"""What the data loaders of four code bases make of one episode: one sample at a time, in numpy, from h5py alone.

An episode here is ``{"images": {camera: (T, H, W, C) uint8}, "state": (T, D), "action": (T, A)}`` and whatever else
a format wants; they are read by the functions at the end.
"""

from functools import lru_cache
from pathlib import Path

import h5py
import numpy as np
import reference


def act(episode, t, chunk, lag=False):
    """ACT's ``EpisodicDataset.__getitem__`` for start_ts = t, without its normalisation."""
    action = episode["action"][max(0, t - 1) if lag else t :][:chunk]
    padded = np.zeros((chunk, episode["action"].shape[1]), dtype=np.float32)
    padded[: len(action)] = action
    is_pad = np.zeros(chunk, dtype=bool)
    is_pad[len(action) :] = True
    images = np.stack([frames[t] for frames in episode["images"].values()])
    image = np.einsum("khwc->kchw", images) / np.float32(255)
    return image, episode["state"][t].astype(np.float32), padded, is_pad


def ilstudio(episode, t, chunk, episode_id, text):
    """IL-Studio's sample."""
    _, state, action, is_pad = act(episode, t, chunk)
    image = np.stack([frames[t].transpose(2, 0, 1) for frames in episode["images"].values()])
    return {
        "image": image,
        "state": state,
        "action": action,
        "is_pad": is_pad,
        "raw_lang": text,
        "reasoning": "",
        "timestamp": t,
        "episode_id": episode_id,
    }


def diffusion_policy_starts(length, horizon, num_obs_steps, num_action_steps):
    """The starts of diffusion_policy's ``create_indices`` with pad_before and pad_after of its configurations."""
    pad_before, pad_after = num_obs_steps - 1, num_action_steps - 1
    return range(-pad_before, length - horizon + pad_after + 1)


def diffusion_policy(episode, start, horizon, num_obs_steps):
    """Its ``sample_sequence`` from `start`, with the first and the last step repeated, and its ``__getitem__``."""
    length = len(episode["action"])
    steps = [min(max(start + i, 0), length - 1) for i in range(horizon)]
    obs = {}
    for key, frames in episode["images"].items():
        obs[key] = np.moveaxis(frames[steps[:num_obs_steps]], -1, 1).astype(np.float32) / 255.0
    for key, values in episode["low_dim"].items():
        obs[key] = values[steps[:num_obs_steps]].astype(np.float32)
    return {"obs": obs, "action": episode["action"][steps].astype(np.float32)}


def lerobot(episode, t, deltas, fps, first_index, episode_index, task):
    """LeRobot's sample. `deltas`: seconds by key, for keys of ``delta_timestamps``."""
    length = len(episode["action"])
    item = {}
    columns = {f"observation.images.{camera}": frames for camera, frames in episode["images"].items()}
    columns |= episode["columns"]
    for key, values in columns.items():
        if key in deltas:
            steps = [t + round(delta * fps) for delta in deltas[key]]
            item[f"{key}_is_pad"] = np.array([step < 0 or step >= length for step in steps])
            value = values[[min(max(step, 0), length - 1) for step in steps]]
        else:
            value = values[t]
        if "images" in key:
            value = np.moveaxis(value, -1, -3).astype(np.float32) / np.float32(255)
        item[key] = value.astype(np.float32)
    return item | {
        "timestamp": np.float32(t / fps),
        "frame_index": t,
        "episode_index": episode_index,
        "index": first_index + t,
        "task_index": task[0],
        "task": task[1],
    }


@lru_cache(maxsize=2)
def aloha(path: Path):
    """An ALOHA file with JPEG or raw cameras."""
    with h5py.File(path) as file:
        cameras = sorted(file["observations/images"])
        images = {}
        for camera in cameras:
            rows = file[f"observations/images/{camera}"]
            images[camera] = rows[:] if rows.ndim == 4 else np.stack([reference.jpeg_frame(row) for row in rows])
        state, velocity, action = file["observations/qpos"][:], file["observations/qvel"][:], file["action"][:]
    return {
        "images": images,
        "state": state,
        "action": action,
        "low_dim": {"qpos": state, "qvel": velocity},
        "columns": {"observation.state": state, "observation.qvel": velocity, "action": action},
    }


@lru_cache(maxsize=2)
def robomimic(path: Path):
    """Every demonstration of a robomimic or LIBERO file, by number."""
    episodes = []
    with h5py.File(path) as file:
        for demo in sorted(file["data"], key=lambda name: int(name.removeprefix("demo_"))):
            group = file[f"data/{demo}"]
            arrays = {key: group[f"obs/{key}"][:] for key in group["obs"]}
            if "robot_states" in group:  # LIBERO's, which lies beside obs
                arrays["robot_states"] = group["robot_states"][:]
            images = {key: values for key, values in arrays.items() if values.ndim == 4}
            low_dim = {key: values for key, values in arrays.items() if values.ndim < 4}
            episodes.append({"images": images, "low_dim": low_dim, "action": group["actions"][:]})
    return episodes
