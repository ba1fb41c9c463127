"""Streaming HDF5 files where they lie, against h5py per sample as ACT's dataset does it: windows per second, medians.

    python benchmarks/hdf5_direct.py [--rounds 5] [--workers 1] [--folder DIR] [--case raw ...]

Both sides read the same windows in random order: every camera at one step, the state, and a chunk of 100 actions. The
h5py side opens the file for each sample, reads, closes, and is batched by torch's DataLoader, as ACT's code does. The
two take turns, so that whatever else the machine does meets both; without workers, windows per second of CPU time
are given too, which a busy machine changes less. Episodes are made from the examples: the same
frames, stored raw in chunks of one frame (ACT's simulator), raw and contiguous, raw under gzip, as padded JPEG rows,
and as robomimic stores small cameras (there h5py keeps the file open, as robomimic does).

Both sides decode each JPEG whenever a window shows it; "jpeg, default" is what a stream does unless it is told
otherwise: frames are kept decoded where all of them fit what a stream may take by default.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import psutil
import simplejpeg
import torch
from torch.utils.data import DataLoader, Dataset

import epistream as es

EXAMPLES = Path(__file__).resolve().parent.parent / "examples" / "data"
CHUNK = 100
BATCH = 8
# Of the h5py side in a round, and of the other side, which is an order of magnitude faster.
MAX_BATCHES, EPOCHS = 45, 5


def make_episodes(folder: Path, case: str, num_episodes: int = 6, length: int = 60) -> list[Path]:
    """Episodes of real frames, a step later in each file, so that no two files are the same."""
    source = EXAMPLES / "aloha" / "episode_0.hdf5"
    with h5py.File(source) as file:
        rows = {camera: data[:] for camera, data in file["observations/images"].items()}
        numbers = {name: file[f"observations/{name}"][:] for name in ("qpos", "qvel")} | {"action": file["action"][:]}
    storage = {"raw": {"chunks": (1, 480, 640, 3)}, "contiguous": {}, "gzip": {"chunks": (1, 480, 640, 3)}}.get(
        case, {}
    )
    if case == "gzip":
        storage["compression"] = "gzip"
    for number in range(num_episodes):
        order = (np.arange(length) + number) % 80
        with h5py.File(folder / f"episode_{number}.hdf5", "w") as file:
            file.attrs["sim"] = True
            images = file.create_group("observations/images")
            for camera, data in rows.items():
                if case == "jpeg":
                    images.create_dataset(camera, data=data[order])
                    continue
                dataset = images.create_dataset(camera, (length, 480, 640, 3), "u1", **storage)
                for step, row in enumerate(order):
                    dataset[step] = decode(data[row])
            for name in ("qpos", "qvel"):
                file["observations"][name] = numbers[name][order]
            file["action"] = numbers["action"][order]
    return sorted(folder.glob("*.hdf5"))


def make_demos(folder: Path, source: Path, copies: int = 120) -> list[Path]:
    """A robomimic file of `copies` of each demonstration of `source`: the examples' own are a few steps long."""
    with h5py.File(source) as file, h5py.File(folder / "demos.hdf5", "w") as out:
        out.create_group("data").attrs.update(file["data"].attrs)
        for number, demo in enumerate(list(file["data"]) * copies):
            file.copy(f"data/{demo}", out["data"], name=f"demo_{number}")
    return [folder / "demos.hdf5"]


def decode(row: Any) -> Any:
    """What cv2.imdecode gives, with the decoder that both sides use."""
    data = row.tobytes()
    return simplejpeg.decode_jpeg(data[: data.rindex(b"\xff\xd9") + 2], "BGR")


