"""Each loader of the comparison, as its users run it and in its best form for speed: endless batches of torch tensors.

All make the same batch: uint8 pictures (B, ..., H, W, 3), float32 state and actions. Two workers everywhere.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import simplejpeg
import torch
from peers.compat import allow_torchvision
from peers.data import CAMERAS, Scenario
from torch.utils.data import DataLoader, Dataset

BATCH_SIZE = 32
NUM_WORKERS = 2

Batches = Iterator[Any]
Sample = dict[str, Any]


@dataclass(frozen=True)
class Contender:
    """One way to read a scenario.

    Attributes:
        name: in the tables.
        form: the files that it reads, a name of `writers.WRITERS`.
        stores: which scenarios it runs on: "jpeg", "raw" or "numbers".
        start: opens it.
        is_ours: whether it is epistream.
    """

    name: str
    form: str
    stores: tuple[str, ...]
    start: Callable[[Scenario, Path], Batches]
    is_ours: bool = False

    def fits(self, scenario: Scenario) -> bool:
        """Whether it runs on a scenario."""
        return (scenario.codec if scenario.has_frames else "numbers") in self.stores


def jpeg(data: bytes) -> np.ndarray:
    """The fastest decoder that there is for this, for everybody."""
    return simplejpeg.decode_jpeg(data, "RGB")


def forever(loader: Any) -> Batches:
    """Epoch after epoch."""
    while True:
        yield from loader


# --- epistream -------------------------------------------------------------------------------------------


def epistream(**options: Any) -> Callable[[Scenario, Path], Batches]:
    """Our own loader with options of `EpisodeStream` and `StreamingLoader`."""

    def start(scenario: Scenario, folder: Path) -> Batches:
        import epistream as es

        decode = options.get("decode", "per_read")
        stream = es.EpisodeStream(
            folder / "epistream",
            batch_size=BATCH_SIZE,
            window=es.Window(obs=range(1 - scenario.num_history, 1), action=range(scenario.chunk)),
            decode=decode,
        )
        workers = {"num_workers": NUM_WORKERS, **options.get("loader", {})}
        loader = es.StreamingLoader(stream, **workers)
        if decode == "once":
            # Warm: everything was decoded before, by an earlier epoch or job.
            num_episodes = stream.job.dataset.num_episodes
            while loader.stats().cache.made_fills < num_episodes and loader.stats().num_batches < 50 * num_episodes:
                for _ in loader:
                    pass
        return forever(loader)

    return start


# --- WebDataset ------------------------------------------------------------------------------------------


def webdataset_default(scenario: Scenario, folder: Path) -> Batches:
    """As in its README: its own decoder, batches made by the DataLoader."""
    import webdataset as wds

    tars = sorted(map(str, folder.glob("*.tar")))
    data = (
        wds.WebDataset(tars, shardshuffle=len(tars), empty_check=False).shuffle(1000).decode("rgb8").map(_without_key)
    )
    return forever(DataLoader(data, batch_size=BATCH_SIZE, num_workers=NUM_WORKERS))


def webdataset_tuned(scenario: Scenario, folder: Path) -> Batches:
    """simplejpeg, batches made in the workers, workers that stay."""
    import webdataset as wds

    tars = sorted(map(str, folder.glob("*.tar")))
    data = (
        wds.WebDataset(tars, shardshuffle=len(tars), empty_check=False).shuffle(200).map(_WebdatasetDecoder(scenario))
    )
    data = data.batched(BATCH_SIZE, collation_fn=torch.utils.data.default_collate)
    return forever(DataLoader(data, batch_size=None, num_workers=NUM_WORKERS, persistent_workers=True))


def _without_key(sample: Sample) -> Sample:
    return {name: value for name, value in sample.items() if not name.startswith("__")}


@dataclass(frozen=True)
class _WebdatasetDecoder:
    scenario: Scenario

    def __call__(self, sample: Sample) -> Sample:
        decoded: Sample = {}
        for name, value in sample.items():
            if name.endswith(".jpg"):
                decoded[name] = jpeg(value)
            elif name.endswith(".raw"):
                decoded[name] = np.frombuffer(bytearray(value), np.uint8).reshape(self.scenario.picture_shape)
            elif name.endswith(".npy"):
                decoded[name] = _npy(value)
        return decoded


def _npy(data: bytes) -> np.ndarray:
    """A version 1 .npy, without the parser of np.load, which costs 30 us."""
    start = 10 + int.from_bytes(data[8:10], "little")
    header = data[10:start]
    dtype = np.dtype(np.bool_ if b"'|b1'" in header else np.float32)
    shape = tuple(int(n) for n in header.partition(b"'shape': (")[2].partition(b")")[0].split(b",") if n.strip())
    return np.frombuffer(bytearray(data[start:]), dtype).reshape(shape)


# --- MosaicML Streaming, LitData -------------------------------------------------------------------------


def mosaicml(scenario: Scenario, folder: Path) -> Batches:
    """StreamingDataset over local MDS files."""
    allow_torchvision()
    from streaming import StreamingDataset

    class Decoding(StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, at: int) -> Sample:
            return _decoded(super().__getitem__(at))

    data = Decoding(local=str(folder), shuffle=True, batch_size=BATCH_SIZE)
    return forever(DataLoader(data, batch_size=BATCH_SIZE, num_workers=NUM_WORKERS, persistent_workers=True))


def litdata(scenario: Scenario, folder: Path) -> Batches:
    """StreamingDataset over local chunks, with its own DataLoader."""
    from litdata import StreamingDataLoader, StreamingDataset

    class Decoding(StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, at: Any) -> Sample:
            return _decoded(super().__getitem__(at))

    data = Decoding(str(folder), shuffle=True, drop_last=True)
    return forever(StreamingDataLoader(data, batch_size=BATCH_SIZE, num_workers=NUM_WORKERS, persistent_workers=True))


def _decoded(sample: Sample) -> Sample:
    return {
        name: jpeg(value) if isinstance(value, bytes | memoryview) else np.array(value)
        for name, value in sample.items()
    }


# --- HDF5, the way of ACT --------------------------------------------------------------------------------


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


def act(scenario: Scenario, folder: Path) -> Batches:
    """The plain DataLoader over `ActDataset`."""
    data = ActDataset(scenario, folder)
    return forever(
        DataLoader(data, batch_size=BATCH_SIZE, shuffle=True, num_workers=NUM_WORKERS, persistent_workers=True)
    )


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
    return forever(
        DataLoader(data, batch_size=BATCH_SIZE, shuffle=True, num_workers=NUM_WORKERS, persistent_workers=True)
    )


CONTENDERS = (
    Contender("epistream, processes", "epistream", ("jpeg", "raw", "numbers"), epistream(), True),
    Contender(
        "epistream, threads",
        "epistream",
        ("jpeg", "raw", "numbers"),
        epistream(loader={"num_workers": 0, "num_threads": NUM_WORKERS}),
        True,
    ),
    Contender("epistream, decoded once", "epistream", ("jpeg",), epistream(decode="once"), True),
    Contender("WebDataset, default", "webdataset", ("jpeg", "numbers"), webdataset_default),
    Contender("WebDataset, tuned", "webdataset", ("jpeg", "raw", "numbers"), webdataset_tuned),
    Contender("MosaicML Streaming", "mosaicml", ("jpeg", "raw", "numbers"), mosaicml),
    Contender("LitData", "litdata", ("jpeg", "raw", "numbers"), litdata),
    Contender("robomimic, chunk of 1", "robomimic", ("raw", "numbers"), robomimic),
    Contender("h5py, the ACT way", "epistream", ("jpeg", "raw", "numbers"), act),
)
