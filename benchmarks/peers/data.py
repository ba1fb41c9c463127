"""The episodes of the comparison: real ALOHA recordings, encoded once, the same bytes for every loader."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

CHUNK = 100  # actions of a window
CAMERAS = ("angle", "top")


@dataclass(frozen=True)
class Scenario:
    """What is stored and what a window is.

    Attributes:
        name: of its folder.
        size: (height, width) of the pictures; None for no pictures at all.
        codec: "jpeg" (quality 95, 4:2:0) or "raw".
        num_steps: windows of the dataset; the recordings are repeated as other episodes until there are so many.
        num_history: observation steps of a window, the last of them the anchor.
        chunk: action steps of a window.
        numbered: the first two numbers of a state are those of its episode and step: a reader can tell what it got.
        file_bytes: about the size of the peers' files: 16 or more, so that 4 ranks x 2 workers have two each.
        shard_bytes: about the size of epistream's, which divides windows and not files; as its packer's default.
        raw_twin: the scenario that has such windows with raw frames.
    """

    name: str
    size: tuple[int, int] | None
    codec: str
    num_steps: int
    num_history: int = 1
    chunk: int = CHUNK
    numbered: bool = False
    file_bytes: int = 8 << 20
    shard_bytes: int = 128 << 20
    raw_twin: str | None = None

    @property
    def has_frames(self) -> bool:
        """Whether windows have pictures."""
        return self.size is not None

    @property
    def picture_shape(self) -> tuple[int, int, int]:
        """(H, W, 3) of one picture."""
        assert self.size is not None
        return (*self.size, 3)


_MIB = 1 << 20
SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        # A raw window is 1.8 MB: not more of them, so that all formats stay in memory together.
        Scenario("480x640-jpeg", (480, 640), "jpeg", 1600, file_bytes=4 * _MIB, raw_twin="480x640-raw"),
        Scenario("480x640-raw", (480, 640), "raw", 800, file_bytes=88 * _MIB),
        Scenario("128x128-jpeg", (128, 128), "jpeg", 4000, file_bytes=_MIB, raw_twin="128x128-raw"),
        Scenario("128x128-raw", (128, 128), "raw", 4000, file_bytes=24 * _MIB),
        Scenario("history-jpeg", (480, 640), "jpeg", 800, num_history=2, chunk=16, file_bytes=4 * _MIB),
        Scenario("low-dimensional", None, "jpeg", 40000, file_bytes=12 * _MIB),
    )
}


@dataclass
class Episode:
    """One episode; `frames` holds encoded bytes (or raw arrays) by camera and step."""

    state: NDArray[np.float32]  # (T, 14)
    action: NDArray[np.float32]  # (T, 14)
    frames: dict[str, list[bytes]] = field(default_factory=dict)


def recordings(source: Path) -> list[Path]:
    """The ALOHA files with JPEG cameras in a folder."""
    files = sorted(source.glob("*.hdf5"))
    if not files:
        raise SystemExit(f"{source}: no *.hdf5, wanted ALOHA episodes with JPEG cameras.")
    return files


def episodes(scenario: Scenario, source: Path) -> Iterator[Episode]:
    """The episodes of a scenario: the recordings over and over, each kept in memory once."""
    originals = [_read(path, scenario) for path in recordings(source)]
    total = number = 0
    while total < scenario.num_steps:
        episode = originals[number % len(originals)]
        yield _numbered(episode, number) if scenario.numbered else episode
        total += len(episode.action)
        number += 1


def _numbered(episode: Episode, number: int) -> Episode:
    state = episode.state.copy()
    state[:, 0], state[:, 1] = number, np.arange(len(state))
    return replace(episode, state=state)


def _read(path: Path, scenario: Scenario) -> Episode:
    with h5py.File(path) as file:
        episode = Episode(file["observations/qpos"][:].astype(np.float32), file["action"][:].astype(np.float32))
        if scenario.size is not None:
            for camera in CAMERAS:
                rows = file[f"observations/images/{camera}"]
                episode.frames[camera] = [_encode(_decode(row), scenario) for row in rows]
    return episode


def _decode(row: NDArray[np.uint8]) -> NDArray[np.uint8]:
    data = row.tobytes()
    frame: NDArray[np.uint8] = simplejpeg.decode_jpeg(data[: data.rindex(b"\xff\xd9") + 2], "RGB")
    return frame


def _encode(frame: NDArray[np.uint8], scenario: Scenario) -> bytes:
    assert scenario.size is not None
    height, width = scenario.size
    if frame.shape[:2] != (height, width):
        frame = np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.LANCZOS))
    if scenario.codec == "raw":
        return np.ascontiguousarray(frame).tobytes()
    encoded: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(frame), quality=95, colorsubsampling="420")
    return encoded


def write_hdf5(episode: Episode, scenario: Scenario, path: Path) -> None:
    """An episode in the layout of ACT: what users start from."""
    with h5py.File(path, "w", libver="latest") as file:
        file.attrs["sim"] = True
        compressed = scenario.codec == "jpeg" and bool(episode.frames)
        if compressed:
            file.attrs["compress"] = True
        observations = file.create_group("observations")
        observations["qpos"], observations["qvel"] = episode.state, np.zeros_like(episode.state)
        file["action"] = episode.action
        images = observations.create_group("images")
        if not episode.frames:
            # The layout wants a camera; the packer is told to leave it out.
            images["none"] = np.zeros((len(episode.action), 8, 8, 3), np.uint8)
        lengths = []
        for camera, frames in episode.frames.items():
            if compressed:
                width = max(map(len, frames))
                rows = np.zeros((len(frames), width), np.uint8)
                for row, data in zip(rows, frames, strict=True):
                    row[: len(data)] = np.frombuffer(data, np.uint8)
                images.create_dataset(camera, data=rows, chunks=(1, width))
                lengths.append([len(data) for data in frames])
            else:
                shape = (len(frames), *scenario.picture_shape)
                images.create_dataset(
                    camera, data=np.frombuffer(b"".join(frames), np.uint8).reshape(shape), chunks=(1, *shape[1:])
                )
        if lengths:
            file["compress_len"] = np.array(lengths, np.float32)


def window(scenario: Scenario, episode: Episode, step: int) -> dict[str, Any]:
    """The sample that loaders of fixed samples store for an anchor: frames of its history, state, action chunk."""
    last = len(episode.action) - 1
    steps = [max(0, step - back) for back in range(scenario.num_history - 1, -1, -1)]
    ahead = np.minimum(np.arange(step, step + scenario.chunk), last)
    sample: dict[str, Any] = {
        "state": np.ascontiguousarray(episode.state[steps]),
        "action": np.ascontiguousarray(episode.action[ahead]),
        "is_pad": np.arange(step, step + scenario.chunk) > last,
    }
    for camera, frames in episode.frames.items():
        for place, past in enumerate(steps):
            sample[f"{camera}{place}"] = frames[past]
    return sample
