"""Loaders that read HDF5 for every sample: ACT's way with h5py, and robomimic's own."""

from pathlib import Path

import h5py
import numpy as np
from peers.contender import BATCH_SIZE, NUM_WORKERS, Batches, Sample, forever, jpeg, world
from peers.data import CAMERAS, Scenario
from torch.utils.data import DataLoader, Dataset, DistributedSampler, RandomSampler, Sampler

# Epochs of that many passes: a DataLoader starts anew with each.
_PASSES = 50


class ActDataset(Dataset[Sample]):
    """Opens the episode's file for every sample and reads one step and the actions after it, as ACT's code does."""

    def __init__(self, scenario: Scenario, folder: Path) -> None:
        self.scenario = scenario
        self.places: list[tuple[str, int]] = []
        for path in sorted((folder / "hdf5").glob("*.hdf5")):
            with h5py.File(path) as file:
                self.places += [(str(path), step) for step in range(len(file["action"]))]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, at: int) -> Sample:
        path, step = self.places[at]
        scenario = self.scenario
        with h5py.File(path, "r") as file:
            first = max(0, step - scenario.num_history + 1)
            sample: Sample = {"state": file["observations/qpos"][step]}
            for camera in CAMERAS if scenario.has_frames else ():
                frames = file[f"observations/images/{camera}"][first : step + 1]
                if scenario.codec == "jpeg":
                    frames = np.stack([jpeg(_trimmed(row)) for row in frames])
                missing = scenario.num_history - len(frames)
                sample[camera] = np.concatenate([frames[:1]] * missing + [frames]) if missing else frames
            ahead = file["action"][step : step + scenario.chunk]
        action = np.zeros((scenario.chunk, ahead.shape[1]), np.float32)
        action[: len(ahead)] = ahead
        return {**sample, "action": action, "is_pad": np.arange(scenario.chunk) >= len(ahead)}


def _trimmed(row: np.ndarray) -> bytes:
    data = row.tobytes()
    return data[: data.rindex(b"\xff\xd9") + 2]


def _batches(data: Dataset[Sample]) -> Batches:
    size: int = len(data)  # type: ignore[arg-type]
    sampler: Sampler[int] = RandomSampler(data, num_samples=_PASSES * size)  # type: ignore[arg-type]
    if world()[1] > 1:
        sampler = DistributedSampler(data)
    return forever(
        DataLoader(data, batch_size=BATCH_SIZE, sampler=sampler, num_workers=NUM_WORKERS, persistent_workers=True)
    )


def act(scenario: Scenario, folder: Path) -> Batches:
    """The plain DataLoader over `ActDataset`."""
    return _batches(ActDataset(scenario, folder))


def load_robomimic() -> None:
    from robomimic.utils import dataset, obs_utils  # noqa: F401


def robomimic(scenario: Scenario, folder: Path) -> Batches:
    """SequenceDataset with sequences of one step: with longer ones it would read the pictures of all their steps."""
    from robomimic.utils import obs_utils
    from robomimic.utils.dataset import SequenceDataset

    cameras = [f"{camera}_image" for camera in CAMERAS] if scenario.has_frames else []
    obs_utils.initialize_obs_utils_with_obs_specs({"obs": {"low_dim": ["state"], "rgb": cameras}})
    data = SequenceDataset(
        hdf5_path=str(folder / "demos.hdf5"),
        obs_keys=("state", *cameras),
        dataset_keys=("actions",),
        frame_stack=1,
        seq_length=1,
        hdf5_cache_mode=None,
        hdf5_use_swmr=True,
        load_next_obs=False,
    )
    return _batches(data)
