"""What OptimizedEpisodicDataset should give of the two example episodes, read directly."""

import code_bases
import numpy as np

CAMERAS = ["top", "angle"]
LENGTHS = [80, 60]


def expected_sample(path, episode_id, t, chunk=16, ctrl="abs", text=""):
    episode = code_bases.aloha(path)
    episode = {**episode, "images": {name: episode["images"][name] for name in CAMERAS}}
    sample = code_bases.ilstudio(episode, t, chunk, episode_id, text)
    count = int((~sample["is_pad"]).sum())
    if ctrl == "delta":
        sample["action"][:count] -= episode["state"][t : t + count]
    if ctrl == "delta_first":
        sample["action"][:count] -= episode["state"][t]
    return sample


def assert_sample(found, expected):
    assert list(found) == list(expected)
    for key, value in expected.items():
        if isinstance(value, np.ndarray):
            assert found[key].numpy().dtype == value.dtype, key
            assert np.array_equal(found[key].numpy(), value), key
        else:
            assert found[key] == value, key
            assert type(found[key]) is type(value), key


def places_of(batch):
    return list(zip(batch["episode_id"].tolist(), batch["timestamp"].tolist(), strict=True))


def places():
    return [(episode, t) for episode, length in enumerate(LENGTHS) for t in range(length)]
