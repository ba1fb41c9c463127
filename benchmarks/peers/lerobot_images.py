"""LeRobot in the comparison: its dataset format (v2.1) with pictures as PNG inside Parquet, and its own loader.

Its usual form, video, wants FFmpeg's libraries on the machine; the pictures need nothing.
"""

from dataclasses import replace
from pathlib import Path

import simplejpeg
from peers.compat import allow_torchvision
from peers.contender import BATCH_SIZE, NUM_WORKERS, Batches, Contender, forever
from peers.data import CAMERAS, Scenario, episodes
from torch.utils.data import DataLoader, RandomSampler

_FPS = 50
_PASSES = 50
# Writing PNG takes long, and an epoch is as long as the sampler says.
_MOST_STEPS = 400


def load() -> None:
    allow_torchvision()
    from lerobot.datasets import lerobot_dataset  # noqa: F401


def write(scenario: Scenario, source: Path, out: Path) -> None:
    """The episodes by LeRobot's own writer."""
    load()
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    numbers = {"dtype": "float32", "shape": (14,), "names": None}
    features: dict[str, object] = {"observation.state": numbers, "action": numbers}
    for camera in CAMERAS if scenario.has_frames else ():
        names = ["height", "width", "channels"]
        features[f"observation.images.{camera}"] = {"dtype": "image", "shape": scenario.picture_shape, "names": names}
    data = LeRobotDataset.create("bench/episodes", _FPS, features, root=out / "lerobot", use_videos=False)
    for episode in episodes(replace(scenario, num_steps=_MOST_STEPS), source):
        for step in range(len(episode.action)):
            frame = {"observation.state": episode.state[step], "action": episode.action[step]}
            for camera, frames in episode.frames.items():
                frame[f"observation.images.{camera}"] = simplejpeg.decode_jpeg(frames[step], "RGB")
            data.add_frame(frame, task="bench")
        data.save_episode()


def lerobot(scenario: Scenario, folder: Path) -> Batches:
    """LeRobotDataset with the windows as `delta_timestamps`, in a plain DataLoader."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    history = [step / _FPS for step in range(1 - scenario.num_history, 1)]
    deltas = {"action": [step / _FPS for step in range(scenario.chunk)], "observation.state": history}
    for camera in CAMERAS if scenario.has_frames else ():
        deltas[f"observation.images.{camera}"] = history
    data = LeRobotDataset("bench/episodes", root=folder / "lerobot", delta_timestamps=deltas)
    sampler = RandomSampler(data, num_samples=_PASSES * len(data))
    return forever(
        DataLoader(data, batch_size=BATCH_SIZE, sampler=sampler, num_workers=NUM_WORKERS, persistent_workers=True)
    )


CONTENDERS = (
    Contender(
        "LeRobot, PNG in Parquet",
        "lerobot",
        ("jpeg", "numbers"),
        load,
        lerobot,
        only=("480x640-jpeg", "low-dimensional"),
    ),
)
