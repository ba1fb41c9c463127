"""A small file of every known layout, written as its code base writes it."""

import json
from pathlib import Path

import h5py
import numpy as np
from hdf5_files import aloha_jpeg, aloha_raw, jpeg, numbers, picture, robomimic

ROWS = 7


def _jpegs(rows=ROWS, seed=0):
    data = [jpeg(picture(step, seed)) for step in range(rows)]
    return np.array(data, dtype=f"S{max(map(len, data))}")


def _frames(rows=ROWS, seed=0):
    return np.stack([picture(step, seed) for step in range(rows)])


def libero(path):
    robomimic(path, {"demo_0": 4, "demo_1": 3}, cameras=("agentview_rgb",))
    with h5py.File(path, "a") as file:
        file["data"].attrs["bddl_file_name"] = "lift.bddl"
        file["data"].attrs["problem_info"] = json.dumps({"language_instruction": "lift it"})
    return path


def rdt(path):
    beside = path.parent / "expanded_instruction_gpt-4-turbo.json"
    aloha_jpeg(path, ROWS, base_action=True)
    beside.write_text(json.dumps({"instruction": "pour", "simplified_instruction": ["pour it"]}))
    return path


def robotwin(path):
    with h5py.File(path, "w") as file:
        file["observation/head_camera/rgb"] = _jpegs()
        file["joint_action/vector"] = numbers(ROWS, 14, 1)
        file["endpose/left_endpose"] = numbers(ROWS, 7, 3)
    return path


def robotwin_v1(path):
    with h5py.File(path, "w") as file:
        text = h5py.string_dtype("utf-8")
        file.create_dataset("data_format_version", data="v1.0", dtype=text)
        file.create_dataset("instructions", data=json.dumps(["stack the bowls", "pile them"]), dtype=text)
        file["additional_info/frequency"] = np.int32(15)
        for seed, name in enumerate(("left_arm_joint_states", "left_ee_joint_states", "left_ee_poses")):
            values = numbers(ROWS + 1, 6 - seed, seed)
            file[f"state/{name}"], file[f"action/{name}"] = values[:-1], values[1:]
        for camera in ("cam_head", "cam_left_wrist"):
            file[f"vision/{camera}/colors"] = _jpegs(seed=len(camera))
            file[f"vision/{camera}/shape"] = np.array([24, 32, 3], np.int32)
            file[f"vision/{camera}/intrinsic_matrix"] = np.zeros((ROWS, 3, 3), np.float32)
        file["vision/cam_head/depths"] = numbers(ROWS, 24 * 32, 9).reshape(ROWS, 24, 32)
    return path


def vla_os(path, reasoning=True):
    with h5py.File(path, "w") as file:
        file.attrs["sim"] = False
        for seed, camera in enumerate(("primary", "wrist")):
            file.create_dataset(f"observations/image/{camera}", data=_frames(seed=seed), chunks=(1, *picture(0).shape))
        file["observations/state_ee"], file["observations/state_joint"] = numbers(ROWS, 7, 0), numbers(ROWS, 8, 1)
        file["action_ee"] = numbers(ROWS, 7, 2)
        file.create_dataset("freq", data=np.array([20], np.float32))
        file.create_dataset("episode_len", data=np.array([ROWS], np.float32))
        file["language_instruction"] = [b"put the cup on the plate"]
        if reasoning:
            file["reasoning/gripper_position"] = numbers(ROWS, 2, 3)
            file["reasoning/target_position"] = numbers(ROWS, 2, 4)
            file["reasoning/subtask"] = [f"subtask {step // 3}".encode() for step in range(ROWS)]
            file["reasoning/direction"] = [f"up {step}".encode() for step in range(ROWS)]
    return path


def teleop(path):
    with h5py.File(path, "w") as file:
        file["actions"] = numbers(ROWS, 9, 0)
        file["observations/qpos"] = numbers(ROWS, 9, 1).astype(np.float64)
        file["observations/arm/force"] = numbers(ROWS, 6, 2)
        file["observations/wrist"] = _frames()
    return path


def minari(path, lengths=(5, 3), spare=1):
    with h5py.File(path, "w") as file:
        file.attrs["total_steps"] = sum(lengths)
        for number, length in zip((9, 10), lengths, strict=True):
            episode = file.create_group(f"episode_{number}")
            episode.attrs["total_steps"] = length
            seen = length + spare
            episode["observations/robot/joints"] = numbers(seen, 4, number).astype(np.float64)
            episode["observations/camera"] = _frames(seen, number)
            episode.create_dataset(
                "observations/mission", data=["go to the red door"] * seen, dtype=h5py.string_dtype()
            )
            episode["actions"] = numbers(length, 2, number + 50)
            episode["rewards"] = np.arange(length, dtype=np.float64)
            episode["terminations"] = np.arange(length) == length - 1
            episode["truncations"] = np.zeros(length, bool)
            episode["infos/success"] = np.zeros(seen, bool)
    return path


WRITERS = {
    "libero": libero,
    "robomimic": lambda path: robomimic(path, {"demo_2": 4, "demo_10": 3}),
    "rdt": rdt,
    "mobile-aloha": lambda path: aloha_jpeg(path, ROWS, base_action=True),
    "act-plus-plus": lambda path: aloha_jpeg(path, ROWS),
    "act-sim": lambda path: aloha_raw(path, ROWS),
    "aloha": lambda path: aloha_raw(path, ROWS, sim=False),
    "robotwin": robotwin,
    "robotwin-v1": robotwin_v1,
    "ilstudio-vla-os": vla_os,
    "ilstudio-teleop": teleop,
    "minari": minari,
}


def write(name: str, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return WRITERS[name](folder / f"{name}.hdf5")


# A layout that is no known one, in the words of a layout file.
OWN = """
name: koch
episodes: runs/*
features:
  - {path: "cams/*", camera: "*", rotate: 180}
  - {path: joints, name: observation.state}
  - {path: joints, name: action, shift: 1}
tasks: [goal]
"""


def write_own(folder: Path) -> tuple[Path, Path]:
    """A file of two episodes of six steps in no known layout, and the file that describes it."""
    path, description = folder / "runs.hdf5", folder / "koch.yaml"
    with h5py.File(path, "w") as file:
        for number in range(2):
            file[f"runs/{number}/joints"] = np.arange(12.0, dtype=np.float32).reshape(6, 2) + 100 * number
            file[f"runs/{number}/cams/front"] = np.full((6, 8, 10, 3), 10 * number, np.uint8)
            file[f"runs/{number}/goal"] = f"goal {number}"
    description.write_text(OWN)
    return path, description
