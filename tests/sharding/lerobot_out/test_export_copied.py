"""Exports that copy: nothing is read twice or made into objects, few start no process, and memory is bounded."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from exporting.made import DONE, FRONT, IMAGE, STATE, TOP, VIDEO, MadeSource, MadeVideo, made_video

from epistream.plain_files import version_of_file
from epistream.sharding.lerobot_out.arrow_columns import picture_column
from epistream.sharding.lerobot_out.export import export_lerobot
from epistream.sharding.lerobot_out.model import FileRange, OutFeature
from epistream.sharding.lerobot_out.options import ExportOptions
from epistream.sharding.lerobot_out.parquet import ParquetFile
from epistream.sharding.lerobot_out.statistics import QUANTILES

VERSIONS = ("3.0", "2.1")
LENGTHS = tuple(enumerate((5, 1, 7)))
POSE = OutFeature("observation.pose", "float64", (2, 3))
TICKS = OutFeature("observation.ticks", "int64", (2,))


def options(version):
    return ExportOptions(version=version, workers=1, preset="ultrafast")


def contents(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("version", VERSIONS)
def test_export_that_copies_opens_an_episode_once_and_starts_no_process_for_a_few(tmp_path, monkeypatch, version):
    statistics = {name: np.full((3, 1, 1), 0.5) for name in ("min", "max", "mean", "std", *QUANTILES)}
    video = tmp_path / "packets"
    video.write_bytes(b"".join(made_video(VIDEO.shape, number, length, 3).data_of_all for number, length in LENGTHS))

    def ranges(self):
        before = video.read_bytes().index(self.data_of_all)
        return [FileRange(str(video), version_of_file(video.stat()), before, sum(self.sizes))]

    opened = []
    real = MadeSource.episode
    monkeypatch.setattr(MadeSource, "episode", lambda self, number: opened.append(number) or real(self, number))
    monkeypatch.setattr(MadeVideo, "ranges", ranges)
    monkeypatch.setattr(MadeVideo, "data", lambda self: 1 / 0)
    monkeypatch.setattr("epistream.sharding.tasks.pool.PoolProcess", lambda *_: 1 / 0)
    source = MadeSource(copied=frozenset([TOP]), known={**statistics, "count": np.array([5])})
    export_lerobot(source, tmp_path / "out", ExportOptions(version=version, workers=4))
    assert opened == [0, 0, 1, 2]  # the first one also to see that nothing has to be decoded
    monkeypatch.undo()
    export_lerobot(source, tmp_path / "read", ExportOptions(version=version, workers=1))
    assert contents(tmp_path / "out") == contents(tmp_path / "read")


@pytest.mark.parametrize("version", VERSIONS)
def test_export_makes_no_object_of_a_value_of_rows(tmp_path, monkeypatch, version):
    """`pyarrow.array` also imports pandas, which takes longer than to copy a hundred episodes."""
    monkeypatch.setattr(pa, "array", lambda *_: 1 / 0)
    export_lerobot(MadeSource(features=(STATE, DONE, POSE, TICKS, IMAGE)), tmp_path / "out", options(version))


def test_pngs_are_written_page_by_page(tmp_path, monkeypatch):
    """What is written at once is what was held, three times over: by default all pictures of 1,024 steps."""
    pictures = np.random.default_rng(0).integers(0, 256, (200, 50_000), np.uint8)
    column = picture_column(pictures, np.full(200, 50_000), "episode 0")
    written = []

    class Recording(io.FileIO):
        def write(self, data):
            written.append(len(data))
            return super().write(data)

    def open_recording(path, mode):
        return Recording(path, mode)

    monkeypatch.setattr(Path, "open", open_recording)
    with ParquetFile(tmp_path / "a.parquet", pa.schema([(FRONT, column.type)])) as file:
        file.gather([column])
    monkeypatch.undo()
    assert max(written) < 2 << 20
    found = pq.read_table(tmp_path / "a.parquet")[FRONT].to_pylist()
    assert [row["bytes"] for row in found] == [one.tobytes() for one in pictures]
