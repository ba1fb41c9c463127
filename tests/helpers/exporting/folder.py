"""A LeRobot folder as the source of an export, read by pyarrow and PyAV alone."""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from epistream.sharding.lerobot_out.model import DERIVED, Frames, OutFeature, Statistics
from epistream.sharding.pictures.mp4_mux import Packets
from epistream.sharding.pictures.video import VideoStream


@dataclass(frozen=True)
class Recorded:
    """A data set as its files say, of either version.

    Args:
        info: ``info.json``.
        tasks: Texts by number.
        rows: Columns of all steps.
        episodes: A map each: length, tasks, and where its videos lie: camera -> (path, seconds).
        statistics: Of each episode, by feature.
    """

    root: Path
    info: Mapping[str, Any]
    tasks: list[str]
    rows: Mapping[str, list[Any]]
    episodes: list[Mapping[str, Any]]
    statistics: list[Mapping[str, Statistics]]


def read_folder(root: Path) -> Recorded:
    """What is in a folder, by readers of others."""
    info = json.loads((root / "meta" / "info.json").read_text())
    files = sorted((root / "data").rglob("*.parquet"))
    tables = [pq.read_table(file).to_pydict() for file in files]
    rows = {name: [value for table in tables for value in table[name]] for name in tables[0]}
    cameras = [name for name, feature in info["features"].items() if feature["dtype"] == "video"]
    if info["codebase_version"] == "v2.1":
        lines = {name: _lines(root / "meta" / f"{name}.jsonl") for name in ("tasks", "episodes", "episodes_stats")}
        tasks = [line["task"] for line in lines["tasks"]]
        episodes = [
            {
                **line,
                "videos": {
                    camera: (
                        info["video_path"].format(
                            episode_chunk=line["episode_index"] // info["chunks_size"],
                            video_key=camera,
                            episode_index=line["episode_index"],
                        ),
                        0.0,
                    )
                    for camera in cameras
                },
            }
            for line in lines["episodes"]
        ]
        statistics = [_arrays(line["stats"]) for line in lines["episodes_stats"]]
        return Recorded(root, info, tasks, rows, episodes, statistics)
    table = pq.read_table(root / "meta" / "tasks.parquet").to_pandas()
    tasks = list(table.sort_values("task_index").index)
    read = [pq.read_table(file).to_pylist() for file in sorted((root / "meta" / "episodes").rglob("*.parquet"))]
    episodes, statistics = [], []
    for row in (row for file in read for row in file):
        videos = {
            camera: (
                info["video_path"].format(
                    video_key=camera,
                    chunk_index=row[f"videos/{camera}/chunk_index"],
                    file_index=row[f"videos/{camera}/file_index"],
                ),
                row[f"videos/{camera}/from_timestamp"],
            )
            for camera in cameras
        }
        episodes.append({**{k: v for k, v in row.items() if not k.startswith("stats/")}, "videos": videos})
        nested: dict[str, dict[str, Any]] = {}
        for key, value in row.items():
            if key.startswith("stats/"):
                _, name, kind = key.split("/")
                nested.setdefault(name, {})[kind] = value
        statistics.append(_arrays(nested))
    return Recorded(root, info, tasks, rows, episodes, statistics)


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _arrays(nested: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, NDArray[Any]]]:
    return {
        name: {key: np.array(value) for key, value in found.items() if value is not None}
        for name, found in nested.items()
    }


