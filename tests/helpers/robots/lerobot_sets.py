"""Whole LeRobot data sets, made up: rows, pictures and H.264 videos beside the metadata, with a switch for each oddity.

Frames show their number, so that whoever reads one can tell where it is from.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import accumulate
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from av.video.frame import PictureType
from PIL import Image
from robots.lerobot_meta import MadeSet
from video.clips import counted

HEIGHT, WIDTH = 48, 64


def image(height: int = HEIGHT, width: int = WIDTH, channels: int = 3) -> dict[str, Any]:
    """A feature of pictures in the rows, as ``info.json`` has it."""
    names = ["height", "width", "channels"]
    return {"dtype": "image", "shape": [height, width, channels], "names": names}


def shown(camera: int, episode: int, step: int) -> int:
    """The number that a camera shows at a step; 16 bits."""
    return (camera << 12 | episode << 6 | step) & 0xFFFF


@dataclass
class RobotSet(MadeSet):
    """A data set that can be read; change it before `write`.

    Args:
        group_steps: Frames from one key frame to the next; each episode begins with one, unless `key_frames` is False.
        key_frames: Whether each episode of a video begins with a key frame.
        b_frames: Frames that are shown in another order than they are decoded in.
        encoder: FFmpeg's name.
        with_audio: Whether videos have a track of sound.
        spare_frames: Frames of each video after the last episode's.
        data_file_episodes: Episodes in each file of rows of v3, all in one unless given.
        video_file_episodes: Likewise by camera.
        rows_in_group: Of a row group of the files of rows; of each episode its own if None, as LeRobot writes them.
        picture: ``PNG`` or ``JPEG``, of pictures in the rows.
        noise: Of pictures before they are encoded, up to 40, so that nothing makes them smaller.
        picture_paths: Whether pictures lie in files, and rows have but their paths.
        time_dtype: Of timestamps.
        video_seconds: What is added to the times of frames.
        accumulates: Whether `from_timestamp` is a sum of durations, as LeRobot makes it, with what that rounds.
        change_rows: Made of the table of each file of rows what is written.
        make: Values of a feature that is no picture, from its key, its episode and length: (T, *shape).
    """

    group_steps: int = 2
    key_frames: bool = True
    b_frames: int = 0
    encoder: str = "libx264"
    with_audio: bool = False
    spare_frames: int = 0
    data_file_episodes: Sequence[int] | None = None
    video_file_episodes: dict[str, Sequence[int]] = field(default_factory=dict)
    rows_in_group: int | None = None
    picture: str = "PNG"
    noise: int = 0
    picture_paths: bool = False
    time_dtype: str = "float32"
    video_seconds: float = 0.0
    accumulates: bool = False
    change_rows: Callable[[pa.Table], pa.Table] = lambda table: table
    make: Callable[[str, int, int], Any] | None = None

    @property
    def is_v2(self) -> bool:
        return self.version.startswith("v2")

    @property
    def cameras(self) -> list[str]:
        """All pictures, in the order that `shown` counts them in."""
        return [key for key, one in self.features.items() if one["dtype"] in ("video", "image")]

    def values(self, key: str, episode: int) -> Any:
        """(T, *shape) of a feature that is no picture."""
        length, feature = int(self.lengths[episode]), self.features[key]
        if self.make is not None:
            return self.make(key, episode, length)
        shape = tuple(feature["shape"])
        seed = [episode, *key.encode()]
        values = np.random.default_rng(seed).normal(size=(length, *shape)) * 100
        return (values > 0) if feature["dtype"] == "bool" else values.astype(feature["dtype"])

    def data_files(self) -> list[range]:
        """The episodes of each file of rows."""
        return self._files(self.data_file_episodes)

    def video_files(self, key: str) -> list[range]:
        """The episodes of each video of a camera."""
        return self._files(self.video_file_episodes.get(key))

    def _files(self, counts: Sequence[int] | None) -> list[range]:
        if self.is_v2:
            return [range(one, one + 1) for one in range(len(self.lengths))]
        ends = list(accumulate(counts or [len(self.lengths)]))
        assert ends[-1] == len(self.lengths)
        return [range(start, stop) for start, stop in zip([0, *ends], ends, strict=False)]

    def data_path(self, episode: int) -> str:
        """Where the rows of an episode lie."""
        number = next(n for n, episodes in enumerate(self.data_files()) if episode in episodes)
        name = "episode_{:06d}" if self.is_v2 else "file-{:03d}"
        return f"data/chunk-000/{name.format(number)}.parquet"

    def video_path(self, key: str, episode: int) -> str:
        """Where its frames of a camera lie."""
        number = next(n for n, episodes in enumerate(self.video_files(key)) if episode in episodes)
        if self.is_v2:
            return f"videos/chunk-000/{key}/episode_{number:06d}.mp4"
        return f"videos/{key}/chunk-000/file-{number:03d}.mp4"

    def write(self, root: Path) -> Path:
        """All of it; returns `root`."""
        super().write(root)
        for episodes in self.data_files():
            path = root / self.data_path(episodes[0])
            path.parent.mkdir(parents=True, exist_ok=True)
            self.write_rows(path, [self.rows(one, root) for one in episodes])
        for key in self.keys:
            for episodes in self.video_files(key):
                path = root / self.video_path(key, episodes[0])
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(self.video(key, episodes))
        return root

    def write_rows(self, path: Path, tables: Sequence[pa.Table]) -> None:
        """A file of rows."""
        if self.rows_in_group is not None:
            pq.write_table(self.change_rows(pa.concat_tables(tables)), path, row_group_size=self.rows_in_group)
            return
        changed = [self.change_rows(table) for table in tables]
        with pq.ParquetWriter(path, changed[0].schema) as writer:
            for table in changed:
                writer.write_table(table)

    def rows(self, episode: int, root: Path) -> pa.Table:
        """The rows of an episode."""
        length = int(self.lengths[episode])
        first = int(np.sum(self.lengths[:episode], dtype=np.int64))
        columns: dict[str, Any] = {}
        for key, feature in self.features.items():
            if feature["dtype"] == "image":
                columns[key] = self._pictures(key, episode, root)
            elif feature["dtype"] != "video":
                columns[key] = column_of(self.values(key, episode), feature)
        steps = np.arange(length)
        task = self.task_of[episode][0] if self.task_of is not None else episode % max(1, len(self.tasks))
        times = (steps / self.fps).astype(self.time_dtype)
        follows = {"frame_index": steps, "episode_index": episode, "index": first + steps, "task_index": task}
        columns["timestamp"] = pa.array(times)
        columns |= {name: pa.array(np.broadcast_to(value, length).astype(np.int64)) for name, value in follows.items()}
        return pa.table(columns)

    def _pictures(self, key: str, episode: int, root: Path) -> pa.Array:
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        rows = []
        for step in range(int(self.lengths[episode])):
            data = self.picture_bytes(key, episode, step)
            path = f"images/{key}/episode_{episode:06d}/frame_{step:06d}.png"
            if self.picture_paths:
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                (root / path).write_bytes(data)
            rows.append({"bytes": None if self.picture_paths else data, "path": path})
        return pa.array(rows, kind)

    def frame(self, key: str, episode: int, step: int) -> Any:
        """(H, W, C) picture before it is encoded."""
        height, width, channels = self.features[key]["shape"]
        number = shown(self.cameras.index(key), episode, step)
        frame = counted(number, height, width)[:, :, :channels]
        if not self.noise:
            return frame
        noise = np.random.default_rng([number, *key.encode()]).integers(0, self.noise, frame.shape, np.uint8)
        return np.where(frame < 128, frame + noise, frame - noise)

    def picture_bytes(self, key: str, episode: int, step: int) -> bytes:
        """As it lies in the rows."""
        target, frame = io.BytesIO(), self.frame(key, episode, step)
        Image.fromarray(frame[:, :, 0] if frame.shape[2] == 1 else frame).save(target, self.picture)
        return target.getvalue()

    def video(self, key: str, episodes: Sequence[int]) -> bytes:
        """The MP4 of some episodes."""
        frames = [(one, step) for one in episodes for step in range(int(self.lengths[one]))]
        last = frames[-1][0] if frames else 0
        frames += [(last, int(self.lengths[last]) + extra) for extra in range(self.spare_frames)]
        target = io.BytesIO()
        rate = Fraction(self.fps).limit_denominator(1001)
        with av.open(target, "w", format="mp4") as container:
            stream = container.add_stream(self.encoder, rate=rate)
            stream.height, stream.width = self.features[key]["shape"][:2]
            stream.pix_fmt = "yuv420p"
            context = stream.codec_context
            context.thread_count, context.gop_size, context.time_base = 1, self.group_steps, 1 / rate
            if self.encoder == "libx264":
                group = f"keyint={self.group_steps}:min-keyint={self.group_steps}:scenecut=0:open-gop=0"
                order = f":bframes={self.b_frames}:b-adapt=0:ref=1:rc-lookahead=0"
                context.options = {"x264-params": group + order, "forced-idr": "1", "preset": "ultrafast"}
            sound = container.add_stream("aac", rate=16000, layout="mono") if self.with_audio else None
            for number, (episode, step) in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(self.frame(key, episode, step), format="rgb24")
                frame.pts, frame.time_base = number + round(self.video_seconds * self.fps), 1 / rate
                if step == 0 and self.key_frames:
                    frame.pict_type = PictureType.I
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
            if sound is not None:
                _add_sound(container, sound, len(frames) / self.fps)
        return target.getvalue()

    def episodes(self, start: int, stop: int) -> pa.Table:
        """As of the metadata, with the places that rows and videos have here."""
        table = super().episodes(start, stop)
        places = {"data": self.data_files(), **{f"videos/{key}": self.video_files(key) for key in self.keys}}
        for name, files in places.items():
            where = {one: (number, episodes) for number, episodes in enumerate(files) for one in episodes}
            found = [where[one] for one in range(start, stop)]
            table = _set(table, f"{name}/file_index", pa.array([number for number, _ in found], pa.int64()))
            if name != "data":
                first = [self._seconds(one, episodes) for one, (_, episodes) in enumerate(found, start)]
                last = [self._seconds(one + 1, episodes) for one, (_, episodes) in enumerate(found, start)]
                table = _set(table, f"{name}/from_timestamp", pa.array(first, pa.float64()))
                table = _set(table, f"{name}/to_timestamp", pa.array(last, pa.float64()))
        return table

    def _seconds(self, episode: int, episodes: range) -> float:
        lengths = [int(self.lengths[one]) for one in range(episodes[0], episode)]
        if self.accumulates:
            return float(sum(length / self.fps for length in lengths))
        return sum(lengths) / self.fps


def _set(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, values)


def column_of(values: Any, feature: dict[str, Any]) -> pa.Array:
    """A column as LeRobot writes it: scalars where the shape is [1], else lists, of lists where it has more axes."""
    if not isinstance(values, np.ndarray):
        return pa.array(values)
    length, shape = len(values), tuple(feature["shape"])
    kind = pa.from_numpy_dtype(values.dtype)
    if shape in ((), (1,)):
        return pa.array(values.reshape(length), kind)
    array = pa.array(values.reshape(-1), kind)
    for axis in range(len(shape) - 1, -1, -1):
        count = length * int(np.prod(shape[:axis], dtype=np.int64))
        offsets = np.arange(count + 1, dtype=np.int32) * shape[axis]
        array = pa.ListArray.from_arrays(pa.array(offsets), array)
    return array


def _add_sound(container: Any, stream: Any, seconds: float) -> None:
    count = int(seconds * 16000) // 1024 * 1024 or 1024
    for start in range(0, count, 1024):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 16000, start
        container.mux(stream.encode(frame))
    container.mux(stream.encode())
