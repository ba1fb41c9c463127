"""Exports of LeRobot sets: packets, PNGs, texts and what is said of them go along, from each version to each."""

import io
import json
import logging
import os
import shutil
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from exporting.folder import packets, read_folder
from exporting.streamed import FAST, assert_same, files_of, streamed, tasks_of
from robots.lerobot_meta import numbers
from robots.lerobot_sets import RobotSet, image
from robots.reading import replace_file

import epistream as es
from epistream.errors import FormatError, SourceChangedError
from epistream.loader.exporting import opened_shard
from epistream.sharding.lerobot import kept
from epistream.sharding.lerobot_out import episode_facts, export
from epistream.sharding.lerobot_out.files import files_tasks

SETS = Path(__file__).parents[2] / "sharding" / "lerobot" / "sets"
NAMES = sorted(path.name for path in SETS.iterdir() if path.is_dir())
TOP = "observation.images.top"
QUANTILES = ("q01", "q10", "q50", "q90", "q99")


def packets_of(root):
    """By camera and episode."""
    recorded = read_folder(root)
    return {
        (camera, number): packets(root / path, first_s, episode["length"], recorded.info["fps"])
        for number, episode in enumerate(recorded.episodes)
        for camera, (path, first_s) in episode["videos"].items()
    }


@pytest.mark.parametrize("version", ["3.0", "2.1"])
@pytest.mark.parametrize("name", NAMES)
def test_export_of_a_set_streams_the_same_items_and_has_its_packets(tmp_path, monkeypatch, name, version):
    if name != "steps_v20":  # which has no statistics of episodes
        monkeypatch.setattr(episode_facts, "_measuring", lambda camera: 1 / 0)
    es.export_lerobot(SETS / name, tmp_path / "out", version=version, **FAST)
    assert_same(streamed(tmp_path / "out"), streamed(SETS / name))
    source = json.loads((SETS / name / "meta" / "info.json").read_text())
    info = json.loads((tmp_path / "out" / "meta" / "info.json").read_text())
    assert info["codebase_version"] == f"v{version}"
    told = ("robot_type", "fps", "total_episodes", "total_frames", "total_tasks", "splits")
    assert {key: info[key] for key in told} == {key: source[key] for key in told}
    assert {key: feature["dtype"] for key, feature in info["features"].items()} == {
        key: feature["dtype"] for key, feature in source["features"].items()
    }
    for key, feature in info["features"].items():
        assert feature.get("info") == source["features"][key].get("info")
        if feature["dtype"] not in ("video", "image"):
            assert feature["names"] == source["features"][key]["names"]
    if name != "steps_v20":
        recorded, exported = read_folder(SETS / name), read_folder(tmp_path / "out")
        assert tasks_of(tmp_path / "out") == tasks_of(SETS / name)
        assert packets_of(tmp_path / "out") == packets_of(SETS / name)
        for key, feature in source["features"].items():
            if feature["dtype"] == "image":
                pairs = zip(recorded.rows[key], exported.rows[key], strict=True)
                assert all(one["bytes"] == other["bytes"] for one, other in pairs)
            elif feature["dtype"] != "video":
                assert recorded.rows[key] == exported.rows[key]
        for mine, theirs in zip(exported.statistics, recorded.statistics, strict=True):
            for key, found in mine.items():
                for kind, value in found.items():
                    if kind in theirs[key] and theirs[key][kind].shape == value.shape:
                        np.testing.assert_allclose(value, theirs[key][kind], 1e-6, 1e-6, err_msg=f"{key} {kind}")


@pytest.mark.parametrize("version", ["3.0", "2.1"])
def test_export_of_a_set_looks_at_each_episode_once_and_keeps_no_index(tmp_path, monkeypatch, version):
    asked, real = [], opened_shard.find_episode
    monkeypatch.setattr(
        opened_shard, "find_episode", lambda source, episode: asked.append(episode) or real(source, episode)
    )
    monkeypatch.setattr("epistream.loader.exporting.opened_shard.packed_blob", lambda *_: 1 / 0)
    es.export_lerobot(SETS / "cameras_v21", tmp_path / "out", version=version, **FAST)
    assert sorted(asked) == list(range(len(read_folder(tmp_path / "out").episodes)))
    kept_files = (Path(os.environ["XDG_CACHE_HOME"]) / "epistream" / "indexes").glob("*.index")
    assert len(list(kept_files)) == 1  # of its metadata


def test_export_takes_indexes_that_are_kept_already(tmp_path, monkeypatch):
    es.export_lerobot(SETS / "cameras_v30", tmp_path / "made", **FAST)
    streamed(SETS / "cameras_v30")
    monkeypatch.setattr("epistream.sharding.lerobot.kept.index_episode", lambda *_: 1 / 0)
    es.export_lerobot(SETS / "cameras_v30", tmp_path / "kept", **FAST)
    assert files_of(tmp_path / "kept") == files_of(tmp_path / "made")


