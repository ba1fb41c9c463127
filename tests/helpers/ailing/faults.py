"""Faults to plant into healthy episodes: each changes them in place, and says which episodes it made ill."""

import copy

import numpy as np


def _state(change):
    def plant(episodes):
        change(episodes[4]["state"])
        return {4}

    return plant


def _whole(change):
    def plant(episodes):
        change(episodes[4])
        return {4}

    return plant


def _everywhere(change):
    def plant(episodes):
        for episode in episodes:
            change(episode)
        return set()

    return plant


def _put(value, step, dim):
    def change(values):
        values[step, dim] = value

    return change


def _set(episode, name, values):
    episode[name] = values


def _repeat_state(episode):
    episode["state"][1::2] = episode["state"][::2]


def _hold_state(episode):
    episode["state"][20:40] = episode["state"][20]


def _clip(episodes):
    for episode in episodes:
        episode["action"][:, 2] = np.clip(episode["action"][:, 2], -0.4, 0.4)
    return {0}  # and most of the others


def _jump(values):
    values[30:, 1] += 6


def _wrap(values):
    angle = np.linspace(2.5, 4.0, len(values))
    values[:, 3] = (angle + np.pi) % (2 * np.pi) - np.pi


def _flip(episode):
    episode["quat"][30:] *= -1


def _idle(part):
    def change(episode):
        for name in ("state", "action", "quat"):
            values = episode[name]
            values[part] = values[part][-1 if part.start is None else 0]

    return change


def _pause(episode):
    for name in ("state", "action"):
        episode[name][20:] = np.concatenate([np.repeat(episode[name][20:21], 30, 0), episode[name][20:30]])


def _copy_of(source, target, change=lambda episode: None):
    def plant(episodes):
        episodes[target] = copy.deepcopy(episodes[source])
        change(episodes[target])
        return {target}

    return plant


def _round(episode):
    for name in ("state", "action", "quat"):
        episode[name] = episode[name] + 1e-4


def _leak(episodes):
    episodes[7] = copy.deepcopy(episodes[2])
    episodes[7]["mask"] = "valid"
    return {7}


def _swap_cameras(episode):
    episode["top"], episode["wrist"] = episode["wrist"], episode["top"]


def _cut(episode):
    episode["top"][35:] = 255 - episode["top"][35:]


