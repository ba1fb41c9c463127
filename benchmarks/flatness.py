"""Whether speed, memory and descriptors stay flat: 10 shards against 1,000, and early against late in many batches.

    python benchmarks/flatness.py [--batches 100000] [--rounds 9] [--out benchmarks]

`make bench-flat` does. The data are cut from the example episodes in a temporary folder: tiny frames, so that 100,000
batches take minutes and what a loader does for each batch and shard is all that counts. Writes FLATNESS.md and
flatness.json.
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
from peers.machine import machine

import epistream as es

ROOT = Path(__file__).resolve().parent.parent
BATCH_SIZE = 32
# Long enough that the packer, which makes no shards below 64 KiB, puts every episode into one of its own, and that an
# epoch of few shards is not over after some batches.
_STEPS, _FRAME = 700, (8, 8, 3)
_FEW, _MANY = 10, 1000
_TILES = 10  # of the recorded 80 steps
# As many shards open at a time on both sides; and what the default gives to many shards.
_SAME_ORDER = es.OrderOptions(lanes=4, resident_shards=8)
_POINTS = 20

_PAGE = """# Flat over shards and over time

Written by `make bench-flat` ({batches:,} batches). Machine: {cpu}, {memory_gib} GiB, Linux {kernel}, Python
{python}, {date}; epistream {version}. Windows are tiny (an 8x8 frame, state, 16 actions; batches of
{batch_size}, two workers), so that what is done for each batch and each shard is all that counts. Ratios are
medians of interleaved rounds; "noise" is how far the same loader's own rounds lie apart (largest / smallest, in
windows/s).

## {few} shards against {many:,}

Shards of one episode each (250 kB), {few} of them and {many:,} of them: the dataset grows, and nothing that is done for
a batch may.

| | windows/s | CPU s per 1,000 | windows/s / first row | CPU / first row | noise |
| --- | ---: | ---: | ---: | ---: | ---: |
{shard_rows}

"Default order" lets an epoch draw from more shards at a time where there are more: a batch of {batch_size} then comes
from more of them, each visited by itself, up to a number that does not grow with the dataset. The last row has
the {many:,} episodes in {large} shards.

## Early against late in {batches:,} batches

The first and the second half of {points} points.

