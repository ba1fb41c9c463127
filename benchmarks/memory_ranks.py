"""Memory of 1, 2 and 4 ranks on one node: caches of every process, as the old class had them, against one for all.

    python benchmarks/memory_ranks.py [--ranks 1 2 4] [--workers 2] [--json FILE] [--plot benchmarks/memory_ranks.png]

Every rank is a process of its own with worker processes, as a launcher starts them; all read the same windows: two
raw cameras of 480x640 at one step, the state, a chunk of 100 actions, batches of 8. Memory is the proportional set
size (PSS) of all processes, so that a page that n of them share counts once, and the bytes in the node's cache
directory on tmpfs. The page cache counts for neither side: both read the same local files through it.

The ways:

- *nothing loaded*: the same processes with the same imports, and samples of one number.
- *slices in every process*: what the old class did: an ``h5py.File`` for each path, never closed, and beside it the
  last 100 slices that were read from it, in every process that reads. A sample is 4 slices, two of them pictures.
- *everything in every rank*: what it calls ``preload_data``; workers are forked and share it with their rank.
- *drop-in*: ``epistream.OptimizedEpisodicDataset`` in the same DataLoader.
- *stream*: ``epistream.StreamingLoader``, and with ``cache="shm"`` one copy of the data in shared memory.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import psutil
import torch
from hdf5_direct import make_episodes
from torch.utils.data import DataLoader, Dataset, DistributedSampler

import epistream as es

CAMERAS = ("angle", "top")
BATCH, CHUNK, NUM_SLICES = 8, 100, 100
# Samples of each file that a worker has read when memory is looked at: more than 100 slices, at 4 slices a sample.
SAMPLES_A_FILE = 30
DEADLINE_S = 300


class Nothing(Dataset):
    """As many samples, of one number each."""

    def __init__(self, paths: list[str]) -> None:
        self.where = [(path, step) for path in paths for step in range(len(h5py.File(path)["action"]))]

    def __len__(self) -> int:
        return len(self.where)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"action": np.float32(index)}


class SlicesInEveryProcess(Nothing):
    """Files that stay open, and the last slices of each. Nothing of it is shared, and nothing shrinks."""

    def __init__(self, paths: list[str]) -> None:
        super().__init__(paths)
        self.files: dict[str, h5py.File] = {}
        self.slices: dict[str, OrderedDict[Any, Any]] = {}

    def slice(self, path: str, name: str, start: int, stop: int) -> Any:
        if path not in self.files:
            self.files[path] = h5py.File(path, "r", rdcc_nbytes=1 << 30, rdcc_nslots=10007)
            self.slices[path] = OrderedDict()
        kept, key = self.slices[path], (name, start, stop)
        if key not in kept:
            kept[key] = self.files[path][name][start:stop]
            if len(kept) > NUM_SLICES:
                kept.popitem(last=False)
        kept.move_to_end(key)
        return kept[key]

    def __getitem__(self, index: int) -> dict[str, Any]:
        path, step = self.where[index]
        images = [self.slice(path, f"observations/images/{camera}", step, step + 1)[0] for camera in CAMERAS]
        action = self.slice(path, "action", step, step + CHUNK)
        padded = np.zeros((CHUNK, action.shape[1]), np.float32)
        padded[: len(action)] = action
        state = self.slice(path, "observations/qpos", step, step + 1)[0]
        return {"image": np.stack(images), "state": state, "action": padded}


class EverythingInEveryRank(SlicesInEveryProcess):
    """All arrays of all files, read by the rank before its workers are forked."""

    def __init__(self, paths: list[str]) -> None:
        super().__init__(paths)
        names = [*(f"observations/images/{camera}" for camera in CAMERAS), "action", "observations/qpos"]
        self.loaded = {}
        for path in paths:
            with h5py.File(path) as file:
                self.loaded[path] = {name: file[name][:] for name in names}

    def slice(self, path: str, name: str, start: int, stop: int) -> Any:
        return self.loaded[path][name][start:stop]


def drop_in(paths: list[str]) -> Dataset:
    return es.OptimizedEpisodicDataset(paths, CAMERAS, chunk_size=CHUNK, ctrl_type="abs")


def map_style(make: Callable[[list[str]], Dataset]) -> Callable[..., Iterator[Any]]:
    """Batches of a data set, as its users load it."""

    def batches(paths: list[str], rank: int, options: argparse.Namespace, _: str) -> Iterator[Any]:
        dataset = make(paths)
        sampler = DistributedSampler(dataset, options.num_ranks, rank)
        loader = DataLoader(
            dataset,
            BATCH,
            sampler=sampler,
            drop_last=True,
            num_workers=options.workers,
            persistent_workers=True,
            multiprocessing_context="fork",  # the ranks themselves are spawned, which torch would follow
        )
        for epoch in itertools.count():
            sampler.set_epoch(epoch)
            yield from loader

    return batches


def streamed(mode: str) -> Callable[..., Iterator[Any]]:
    def batches(paths: list[str], rank: int, options: argparse.Namespace, directory: str) -> Iterator[Any]:
        world = es.World.of(rank, options.num_ranks, options.num_ranks)
        features = [*(f"observation.images.{camera}" for camera in CAMERAS), "observation.state", "action"]
        stream = es.EpisodeStream(
            paths,
            batch_size=BATCH,
            features=features,
            window=es.Window(action=range(CHUNK)),
            world=world,
            cache=es.CacheOptions(mode=mode, directory=directory if mode == "shm" else None),
        )
        with es.StreamingLoader(stream, num_workers=options.workers, start_method="fork") as loader:
            while True:
                yield from loader

    return batches


WAYS: dict[str, Callable[..., Iterator[Any]]] = {
    "nothing loaded": map_style(Nothing),
    "old: everything in every rank": map_style(EverythingInEveryRank),
    "old: slices in every process": map_style(SlicesInEveryProcess),
    "epistream: drop-in": map_style(drop_in),
    "epistream: stream": streamed("auto"),
    "epistream: stream, cache='shm'": streamed("shm"),
}


def run_rank(
    way: str, rank: int, paths: list[str], options: argparse.Namespace, directory: str, pipe: Connection
) -> None:
    """Read until every worker has seen enough of every file, then stand still until memory was looked at."""
    torch.set_num_threads(1)
    batches = WAYS[way](paths, rank, options, directory)
    for _ in range(SAMPLES_A_FILE * len(paths) * options.workers // BATCH):
        batch = next(batches)
    pipe.send(len(batch["action"]))
    pipe.recv()
    del batch
    batches.close()


def memory_bytes(pids: list[int], directory: str) -> int:
    """PSS of all processes, and the cache directory once, whoever has it mapped."""
    total = sum(file.stat().st_blocks * 512 for file in Path(directory).rglob("*") if file.is_file())
    for pid in pids:
        counts = True
        for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
            if "-" in line.split(" ", 1)[0]:  # the line that begins a mapping: addresses, rights, ..., path
                counts = directory not in line
            elif counts and line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total


def measure(way: str, paths: list[str], options: argparse.Namespace) -> int:
    context = multiprocessing.get_context("spawn")  # as a launcher does: ranks share nothing but files
    pipes = [context.Pipe() for _ in range(options.num_ranks)]
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="epistream-memory-") as directory:
        Path(directory).chmod(0o700)
        jobs = [
            context.Process(target=run_rank, args=(way, rank, paths, options, directory, theirs))
            for rank, (_, theirs) in enumerate(pipes)
        ]
        for job in jobs:
            job.start()
        for ours, _ in pipes:
            if not ours.poll(DEADLINE_S):
                raise TimeoutError(f"{way}: a rank did not read its windows within {DEADLINE_S} s")
            assert ours.recv() == BATCH
        family = [process.pid for job in jobs for process in [psutil.Process(job.pid), *_children(job.pid)]]
        result = memory_bytes(family, directory)
        for ours, _ in pipes:
            ours.send("go on")
        for job in jobs:
            job.join(60)
            assert job.exitcode == 0, way
    return result


def _children(pid: int | None) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def table(figures: dict[str, dict[int, int]], ranks: list[int]) -> str:
    names = ["1 rank" if n == 1 else f"{n} ranks" for n in ranks]
    lines = [f"| GB | {' | '.join(names)} |", f"| --- |{' ---: |' * len(ranks)}"]
    lines += [f"| {way} | {' | '.join(f'{row[n] / 1e9:.2f}' for n in ranks)} |" for way, row in figures.items()]
    return "\n".join(lines)


def plot(figures: dict[str, dict[int, int]], ranks: list[int], data_bytes: int, path: Path) -> None:
    """Memory over ranks, a line a way, named at its end."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8.4, 4.6), dpi=150)
    styles = {"nothing": ("#9a9a9a", ":"), "old": ("#c0504d", "-"), "epistream": ("#1f77b4", "-")}
    shades = {"old: slices in every process": "#e39a3b", "epistream: stream, cache='shm'": "#2a9d8f"}
    shades |= {"epistream: drop-in": "#7fb3dd"}
    ends = []
    for way, row in figures.items():
        color, line = styles[way.split(":")[0].split(" ")[0]]
        color = shades.get(way, color)
        values = [row[n] / 1e9 for n in ranks]
        axes.plot(ranks, values, line, color=color, marker="o", markersize=5, linewidth=2)
        ends.append((values[-1], way, color))
    axes.axhline(data_bytes / 1e9, color="#cccccc", linewidth=1, zorder=0)
    middle = (ranks[-2] + ranks[-1]) / 2 if len(ranks) > 1 else ranks[0]
    axes.text(middle, data_bytes / 1e9, "the data, once", color="#888888", fontsize=8, va="bottom", ha="center")
    top = max(value for value, _, _ in ends) * 1.06
    height = top
    for value, way, color in sorted(ends, reverse=True):  # names apart from each other, however close the lines end
        height = min(value, height - top * 0.055)
        axes.text(ranks[-1] * 1.03, height, way, color=color, fontsize=9, va="center")
    axes.set(xticks=ranks, xlabel="ranks on the node", ylabel="memory of all processes, GB", ylim=(0, top))
    axes.set_xlim(ranks[0] - 0.08 * ranks[-1] / 4, ranks[-1])
    axes.grid(axis="y", color="#eeeeee")
    axes.spines[["top", "right"]].set_visible(False)
    figure.subplots_adjust(left=0.08, right=0.7, top=0.96, bottom=0.12)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--episodes", type=int, default=8)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--folder", type=Path, help="where to make the episodes, 1.5 GB; a temporary one by default")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    figures: dict[str, dict[int, int]] = {way: {} for way in WAYS}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        paths = [str(path) for path in make_episodes(Path(folder), "contiguous", options.episodes, options.steps)]
        data_bytes = sum(os.path.getsize(path) for path in paths)  # noqa: PTH202
        for num_ranks in options.ranks:
            options.num_ranks = num_ranks
            for way in WAYS:
                figures[way][num_ranks] = measure(way, paths, options)
                print(f"{num_ranks} ranks, {way}: {figures[way][num_ranks] / 1e9:.2f} GB", flush=True)
    size = f"{options.episodes} episodes of {options.steps} steps, {data_bytes / 1e9:.2f} GB"
    print(f"\n{size}; {options.workers} workers a rank, {psutil.virtual_memory().total / 2**30:.0f} GiB of memory")
    print(table(figures, options.ranks))
    if options.json:
        options.json.write_text(json.dumps({"data_bytes": data_bytes, "bytes": figures}, indent=2))
    if options.plot:
        plot(figures, options.ranks, data_bytes, options.plot)


if __name__ == "__main__":
    main()
