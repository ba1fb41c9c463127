"""Small HDF5 files of the known layouts, and an independent reader of shards, for the tests of packing."""

import io
import json
import tarfile
from pathlib import Path

import h5py
import numpy as np
import simplejpeg
import xxhash
from PIL import Image

HEIGHT, WIDTH = 24, 32


def picture(step, seed=0, height=HEIGHT, width=WIDTH):
    """A smooth RGB picture that differs from step to step."""
    y, x = np.mgrid[0:height, 0:width]
    planes = (x * 5 + step * 7, y * 6 + seed * 31, (x + y) * 3 + step)
    return np.stack([plane % 256 for plane in planes], axis=-1).astype(np.uint8)


def jpeg(frame, quality=90):
    """As OpenCV's encoder makes it of an RGB array: red and blue swapped for any standard decoder."""
    return simplejpeg.encode_jpeg(np.ascontiguousarray(frame), quality=quality, colorspace="BGR")


def numbers(steps, width, seed):
    return np.random.default_rng(seed).normal(size=(steps, width)).astype(np.float32)


def aloha_raw(path, steps=5, seed=0, cameras=("top", "angle"), sim=True):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.attrs["sim"] = sim
        for camera in cameras:
            frames = np.stack([picture(step, seed + len(camera)) for step in range(steps)] or [picture(0)])[:steps]
            file.create_dataset(f"observations/images/{camera}", data=frames)
        file["observations/qpos"] = numbers(steps, 14, seed)
        file["observations/qvel"] = numbers(steps, 14, seed + 1)
        file["action"] = numbers(steps, 14, seed + 2)
    return path


def aloha_jpeg(path, steps=5, seed=0, cameras=("top", "angle"), base_action=False):
    """ACT++ (rows of compress_len in alphabetical order) or, with a base action, Mobile ALOHA (recording order)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    order = cameras if base_action else sorted(cameras)
    with h5py.File(path, "w") as file:
        file.attrs["sim"], file.attrs["compress"] = True, True
        lengths = []
        for camera in order:
            rows = [jpeg(picture(step, seed + len(camera))) for step in range(steps)]
            widest = max(map(len, rows)) + 5
            padded = np.stack([np.frombuffer(row.ljust(widest, b"\0"), np.uint8) for row in rows])
            file.create_dataset(f"observations/images/{camera}", data=padded)
            lengths.append([len(row) for row in rows])
        file["compress_len"] = np.array(lengths, np.float32)
        file["observations/qpos"] = numbers(steps, 14, seed)
        file["observations/qvel"] = numbers(steps, 14, seed + 1)
        file["action"] = numbers(steps, 14, seed + 2)
        if base_action:
            file["observations/effort"] = numbers(steps, 14, seed + 3)
            file["base_action"] = numbers(steps, 2, seed + 4)
    return path


def robomimic(path, lengths, masks=None, cameras=("agentview_image",)):
    """`lengths` maps demo names to steps."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["total"] = sum(lengths.values())
        data.attrs["env_args"] = json.dumps({"env_name": "Lift", "env_kwargs": {"control_freq": 20}})
        for seed, (name, steps) in enumerate(lengths.items()):
            demo = data.create_group(name)
            demo.attrs["num_samples"] = steps
            demo["actions"] = numbers(steps, 7, seed).astype(np.float64)
            demo["rewards"] = np.zeros(steps)
            demo["states"] = numbers(steps, 9, seed)
            demo["obs/robot0_eef_pos"] = numbers(steps, 3, seed + 50).astype(np.float64)
            demo["next_obs/robot0_eef_pos"] = numbers(steps, 3, seed + 51).astype(np.float64)
            for camera in cameras:
                demo[f"obs/{camera}"] = np.stack([picture(step, seed) for step in range(steps)])
        for mask, names in (masks or {}).items():
            file[f"mask/{mask}"] = np.array([name.encode() for name in names])
    return path


def isaac_lab(path, lengths=(6, 4), *, flat_observations=False, camera=False):
    """As Isaac Lab's recorder writes it: gzip, nested groups, a state to begin from, states of a simulator."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["total"] = sum(lengths)
        data.attrs["env_args"] = json.dumps({"env_name": "Isaac-Stack-Cube-v0", "type": 2})
        for number, steps in enumerate(lengths):
            demo = data.create_group(f"demo_{number}")
            demo.attrs["num_samples"], demo.attrs["seed"], demo.attrs["success"] = steps, number, True
            rows = np.arange(steps, dtype=np.float32)[:, None] + 100 * number
            arrays = {
                "actions": np.repeat(rows, 7, 1),
                "processed_actions": np.repeat(rows, 8, 1),
                "initial_state/articulation/robot/joint_position": np.zeros((1, 9), np.float32),
                "initial_state/rigid_object/cube_1/root_pose": np.zeros((1, 7), np.float32),
                "states/articulation/robot/joint_position": np.repeat(rows, 9, 1),
            }
            if flat_observations:
                arrays["obs"] = np.repeat(rows, 12, 1)
            else:
                arrays["obs/joint_pos"] = np.repeat(rows, 9, 1)
                arrays["obs/policy/eef_pos"] = np.repeat(rows, 3, 1)
            if camera:
                arrays["obs/table_cam"] = (
                    np.zeros((steps, 16, 20, 3), np.uint8) + rows.astype(np.uint8)[..., None, None]
                )
            for name, values in arrays.items():
                demo.create_dataset(name, data=values, compression="gzip")
    return path


def members(tar_path):
    """Every member of a tar in order: (name, bytes)."""
    with tarfile.open(tar_path, "r:") as tar:
        return [(info.name, tar.extractfile(info).read()) for info in tar]


def shards(folder):
    return sorted(Path(folder).glob("*.tar"))


def episodes(folder):
    """All episodes of a dataset by key: {key: {field: bytes}}, read with tarfile alone."""
    found = {}
    for shard in shards(folder):
        for name, data in members(shard):
            key, _, rest = name.partition(".")
            found.setdefault(key, {})[rest] = data
    return found


def npy(data):
    return np.load(io.BytesIO(data), allow_pickle=False)


def png(data):
    return np.asarray(Image.open(io.BytesIO(data)))


def manifest(folder):
    return json.loads((Path(folder) / "dataset.json").read_text())


def tables(folder):
    """Names of the binary files that belong to the manifest of a folder: those it names, its sketches and records."""
    said = manifest(folder)
    key = json.dumps([said["fingerprint"], said["statistics"]["features"]], sort_keys=True)
    sketches = f"statistics-{xxhash.xxh3_128_hexdigest(key.encode())[:8]}.tables"
    records = {one["file"] for one in said.get("episodes", ())}
    return {said["tables"]["file"], said["sources"]["file"], sketches, *records}


def contents(folder):
    """The names and bytes of everything in a folder."""
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}