class ActDataset(Dataset):
    """One sample: open, read, close."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        self.where = [(path, step) for path in paths for step in range(len(h5py.File(path)["action"]))]

    def __len__(self) -> int:
        return len(self.where)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path, step = self.where[index]
        with h5py.File(path, "r") as file:
            length, width = file["action"].shape
            qpos, qvel = file["observations/qpos"][step], file["observations/qvel"][step]
            cameras = [rows[step] for _, rows in sorted(file["observations/images"].items())]
            action = file["action"][step : step + CHUNK]
        images = np.stack([decode(image) if image.ndim == 1 else image for image in cameras])
        padded = np.zeros((CHUNK, width), np.float32)
        padded[: len(action)] = action
        is_pad = np.arange(CHUNK) >= length - step
        return {"images": images, "qpos": qpos, "qvel": qvel, "action": padded, "is_pad": is_pad}


class RobomimicDataset(Dataset):
    """As robomimic's SequenceDataset without a cache: the file stays open, every key is read for every sample."""

    def __init__(self, paths: list[Path]) -> None:
        (self.path,) = paths
        self.file = None
        with h5py.File(self.path) as file:
            demos = file["data"]
            self.where = [(name, step) for name in demos for step in range(len(demos[name]["actions"]))]
            self.keys = sorted(next(iter(demos.values()))["obs"])

    def __len__(self) -> int:
        return len(self.where)

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.file = self.file or h5py.File(self.path, "r")
        name, step = self.where[index]
        demo = self.file["data"][name]
        sample = {key: demo["obs"][key][step : step + 1] for key in self.keys}
        action = demo["actions"][step : step + CHUNK].astype(np.float32)
        sample["action"] = np.concatenate([action, np.repeat(action[-1:], CHUNK - len(action), axis=0)])
        return sample


def timed(batches: Iterable[Any]) -> tuple[float, float]:
    """Windows per second, and per second of this process's CPU time."""
    started, cpu = time.perf_counter(), time.process_time()
    count = sum(len(batch["action"]) for batch in batches)
    return count / (time.perf_counter() - started), count / (time.process_time() - cpu)


def epochs(mine: es.EpisodeStream | es.StreamingLoader, number: int) -> Iterator[Any]:
    """A few epochs in a row: what workers had ready when the clock starts is a small part of them."""
    for epoch in range(number * EPOCHS, (number + 1) * EPOCHS):
        mine.set_epoch(epoch)
        yield from mine


def run(case: str, paths: list[Path], options: argparse.Namespace) -> None:
    features = None
    if case == "robomimic":
        stream = es.EpisodeStream([str(p) for p in paths], batch_size=BATCH, split=None)
        features = [name for name in stream.job.features if name.startswith("observation.") or name == "action"]
    stream = es.EpisodeStream(
        [str(path) for path in paths],
        batch_size=BATCH,
        window=es.Window(action=range(CHUNK)),
        features=features,
        split=None,
        decode="auto" if case == "jpeg, default" else "per_read",
    )
    dataset = (RobomimicDataset if case == "robomimic" else ActDataset)(paths)
    # Workers live through all epochs on both sides.
    theirs = DataLoader(
        dataset,
        BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=options.workers,
        persistent_workers=options.workers > 0,
    )
    mine = es.StreamingLoader(stream, num_workers=options.workers) if options.workers else stream
    ours, other, resident = [], [], []
    for number in range(options.rounds + 1):  # the first round warms both
        other.append(timed(islice(theirs, MAX_BATCHES)))
        ours.append(timed(epochs(mine, number)))
        resident.append(psutil.Process().memory_info().rss / 2**20)
    if options.workers:
        mine.close()
    ours, other = ([statistics.median(column) for column in zip(*rates[1:], strict=True)] for rates in (ours, other))
    cpu = "" if options.workers else f"{other[1]:>10,.0f} {ours[1]:>10,.0f} {ours[1] / other[1]:>6.1f}x"
    growth = resident[-1] - resident[1]
    print(
        f"{case:<14} {other[0]:>10,.0f} {ours[0]:>10,.0f} {ours[0] / other[0]:>6.1f}x {cpu} {growth:>8.1f}", flush=True
    )
    stream.job.cache.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1, help="worker processes of both sides")
    parser.add_argument("--folder", type=Path, help="where to make the episodes, 2 GB; a temporary folder by default")
    parser.add_argument(
        "--case", nargs="*", default=["raw", "contiguous", "robomimic", "jpeg", "jpeg, default", "gzip"]
    )
    parser.add_argument("--robomimic", type=Path, default=EXAMPLES / "robomimic" / "scripted_lift.hdf5")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{os.cpu_count()} cores, {options.workers} workers, median of {options.rounds} rounds, windows/s")
    per_cpu = "" if options.workers else f" {'/CPU-s':>9} {'direct':>10} {'':>7}"
    print(f"{'case':<14} {'h5py':>10} {'direct':>10} {'':>7}{per_cpu} {'MiB more':>8}")
    for case in options.case:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            if case == "robomimic":
                paths = make_demos(Path(folder), options.robomimic)
            else:
                paths = make_episodes(Path(folder), case.partition(",")[0])
            run(case, paths, options)


if __name__ == "__main__":
    main()
