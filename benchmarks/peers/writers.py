"""Writes a scenario's windows in each loader's own format. Formats of fixed samples get one sample a window."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from peers import lerobot_images
from peers.compat import allow_torchvision
from peers.data import Episode, Scenario, episodes, window, write_hdf5


def windows(scenario: Scenario, source: Path) -> Iterator[dict[str, Any]]:
    """The samples of a scenario, in recorded order."""
    for episode in episodes(scenario, source):
        for step in range(len(episode.action)):
            yield window(scenario, episode, step)


def shuffled(scenario: Scenario, source: Path) -> Iterator[dict[str, Any]]:
    """The samples in an order fixed once: WebDataset's users shuffle before they write."""
    recorded: list[Episode] = list(episodes(scenario, source))
    places = [(number, step) for number, episode in enumerate(recorded) for step in range(len(episode.action))]
    for place in np.random.default_rng(0).permutation(len(places)):
        number, step = places[place]
        yield window(scenario, recorded[number], step)


def write_epistream(scenario: Scenario, source: Path, out: Path) -> None:
    """Pack ALOHA files, as a user would."""
    import epistream as es

    for number, episode in enumerate(episodes(scenario, source)):
        write_hdf5(episode, scenario, out / "hdf5" / f"episode_{number}.hdf5")
    drop = ("observation.qvel",) if scenario.has_frames else ("observation.qvel", "observation.images.*")
    codec = "raw" if scenario.codec == "raw" else None
    es.pack(out / "hdf5", out / "epistream", codec=codec, drop=drop, shard_size=scenario.shard_bytes)


def write_webdataset(scenario: Scenario, source: Path, out: Path) -> None:
    """One sample a window: pictures as .jpg or .raw, numbers as .npy."""
    import webdataset

    suffix = "jpg" if scenario.codec == "jpeg" else "raw"
    with webdataset.ShardWriter(str(out / "shard-%06d.tar"), maxsize=scenario.file_bytes, verbose=0) as writer:
        for number, sample in enumerate(shuffled(scenario, source)):
            stored = {"__key__": f"{number:09d}"}
            for name, value in sample.items():
                if isinstance(value, bytes):
                    stored[f"{name}.{suffix}"] = value
                else:
                    stored[f"{name}.npy"] = value
            writer.write(stored)


def write_mosaicml(scenario: Scenario, source: Path, out: Path) -> None:
    """MDS: pictures as bytes or as ndarrays of one shape, numbers as ndarrays."""
    allow_torchvision()
    from streaming import MDSWriter

    samples = windows(scenario, source)
    first = next(samples)
    columns = {name: _mds_type(scenario, value) for name, value in first.items()}
    with MDSWriter(out=str(out), columns=columns, size_limit=scenario.file_bytes) as writer:
        writer.write(_as_arrays(scenario, first))
        for sample in samples:
            writer.write(_as_arrays(scenario, sample))


def _mds_type(scenario: Scenario, value: Any) -> str:
    if isinstance(value, bytes):
        return "bytes" if scenario.codec == "jpeg" else f"ndarray:uint8:{','.join(map(str, scenario.picture_shape))}"
    kind = "uint8" if value.dtype == np.bool_ else value.dtype.name
    return f"ndarray:{kind}:{','.join(map(str, value.shape))}"


def _as_arrays(scenario: Scenario, sample: dict[str, Any]) -> dict[str, Any]:
    """The sample with raw pictures as arrays, and bool (which MDS has not) as bytes."""
    stored: dict[str, Any] = {}
    for name, value in sample.items():
        if isinstance(value, bytes):
            stored[name] = value if scenario.codec == "jpeg" else _picture(scenario, value)
        else:
            stored[name] = value.astype(np.uint8) if value.dtype == np.bool_ else value
    return stored


def _picture(scenario: Scenario, data: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(data, np.uint8).reshape(scenario.picture_shape)


def write_litdata(scenario: Scenario, source: Path, out: Path) -> None:
    """LitData's chunks, by its own writer: pictures as bytes or arrays, numbers as arrays."""
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(str(out), chunk_bytes=scenario.file_bytes)
    for number, sample in enumerate(windows(scenario, source)):
        writer.add_item(number, _as_arrays(scenario, sample))
    writer.done()
    writer.merge()


def write_robomimic(scenario: Scenario, source: Path, out: Path) -> None:
    """Robomimic's HDF5: one group a demo, raw pictures."""
    with h5py.File(out / "demos.hdf5", "w", libver="latest") as file:
        data = file.create_group("data")
        for number, episode in enumerate(episodes(scenario, source)):
            demo = data.create_group(f"demo_{number}")
            demo.attrs["num_samples"] = len(episode.action)
            demo["actions"], demo["obs/state"] = episode.action, episode.state
            for camera, frames in episode.frames.items():
                shape = (len(frames), *scenario.picture_shape)
                pictures = np.frombuffer(b"".join(frames), np.uint8).reshape(shape)
                demo.create_dataset(f"obs/{camera}_image", data=pictures, chunks=(1, *shape[1:]))


WRITERS = {
    "lerobot": lerobot_images.write,
    "robomimic": write_robomimic,
    "epistream": write_epistream,
    "webdataset": write_webdataset,
    "mosaicml": write_mosaicml,
    "litdata": write_litdata,
}


def prepare(name: str, scenario: Scenario, source: Path, data: Path) -> Path:
    """The folder of a format's files, written unless it is complete already."""
    out = data / scenario.name / name
    done = out / "COMPLETE.json"
    if not done.exists():
        out.mkdir(parents=True, exist_ok=True)
        if name == "epistream":
            (out / "hdf5").mkdir(exist_ok=True)
        WRITERS[name](scenario, source, out)
        done.write_text(json.dumps({"num_steps": scenario.num_steps}))
    return out
