"""Many small episodes packed by two processes of this machine, and by Ray on it: rates behind the start of each.

python benchmarks/engines.py --episodes 2000
"""

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np

import epistream as es
from epistream.sharding.pack.report import PackProgress


def make_episodes(folder: Path, num_episodes: int) -> None:
    """ALOHA files of an episode each: 200 steps with a camera of 8 x 8 pixels."""
    random = np.random.default_rng(0)
    for number in range(num_episodes):
        with h5py.File(folder / f"episode_{number}.hdf5", "w") as file:
            file.attrs["sim"] = True
            for name in ("observations/qpos", "observations/qvel", "action"):
                file[name] = random.normal(size=(200, 14)).astype(np.float32)
            file["observations/images/top"] = np.zeros((200, 8, 8, 3), np.uint8)


def measure(folder: Path, out: Path, engine: str) -> tuple[float, float]:
    """Seconds of the whole job, and from the first episode that is done to the last."""
    seen: list[float] = []

    def progress(now: PackProgress) -> None:
        if now.stage == "packing" and now.num_done:
            seen.append(time.perf_counter())

    began = time.perf_counter()
    es.pack(folder, out, workers=2, engine=engine, shard_size="8MiB", progress=progress)
    whole = time.perf_counter() - began
    shutil.rmtree(out)
    return whole, seen[-1] - seen[0]


def main() -> None:
    """Measure both in turn."""
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made_in:
        folder = Path(made_in)
        (folder / "in").mkdir()
        make_episodes(folder / "in", options.episodes)
        for _ in range(options.rounds):
            for engine in ("local", "ray"):
                whole, packing = measure(folder / "in", folder / "out", engine)
                rate = options.episodes / packing
                print(f"{engine:<6}{whole:7.1f} s, packing {packing:5.1f} s: {rate:6.0f} episodes/s")


if __name__ == "__main__":
    main()