def test_export_of_a_set_that_is_written_to_while_it_is_looked_at_says_so(tmp_path, monkeypatch):
    root = Path(shutil.copytree(SETS / "cameras_v21", tmp_path / "set"))
    real = kept.index_episode

    def written_to(source, episode):
        found = real(source, episode)
        for path in (root / "data").rglob("*.parquet"):
            os.utime(path, ns=(1, 1))
        return found

    monkeypatch.setattr(kept, "index_episode", written_to)
    with pytest.raises(SourceChangedError, match="episode 0: changed while it was indexed"):
        es.export_lerobot(root, tmp_path / "out", **FAST)


def test_export_of_several_sets_has_their_episodes_and_packets_in_turn(tmp_path):
    both = [SETS / "cameras_v30", SETS / "cameras_v21"]
    es.export_lerobot(both, tmp_path / "out", **FAST)
    assert_same(streamed(tmp_path / "out"), streamed(both))
    found, first, second = packets_of(tmp_path / "out"), packets_of(both[0]), packets_of(both[1])
    assert found == {**first, **{(camera, 5 + number): data for (camera, number), data in second.items()}}


@pytest.mark.parametrize("pictures", ["image", "video"])
def test_export_with_all_pictures_of_one_kind(tmp_path, pictures):
    es.export_lerobot(SETS / "images_v30", tmp_path / "out", pictures=pictures, crf=10, **FAST)
    features = read_folder(tmp_path / "out").info["features"]
    assert {one["dtype"] for name, one in features.items() if "images" in name} == {pictures}
    wanted, found = streamed(SETS / "images_v30"), streamed(tmp_path / "out")
    encoded = [name for name in wanted if "images" in name and wanted[name].dtype == np.uint8 and name != TOP]
    assert len(encoded) == 1
    assert_same(found, wanted, but=tuple(encoded) if pictures == "video" else ())
    assert np.abs(found[encoded[0]].astype(int) - wanted[encoded[0]]).mean() < 20


def test_export_of_a_chosen_camera_leaves_the_other_out(tmp_path):
    es.export_lerobot(SETS / "cameras_v30", tmp_path / "out", features=[TOP, "action"], **FAST)
    assert sorted(path.name for path in (tmp_path / "out" / "videos").iterdir()) == [TOP]
    assert_same(streamed(tmp_path / "out"), streamed(SETS / "cameras_v30", features=[TOP, "action"]))


def test_export_writes_keys_as_they_were(tmp_path):
    features = {"Observation State": numbers(3), "action": numbers(2), "Top Cam": image()}
    made = RobotSet(features=features, lengths=(3, 2)).write(tmp_path / "set")
    names = list(streamed(made))
    assert "Observation State" not in names
    es.export_lerobot(made, tmp_path / "out", **FAST)
    assert set(read_folder(tmp_path / "out").info["features"]) >= set(features)
    assert_same(streamed(tmp_path / "out"), streamed(made))


def said(step, number):
    """What is said at a step; nothing at some."""
    return [
        {
            "role": "user",
            "content": f"{number}: go on {part}",
            "style": None,
            "camera": None,
            "tool_calls": ["{}"] * part,
        }
        for part in range(step % 3)
    ]


EVENT = pa.struct(
    [
        pa.field("role", pa.string(), nullable=False),
        pa.field("content", pa.string()),
        pa.field("style", pa.string()),
        pa.field("camera", pa.string()),
        pa.field("tool_calls", pa.list_(pa.string())),
    ]
)
TOOLS = [{"type": "function", "function": {"name": "say"}}]


def annotated(root, lengths=(3, 2, 4), tools=TOOLS, version="v3.1", **changes):
    """A set with texts, subtasks, and what is said."""
    one = {"shape": [1], "names": None}
    features = {
        "action": numbers(2),
        "subtask_index": {"dtype": "int64", **one},
        "note": {"dtype": "string", **one},
        "language_events": {"dtype": "language", **one},
    }

    def make(key, episode, length):
        if key == "note":
            return [f"{episode} übt {step}" for step in range(length)]
        if key == "language_events":
            return pa.array([said(step, episode) for step in range(length)], pa.list_(EVENT))
        return np.full((length, *features[key]["shape"]), episode, features[key]["dtype"])

    made = RobotSet(
        version=version,
        features=features,
        lengths=lengths,
        make=make,
        info={"tools": tools},
        **changes,
    )
    made.statistics_of = lambda episode, quantiles=(): {}
    made.with_statistics = False
    made.write(root)
    table = pa.table({"subtask_index": [0, 1], "subtask": ["reach", "lift"]})
    pq.write_table(table, root / "meta" / "subtasks.parquet")
    return root


