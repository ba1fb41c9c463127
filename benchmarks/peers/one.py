"""Measures one contender on one scenario in this process and prints a line of JSON. Started by `run.py`."""

import argparse
import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import psutil
import torch
from peers.contenders import BATCH_SIZE, CONTENDERS, NUM_WORKERS
from peers.data import SCENARIOS

_WARM_BATCHES = 12


def tree() -> list[psutil.Process]:
    me = psutil.Process()
    return [me, *me.children(recursive=True)]


def cpu_s() -> float:
    """CPU seconds of this process and its workers, those that ended included."""
    total = 0.0
    for process in tree():
        times = process.cpu_times()
        total += times.user + times.system + times.children_user + times.children_system
    return total


def pss_bytes() -> int:
    return sum(process.memory_full_info().pss for process in tree())


def touch(batch: Any) -> None:
    """Look at one value of every tensor, so that nothing is left undone."""
    for value in batch.values() if isinstance(batch, dict) else batch:
        if isinstance(value, torch.Tensor):
            value.reshape(-1)[-1].item()


def measure(scenario_name: str, name: str, folder: Path, seconds: float) -> dict[str, float]:
    scenario = SCENARIOS[scenario_name]
    contender = next(c for c in CONTENDERS if c.name == name)
    began = time.perf_counter()
    batches = contender.start(scenario, folder)
    touch(next(batches))
    first_s = time.perf_counter() - began
    for _ in range(_WARM_BATCHES):
        touch(next(batches))
    count, cpu, began = 0, cpu_s(), time.perf_counter()
    while (elapsed := time.perf_counter() - began) < seconds:
        touch(next(batches))
        count += 1
    num_windows = count * BATCH_SIZE
    return {
        "windows_per_s": num_windows / elapsed,
        "cpu_s_per_1000": (cpu_s() - cpu) / num_windows * 1000,
        "pss_mib": pss_bytes() / 2**20,
        "first_batch_s": first_s,
    }


def bound(scenario_name: str, folder: Path, seconds: float) -> dict[str, float]:
    import epistream as es
    from epistream.loader.bound import measure_bound

    scenario = SCENARIOS[scenario_name]
    window = es.Window(obs=range(1 - scenario.num_history, 1), action=range(scenario.chunk))
    stream = es.EpisodeStream(folder / "epistream", batch_size=BATCH_SIZE, window=window, decode="per_read")
    found = measure_bound(stream.job, NUM_WORKERS, seconds / 2)
    return {"decode": found.decode, "copy": found.copy, "cpu_s_per_1000": found.decode_cpu_s}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("scenario")
    parser.add_argument("contender")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=3.0)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    if arguments.contender == "bound":
        result = bound(arguments.scenario, arguments.folder, arguments.seconds)
    else:
        result = measure(arguments.scenario, arguments.contender, arguments.folder, arguments.seconds)
    print("RESULT " + json.dumps(result), flush=True)
    # Some loaders' workers do not end when asked to; nothing is left to save.
    for child in psutil.Process().children(recursive=True):
        child.kill()
    sys.stdout.flush()


if __name__ == "__main__":
    main()
