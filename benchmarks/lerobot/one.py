"""Measures one loader in this process and prints a line of JSON. Started by `run.py`."""

import argparse
import json
import os
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import house  # noqa: F401
import psutil
import torch
from loaders import BATCH_SIZE, NUM_WORKERS, loader_of
from peers.memory import read_pages, tree

FLOOR = "torch alone"
_WARM_BATCHES = 12


def cpu_s() -> float:
    """CPU seconds of this process and its workers, those that ended included."""
    total = 0.0
    for process in tree():
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def memory_mib() -> dict[str, float]:
    """Proportional set size of all processes: a page that n of them share counts once."""
    sizes = {"own_mib": 0.0, "shared_mib": 0.0}
    for process in tree():
        rollup = ""
        with suppress(OSError):  # a worker whose epoch is over
            rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
        for line in rollup.splitlines():
            name, _, size = line.partition(":")
            if name in ("Pss_Anon", "Pss_File", "Pss_Shmem"):
                sizes["shared_mib" if name == "Pss_Shmem" else "own_mib"] += int(size.split()[0]) / 1024
    return sizes


def touch(batch: Any) -> None:
    """Look at one value of every tensor, so that nothing is left undone; a view is not copied for it."""
    for value in batch.values():
        if isinstance(value, torch.Tensor):
            value[(-1,) * value.dim()].item()


def shape_of(batch: Any) -> dict[str, str]:
    """What a batch holds, for the eye."""
    return {
        name: f"{value.dtype} {tuple(value.shape)}"
        for name, value in sorted(batch.items())
        if isinstance(value, torch.Tensor)
    }


def measure(name: str, root: Path, seconds: float) -> dict[str, Any]:
    """The first batch, and with seconds the rate after some batches or epochs."""
    loader = loader_of(name)
    loader.load()
    read_pages(root)
    began = time.perf_counter()
    batches = loader.start(root)
    batch = next(batches)
    touch(batch)
    found: dict[str, Any] = {"first_batch_s": time.perf_counter() - began, "batch": shape_of(batch)}
    if not seconds:
        return found
    num_windows = json.loads((root / "meta" / "info.json").read_text())["total_frames"]
    for _ in range(_WARM_BATCHES + loader.warm_epochs * num_windows // BATCH_SIZE):
        batch = next(batches)
        touch(batch)
    cpu, start, count = cpu_s(), time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < seconds or count < 2:
        batch = next(batches)
        touch(batch)
        count += len(batch["index"])
    return {
        **found,
        "windows_per_s": count / elapsed,
        "cpu_s_per_1000": (cpu_s() - cpu) / count * 1000,
        **memory_mib(),
    }


def floor() -> dict[str, float]:
    """Processes that only import torch, as many as a loader has."""
    for _ in range(NUM_WORKERS):
        if os.fork() == 0:
            time.sleep(600)
            os._exit(0)
    time.sleep(0.5)
    return memory_mib()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("loader", help=f'a name of loaders.LOADERS, or "{FLOOR}"')
    parser.add_argument("root", type=Path)
    parser.add_argument("--seconds", type=float, default=0.0, help="none: the first batch alone")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    result = floor() if arguments.loader == FLOOR else measure(arguments.loader, arguments.root, arguments.seconds)
    print("RESULT " + json.dumps(result), flush=True)
    # Some loaders' workers do not end when asked to; nothing is left to save.
    for child in psutil.Process().children(recursive=True):
        child.kill()
    os._exit(0)


if __name__ == "__main__":
    main()