@pytest.mark.parametrize("source_version", ["v3.1", "v2.1"])
@pytest.mark.parametrize("rows_in_group", [None, 4])
def test_export_carries_texts_and_what_is_said_over(tmp_path, caplog, source_version, rows_in_group):
    root = annotated(tmp_path / "set", version=source_version, rows_in_group=rows_in_group)
    with caplog.at_level(logging.WARNING):
        es.export_lerobot(root, tmp_path / "out", **FAST)
    assert "exported as they are: note, language_events" in caplog.text
    (file,) = (tmp_path / "out" / "data").rglob("*.parquet")
    (found, *_), wanted = (
        [pq.read_table(file)],
        pa.concat_tables([pq.read_table(one) for one in sorted((root / "data").rglob("*.parquet"))]),
    )
    for key in ("note", "language_events"):
        assert found.schema.field(key).type == wanted.schema.field(key).type
        assert found[key].to_pylist() == wanted[key].to_pylist()
    info = json.loads((tmp_path / "out" / "meta" / "info.json").read_text())
    assert info["features"]["language_events"] == {"dtype": "language", "shape": [1], "names": None}
    assert info["tools"] == TOOLS
    subtasks = "meta/subtasks.parquet"
    assert (tmp_path / "out" / subtasks).read_bytes() == (root / subtasks).read_bytes()
    es.export_lerobot(tmp_path / "out", tmp_path / "again", **FAST)
    assert files_of(tmp_path / "again") == files_of(tmp_path / "out")


def test_export_to_v21_carries_texts_only_and_tells_what_it_leaves(tmp_path, caplog):
    root = annotated(tmp_path / "set")
    with caplog.at_level(logging.WARNING):
        es.export_lerobot(root, tmp_path / "out", version="2.1", **FAST)
    assert "language_events: not exported: version 2.1 has no language, wanted 3.0" in caplog.text
    recorded = read_folder(tmp_path / "out")
    assert recorded.rows["note"] == [f"{n} übt {step}" for n, steps in enumerate((3, 2, 4)) for step in range(steps)]
    assert "language_events" not in recorded.info["features"]
    assert "tools" not in recorded.info


def test_export_of_sets_that_differ_in_texts_tells_what_it_leaves(tmp_path, caplog):
    one, other = annotated(tmp_path / "one"), annotated(tmp_path / "two", tools=[])
    pq.write_table(pa.table({"subtask_index": [0], "subtask": ["x"]}), other / "meta" / "subtasks.parquet")
    with caplog.at_level(logging.WARNING):
        es.export_lerobot([one, other], tmp_path / "out", **FAST)
    assert "tools of info.json: not exported" in caplog.text
    assert "meta/subtasks.parquet: not exported" in caplog.text
    assert len(read_folder(tmp_path / "out").rows["language_events"]) == 18


def test_export_of_chosen_features_leaves_texts_out(tmp_path):
    root = annotated(tmp_path / "set")
    es.export_lerobot(root, tmp_path / "out", features=["action"], **FAST)
    assert list(read_folder(tmp_path / "out").info["features"])[:-5] == ["action"]
    assert not (tmp_path / "out" / "meta" / "subtasks.parquet").exists()


def test_export_of_a_set_without_a_column_of_texts_in_a_later_file_says_so(tmp_path):
    root = annotated(tmp_path / "set", data_file_episodes=[2, 1])
    late = root / "data" / "chunk-000" / "file-001.parquet"
    table = pq.read_table(late)
    pq.write_table(table.drop_columns(["note"]), late)
    with pytest.raises(FormatError, match=r"wanted 'note', which info\.json names"):
        es.export_lerobot(root, tmp_path / "out", **FAST)


@pytest.mark.parametrize("is_replaced", [False, True])
def test_export_goes_on_with_rows_of_the_same_file_alone(tmp_path, monkeypatch, is_replaced):
    spec = RobotSet(lengths=(3,) * 40, features={"action": numbers(2)})
    root = spec.write(tmp_path / "set")
    real, left = export.make_facts, [20]

    def interrupted(*arguments):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        real(*arguments)

    monkeypatch.setattr(export, "make_facts", interrupted)
    with pytest.raises(KeyboardInterrupt):
        es.export_lerobot(root, tmp_path / "out", **{**FAST, "workers": 1})
    monkeypatch.setattr(export, "make_facts", real)
    if is_replaced:
        replace_file(root / spec.data_path(0), (root / spec.data_path(0)).read_bytes())
        with pytest.raises(SourceChangedError, match="episode 0: replaced or written to since the export began"):
            es.export_lerobot(root, tmp_path / "out", **{**FAST, "workers": 1})
        return
    es.export_lerobot(root, tmp_path / "out", **{**FAST, "workers": 1})
    assert_same(streamed(tmp_path / "out"), streamed(root))


