"""What the order costs at a billion windows: time and memory to build it, to start, to resume and to go on.

    python benchmarks/plan_scale.py [--windows 1e9] [--shards 1e5] [--steps-per-episode 400] [--json]

Every figure is of a fresh process; those named `_cpu_ms` are processor time, which a busy machine distorts less.
Memory is what the order adds to a process that has imported numpy. Datasets are made up in memory: no data is read.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np

from epistream.loader.order.anchors import Anchors
from epistream.loader.order.options import OrderOptions
from epistream.loader.order.plan import Plan
from epistream.loader.order.schedule import Schedule
from epistream.loader.order.world import World


def rss_mib() -> float:
    """Resident memory of this process now."""
    with open("/proc/self/statm") as statm:  # noqa: PTH123 - a path object is no clearer for /proc
        return int(statm.read().split()[1]) * resource.getpagesize() / 2**20


def make_up(num_windows: int, num_shards: int, steps: int) -> SimpleNamespace:
    """A manifest of ragged episodes, `steps` long on average, in ragged shards."""
    rng = np.random.default_rng(1)
    num_episodes = max(num_windows // steps, num_shards)
    length = rng.integers(steps // 2, steps * 3 // 2 + 1, num_episodes)
    shard = np.sort(np.concatenate([np.arange(num_shards), rng.integers(0, num_shards, num_episodes - num_shards)]))
    return SimpleNamespace(
        url="made up",
        shard_url=range(num_shards),
        shard_bytes=np.full(num_shards, 127 * 2**20),
        index_bytes=np.full(num_shards, 2**20),
        episode_shard=shard,
        episode_in_shard=np.arange(num_episodes) - np.searchsorted(shard, np.arange(num_shards))[shard],
        episode_length=length,
        episode_split=np.zeros(num_episodes, np.uint8),
        splits=("all",),
        valid_ranges=(np.arange(num_episodes + 1), np.stack([length * 0, length], 1)),
    )


def measure(num_windows: int, num_shards: int, steps: int) -> dict[str, float]:
    """Build the order in this process, and take batches from its beginning, its middle and after a resume."""
    dataset = make_up(num_windows, num_shards, steps)
    tiny = Plan(np.arange(4) + 1, np.ones(4), np.ones(4, np.int64), OrderOptions())
    tiny.epoch(0).windows(np.arange(4))  # what numpy loads at first use is not the order's
    before, found = rss_mib(), {}

    start, cpu = time.perf_counter(), time.process_time()
    anchors = Anchors(dataset, None, (-1, 99), drop_incomplete=False)  # type: ignore[arg-type]
    found["anchors_ms"] = (time.perf_counter() - start) * 1e3
    plan = Plan.of(anchors, dataset, OrderOptions())  # type: ignore[arg-type]
    found["anchors_plan_ms"] = (time.perf_counter() - start) * 1e3
    schedule = Schedule(plan.num_windows, plan.num_lanes, 0, 0, 0, World.of(0, 8), 32)
    order = plan.epoch(0)
    anchors.locate(*order.windows(schedule.positions(0)[0]))
    found["anchors_plan_first_batch_ms"] = (time.perf_counter() - start) * 1e3
    order.windows(np.arange(256))
    found["anchors_plan_all_lanes_ms"] = (time.perf_counter() - start) * 1e3
    found["anchors_plan_all_lanes_cpu_ms"] = (time.process_time() - cpu) * 1e3
    found["memory_mib"] = rss_mib() - before
    found["memory_peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10 - before

    start = time.perf_counter()
    _ = plan.fingerprint
    found["fingerprint_ms"] = (time.perf_counter() - start) * 1e3
    middle = plan.num_windows // 2
    start, cpu = time.perf_counter(), time.process_time()
    resumed = plan.epoch(3)
    anchors.locate(*resumed.windows(np.arange(middle, middle + 256)))
    found["resume_mid_epoch_ms"] = (time.perf_counter() - start) * 1e3
    found["resume_mid_epoch_cpu_ms"] = (time.process_time() - cpu) * 1e3

    num_batches = 4000
    cpu = time.process_time()
    for batch in range(1, num_batches + 1):
        first = middle + batch * 256
        anchors.locate(*resumed.windows(np.arange(first, first + 256)))
    found["batch_of_256_cpu_ms"] = (time.process_time() - cpu) * 1e3 / num_batches
    found["memory_after_1M_windows_mib"] = rss_mib() - before
    found["windows"], found["episodes"] = plan.num_windows, len(dataset.episode_length)
    found["lanes"], found["resident_shards"] = plan.num_lanes, plan.resident_shards
    return found


def main() -> None:
    """Measure in fresh processes and print medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=float, default=1e9)
    parser.add_argument("--shards", type=float, default=1e5)
    parser.add_argument("--steps-per-episode", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        print(json.dumps(measure(int(arguments.windows), int(arguments.shards), arguments.steps_per_episode)))
        return
    found: dict[str, list[float]] = {}
    for _ in range(arguments.rounds):
        command = [sys.executable, __file__, "--here", f"--windows={arguments.windows}", f"--shards={arguments.shards}"]
        command.append(f"--steps-per-episode={arguments.steps_per_episode}")
        output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout
        for key, value in json.loads(output).items():
            found.setdefault(key, []).append(value)
    if arguments.json:
        print(json.dumps({key: float(np.median(values)) for key, values in found.items()}))
        return
    print(f"Medians of {arguments.rounds} fresh processes (lowest to highest); {int(arguments.shards):,} shards")
    for key, values in found.items():
        print(f"  {key:30} {np.median(values):16,.2f}   ({min(values):,.2f} to {max(values):,.2f})")


if __name__ == "__main__":
    main()
