"""Measures one contender on one scenario in this process and prints a line of JSON. Started by `run.py`.

With torchrun's variables in the environment it is one rank of several, which measure at the same time.
"""

import argparse
import json
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import psutil
import torch
from peers.contender import BATCH_SIZE, NUM_WORKERS, Batches, world
from peers.contenders import contender_of
from peers.data import SCENARIOS
from peers.memory import forget_pages, own_bytes, read_pages, shared_bytes, tree

_WARM_BATCHES = 12


def cpu_s() -> float:
    """CPU seconds of this process and its workers, those that ended included."""
    total = 0.0
    for process in tree():
        times = process.cpu_times()
        total += times.user + times.system + times.children_user + times.children_system
    return total


def together() -> None:
    """Wait for the other ranks."""
    if world()[1] > 1:
        torch.distributed.barrier()


def memory(shared_before: int) -> dict[str, float]:
    """Of this rank's processes, in MiB, while all ranks are at work; the shared memory is that of all ranks."""
    together()
    found = {
        "own_mib": sum(own_bytes(process.pid) for process in tree()) / 2**20,
        "shared_mib": (shared_bytes() - shared_before) / 2**20,
        "num_processes": len(tree()),
    }
    together()
    return found


def touch(batch: Any) -> None:
    """Look at one value of every tensor, so that nothing is left undone."""
    for value in batch.values() if isinstance(batch, dict) else batch:
        if isinstance(value, torch.Tensor):
            value.reshape(-1)[-1].item()


def measure(arguments: argparse.Namespace, shared_before: int) -> dict[str, float]:
    """Warm: the rate after some batches. Cold: files out of the page cache, the rate from the very start."""
    contender = contender_of(arguments.contender)
    contender.load()
    (forget_pages if arguments.cold else read_pages)(arguments.folder)
    together()
    began = start = time.perf_counter()
    batches: Batches = contender.start(SCENARIOS[arguments.scenario], arguments.folder)
    touch(next(batches))
    first_s = time.perf_counter() - began
    count, cpu = 1, cpu_s()
    if not arguments.cold:
        for _ in range(_WARM_BATCHES):
            touch(next(batches))
        together()
        count, cpu, start = 0, cpu_s(), time.perf_counter()
    while (elapsed := time.perf_counter() - start) < arguments.seconds or count < 2:
        touch(next(batches))
        count += 1
    num_windows = count * BATCH_SIZE
    return {
        "windows_per_s": num_windows / elapsed,
        "cpu_s_per_1000": (cpu_s() - cpu) / num_windows * 1000,
        "first_batch_s": first_s,
        **memory(shared_before),
    }


def floor(shared_before: int) -> dict[str, float]:
    """Processes that only import torch, as many as a rank of the others has."""
    children = []
    for _ in range(NUM_WORKERS):
        pid = os.fork()
        if pid == 0:
            time.sleep(600)
            os._exit(0)
        children.append(pid)
    return {"windows_per_s": 0.0, "cpu_s_per_1000": 0.0, "first_batch_s": 0.0, **memory(shared_before)}


def bound(arguments: argparse.Namespace) -> dict[str, float]:
    """What the machine could do with these bytes."""
    import epistream as es
    from epistream.loader.measuring.bound import measure_bound

    scenario = SCENARIOS[arguments.scenario]
    window = es.Window(obs=range(1 - scenario.num_history, 1), action=range(scenario.chunk))
    stream = es.EpisodeStream(arguments.folder / "epistream", batch_size=BATCH_SIZE, window=window, decode="per_read")
    found = measure_bound(stream.job, NUM_WORKERS, arguments.seconds / 2)
    return {"decode": found.decode, "copy": found.copy, "cpu_s_per_1000": found.decode_cpu_s}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("scenario", help="whose files are read")
    parser.add_argument("contender", help='a contender\'s name, or "bound", or "torch alone"')
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--cold", action="store_true")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    shared_before = shared_bytes()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        torch.distributed.init_process_group("gloo")
        torch.distributed.barrier()
    if arguments.contender == "bound":
        result = bound(arguments)
    elif arguments.contender == "torch alone":
        result = floor(shared_before)
    else:
        result = measure(arguments, shared_before)
    print("RESULT " + json.dumps(result), flush=True)
    together()
    # Some loaders' workers do not end when asked to; nothing is left to save.
    for child in psutil.Process().children(recursive=True):
        child.kill()
    sys.stdout.flush()


if __name__ == "__main__":
    main()
