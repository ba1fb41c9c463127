"""Makes everything in a folder of stored bytes: ``python tests/stored/make.py tests/stored/0.1.0``.

Run it at the commit that README.md names; a later release has to read what that one wrote, so nothing is ever made
again with later code. Only public names and the command line are used. Expected values come from h5py, tarfile, Pillow
and numpy, never from a reader of the release, but for orders and states, which only the release itself can tell.
"""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import fsspec
import h5py
import numpy as np
from PIL import Image

import epistream as es

# Demonstrations of demos.hdf5: steps, and how their arrays lie in the file: in one piece, in chunks that cut rows, or
# compressed.
DEMOS = {
    "demo_0": (9, "gzip"),
    "demo_1": (6, "chunks"),
    "demo_2": (8, "gzip"),
    "demo_3": (5, "whole"),
    "demo_4": (7, "gzip"),
}
MASKS = {"train": ["demo_0", "demo_1", "demo_3"], "valid": ["demo_2", "demo_4"]}
# Where demos.hdf5 is streamed from: the version of a file in memory is its size, everywhere and at any time.
REMOTE = "memory://stored/demos.hdf5"

ORDER = {"lanes": 2, "resident_shards": 4}
WINDOW = {"obs": [-1, 0], "action": [0, 1, 2]}
# By name: the sources and options of the streams, those of a mixture, and where in which epoch the state is taken.
RUNS: dict[str, tuple[list, dict, dict | None, tuple[int, int]]] = {
    "shuffled": (["jpeg"], {"seed": 7, "order": ORDER, "window": WINDOW}, None, (1, 8)),
    "zero_padded": (
        ["jpeg"],
        {"seed": 2**63 + 5, "order": {**ORDER, "reshuffle_lanes": True}, "window": {**WINDOW, "pad": "zero"}},
        None,
        (3, 4),
    ),
    "repeated": (
        ["jpeg"],
        {"seed": 7, "order": ORDER, "repetitions": [2, 1, 1, 0, 1], "instruction": "random"},
        None,
        (0, 12),
    ),
    "train_complete": (
        ["jpeg"],
        {"seed": 3, "order": ORDER, "split": "train", "window": {**WINDOW, "drop_incomplete": True}},
        None,
        (2, 4),
    ),
    "listed": ([["jpeg"] * 3], {"seed": 7, "order": ORDER, "window": WINDOW}, None, (1, 32)),
    "in_order": (["jpeg"], {"shuffle": False, "window": WINDOW}, None, (0, 12)),
    "hdf5": ([REMOTE], {"seed": 7, "order": ORDER, "window": WINDOW}, None, (1, 8)),
    "mixture": (
        ["jpeg", "jpeg"],
        {"seed": 11, "order": ORDER, "window": WINDOW},
        {"weights": [3, 1], "splits": ["train", "val"], "stop": "all_exhausted"},
        (1, 8),
    ),
    "mixture_of_a_size": (
        ["jpeg", "jpeg"],
        {"seed": 11, "order": ORDER, "window": WINDOW},
        {"weights": [0.75, 0.25], "splits": ["train", "val"], "stop": 22},
        (4, 12),
    ),
}
BATCH_SIZE = 4


def picture(step: int, seed: int, side: int) -> np.ndarray:
    """A picture of few colours that differs from step to step and from seed to seed."""
    y, x = np.mgrid[0:side, 0:side] // 4 * 4
    planes = (x * 5 + step * 7, y * 6 + seed * 31, (x + y) * 3 + step)
    return np.stack([plane % 256 for plane in planes], axis=-1).astype(np.uint8)