def _other_view(episode):
    size, squares = episode["top"].shape[1], np.random.default_rng(5).integers(0, 2, (8, 8, 1))
    level = int(episode["top"].mean())
    view = np.kron(np.where(squares, level + 60, level - 60), np.ones((size // 8, size // 8, 3)))
    episode["top"] = np.clip(view + episode["top"] // 16, 0, 255).astype(np.uint8)


def _back(episode):
    episode["time"][30] = episode["time"][28]


def _gap(episode):
    episode["time"][30:] += 0.2


def _uneven(episode):
    episode["time"] += np.where(np.arange(len(episode["time"])) % 3 == 0, 0.034, 0)


def _slower(episode):
    episode["time"] = episode["time"] * 2


def _stretch(episode, times):
    for name, values in episode.items():
        if isinstance(values, np.ndarray):
            episode[name] = np.tile(values, (times, *[1] * (values.ndim - 1)))
    episode["time"] = np.arange(len(episode["state"])) / 20
    episode["mask"] = "train"


def _cut_off(episode, steps):
    for name, values in episode.items():
        if isinstance(values, np.ndarray):
            episode[name] = values[:steps]


def _changes(episode):
    state = episode["state"]
    episode["action"] = 20 * np.diff(state, axis=0, append=state[-1:])


def _task(text):
    return _whole(lambda episode: _set(episode, "task", text))


def _half_failed(episodes):
    for episode in episodes:
        episode["attributes"]["success"] = False
    return set()


def _next_state(episode):
    state = episode["state"]
    episode["action"] = np.concatenate([state[1:], state[-1:]])


def _shift(episode):
    episode["action"] = np.roll(episode["action"], -4, axis=0)


def _late(episode):
    state = episode["state"]
    episode["action"] = np.concatenate([np.repeat(state[:1], 2, 0), state[:-2]])


def _noise(episode):
    episode["action"] = np.random.default_rng(5).normal(size=episode["action"].shape)


# Code of the check -> what plants it.
FAULTS = {
    "not-finite": _state(_put(np.nan, 25, 3)),
    "huge-values": _state(_put(3e7, slice(None), 5)),
    "dead-dimension": _state(_put(0.25, slice(None), 5)),
    "constant-dimension": _everywhere(lambda episode: _put(0.25, slice(None), 5)(episode["state"])),
    "clipped": _clip,
    "whole-numbers": _state(lambda values: _put(np.round(3 * values[:, 2]), slice(None), 2)(values)),
    "units": _whole(lambda episode: _set(episode, "state", episode["state"] * 180 / np.pi)),
    "outlier-values": _state(lambda values: _put(values[:, 2] + 30, slice(None), 2)(values)),
    "gripper-range": _whole(lambda episode: _put(2 * episode["action"][:, 6] - 1, slice(None), 6)(episode["action"])),
    "quaternion-norm": _whole(lambda episode: _set(episode, "quat", episode["quat"] * 1.4)),
    "quaternion-flip": _whole(
        lambda episode: _put(-episode["quat"][30:], slice(30, None), slice(None))(episode["quat"])
    ),
    "jump": _state(_jump),
    "spike": _state(_put(6.0, 30, 1)),
    "angle-wrap": _state(_wrap),
    "stale-values": _whole(_repeat_state),
    "held-values": _whole(_hold_state),
    "frozen-state": _state(lambda values: _put(values[0], slice(None), slice(None))(values)),
    "nothing-moves": _whole(_idle(slice(0, None))),
    "idle-start": _whole(_idle(slice(None, 20))),
    "idle-end": _whole(_idle(slice(40, None))),
    "long-pause": _whole(_pause),
    "action-shift": _whole(_shift),
    "action-late": _everywhere(_late),
    "action-units": _everywhere(lambda episode: _set(episode, "action", episode["action"] * 180 / np.pi)),
    "action-sign": _whole(lambda episode: _put(-episode["action"][:, 2], slice(None), 2)(episode["action"])),
    "action-kind": _whole(_changes),
    "action-unrelated": _whole(_noise),
    "action-is-next-state": _everywhere(_next_state),
    "action-mixed": _whole(_next_state),
    "action-is-state": _whole(lambda episode: _set(episode, "action", episode["state"].copy())),
    "time-backward": _whole(_back),
    "time-gap": _whole(_gap),
    "time-uneven": _whole(_uneven),
    "time-rate": _whole(_slower),
    "short-episode": _whole(lambda episode: _cut_off(episode, 6)),
    "odd-length": _whole(lambda episode: _stretch(episode, 5)),
    "duplicate-episode": _copy_of(2, 7),
    "near-duplicate": _copy_of(2, 7, _round),
    "split-leak": _leak,
    "missing-task": _task(None),
    "no-tasks": _everywhere(lambda episode: _set(episode, "task", None)),
    "task-variants": _task("Put the cup on the  shelf."),
    "task-typo": _task("put the cup on the shelv"),
    "task-placeholder": _task("test"),
    "failed-episode": _whole(lambda episode: _set(episode, "attributes", {"success": False})),
    "all-failed": _half_failed,
    "missing-success": _whole(lambda episode: _set(episode, "attributes", {})),
    "blank-camera": _whole(lambda episode: _set(episode, "top", np.zeros_like(episode["top"]))),
    "blank-frames": _whole(lambda episode: _put(0, slice(0, 12), slice(None))(episode["top"])),
    "frozen-camera": _whole(lambda episode: _put(episode["top"][0], slice(None), slice(None))(episode["top"])),
    "repeated-frames": _whole(lambda episode: _put(episode["top"][30], slice(30, 45), slice(None))(episode["top"])),
    "picture-cut": _whole(_cut),
    "colour-order": _whole(lambda episode: _set(episode, "top", episode["top"][..., ::-1])),
    "turned-view": _whole(lambda episode: _set(episode, "top", episode["top"][:, ::-1, ::-1])),
    "cameras-swapped": _whole(_swap_cameras),
    "camera-copy": _whole(lambda episode: _set(episode, "wrist", episode["top"].copy())),
    "brightness": _whole(lambda episode: _set(episode, "top", episode["top"] // 2)),
    "other-view": _whole(_other_view),
}
