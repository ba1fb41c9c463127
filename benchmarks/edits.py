"""What each edit of a dataset of many episodes costs: wall time, CPU time, and bytes written.

python benchmarks/edits.py --episodes 10000
"""

import argparse
import os
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

import epistream as es

_STEPS, _DIMS = 20, 14


def make_episodes(path: Path, num_episodes: int) -> None:
    """A robomimic file of episodes without pictures."""
    random = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for number in range(num_episodes):
            group = file.create_group(f"data/demo_{number}")
            values = random.normal(size=(3, _STEPS, _DIMS)).astype(np.float32)
            group["actions"], group["obs/state"], group["obs/force"] = values
            group.attrs["success"] = bool(number % 7)


def edits(num_episodes: int) -> dict[str, Callable[[str], object]]:
    """What is measured, by its name."""
    half = f"0:{num_episodes // 2}"
    return {
        "remove one": lambda url: es.edit.remove(url, "1"),
        "remove half": lambda url: es.edit.remove(url, half),
        "remove by an attribute": lambda url: es.edit.remove(url, "success == False"),
        "trim ten": lambda url: es.edit.trim(url, (2, -2), "0:10"),
        "trim all": lambda url: es.edit.trim(url, (2, -2)),
        "relabel all": lambda url: es.edit.tasks(url, "put the cup on the saucer"),
        "split anew": lambda url: es.edit.split(url, val_fraction=0.1),
        "rename a feature": lambda url: es.edit.rename(url, {"action": "action.joint"}),
        "drop a feature": lambda url: es.edit.drop(url, "observation.force"),
        "undo": es.edit.undo,
    }


def main() -> None:
    """Measure every edit some times, each on a copy of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made_in:
        folder = Path(made_in)
        make_episodes(folder / "demos.hdf5", options.episodes)
        es.pack(folder / "demos.hdf5", folder / "set", shard_size="8MiB", workers=len(os.sched_getaffinity(0)))
        es.edit.tasks(str(folder / "set"), "first", "0")  # so that there is something to undo
        size = sum(path.stat().st_size for path in (folder / "set").iterdir())
        print(f"{options.episodes:,} episodes of {_STEPS} steps, {size / 1e6:.0f} MB, {options.rounds} rounds")
        print(f"{'edit':<24}{'wall s':>8}{'CPU s':>8}{'MB written':>12}")
        for name, edit in edits(options.episodes).items():
            wall, cpu, written = [], [], 0
            for _ in range(options.rounds):
                copy = folder / "copy"
                shutil.copytree(folder / "set", copy, copy_function=os.link)
                before = {path.name for path in copy.iterdir()}
                began, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
                edit(str(copy))
                now = resource.getrusage(resource.RUSAGE_SELF)
                wall.append(time.perf_counter() - began)
                cpu.append(now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime)
                written = sum(path.stat().st_size for path in copy.iterdir() if path.name not in before)
                shutil.rmtree(copy)
            print(f"{name:<24}{statistics.median(wall):8.2f}{statistics.median(cpu):8.2f}{written / 1e6:12.1f}")


if __name__ == "__main__":
    main()