def write_demos(path: Path) -> None:
    """A file as robomimic writes it, with masks, instructions, and each way of storing rows."""
    with h5py.File(path, "w", libver="v110") as file:
        for seed, (name, (length, how)) in enumerate(DEMOS.items()):
            random = np.random.default_rng(seed)
            demo = file.create_group(f"data/{name}")
            demo.attrs["num_samples"] = length
            demo.attrs["ep_meta"] = json.dumps({"lang": [f"task {seed % 3}", "lift the cube"]})
            arrays = {
                "obs/agentview_image": np.stack([picture(step, seed, 24) for step in range(length)]),
                "obs/robot0_eef_pos": random.normal(size=(length, 3)),
                "obs/robot0_gripper_qpos": random.normal(size=(length, 2)).astype("f4"),
                "actions": random.normal(size=(length, 7)),
            }
            for path, array in arrays.items():
                cut = (4, *(max(1, size // 2) for size in array.shape[1:]))
                options = {"whole": {}, "chunks": {"chunks": cut}, "gzip": {"compression": "gzip"}}[how]
                demo.create_dataset(path, data=array, **options)
        file["data"].attrs["env_args"] = json.dumps({"env_kwargs": {"control_freq": 20}})
        masks = file.create_group("mask")  # by name, as HDF5 writes the time into groups that it makes on the way
        for mask, names in MASKS.items():
            masks[mask] = np.array([name.encode() for name in names])


def write_tiny(folder: Path) -> None:
    """Two episodes as ACT's simulator writes them."""
    folder.mkdir()
    for number, length in enumerate((4, 3)):
        random = np.random.default_rng(100 + number)
        with h5py.File(folder / f"episode_{number}.hdf5", "w") as file:
            file.attrs["sim"] = True
            file["observations/images/top"] = np.stack([picture(step, number, 12) for step in range(length)])
            file["observations/qpos"] = random.normal(size=(length, 5)).astype("f4")
            file["action"] = random.normal(size=(length, 5)).astype("f4")


def write_foreign(path: Path) -> dict[str, np.ndarray]:
    """A tar of PNG frames that knows nothing of us, and what it holds."""
    held = {}
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:

        def add(name: str, data: bytes) -> None:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))

        for number, (key, length) in enumerate({"pick": 3, "place": 4}.items()):
            held[f"{key}/action"] = np.arange(length * 2, dtype="f4").reshape(length, 2) / 8 + number
            held[f"{key}/top"] = np.stack([picture(step, 7 + number, 12) for step in range(length)])
            buffer = io.BytesIO()
            np.save(buffer, held[f"{key}/action"])
            add(f"{key}.action.npy", buffer.getvalue())
            for step, image in enumerate(held[f"{key}/top"]):
                buffer = io.BytesIO()
                Image.fromarray(image).save(buffer, "png")
                add(f"{key}.observation.images.top.{step:06d}.png", buffer.getvalue())
    return held


def pack(source: str, out: Path, *options: str) -> None:
    command = [sys.executable, "-m", "epistream.commands", "pack", source, str(out), "--workers", "1", *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def lossless_values() -> dict[str, np.ndarray]:
    """Every array of the sources, and the frames that are packed without loss, read with h5py."""
    values = {}
    with h5py.File("demos.hdf5") as file:
        for name in DEMOS:
            demo = file[f"data/{name}"]
            values[f"{name}/action"] = demo["actions"][:]
            values[f"{name}/robot0_eef_pos"] = demo["obs/robot0_eef_pos"][:]
            values[f"{name}/robot0_gripper_qpos"] = demo["obs/robot0_gripper_qpos"][:]
    for path in sorted(Path("tiny").iterdir()):
        with h5py.File(path) as file:
            values[f"{path.stem}/action"] = file["action"][:]
            values[f"{path.stem}/state"] = file["observations/qpos"][:]
            values[f"{path.stem}/top"] = file["observations/images/top"][:]
    return values


def shards_as_tarfile_reads_them(folder: Path) -> dict[str, list[dict]]:
    """By shard: its episodes in order, with digests of their frames as Pillow decodes them."""
    shards = {}
    for path in sorted(folder.glob("*.tar")):
        episodes: dict[str, dict] = {}
        with tarfile.open(path) as tar:
            for info in tar:
                data = tar.extractfile(info).read()
                key, _, field = info.name.partition(".")
                episode = episodes.setdefault(key, {"key": key, "frames": []})
                if field == "meta.json":
                    meta = json.loads(data)
                    episode |= {name: meta[name] for name in ("episode_index", "split", "length", "source")}
                    episode |= {name: meta[name] for name in ("source_path", "tasks") if name in meta}
                    episodes[key] = episode
                elif field.endswith((".jpg", ".png")):
                    pixels = np.asarray(Image.open(io.BytesIO(data)))
                    episode["frames"].append(hashlib.sha256(pixels.tobytes()).hexdigest())
        shards[path.name] = list(episodes.values())
    return shards


def windows(batches) -> list[list[list]]:
    keys = ("dataset_index", "episode_index", "step_index")
    columns = [[*(batch[key].tolist() for key in keys if key in batch), batch["task"]] for batch in batches]
    return [[list(row) for row in zip(*batch, strict=True)] for batch in columns]


def open_run(name: str, batch_size: int = BATCH_SIZE, world: es.World | None = None):
    """The stream of a run."""
    sources, options, mixed, _ = RUNS[name]
    streams = []
    for number, source in enumerate(sources):
        own = {"split": None if mixed is None else mixed["splits"][number], **options}
        own["window"] = es.Window(**own.get("window", {"obs": [0], "action": [0]}))
        if "order" in own:
            own["order"] = es.OrderOptions(**own["order"])
        streams.append(es.EpisodeStream(source, batch_size=batch_size, world=world, cache="off", **own))
    if mixed is None:
        return streams[0]
    return es.Mixture(streams, mixed["weights"], batch_size=batch_size, stop=mixed["stop"], world=world)


def save_run(name: str) -> dict:
    """A state in the middle of an epoch, and what the run gives after it when nothing interrupts it."""
    sources, options, mixed, (epoch, position) = RUNS[name]
    with es.StreamingLoader(open_run(name), num_workers=0) as loader:
        loader.set_epoch(epoch)
        batches = iter(loader)
        for _ in range(position // BATCH_SIZE):
            next(batches)
        state = loader.state_dict()
        rest, following = windows(batches), windows(loader)
    stream = open_run(name)
    stream.set_epoch(epoch, position)
    assert stream.state_dict() == state
    plans = stream.job.plans
    # The first of two ranks of a node, each with half of every batch.
    rank = open_run(name, BATCH_SIZE // 2, es.World.of(0, 2, 2))
    rank.load_state_dict(state)
    return {
        "sources": sources,
        "options": options,
        "mixture": mixed,
        "state": state,
        "describe": [plan.describe() for plan in plans],
        "fingerprint": [plan.fingerprint for plan in plans],
        "after": rest,
        "after_on_rank_0_of_2": windows(rank),
        "next_epoch": following,
    }


def save_iterator() -> dict:
    """A state as torchdata's StatefulDataLoader keeps it, one per worker."""
    stream = open_run("shuffled")
    stream.set_epoch(1)
    batches = iter(stream)
    for _ in range(3):
        next(batches)
    return {"state": batches.state_dict(), "after": windows(batches)}


def dump(value, path: Path) -> None:
    """JSON with a line for each batch and for each value of a map, so that a change is seen where it is."""
    path.write_text(_text(value, "") + "\n")


def _text(value, indent: str) -> str:
    deeper = indent + " "
    if isinstance(value, dict):
        items = [f"{deeper}{json.dumps(key)}: {_text(item, deeper)}" for key, item in value.items()]
        return "{\n" + ",\n".join(items) + f"\n{indent}}}"
    if isinstance(value, list) and any(isinstance(item, list | dict) for item in value):
        return "[\n" + ",\n".join(f"{deeper}{json.dumps(item)}" for item in value) + f"\n{indent}]"
    return json.dumps(value)


def save_normalizer() -> dict:
    """The numbers of a normaliser, as a checkpoint keeps them beside a policy."""
    modes = {
        "action": "mean_std",
        "observation.robot0_eef_pos": "quantiles",
        "observation.robot0_gripper_qpos": "min_max",
    }
    return es.Normalizer(es.open_dataset("jpeg").statistics, modes).to_dict()


def keep_indexes() -> None:
    """What opening demos.hdf5 and foreign.tar keeps for the user, made in a cache of its own."""
    kept = Path(os.environ["XDG_CACHE_HOME"]) / "epistream" / "indexes"
    es.open_dataset(REMOTE)
    out = Path("kept_hdf5")
    out.mkdir()
    for path in kept.iterdir():
        if path.suffix != ".lock":
            shutil.move(path, out / path.name)
    es.open_dataset("foreign.tar")
    (path,) = kept.glob("*.index")
    shutil.move(path, "foreign.index")


def main(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    os.chdir(folder)
    os.environ["XDG_CACHE_HOME"] = str(Path("cache").resolve())

    write_demos(Path("demos.hdf5"))
    write_tiny(Path("tiny"))
    foreign = write_foreign(Path("foreign.tar"))
    pack("demos.hdf5", Path("jpeg"), "--shard-size", "64KiB", "--codec", "jpeg", "--quality", "50")
    pack("tiny", Path("png"), "--codec", "png")
    pack("tiny", Path("raw"), "--codec", "raw")

    values = lossless_values() | {f"foreign/{name}": value for name, value in foreign.items()}
    np.savez_compressed("values.npz", **values)
    dump({name: shards_as_tarfile_reads_them(Path(name)) for name in ("jpeg", "png", "raw")}, Path("shards.json"))

    fsspec.filesystem("memory").pipe_file(REMOTE, Path("demos.hdf5").read_bytes())
    keep_indexes()
    dump({**{name: save_run(name) for name in RUNS}, "iterator": save_iterator()}, Path("states.json"))
    dump(save_normalizer(), Path("normalizer.json"))
    shutil.rmtree("cache")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
