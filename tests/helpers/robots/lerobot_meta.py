"""The metadata of made-up LeRobot data sets, as LeRobot's writers lay it out; of rows and videos there are none."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

FOLLOWS = {
    "timestamp": {"dtype": "float32", "shape": [1], "names": None},
    **{
        name: {"dtype": "int64", "shape": [1], "names": None}
        for name in ("frame_index", "episode_index", "index", "task_index")
    },
}
QUANTILES = ("q01", "q10", "q50", "q90", "q99")


def video(height: int = 48, width: int = 64, codec: str = "av1") -> dict[str, Any]:
    """A feature as ``info.json`` has it."""
    names = ["height", "width", "channels"]
    return {"dtype": "video", "shape": [height, width, 3], "names": names, "info": {"video.codec": codec}}


def numbers(dim: int, dtype: str = "float32") -> dict[str, Any]:
    """Likewise, of an array."""
    return {"dtype": dtype, "shape": [dim], "names": None}


@dataclass
class MadeSet:
    """What is written; change it before `write`.

    Args:
        version: ``v2.0``, ``v2.1``, ``v3.0``, ``v3.1``.
        lengths: (E,) steps.
        features: Besides those that follow from the plan.
        tasks: The texts.
        task_of: By episode; one task, or several. The first one of each unless given.
        episodes_per_file: Of rows, of each video and of the table of episodes.
        rows_per_group: Of the table of episodes; LeRobot's writer flushes ten at a time.
        with_statistics: Per episode, as flat columns or lines.
    """

    version: str = "v3.0"
    lengths: Sequence[int] = (5, 1, 7)
    features: dict[str, Any] = field(
        default_factory=lambda: {
            "observation.state": numbers(6),
            "action": numbers(6),
            "observation.images.top": video(),
            "observation.images.wrist": video(),
        }
    )
    tasks: Sequence[str] = ("pick it up",)
    task_of: Sequence[Sequence[int]] | None = None
    fps: int = 50
    episodes_per_file: int = 1000
    rows_per_group: int = 10
    with_statistics: bool = True
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def keys(self) -> list[str]:
        return [key for key, one in self.features.items() if one["dtype"] == "video"]

    def plain_info(self) -> dict[str, Any]:
        """``info.json``."""
        is_v2 = self.version.startswith("v2")
        count = len(self.lengths)
        said = {
            "codebase_version": self.version,
            "robot_type": "aloha",
            "total_episodes": count,
            "total_frames": int(np.sum(self.lengths)),
            "total_tasks": len(self.tasks),
            "chunks_size": 1000,
            "fps": self.fps,
            "splits": {"train": f"0:{count}"},
            "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
            if is_v2
            else "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
            "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
            if is_v2
            else "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
            "features": {**self.features, **FOLLOWS},
        }
        return {**said, **self.info}

    def write(self, root: Path) -> Path:
        """All of ``meta/``; returns `root`."""
        meta = root / "meta"
        meta.mkdir(parents=True)
        (meta / "info.json").write_text(json.dumps(self.plain_info(), indent=4, ensure_ascii=False))
        if self.version.startswith("v2"):
            self._write_v2(meta)
        else:
            self._write_v3(meta)
        return root

    def _tasks_of(self, episode: int) -> list[str]:
        chosen = [episode % len(self.tasks)] if self.task_of is None else self.task_of[episode]
        return [self.tasks[one] for one in chosen]

    def _write_v2(self, meta: Path) -> None:
        write_lines(
            meta / "episodes.jsonl",
            (
                {"episode_index": number, "tasks": self._tasks_of(number), "length": int(length)}
                for number, length in enumerate(self.lengths)
            ),
        )
        write_lines(meta / "tasks.jsonl", ({"task_index": n, "task": text} for n, text in enumerate(self.tasks)))
        if self.with_statistics and self.version == "v2.1":
            write_lines(
                meta / "episodes_stats.jsonl",
                ({"episode_index": number, "stats": self.statistics_of(number)} for number in range(len(self.lengths))),
            )

    def statistics_of(self, episode: int, quantiles: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
        """Made up, and different for each episode."""
        rng = np.random.default_rng(episode)
        found = {}
        for key, feature in {**self.features, **FOLLOWS}.items():
            is_picture = feature["dtype"] in ("video", "image")
            shape = (3, 1, 1) if is_picture else tuple(feature["shape"])
            values = np.sort(rng.random((3 + len(quantiles), *shape)), axis=0)
            low, *between, mean, high = values
            found[key] = {
                **{"min": low.tolist(), "max": high.tolist(), "mean": mean.tolist(), "std": (high - low).tolist()},
                "count": [100 if is_picture else int(self.lengths[episode])],
                **{name: value.tolist() for name, value in zip(quantiles, between, strict=True)},
            }
        return found

    def _write_v3(self, meta: Path) -> None:
        numbers_of_tasks = pa.table(
            {"task_index": pa.array(range(len(self.tasks)), pa.int64()), "__index_level_0__": list(self.tasks)}
        )
        notes = {
            "index_columns": ["__index_level_0__"],
            "columns": [
                {"name": "task_index", "field_name": "task_index", "pandas_type": "int64", "numpy_type": "int64"},
                {"name": None, "field_name": "__index_level_0__", "pandas_type": "unicode", "numpy_type": "object"},
            ],
        }
        pq.write_table(numbers_of_tasks.replace_schema_metadata({"pandas": json.dumps(notes)}), meta / "tasks.parquet")
        count = len(self.lengths)
        for file, start in enumerate(range(0, count, self.episodes_per_file)):
            path = meta / "episodes" / f"chunk-{file // 1000:03d}" / f"file-{file % 1000:03d}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            table = self.episodes(start, min(start + self.episodes_per_file, count))
            pq.write_table(table, path, row_group_size=self.rows_per_group)

    def episodes(self, start: int, stop: int) -> pa.Table:
        """The rows of some episodes, in columns as LeRobot's writer orders them."""
        numbers_here = np.arange(start, stop)
        length = np.asarray(self.lengths, np.int64)
        ends = np.cumsum(length)
        file = numbers_here // self.episodes_per_file
        of_file = np.concatenate([[0], ends])[file * self.episodes_per_file]
        columns: dict[str, Any] = {
            "episode_index": numbers_here,
            "tasks": [self._tasks_of(number) for number in numbers_here.tolist()],
            "length": length[start:stop],
            "data/chunk_index": file // 1000,
            "data/file_index": file % 1000,
            "dataset_from_index": (ends - length)[start:stop],
            "dataset_to_index": ends[start:stop],
        }
        for key in self.keys:
            columns[f"videos/{key}/chunk_index"] = file // 1000
            columns[f"videos/{key}/file_index"] = file % 1000
            columns[f"videos/{key}/from_timestamp"] = ((ends - length)[start:stop] - of_file) / self.fps
            columns[f"videos/{key}/to_timestamp"] = (ends[start:stop] - of_file) / self.fps
        if self.with_statistics:
            columns |= self._statistics(start, stop)
        columns["meta/episodes/chunk_index"] = file // 1000
        columns["meta/episodes/file_index"] = file % 1000
        return pa.table(columns)

    def _statistics(self, start: int, stop: int) -> dict[str, Any]:
        if stop - start > 1000:
            return self._many_statistics(stop - start)
        rows = [self.statistics_of(number, QUANTILES) for number in range(start, stop)]
        return {
            f"stats/{key}/{name}": [row[key][name] for row in rows] for key, found in rows[0].items() for name in found
        }

    def _many_statistics(self, count: int) -> dict[str, Any]:
        """As wide and as hard to compress, made in one piece."""
        rng = np.random.default_rng(0)
        found: dict[str, Any] = {}
        for key, feature in {**self.features, **FOLLOWS}.items():
            is_picture = feature["dtype"] in ("video", "image")
            dim = 3 if is_picture else feature["shape"][0]
            for name in ("min", "max", "mean", "std", "count", *QUANTILES):
                width = 1 if name == "count" else dim
                values: Any = pa.array(rng.random(count * width))
                if is_picture and name != "count":
                    for _ in range(2):
                        values = pa.ListArray.from_arrays(np.arange(len(values) + 1, dtype=np.int32), values)
                offsets = np.arange(0, count * width + 1, width, dtype=np.int32)
                found[f"stats/{key}/{name}"] = pa.ListArray.from_arrays(offsets, values)
        return found


def write_lines(path: Path, values: Any) -> None:
    """One JSON value a line."""
    path.write_text("".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values), "utf-8")
