"""How many episodes a second 'epistream doctor' examines by their values, on one core, beside reading them only.

python benchmarks/doctor.py [--episodes 2000] [--steps 400] [--rounds 3]

Makes shards of smooth motion (two features of 14 dimensions and one of velocities, float32, as ALOHA has them) without
cameras, and examines them in one process. 'read' opens every episode and takes its values; 'examine' measures them,
too; 'judge' makes all checks of what was measured.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np

import epistream as es
from epistream.loader.doctor.checks.registry import chosen, judged
from epistream.loader.doctor.doctor import doctor
from epistream.loader.doctor.examine import DATASET, SAMPLE, examinations, examine
from epistream.loader.doctor.facts.facts import Facts, Measured
from epistream.loader.doctor.opened import OpenedEpisodes
from epistream.sharding.tasks.pulse import Counters, Pulse


def write(folder: Path, num_episodes: int, steps: int) -> None:
    """HDF5 files of 500 episodes each, as robomimic lays them out."""
    random = np.random.default_rng(0)
    for first in range(0, num_episodes, 500):
        with h5py.File(folder / f"part_{first:06d}.hdf5", "w") as file:
            for number in range(first, min(first + 500, num_episodes)):
                time_s = np.arange(steps)[:, None] / 50
                state = np.sin(time_s * random.uniform(0.2, 2, 14) + random.uniform(0, 6, 14))
                state += 0.01 * random.normal(size=(steps, 14))
                demo = file.create_group(f"data/demo_{number}")
                demo.attrs["num_samples"] = steps
                demo["obs/state"] = state.astype(np.float32)
                demo["obs/qvel"] = np.gradient(state, axis=0).astype(np.float32)
                demo["actions"] = np.roll(state, -3, axis=0).astype(np.float32)


def main() -> None:
    """Print the rates by CPU time as JSON, the best of some rounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, options.episodes, options.steps)
        es.pack(str(folder / "*.hdf5"), folder / "shards", workers=2)
        best: dict[str, float] = {}
        for _ in range(options.rounds):
            for what, seconds in one_round(str(folder / "shards")).items():
                best[what] = min(seconds, best.get(what, seconds))
    rates = {f"{what}_per_s": round(options.episodes / seconds) for what, seconds in best.items()}
    print(json.dumps({"episodes": options.episodes, "steps": options.steps, **rates}))


def one_round(url: str) -> dict[str, float]:
    """CPU seconds of each part."""
    dataset = es.open_dataset(url)
    seconds = {}
    start = time.process_time()
    with OpenedEpisodes(dataset) as opened:
        for number in range(dataset.num_episodes):
            episode = opened.open(number)
            for feature in dataset.features.values():
                episode.values(feature)
    seconds["read"] = time.process_time() - start
    pulse = Pulse(np.zeros((2, Counters.NUM_COLUMNS), np.int64), 1, {DATASET: dataset, SAMPLE: 0})
    start = time.process_time()
    measured = Measured.join([examine(task, pulse) for task in examinations(dataset, frames=False)])
    seconds["examine"] = time.process_time() - start
    start = time.process_time()
    list(judged(Facts(dataset, measured), chosen(frames=False)))
    seconds["judge"] = time.process_time() - start
    start = time.process_time()
    doctor(dataset, frames=False)
    seconds["all"] = time.process_time() - start
    return seconds


if __name__ == "__main__":
    main()
