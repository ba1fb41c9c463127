"""Packing beside its bound: processes that only read, or read and encode, and write the bytes of the same episodes.

python benchmarks/packing.py --source FOLDER    # ALOHA files with JPEG cameras, such as examples/data/aloha
"""

import argparse
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import h5py
import numpy as np
import simplejpeg

import epistream as es

_QUALITY = 95


def jpeg_files(source: Path, folder: Path, count: int, steps: int) -> list[Path]:
    """The recordings over and over to so many steps, each picture a chunk of its own as recorders write them."""
    found = sorted(source.glob("*.hdf5"))
    made = []
    for number in range(count):
        made.append(folder / f"episode_{number}.hdf5")
        if number >= len(found):
            shutil.copyfile(made[number % len(found)], made[-1])
            continue
        with h5py.File(found[number]) as old, h5py.File(made[-1], "w") as new:
            new.attrs.update(old.attrs)
            rows = np.arange(steps) % len(old["action"])
            new["compress_len"] = old["compress_len"][:][:, rows]
            for name in ("observations/qpos", "observations/qvel", "action"):
                new[name] = old[name][:][rows]
            for camera, frames in old["observations/images"].items():
                name = f"observations/images/{camera}"
                new.create_dataset(name, data=frames[:][rows], chunks=(1, frames.shape[1]))
    return made


def raw_files(source: Path, folder: Path, count: int) -> list[Path]:
    """The recordings with cameras as arrays."""
    found = sorted(source.glob("*.hdf5"))
    made = []
    for number in range(count):
        made.append(folder / f"episode_{number}.hdf5")
        with h5py.File(found[number % len(found)]) as old, h5py.File(made[-1], "w") as new:
            new.attrs["sim"] = True
            for name in ("observations/qpos", "observations/qvel", "action"):
                new[name] = old[name][:]
            for camera, rows in old["observations/images"].items():
                frames = np.stack([simplejpeg.decode_jpeg(row.tobytes(), "RGB") for row in rows])
                new.create_dataset(f"observations/images/{camera}", data=frames)
    return made


def copy_bare(task: tuple[Path, Path]) -> None:
    """Read every row of a recording, and write it."""
    path, out = task
    with h5py.File(path) as file, out.open("wb") as written:
        for name in ("observations/qpos", "observations/qvel", "action"):
            written.write(file[name][:].tobytes())
        for rows in file["observations/images"].values():
            for row in rows[:]:
                written.write(row.tobytes())
        os.fsync(written.fileno())


def encode_bare(task: tuple[Path, Path]) -> None:
    """Read every frame of a recording, encode it, and write it."""
    path, out = task
    with h5py.File(path) as file, out.open("wb") as written:
        for name in ("observations/qpos", "observations/qvel", "action"):
            written.write(file[name][:].tobytes())
        for rows in file["observations/images"].values():
            for frame in rows[:]:
                written.write(simplejpeg.encode_jpeg(frame, _QUALITY, colorspace="RGB"))
        os.fsync(written.fileno())


def bare(function: Callable[[tuple[Path, Path]], None], files: Sequence[Path], out: Path, workers: int) -> float:
    """Seconds that it takes without the processes' start."""
    out.mkdir()
    tasks = [(path, out / path.stem) for path in files]
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        pool.map(len, [""] * workers)
        began = time.perf_counter()
        pool.map(function, tasks, chunksize=1)
        return time.perf_counter() - began


def packed(files: Sequence[Path], out: Path, workers: int) -> float:
    """Seconds of packing them, its processes' start and the manifest included."""
    began = time.perf_counter()
    es.pack(files, out, workers=workers, shard_size="128MiB")
    return time.perf_counter() - began


def main() -> None:
    """Interleave both, and print medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--raw-episodes", type=int, default=48)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made_in:
        folder = Path(made_in)
        (folder / "jpeg").mkdir()
        (folder / "raw").mkdir()
        cases = {
            "read and copy": (copy_bare, jpeg_files(options.source, folder / "jpeg", options.episodes, options.steps)),
            "read and encode": (
                encode_bare,
                raw_files(options.source, folder / "raw", options.raw_episodes),
            ),
        }
        print(f"{'what':<18}{'workers':>8}{'MB':>8}{'bare s':>9}{'pack s':>9}{'of the bound':>14}")
        for name, (function, files) in cases.items():
            num_bytes = sum(path.stat().st_size for path in files)
            for workers in (1, 2):
                took: dict[str, list[float]] = {"bare": [], "pack": []}
                for _ in range(options.rounds):
                    took["bare"].append(bare(function, files, folder / "bare", workers))
                    took["pack"].append(packed(files, folder / "packed", workers))
                    shutil.rmtree(folder / "bare")
                    shutil.rmtree(folder / "packed")
                bound, pack = (statistics.median(took[key]) for key in ("bare", "pack"))
                print(f"{name:<18}{workers:>8}{num_bytes / 1e6:>8.0f}{bound:>9.2f}{pack:>9.2f}{bound / pack:>14.2f}")


if __name__ == "__main__":
    main()
