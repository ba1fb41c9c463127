"""Exported LeRobot sets, read by pyarrow, pandas and PyAV: rows, tasks, episodes, statistics, videos."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from exporting.folder import FolderSource, packets, read_folder, shown
from exporting.made import (
    DONE,
    FRONT,
    IMAGE,
    STATE,
    TASKS,
    TOP,
    VIDEO,
    MadeSource,
    made_picture,
    made_tasks,
    made_texts,
    made_values,
    made_video,
)

from epistream.sharding.lerobot_out.export import ExportProgress, export_lerobot
from epistream.sharding.lerobot_out.model import OutFeature
from epistream.sharding.lerobot_out.options import ExportOptions
from epistream.sharding.lerobot_out.statistics import QUANTILES

VERSIONS = ("3.0", "2.1")
POSE = OutFeature("observation.pose", "float64", (2, 3))
NOTE = OutFeature("note", "string", (1,))
TICKS = OutFeature("observation.ticks", "int64", (2,))
ALL = (STATE, VIDEO, DONE, POSE, NOTE, TICKS, IMAGE)


def options(version, **more):
    return ExportOptions(version=version, workers=1, preset="ultrafast", **more)


def names(folder: Path):
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


@pytest.mark.parametrize("version", VERSIONS)
def test_export_rows_are_the_source_s(tmp_path, version):
    source = MadeSource(features=ALL)
    export_lerobot(source, tmp_path / "out", options(version))
    files = sorted((tmp_path / "out" / "data").rglob("*.parquet"))
    assert len(files) == (1 if version == "3.0" else 3)
    tables = [pq.read_table(file) for file in files]
    assert tables[0].column_names == [
        *("observation.state", "next.done", "observation.pose", "note", "observation.ticks", FRONT),
        *("timestamp", "frame_index", "episode_index", "index", "task_index"),
    ]
    rows = {name: [v for table in tables for v in table[name].to_pylist()] for name in tables[0].column_names}
    assert rows["note"] == [*made_texts(5), *made_texts(1), *made_texts(7)]
    for feature in (STATE, DONE, POSE, TICKS):
        expected = np.concatenate([made_values(feature, number, length) for number, length in enumerate((5, 1, 7))])
        expected = expected.reshape(-1) if feature.shape == (1,) else expected
        assert rows[feature.name] == expected.tolist()
    assert rows["episode_index"] == [0] * 5 + [1] + [2] * 7
    assert rows["frame_index"] == [0, 1, 2, 3, 4, 0, 0, 1, 2, 3, 4, 5, 6]
    assert rows["index"] == list(range(13))
    assert rows["timestamp"] == (np.array(rows["frame_index"]) / 10).astype(np.float32).tolist()
    assert rows["task_index"] == np.concatenate([made_tasks(0, 5), made_tasks(1, 1), made_tasks(2, 7)]).tolist()
    assert [row["path"] for row in rows[FRONT]][5:7] == ["frame-000000.png", "frame-000000.png"]


@pytest.mark.parametrize("version", VERSIONS)
def test_export_pictures_of_dtype_image_keep_every_bit(tmp_path, version):
    from PIL import Image

    grey = OutFeature("observation.images.grey", "image", (20, 24, 1))
    export_lerobot(MadeSource(features=(IMAGE, grey)), tmp_path / "out", options(version))
    source = FolderSource(tmp_path / "out")
    assert names(tmp_path / "out")[-1].startswith("meta/")  # no videos, nothing that was staged
    with source.episode(2) as episode:
        for step, picture in enumerate(episode.pictures(FRONT)):
            assert (picture == made_picture(IMAGE.shape, 2, step)).all()
        (first, *_) = episode._rows(grey.name)
        import io

        assert (np.asarray(Image.open(io.BytesIO(first["bytes"]))) == made_picture(grey.shape, 2, 0)[:, :, 0]).all()


@pytest.mark.parametrize("version", VERSIONS)
def test_export_says_in_the_schema_what_the_library_datasets_reads(tmp_path, version):
    export_lerobot(MadeSource(features=ALL), tmp_path / "out", options(version))
    schema = pq.read_schema(next((tmp_path / "out" / "data").rglob("*.parquet")))
    said = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert list(said) == schema.names
    assert said["observation.state"] == {
        # Not "List", which releases before 4 refuse.
        "feature": {"dtype": "float32", "_type": "Value"},
        "length": 3,
        "_type": "Sequence",
    }
    assert said["observation.pose"] == {"shape": [2, 3], "dtype": "float64", "_type": "Array2D"}
    assert said["next.done"] == {"dtype": "bool", "_type": "Value"}
    assert said[FRONT] == {"_type": "Image"}
    assert str(schema.field("observation.state").type).startswith("fixed_size_list<")


def test_export_tasks_have_their_texts_as_the_index_of_pandas(tmp_path):
    pandas = pytest.importorskip("pandas")
    export_lerobot(MadeSource(features=(STATE,)), tmp_path / "out", options("3.0"))
    table = pandas.read_parquet(tmp_path / "out" / "meta" / "tasks.parquet")
    assert (list(table.index), list(table.columns)) == (list(TASKS), ["task_index"])
    assert table.loc[TASKS[1]].task_index == 1


@pytest.mark.parametrize("version", VERSIONS)
def test_export_without_tasks_has_one_without_a_text(tmp_path, version):
    source = MadeSource(features=(STATE,), tasks=(), lengths=np.array([4]), splits={"train": (0, 1)})
    export_lerobot(source, tmp_path / "out", options(version))
    found = read_folder(tmp_path / "out")
    assert (found.tasks, found.info["total_tasks"], found.episodes[0]["tasks"]) == ([""], 1, [""])


def test_export_3_0_says_where_episodes_lie(tmp_path):
    source = MadeSource(copied=frozenset([TOP]))
    export_lerobot(source, tmp_path / "out", options("3.0"))
    rows = pq.read_table(tmp_path / "out" / "meta" / "episodes" / "chunk-000" / "file-000.parquet").to_pylist()
    assert [row["tasks"] for row in rows] == [[TASKS[0]], [TASKS[0]], list(TASKS)]
    place = {name: [row[name] for row in rows] for name in rows[0] if not name.startswith("stats/")}
    del place["tasks"]
    assert place == {
        "episode_index": [0, 1, 2],
        "length": [5, 1, 7],
        "data/chunk_index": [0, 0, 0],
        "data/file_index": [0, 0, 0],
        "dataset_from_index": [0, 5, 6],
        "dataset_to_index": [5, 6, 13],
        f"videos/{TOP}/chunk_index": [0, 0, 0],
        f"videos/{TOP}/file_index": [0, 0, 0],
        f"videos/{TOP}/from_timestamp": [0.0, 0.5, 0.6],
        f"videos/{TOP}/to_timestamp": [0.5, 0.6, 1.3],
        "meta/episodes/chunk_index": [0, 0, 0],
        "meta/episodes/file_index": [0, 0, 0],
    }


@pytest.mark.parametrize(
    ("lengths", "groups"), [((5, 1, 7), [13]), ((1,) * 130, [64, 64, 2]), ((70_000, 9, 9), [70_000, 18])]
)
def test_export_3_0_gathers_small_episodes_in_groups_of_rows(tmp_path, lengths, groups):
    source = MadeSource(features=(STATE,), lengths=np.array(lengths), splits={"train": (0, len(lengths))})
    export_lerobot(source, tmp_path / "out", options("3.0"))
    found = pq.ParquetFile(tmp_path / "out" / "data" / "chunk-000" / "file-000.parquet").metadata
    assert [found.row_group(group).num_rows for group in range(found.num_row_groups)] == groups


@pytest.mark.parametrize("version", VERSIONS)
def test_export_copies_videos_packet_by_packet(tmp_path, version):
    source = MadeSource(copied=frozenset([TOP]))
    export_lerobot(source, tmp_path / "out", options(version))
    found = read_folder(tmp_path / "out")
    for number, length in enumerate((5, 1, 7)):
        path, first_s = found.episodes[number]["videos"][TOP]
        assert (
            packets(tmp_path / "out" / path, first_s, length, 10)
            == made_video(VIDEO.shape, number, length, 3).in_turn()
        )


@pytest.mark.parametrize("version", VERSIONS)
def test_export_encodes_pictures_that_are_no_video(tmp_path, version):
    told: list[ExportProgress] = []
    report = export_lerobot(MadeSource(), tmp_path / "out", options(version, crf=4, gop=3), told.append)
    assert (report.num_steps, report.num_files) == (13, 2 if version == "3.0" else 6)
    found = read_folder(tmp_path / "out")
    for number, length in enumerate((5, 1, 7)):
        path, first_s = found.episodes[number]["videos"][TOP]
        pictures = shown(tmp_path / "out" / path, first_s, length, 10)
        for step, picture in enumerate(pictures):
            error = picture.astype(int) - made_picture(VIDEO.shape, number, step)
            assert abs(error).mean() < 8
        keys = [is_key for _, is_key, _ in packets(tmp_path / "out" / path, first_s, length, 10)]
        assert keys == [step % 3 == 0 for step in range(length)]
    assert [one.stage for one in told if one.num_done == one.num_total][-3:] == ["episodes", "files", "publishing"]


def test_export_3_0_begins_a_file_where_videos_cannot_be_joined_or_would_be_too_large(tmp_path):
    source = MadeSource(lengths=np.full(7, 5), copied=frozenset([TOP]), odd=frozenset([3]), splits={"train": (0, 7)})
    size = sum(made_video(VIDEO.shape, 0, 5, 3).sizes)
    limits = {"video_files_size_in_mb": 2.5 * size / 2**20, "data_files_size_in_mb": 0.0007, "chunks_size": 2}
    export_lerobot(source, tmp_path / "out", options("3.0", **limits))
    rows = pq.read_table(tmp_path / "out" / "meta" / "episodes").to_pylist()
    videos = [2 * row[f"videos/{TOP}/chunk_index"] + row[f"videos/{TOP}/file_index"] for row in rows]
    assert videos == [0, 0, 1, 2, 3, 3, 4]
    assert [row[f"videos/{TOP}/from_timestamp"] for row in rows] == [0, 0.5, 0, 0, 0, 0.5, 0]
    assert [2 * row["data/chunk_index"] + row["data/file_index"] for row in rows] == [0, 0, 1, 1, 2, 2, 3]
    assert [name for name in names(tmp_path / "out") if name.startswith("data/")] == [
        f"data/chunk-00{chunk}/file-00{file}.parquet" for chunk in (0, 1) for file in (0, 1)
    ]
    found = read_folder(tmp_path / "out")
    for number, episode in enumerate(found.episodes):
        path, first_s = episode["videos"][TOP]
        expected = made_video(VIDEO.shape, number, 5, 2 if number == 3 else 3)
        assert packets(tmp_path / "out" / path, first_s, 5, 10) == expected.in_turn()
    assert found.rows["index"] == list(range(35))


def test_export_3_0_divides_what_it_says_of_episodes_over_files(tmp_path, monkeypatch):
    monkeypatch.setattr("epistream.sharding.lerobot_out.metadata._GROUP", 2)
    source = MadeSource(features=(STATE,), lengths=np.full(7, 5))
    export_lerobot(source, tmp_path / "out", options("3.0", data_files_size_in_mb=0.01))
    files = sorted((tmp_path / "out" / "meta" / "episodes").rglob("*.parquet"))
    assert len(files) > 1
    rows = [row | {"file": number} for number, file in enumerate(files) for row in pq.read_table(file).to_pylist()]
    assert [row["episode_index"] for row in rows] == list(range(7))
    assert all(row["meta/episodes/file_index"] == row["file"] for row in rows)


@pytest.mark.parametrize("version", VERSIONS)
def test_export_info_says_what_lerobot_reads(tmp_path, version):
    source = MadeSource(copied=frozenset([TOP]), robot_type="arm")
    export_lerobot(source, tmp_path / "out", options(version))
    info = json.loads((tmp_path / "out" / "meta" / "info.json").read_text())
    features = info.pop("features")
    common = {
        "codebase_version": f"v{version}",
        "robot_type": "arm",
        "total_episodes": 3,
        "total_frames": 13,
        "total_tasks": 2,
        "chunks_size": 1000,
        "fps": 10,
        "splits": {"train": "0:2", "val": "2:3"},
    }
    of_version = {
        "3.0": {
            "data_files_size_in_mb": 100,
            "video_files_size_in_mb": 200,
            "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
            "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        },
        "2.1": {
            "total_videos": 3,
            "total_chunks": 1,
            "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
            "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        },
    }
    assert info == common | of_version[version]
    assert type(info["fps"]) is int
    assert features["observation.state"] == {"dtype": "float32", "shape": [3], "names": ["x", "y", "z"]}
    assert features["next.done"] == {"dtype": "bool", "shape": [1], "names": None}
    assert features[TOP] == {
        "dtype": "video",
        "shape": [48, 64, 3],
        "names": ["height", "width", "channels"],
        "info": {
            "video.height": 48,
            "video.width": 64,
            "video.codec": "h264",
            "video.pix_fmt": "yuv420p",
            "video.is_depth_map": False,
            "video.fps": 10,
            "video.channels": 3,
            "has_audio": False,
        },
    }
    assert list(features)[-5:] == ["timestamp", "frame_index", "episode_index", "index", "task_index"]
    assert features["timestamp"] == {"dtype": "float32", "shape": [1], "names": None}


def test_export_of_a_rate_that_is_no_whole_number_keeps_it(tmp_path):
    source = MadeSource(copied=frozenset([TOP]), fps=30_000 / 1001)
    export_lerobot(source, tmp_path / "out", options("3.0"))
    found = read_folder(tmp_path / "out")
    assert found.info["fps"] == 30_000 / 1001
    assert found.episodes[2]["videos"][TOP][1] == 6 * 1001 / 30_000
    assert len(shown(tmp_path / "out" / found.episodes[2]["videos"][TOP][0], 6 * 1001 / 30_000, 7, 30_000 / 1001)) == 7


@pytest.mark.parametrize("version", VERSIONS)
def test_export_statistics_stand_with_each_episode_and_of_all(tmp_path, version):
    export_lerobot(MadeSource(copied=frozenset([TOP])), tmp_path / "out", options(version))
    statistics = read_folder(tmp_path / "out").statistics
    for number, length in enumerate((5, 1, 7)):
        values = made_values(STATE, number, length)
        found = statistics[number]["observation.state"]
        np.testing.assert_allclose(found["mean"], values.mean(axis=0), rtol=1e-5)
        np.testing.assert_allclose(found["std"], values.std(axis=0), atol=1e-5)
        assert found["count"].tolist() == [length]
        assert statistics[number]["index"]["min"].tolist() == [(0, 5, 6)[number]]
        assert statistics[number][TOP]["mean"].shape == (3, 1, 1)
        assert 0 < statistics[number][TOP]["mean"].mean() < 1
    if version == "3.0":
        total = json.loads((tmp_path / "out" / "meta" / "stats.json").read_text())
        every = np.concatenate([made_values(STATE, number, length) for number, length in enumerate((5, 1, 7))])
        np.testing.assert_allclose(total["observation.state"]["std"], every.std(axis=0), rtol=1e-5)
        assert total["index"]["max"] == [12]
        assert set(QUANTILES) < set(total[TOP])
        assert list(total)[-5:] == ["timestamp", "frame_index", "episode_index", "index", "task_index"]


def test_export_takes_statistics_of_pictures_that_the_source_knows(tmp_path):
    known = {name: np.full((3, 1, 1), 0.25 * place) for place, name in enumerate(("min", "mean", "max", "std"))}
    source = MadeSource(copied=frozenset([TOP]), known={**known, "count": np.array([4])})
    export_lerobot(source, tmp_path / "out", options("3.0"))
    found = read_folder(tmp_path / "out").statistics[1][TOP]
    assert {name: value.ravel().tolist() for name, value in found.items()} == {
        "min": [0.0] * 3,
        "max": [0.5] * 3,
        "mean": [0.25] * 3,
        "std": [0.75] * 3,
        "count": [4],
    }


def test_export_measures_pictures_where_what_the_source_says_is_of_another_shape(tmp_path):
    known = dict.fromkeys(("min", "mean", "max", "std"), np.zeros(2))
    source = MadeSource(copied=frozenset([TOP]), known={**known, "count": np.array([4])})
    export_lerobot(source, tmp_path / "out", options("2.1"))
    assert read_folder(tmp_path / "out").statistics[0][TOP]["count"].tolist() == [5]


@pytest.mark.parametrize(("name", "version"), [("lerobot_v3", "2.1"), ("lerobot_v21", "3.0"), ("lerobot_v3", "3.0")])
def test_export_of_recorded_sets_keeps_rows_packets_and_statistics(tmp_path, shared_data, name, version):
    source = FolderSource(shared_data / name)
    export_lerobot(source, tmp_path / "out", options(version))
    before, after = source.recorded, read_folder(tmp_path / "out")
    assert after.rows == before.rows
    assert after.tasks == before.tasks
    same = ("robot_type", "total_episodes", "total_frames", "total_tasks", "fps", "splits", "features")
    assert {key: after.info[key] for key in same} == {key: before.info[key] for key in same}
    for number, (old, new) in enumerate(zip(before.episodes, after.episodes, strict=True)):
        assert (new["length"], new["tasks"]) == (old["length"], old["tasks"])
        for camera, (there, first_s) in old["videos"].items():
            here, start_s = new["videos"][camera]
            assert packets(after.root / here, start_s, 150, 50) == packets(before.root / there, first_s, 150, 50)
        for feature, values in before.statistics[number].items():
            found = after.statistics[number][feature]
            for key in ("min", "max", "mean", "std", "count"):  # versions round differently
                np.testing.assert_allclose(found[key], values[key], rtol=1e-4, atol=1e-6, err_msg=f"{feature} {key}")
