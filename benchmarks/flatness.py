"""Whether speed, memory and descriptors stay flat: 10 shards against 1,000, and early against late in many batches.

    python benchmarks/flatness.py [--batches 100000] [--rounds 7] [--json]

The data are made from the example episodes in a temporary folder. Rates are of interleaved measurements in one process.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import psutil

import epistream as es

ROOT = Path(__file__).resolve().parent.parent
# Long enough that the packer, which makes no shards below 64 KiB, puts every episode into one of its own.
_STEPS = 70


def make_episodes(folder: Path, count: int) -> None:
    """`count` ALOHA files of 70 steps without pictures worth the name, cut out of a recorded one."""
    with h5py.File(ROOT / "examples" / "data" / "aloha" / "episode_0.hdf5") as file:
        state, action = file["observations/qpos"][:], file["action"][:]
    for number in range(count):
        first = number % (len(action) - _STEPS)
        with h5py.File(folder / f"episode_{number}.hdf5", "w", libver="latest") as file:
            file.attrs["sim"] = True
            file["action"] = action[first : first + _STEPS]
            file["observations/qpos"] = state[first : first + _STEPS]
            file["observations/qvel"] = state[first : first + _STEPS]
            file["observations/images/top"] = np.zeros((_STEPS, 8, 8, 3), np.uint8)


def endless(loader: es.StreamingLoader) -> Iterator[Any]:
    while True:
        yield from loader


def loader_of(shards: Path) -> es.StreamingLoader:
    stream = es.EpisodeStream(shards, batch_size=32, window=es.Window(action=range(16)))
    return es.StreamingLoader(stream, num_workers=2)


def cpu_s() -> float:
    me = psutil.Process()
    times = [process.cpu_times() for process in [me, *me.children(recursive=True)]]
    return sum(t.user + t.system for t in times)


def rate(batches: Iterator[Any], count: int) -> dict[str, float]:
    """Windows/s and CPU seconds per 1,000 windows of the next `count` batches."""
    began, cpu = time.perf_counter(), cpu_s()
    for _ in range(count):
        next(batches)
    elapsed = time.perf_counter() - began
    return {"windows_per_s": count * 32 / elapsed, "cpu_s_per_1000": (cpu_s() - cpu) / count / 32 * 1000}


def footprint() -> dict[str, float]:
    """Memory and descriptors of all processes."""
    me = psutil.Process()
    tree = [me, *me.children(recursive=True)]
    return {
        "pss_mib": sum(process.memory_full_info().pss for process in tree) / 2**20,
        "descriptors": sum(process.num_fds() for process in tree),
    }


def compare_shards(folder: Path, rounds: int) -> dict[str, Any]:
    """The same 1,000 episodes in 10 and in 1,000 shards."""
    figures: dict[str, list[dict[str, float]]] = {"10": [], "1000": []}
    loaders = {}
    for number, size in (("10", "5MiB"), ("1000", "64KiB")):
        es.pack(folder / "episodes", folder / number, codec="raw", shard_size=size)
        found = len(list((folder / number).glob("*.tar")))
        loaders[number] = loader_of(folder / number)
        print(f"{number}: {found} shards", flush=True)
    batches = {number: endless(loader) for number, loader in loaders.items()}
    for source in batches.values():
        rate(source, 2500)  # more than an epoch: everything was opened once
    for _ in range(rounds):
        for number, source in batches.items():
            figures[number].append(rate(source, 500))
    for loader in loaders.values():
        loader.close()
    return {
        "figures": figures,
        "windows_per_s_1000_to_10": ratio(figures, "windows_per_s"),
        "cpu_1000_to_10": ratio(figures, "cpu_s_per_1000"),
    }


def ratio(figures: dict[str, list[dict[str, float]]], key: str) -> float:
    pairs = zip(figures["1000"], figures["10"], strict=True)
    return statistics.median(many[key] / few[key] for many, few in pairs)


def compare_times(folder: Path, num_batches: int) -> dict[str, Any]:
    """Early against late in `num_batches` batches of a small dataset."""
    points = []
    with loader_of(folder / "10") as loader:
        batches = endless(loader)
        rate(batches, 2000)
        step = max(1, num_batches // 20)
        for _ in range(20):
            points.append({**rate(batches, step), **footprint()})
    early, late = points[:5], points[-5:]
    return {
        "points": points,
        **{
            f"{key}_late_to_early": statistics.median(p[key] for p in late) / statistics.median(p[key] for p in early)
            for key in points[0]
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "episodes").mkdir()
        make_episodes(folder / "episodes", 1000)
        result = {"shards": compare_shards(folder, arguments.rounds), "time": compare_times(folder, arguments.batches)}
    if arguments.json:
        print(json.dumps(result, indent=1))
    for part in result.values():
        for key, value in part.items():
            if isinstance(value, float):
                print(f"{key}: {value:.3f}")


if __name__ == "__main__":
    main()
