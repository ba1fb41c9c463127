"""A small dataset of which nothing is wrong, made in memory and written as one HDF5 file."""

import json

import h5py
import numpy as np

NUM, STEPS, FPS, SIZE = 12, 60, 20, 24
LAG = 3


def healthy(seed=0, num=NUM, steps=STEPS):
    """Episodes as maps: smooth joints and a gripper, commands that lead them, a quaternion, times, two cameras."""
    random = np.random.default_rng(seed)
    return [_one(random, steps) for _ in range(num)]


def _one(random, steps):
    time = np.arange(steps + LAG) / FPS
    joints = 0.002 * random.normal(size=(len(time), 6))
    for slow in (0.2, 0.45, 0.8, 1.1):  # several at once, so that no motion is its own change, shifted
        joints += 0.35 * np.sin(
            2 * np.pi * slow * time[:, None] * random.uniform(0.8, 1.2, 6) + random.uniform(0, 6, 6)
        )
    gripper = 0.5 + 0.5 * np.sin(2 * np.pi * 0.4 * time + random.uniform(0, 6))
    state = np.concatenate([joints, gripper[:, None]], axis=1)
    action = state[LAG:] + 0.001 * random.normal(size=(steps, 7))
    action[:, 6] = action[:, 6] > 0.5  # a command to open or to close
    half = 0.5 * np.sin(1.5 * time[:steps] + random.uniform(0, 1))[:, None]
    quaternion = np.concatenate([np.cos(half), np.sin(half) * (0.6, 0.64, 0.48)], axis=1)
    return {
        "state": state[:steps],
        "action": action,
        "quat": quaternion,
        "time": time[:steps] + 0.001 * random.uniform(size=steps),
        "top": _view(state[:steps], random, (180, 90, 40)),
        "wrist": _view(state[:steps, ::-1], random, (60, 120, 150)),
        "task": "put the cup on the shelf",
        "attributes": {"success": True},
        "mask": "train",
    }


def _view(state, random, colour):
    """(T, SIZE, SIZE, 3): a lit table of one colour, darker to the right, a lamp above, and a robot that moves."""
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    table = (1 - x / (2 * SIZE))[..., None] * colour + np.where(y < SIZE // 4, 40, 0)[..., None]
    frames = np.repeat(table[None], len(state), axis=0)
    for step, row in enumerate(state):
        top, left = (int(SIZE / 2 + SIZE / 4 * value) for value in row[:2])
        frames[step, top : top + 4, left : left + 4] = 230
    frames += random.normal(0, 2, frames.shape)
    return np.clip(frames, 0, 255).astype(np.uint8)


def write(episodes, path):
    """One file as robomimic lays it out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_kwargs": {"control_freq": FPS}})
        masks = {}
        for number, episode in enumerate(episodes):
            demo = data.create_group(f"demo_{number}")
            demo.attrs["num_samples"] = len(episode["action"])
            if episode["task"] is not None:
                demo.attrs["ep_meta"] = json.dumps({"lang": episode["task"]})
            for name, value in episode["attributes"].items():
                demo.attrs[name] = value
            demo["actions"] = episode["action"].astype(np.float32)
            demo["obs/state"] = episode["state"].astype(np.float32)
            demo["obs/eef_quat"] = episode["quat"].astype(np.float32)
            demo["obs/timestamp"] = episode["time"]
            for camera in ("top", "wrist"):
                demo[f"obs/{camera}_image"] = episode[camera]
            masks.setdefault(episode["mask"], []).append(f"demo_{number}".encode())
        if len(masks) > 1:
            for name, demos in masks.items():
                file[f"mask/{name}"] = np.array(demos)
    return path
