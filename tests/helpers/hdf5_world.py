"""HDF5 episodes in every way of storing them, and an independent reader of all layouts: h5py, Pillow, simplejpeg."""

import io
import json
from pathlib import Path

import h5py
import numpy as np
import simplejpeg
from PIL import Image

import epistream as es

LENGTH = 11
SIDE = 24
# Real recordings that the project ships, one of each kind and two of one.
SHIPPED = [
    "aloha/episode_0.hdf5",
    "aloha/episode_1.hdf5",
    "aloha_sim/episode_0.hdf5",
    "mobile_aloha/episode_0.hdf5",
    "robomimic/scripted_lift.hdf5",
    "libero/pick_up_the_red_cube_demo.hdf5",
]


def decoded(row):
    data = bytes(row) if isinstance(row, bytes | np.bytes_) else np.asarray(row).tobytes()
    # OpenCV's readers of these files get the writer's array, for which a standard decoder says BGR.
    return simplejpeg.decode_jpeg(data[: data.rindex(b"\xff\xd9") + 2], "BGR")


def read_episodes(path):
    """Every episode of an ALOHA, IL-Studio, robomimic or LIBERO file as {feature: (T, ...) array}, natural order."""
    with h5py.File(path) as file:
        if "data" not in file:
            return [_aloha(file)]
        return [_robomimic(file["data"][name]) for name in _demos(file)]


def read_tasks(path):
    """The instruction of every episode, empty where there is none."""
    with h5py.File(path) as file:
        if "data" not in file:
            return [""]
        problem = json.loads(file["data"].attrs.get("problem_info", "{}"))
        return [problem.get("language_instruction", "")] * len(file["data"])


def has_raw_cameras(path):
    with h5py.File(path) as file:
        group = f"data/{_demos(file)[0]}/obs" if "data" in file else "observations/images"
        return any(rows.ndim == 4 for rows in file.get(group, {}).values())


def _demos(file):
    return sorted(file["data"], key=lambda name: int(name.split("_")[1]))


def _aloha(file):
    episode = {}
    for camera, rows in file.get("observations/images", {}).items():
        values = [decoded(row) for row in rows[:]] if rows.ndim < 3 else rows[:]
        values = np.stack(values) if isinstance(values, list) else values
        episode[f"observation.images.{camera}"] = values if values.ndim == 4 else values[..., None]
    for name, rows in file["observations"].items():
        if name != "images":
            episode["observation.state" if name == "qpos" else f"observation.{name}"] = rows[:]
    names = {"action": "action", "actions": "action", "base_action": "base_action"}
    return episode | {name: file[path][:] for path, name in names.items() if path in file}


def _robomimic(demo):
    found = {}

    def visit(path, node):
        if isinstance(node, h5py.Dataset) and path.split("/")[0] not in ("next_obs", "states"):
            found[path] = node[:]

    demo.visititems(visit)
    fixed = {
        "actions": "action",
        "rewards": "reward",
        "dones": "done",
        "robot_states": "observation.robot_states",
    }
    episode = {}
    for path, values in found.items():
        name = fixed.get(path, path.replace("/", "."))
        if path.startswith("obs/"):
            name = path.removeprefix("obs/")
            is_camera = values.ndim == 4
            name = f"images.{name.removesuffix('_image').removesuffix('_rgb')}" if is_camera else name
            name = f"observation.{name}"
        episode[name] = values
    return episode


def expected_batch(episodes, batch, name, offsets, pad):
    """What the windows of a batch should hold of one feature, and its mask."""
    values, masks = [], []
    for episode, step in zip(batch["episode_index"].tolist(), batch["step_index"].tolist(), strict=True):
        source = episodes[episode][name]
        wanted = step + np.asarray(offsets)
        inside = np.clip(wanted, 0, len(source) - 1)
        rows = (
            source[inside].astype(np.float32) if source.dtype.kind == "f" and source.itemsize == 8 else source[inside]
        )
        rows = rows.astype(rows.dtype.newbyteorder("="))
        if pad == "zero":
            rows[inside != wanted] = 0
        values.append(rows)
        masks.append(inside != wanted)
    return np.stack(values), np.stack(masks)


def assert_stream_equals(stream, episodes, obs, action, pad):
    """Every window of the stream, bit for bit; the windows seen."""
    seen = []
    for batch in stream:
        for name in episodes[0]:
            offsets = action if name == "action" else obs
            values, mask = expected_batch(episodes, batch, name, offsets, pad)
            found = batch[name].numpy()
            assert found.dtype == values.dtype, name
            np.testing.assert_array_equal(found, values, err_msg=name)
            np.testing.assert_array_equal(batch[f"{name}_is_pad"].numpy(), mask, err_msg=name)
        assert {key for key in batch if f"{key}_is_pad" in batch} == set(episodes[0])
        seen += zip(batch["episode_index"].tolist(), batch["step_index"].tolist(), strict=True)
    return seen


def picture(step, camera=0):
    rows, columns = np.mgrid[0:SIDE, 0 : SIDE + 8]
    image = np.stack([rows * 9, columns * 7, np.full_like(rows, 50 * camera)], axis=-1).astype(np.uint8)
    image[:, (3 * step) % SIDE] = 255
    return image


def jpeg(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "jpeg", quality=80)
    return file.getvalue()


def write_episode(path, length=LENGTH, *, seed=0, camera=None, values=None, **file_options):
    """One episode as ACT's simulator writes it; `camera` and `values` say how the camera and the arrays are stored.

    Each is a map of keywords of h5py's create_dataset, or a function (group, name, array) that stores the array.
    """
    random = np.random.default_rng(seed)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w", **file_options) as file:
        file.attrs["sim"] = True
        observations = file.create_group("observations")
        images = np.stack([picture(step) for step in range(length)])
        _store(observations.create_group("images"), "top", images, camera)
        _store(observations, "qpos", random.normal(size=(length, 6)).astype(np.float32), values)
        _store(observations, "qvel", random.normal(size=(length, 6)), values)  # float64
        _store(observations, "gripper", random.integers(0, 200, length), values)  # scalar rows, int64
        _store(file, "action", random.normal(size=(length, 6)).astype(np.float32), values)
    return path


def _store(group, name, array, how):
    if callable(how):
        how(group, name, array)
    else:
        group.create_dataset(name, data=array, **(how or {}))


def everything(episodes):
    return [(e, t) for e, episode in enumerate(episodes) for t in range(len(episode["action"]))]


def stream_of(source, obs=(-1, 0), action=(0, 1, 2, 5), pad="edge", **options):
    window = es.Window(obs=list(obs), action=list(action), pad=pad)
    options = {"batch_size": 4, "shuffle": False, "remainder": "uneven", "split": None, **options}
    return es.EpisodeStream(source, window=window, **options)


def check(source, episodes, obs=(-1, 0), action=(0, 1, 2, 5), pad="edge", **options):
    stream = stream_of(source, obs, action, pad, **options)
    assert assert_stream_equals(stream, episodes, obs, action, pad) == everything(episodes)
    stream.job.cache.close()