def test_export_of_a_set_that_changes_meanwhile_says_so(tmp_path, monkeypatch):
    root = Path(shutil.copytree(SETS / "cameras_v30", tmp_path / "set"))

    def changing(*arguments):
        for path in (root / "videos").rglob("*.mp4"):
            path.write_bytes(path.read_bytes() + b"\0\0\0\10free")
        return files_tasks(*arguments)

    monkeypatch.setattr("epistream.sharding.lerobot_out.export.files_tasks", changing)
    with pytest.raises(SourceChangedError, match=r"episode 0, .*\.mp4: replaced or written to since the export"):
        es.export_lerobot(root, tmp_path / "out", **FAST)
    assert not (tmp_path / "out" / "meta" / "info.json").exists()
    with pytest.raises(SourceChangedError, match=r"episode 0, .*\.mp4: replaced"):
        es.export_lerobot(root, tmp_path / "out", **FAST)


DEPTH = "observation.images.depth"
OF_DEPTH = {"video.codec": "hevc", "video.pix_fmt": "gray12le", "video.depth_min": 0.1, "video.depth_max": 4.0}
OF_DEPTH |= {"video.shift": 0.5, "video.use_log": False, "depth_unit": "m", "is_depth_map": True}


class DepthSet(RobotSet):
    """One whose camera sees distances, coded without loss, of key frames only."""

    def video(self, key, episodes):
        target = io.BytesIO()
        with av.open(target, "w", format="mp4") as container:
            stream = container.add_stream("libx265", rate=self.fps)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "gray12le"
            stream.codec_context.options = {"x265-params": "lossless=1:keyint=1:log-level=none:pools=none"}
            for number in range(sum(self.lengths[one] for one in episodes)):
                codes = (np.arange(48 * 64, dtype=np.uint16).reshape(48, 64) + 300 * number) % 4096
                container.mux(stream.encode(av.VideoFrame.from_ndarray(codes, format="gray12le")))
            container.mux(stream.encode())
        return target.getvalue()


def depth_set(root):
    feature = {"dtype": "video", "shape": [48, 64, 1], "names": ["height", "width", "channels"], "info": OF_DEPTH}
    made = DepthSet(features={"action": numbers(2), DEPTH: feature}, lengths=(3, 4), fps=10, with_statistics=False)
    return made.write(root)


def test_export_copies_depth_with_what_is_said_of_it_and_measures_it(tmp_path, monkeypatch):
    root = depth_set(tmp_path / "set")
    es.export_lerobot(root, tmp_path / "out", reencode=True, **FAST)
    assert_same(streamed(tmp_path / "out"), streamed(root))
    assert packets_of(tmp_path / "out") == packets_of(root)
    recorded = read_folder(tmp_path / "out")
    assert recorded.info["features"][DEPTH]["info"] == OF_DEPTH
    metres = streamed(root)[DEPTH].astype(np.float64) / 1000
    for number, found in enumerate(recorded.statistics):
        mine = metres[:3] if number == 0 else metres[3:]
        wanted = {"min": mine.min(), "max": mine.max(), "mean": mine.mean(), "std": mine.std()}
        assert {key: found[DEPTH][key].shape for key in wanted} == dict.fromkeys(wanted, (1, 1, 1))
        for key, value in wanted.items():
            np.testing.assert_allclose(found[DEPTH][key].squeeze(), value, 1e-9)
    # As of shards, which do not say what LeRobot did: what is needed is made from the videos.
    monkeypatch.setattr("epistream.loader.exporting.choice.described", lambda dataset, sets: {})
    es.export_lerobot(root, tmp_path / "again", **FAST)
    assert packets_of(tmp_path / "again") == packets_of(root)
    said = read_folder(tmp_path / "again").info["features"][DEPTH]["info"]
    assert {key: said[key] for key in OF_DEPTH} == {**OF_DEPTH, "depth_unit": "mm"}
    assert_same(streamed(tmp_path / "again"), streamed(root))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"version": "2.1"}, "depth, which version 2.1 has not"),
        ({"pictures": "image"}, "depth as PNG, wanted the video"),
    ],
)
def test_export_that_cannot_have_depth_tells_that_it_leaves_it_out(tmp_path, caplog, options, reason):
    root = depth_set(tmp_path / "set")
    with caplog.at_level(logging.WARNING):
        es.export_lerobot(root, tmp_path / "out", **options, **FAST)
    assert f"{DEPTH}: not exported: {reason}" in caplog.text
    assert DEPTH not in read_folder(tmp_path / "out").info["features"]
