"""Small datasets to edit: every value says which recording and which step it is of."""

import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import xxhash

import epistream as es
from epistream.sharding.check.verify import VerifyOptions, verify

HEIGHT, WIDTH = 12, 16
STATE, VELOCITY, ACTION, CAMERA = "observation.state", "observation.qvel", "action", "observation.images.top"


def record(path: Path, number: int, steps: int, size: tuple[int, int] = (HEIGHT, WIDTH)) -> Path:
    """One recording: `number` and the step in the first two dimensions of its state, ten more in those of its action.

    Each picture, of `size` as (height, width), is of one grey: (16 x number + step) modulo 256.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(number)
    with h5py.File(path, "w") as file:
        file.attrs["sim"] = True
        for name, more in (("observations/qpos", 0), ("observations/qvel", 5), ("action", 10)):
            values = random.normal(size=(steps, 14)).astype(np.float32)
            values[:, 0], values[:, 1] = number + more, np.arange(steps) + more
            file[name] = values
        greys = (16 * number + np.arange(steps)) % 256
        pictures = np.broadcast_to(greys[:, None, None, None], (steps, *size, 3)).astype(np.uint8)
        file.create_dataset("observations/images/top", data=pictures)
    return path


def recordings(folder: Path, numbers: range, size: tuple[int, int] = (HEIGHT, WIDTH)) -> list[Path]:
    """Recordings of these numbers, of 4 steps and one more for each, in files that sort in this order."""
    return [record(folder / f"take_{number:03d}.hdf5", number, 4 + number % 7, size) for number in numbers]


def packed(files: list[Path], out: Path, **options: object) -> str:
    """A dataset of them, in shards of about 64 KiB, whose frames keep every bit."""
    es.pack(files, out, **{"codec": "raw", "shard_size": "64KiB", **options})
    return str(out)


def copied(url: str, out: Path) -> str:
    """A dataset of one's own to edit."""
    return str(shutil.copytree(url, out))


@dataclass(frozen=True)
class Seen:
    """A window as a stream gave it: recording and step by its state, its task, and what else was read of it."""

    number: int
    step: int
    task: str = ""


def stream(url: object, **options: object) -> es.EpisodeStream:
    """Every window of a dataset once, in its order."""
    given = {"batch_size": 64, "shuffle": False, "remainder": "uneven", "split": None, "cache": "off", **options}
    return es.EpisodeStream(url, **given)


def seen(url: object, state: str = STATE, **options: object) -> list[Seen]:
    """Every window of a dataset in its order, each as it is."""
    found = []
    for batch in stream(url, **options):
        values = batch[state].numpy().reshape(len(batch["task"]), -1)
        rows = zip(values[:, 0].tolist(), values[:, 1].tolist(), batch["task"], strict=True)
        found += [Seen(int(number), int(step), task) for number, step, task in rows]
    return found


def numbers(url: object, state: str = STATE, **options: object) -> dict[int, int]:
    """How many windows there are of each recording, in the order of the dataset."""
    return dict(Counter(one.number for one in seen(url, state, **options)))


def steps_of(number: int) -> int:
    """Of a recording of `recordings`."""
    return 4 + number % 7


def whole(*wanted: int) -> dict[int, int]:
    """What `numbers` gives of whole recordings."""
    return {number: steps_of(number) for number in wanted}


def payload(url: object) -> dict[str, tuple[int, int, int, str]]:
    """Inode, time of writing, size and checksum of every shard and index in a folder and those in it."""
    found = {}
    for path in sorted(Path(str(url)).rglob("*")):
        if path.suffix in (".tar", ".index"):
            status, digest = path.stat(), xxhash.xxh3_128_hexdigest(path.read_bytes())
            found[str(path.relative_to(str(url)))] = (status.st_ino, status.st_mtime_ns, status.st_size, digest)
    return found


def faults(url: object, **options: object) -> list[str]:
    """What `verify` finds, statistics included."""
    return [str(one) for one in verify(es.open_dataset(url), VerifyOptions(statistics=True), **options).faults]