def shown(path: Path, first_s: float, number: int, fps: float) -> list[Frames]:
    """The pictures of an episode: those at their times."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        found = {round(frame.time * fps): frame.to_ndarray(format="rgb24") for frame in container.decode(stream)}
    start = round(first_s * fps)
    return [found[start + step] for step in range(number)]


def packets(path: Path, first_s: float, number: int, fps: float) -> list[tuple[int, bool, bytes]]:
    """The packets of an episode: step, whether a key, bytes."""
    start = round(first_s * fps)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        base = stream.time_base
        found = [
            (round(packet.pts * base * fps) - start, packet.is_keyframe, bytes(packet))
            for packet in container.demux(stream)
            if packet.size
        ]
    return [one for one in found if 0 <= one[0] < number]


class FolderSource:
    """The source; with `encodes`, its videos are decoded, to be encoded again."""

    def __init__(self, root: Path, *, encodes: bool = False, keeps_statistics: bool = True) -> None:
        self._root, self._keeps_statistics = root, keeps_statistics
        self.recorded = recorded = read_folder(root)
        info = recorded.info
        self.features: Sequence[OutFeature] = [
            OutFeature(name, said["dtype"], tuple(said["shape"]), said["names"], None if encodes else said.get("info"))
            for name, said in info["features"].items()
            if name not in DERIVED
        ]
        videos = {one.name for one in self.features if one.dtype == "video"}
        self.copied = frozenset() if encodes else frozenset(videos)
        self.lengths = np.array([episode["length"] for episode in recorded.episodes])
        self.tasks: Sequence[str] = recorded.tasks
        self.fps = float(info["fps"])
        self.robot_type = info["robot_type"]
        self.splits = {name: tuple(map(int, text.split(":"))) for name, text in info["splits"].items()}
        self.identity = str(root)
        self.said: dict[str, Any] = {}
        self.meta_files: dict[str, bytes] = {}

    @contextlib.contextmanager
    def episode(self, number: int) -> Iterator["FolderEpisode"]:
        yield FolderEpisode(self, self.recorded, number, self._keeps_statistics)


@dataclass(frozen=True)
class FolderVideo:
    """The packets of an episode."""

    stream: VideoStream
    found: list[tuple[int, bool, bytes]]

    @property
    def packets(self) -> Packets:
        steps, keys, data = zip(*self.found, strict=True)
        return Packets(np.array(steps), np.array(keys, np.bool_), np.array([len(one) for one in data], np.int64))

    def data(self) -> Iterator[bytes]:
        return (data for _, _, data in self.found)

    def ranges(self) -> None:
        return None


@dataclass(frozen=True)
class FolderEpisode:
    """One of them, open."""

    version = ""

    source: FolderSource
    recorded: Recorded
    number: int
    keeps_statistics: bool

    def _rows(self, name: str) -> list[Any]:
        rows = self.recorded.rows
        return [value for value, number in zip(rows[name], rows["episode_index"], strict=True) if number == self.number]

    def task_index(self) -> NDArray[np.int64]:
        return np.array(self._rows("task_index"))

    def values(self, name: str) -> NDArray[Any]:
        feature = next(one for one in self.source.features if one.name == name)
        return np.array(self._rows(name), feature.dtype).reshape(-1, *feature.shape)

    def column(self, name: str) -> Any:
        return pa.array(self._rows(name))

    def pictures(self, camera: str) -> Iterator[Frames]:
        feature = next(one for one in self.source.features if one.name == camera)
        if feature.dtype == "image":
            for row in self._rows(camera):
                with av.open(_file(row["bytes"]), format="png_pipe") as container:
                    yield next(container.decode(video=0)).to_ndarray(format="rgb24")
            return
        yield from shown(*self._place(camera))

    def _place(self, camera: str) -> tuple[Path, float, int, float]:
        episode = self.recorded.episodes[self.number]
        path, first_s = episode["videos"][camera]
        return self.recorded.root / path, first_s, episode["length"], self.recorded.info["fps"]

    def video(self, camera: str) -> FolderVideo:
        path, first_s, number, fps = self._place(camera)
        with av.open(str(path)) as container:
            context = container.streams.video[0].codec_context
            stream = VideoStream(
                context.codec.canonical_name,
                bytes(context.extradata or b""),
                context.width,
                context.height,
                context.pix_fmt,
            )
        return FolderVideo(stream, packets(path, first_s, number, fps))

    def frames(self, camera: str, steps: Sequence[int]) -> Iterator[Frames]:
        found = shown(*self._place(camera))
        return (found[step] for step in steps)

    def statistics(self, name: str) -> Statistics | None:
        return self.recorded.statistics[self.number].get(name) if self.keeps_statistics else None


def _file(data: bytes) -> Any:
    import io

    return io.BytesIO(data)