| | early | late | late / early |
| --- | ---: | ---: | ---: |
{time_rows}
"""


def make_episodes(folder: Path, count: int) -> None:
    """`count` ALOHA files with tiny frames, cut out of a recorded one."""
    with h5py.File(ROOT / "examples" / "data" / "aloha" / "episode_0.hdf5") as file:
        state, action = (np.tile(file[name][:], (_TILES, 1)) for name in ("observations/qpos", "action"))
    frames = np.random.default_rng(0).integers(0, 256, (_STEPS, *_FRAME), np.uint8)
    for number in range(count):
        first = number % (len(action) - _STEPS)
        with h5py.File(folder / f"episode_{number}.hdf5", "w", libver="latest") as file:
            file.attrs["sim"] = True
            file["action"] = action[first : first + _STEPS]
            file["observations/qpos"] = state[first : first + _STEPS]
            file["observations/qvel"] = state[first : first + _STEPS]
            file["observations/images/top"] = frames


def endless(loader: es.StreamingLoader) -> Iterator[Any]:
    while True:
        yield from loader


def loader_of(shards: Path, order: es.OrderOptions) -> es.StreamingLoader:
    stream = es.EpisodeStream(shards, batch_size=BATCH_SIZE, window=es.Window(action=range(16)), order=order)
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
    return {
        "windows_per_s": count * BATCH_SIZE / elapsed,
        "cpu_s_per_1000": (cpu_s() - cpu) / count / BATCH_SIZE * 1000,
    }


def footprint() -> dict[str, float]:
    """Memory and descriptors of all processes."""
    me = psutil.Process()
    tree = [me, *me.children(recursive=True)]
    return {
        "pss_mib": sum(process.memory_full_info().pss for process in tree) / 2**20,
        "descriptors": sum(process.num_fds() for process in tree),
    }


def pack(folder: Path, num_episodes: int) -> dict[str, int]:
    """Shards of one episode each, few and many, and the many episodes in large shards; how many it became."""
    for name, count, shard_size in (
        ("few", _FEW, "64KiB"),
        ("many", num_episodes, "64KiB"),
        ("large", num_episodes, f"{_STEPS * int(np.prod(_FRAME)) * num_episodes * 3 // 2 // _FEW >> 10}KiB"),
    ):
        episodes = folder / f"episodes-{count}"
        if not episodes.exists():
            episodes.mkdir()
            make_episodes(episodes, count)
        es.pack(episodes, folder / name, codec="raw", shard_size=shard_size)
    return {name: len(list((folder / name).glob("*.tar"))) for name in ("few", "many", "large")}


def compare_shards(folder: Path, rounds: int, step: int) -> dict[str, list[dict[str, float]]]:
    """Figures of interleaved rounds of `step` batches for each."""
    loaders = {
        "few": loader_of(folder / "few", _SAME_ORDER),
        "many": loader_of(folder / "many", _SAME_ORDER),
        "many, default order": loader_of(folder / "many", es.OrderOptions()),
        "episodes of the many in large shards": loader_of(folder / "large", _SAME_ORDER),
    }
    sources = {name: endless(loader) for name, loader in loaders.items()}
    figures: dict[str, list[dict[str, float]]] = {name: [] for name in loaders}
    for name, loader in loaders.items():
        rate(sources[name], loader.num_batches)  # an epoch: everything was opened once
    for _ in range(rounds):
        for name, source in sources.items():
            figures[name].append(rate(source, step))
    for loader in loaders.values():
        loader.close()
    return figures


def compare_times(folder: Path, num_batches: int) -> list[dict[str, float]]:
    """Points along `num_batches` batches of the dataset of many episodes in large shards."""
    with loader_of(folder / "large", _SAME_ORDER) as loader:
        batches = endless(loader)
        rate(batches, max(1, num_batches // 50))
        return [{**rate(batches, max(1, num_batches // _POINTS)), **footprint()} for _ in range(_POINTS)]


def shard_rows(figures: dict[str, list[dict[str, float]]]) -> list[str]:
    lines = []
    few = figures["few"]
    for name, rounds in figures.items():
        middle = {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
        to_few = {
            key: statistics.median(one[key] / max(base[key], 1e-9) for one, base in zip(rounds, few, strict=True))
            for key in rounds[0]
        }
        speeds = [one["windows_per_s"] for one in rounds]
        lines.append(
            f"| {name} | {middle['windows_per_s']:,.0f} | {middle['cpu_s_per_1000']:.4f} "
            f"| {to_few['windows_per_s']:.2f} | {to_few['cpu_s_per_1000']:.2f} | {max(speeds) / min(speeds):.2f} |"
        )
    return lines


def time_rows(points: list[dict[str, float]]) -> list[str]:
    lines = []
    half = len(points) // 2
    for key in points[0]:
        # Rates scatter; memory and descriptors have a ceiling that must not rise.
        way = statistics.median if key in ("windows_per_s", "cpu_s_per_1000") else max
        early, late = (way(p[key] for p in part) for part in (points[:half], points[-half:]))
        lines.append(f"| {way.__name__} of {key} | {early:,.4g} | {late:,.4g} | {late / max(early, 1e-9):.3f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--episodes", type=int, default=_MANY)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        counts = pack(folder, arguments.episodes)
        figures = compare_shards(folder, arguments.rounds, max(1, arguments.batches // 100))
        points = compare_times(folder, arguments.batches)
    found = machine([])
    result = {"machine": found, "batches": arguments.batches, "counts": counts, "shards": figures, "time": points}
    (arguments.out / "flatness.json").write_text(json.dumps(result, indent=1) + "\n")
    page = _PAGE.format(
        **{key: found[key] for key in ("cpu", "memory_gib", "kernel", "python", "date")},
        version=found["versions"]["epistream"],
        batches=arguments.batches,
        batch_size=BATCH_SIZE,
        few=counts["few"],
        many=counts["many"],
        large=counts["large"],
        shard_rows="\n".join(shard_rows(figures)),
        points=len(points),
        time_rows="\n".join(time_rows(points)),
    )
    (arguments.out / "FLATNESS.md").write_text(page)
    print(page)


if __name__ == "__main__":
    main()
