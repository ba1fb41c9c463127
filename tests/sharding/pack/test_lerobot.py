"""Packing LeRobot data sets: what is in the tars is what is in the set, bit for bit, and nothing is encoded unasked."""

import io
import json
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hdf5_files import contents, manifest, members, shards
from video.clips import encoded

import epistream as es
from epistream.commands import cli
from epistream.sharding.check.verify import verify
from epistream.sharding.dataset import open_dataset
from epistream.sharding.format.index import ShardIndex
from epistream.sharding.pack.pack import pack
from epistream.sharding.tar.reindex import ReindexOptions, reindex

SETS = Path(__file__).resolve().parent.parent / "lerobot" / "sets"
NAMES = sorted(path.parent.parent.name for path in SETS.glob("*/meta/info.json"))
TOP, WRIST, FRONT = (f"observation.images.{name}" for name in ("top", "wrist", "front"))


def items(url, **options):
    """By key, what a stream gives of all steps in order."""
    options = {"batch_size": 64, "shuffle": False, "remainder": "uneven", "split": None, "cache": "off", **options}
    found = {}
    for batch in es.EpisodeStream(str(url), **options):
        for key, values in batch.items():
            found.setdefault(key, []).append(values.numpy().copy() if hasattr(values, "numpy") else values)
    return found


def assert_same_items(one, other):
    assert one.keys() == other.keys()
    for key, batches in one.items():
        for mine, theirs in zip(batches, other[key], strict=True):
            np.testing.assert_array_equal(mine, theirs, key)


def packets(data):
    """The packets of an MP4 in the order of decoding, by PyAV."""
    with av.open(io.BytesIO(data)) as container:
        return [bytes(packet) for packet in container.demux(video=0) if packet.size]


def copied(name, tmp_path):
    """A set that may be written to."""
    return Path(shutil.copytree(SETS / name, tmp_path / name))


def change(path, **values):
    """A JSON file with other values."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def metas(folder):
    """By episode, what its meta.json says."""
    found = [json.loads(data) for tar in shards(folder) for name, data in members(tar) if "meta.json" in name]
    return sorted(found, key=lambda meta: meta["episode_index"])


@pytest.mark.parametrize("name", NAMES)
def test_packed_set_streams_the_same_bits_and_indexes_again_to_the_same_bytes(tmp_path, name):
    report = pack(SETS / name, tmp_path / "out")
    assert (report.faults, report.left_out) == ((), ())
    assert_same_items(items(tmp_path / "out"), items(SETS / name))
    assert verify(open_dataset(str(tmp_path / "out"))).faults == []
    before = contents(tmp_path / "out")
    reindex(tmp_path / "out", ReindexOptions(overwrite=True))
    assert {key: data for key, data in contents(tmp_path / "out").items() if key.endswith(".index")} == {
        key: data for key, data in before.items() if key.endswith(".index")
    }


@pytest.mark.parametrize("name", ["lerobot_v3", "lerobot_v21"])
def test_real_set_streams_the_same_bits(tmp_path, shared_data, name):
    report = pack(shared_data / name, tmp_path / "out")
    assert {feature.codec for feature in report.features.values()} == {"av1", "npy"}
    assert_same_items(items(tmp_path / "out"), items(shared_data / name))


def test_packets_pictures_and_values_are_those_of_the_files(tmp_path):
    pack(SETS / "images_v21", tmp_path / "out")
    [tar] = shards(tmp_path / "out")
    found = dict(members(tar))
    for episode in range(3):
        rows = pq.read_table(SETS / f"images_v21/data/chunk-000/episode_{episode:06d}.parquet")
        key = f"ep-{episode:09d}"
        for feature in ("observation.state", "action", "observation.pose"):
            wanted = np.array(rows.column(feature).to_pylist())
            values = np.load(io.BytesIO(found[f"{key}.{feature}.npy"]))
            np.testing.assert_array_equal(values, wanted.astype(values.dtype))
        for step, picture in enumerate(rows.column(FRONT).to_pylist()):
            assert found[f"{key}.{FRONT}.{step:06d}.png"] == picture["bytes"]
        video = SETS / f"images_v21/videos/chunk-000/{TOP}/episode_{episode:06d}.mp4"
        assert packets(found[f"{key}.{TOP}.mp4"]) == packets(video.read_bytes())


def test_packets_of_many_episodes_in_a_file_are_each_in_one_tar_member(tmp_path):
    pack(SETS / "groups_v30", tmp_path / "out")
    found = dict(members(shards(tmp_path / "out")[0]))
    together = [packet for name in sorted(found) if name.endswith(".mp4") for packet in packets(found[name])]
    assert together == packets((SETS / f"groups_v30/videos/{TOP}/chunk-000/file-000.mp4").read_bytes())


def test_episodes_say_where_they_come_from_and_of_which_robot(tmp_path):
    pack(SETS / "cameras_v30", tmp_path / "out")
    said = metas(tmp_path / "out")
    assert {meta["source"] for meta in said} == {"data/chunk-000/file-000.parquet"}
    assert [meta["source_path"] for meta in said] == [f"episode {number}" for number in range(5)]
    assert {(meta["layout"], meta["split"], meta["attributes"]["robot_type"]) for meta in said} == {
        ("LeRobot v3.0", "train", "arm")
    }
    assert {feature["fps"] for meta in said for feature in meta["features"]} == {10.0}
    [source] = open_dataset(str(tmp_path / "out")) and manifest_sources(tmp_path / "out")
    assert source.path == "data/chunk-000/file-000.parquet"


def manifest_sources(folder):
    from epistream.sharding.manifest.manifest_file import read_manifest

    return list(read_manifest(str(folder)).sources)


@pytest.mark.parametrize("name", ["steps_v20", "steps_v21", "steps_v30"])
def test_instruction_of_each_step_is_kept(tmp_path, name):
    """As the rows say it, also where only some of a shard's episodes have several."""
    source = copied(name, tmp_path)
    pack(source, tmp_path / "out")
    tasks = {}
    path = source / "meta" / "tasks.jsonl"
    if path.exists():
        tasks = {one["task_index"]: one["task"] for one in map(json.loads, path.read_text("utf-8").splitlines())}
    else:
        table = pq.read_table(source / "meta" / "tasks.parquet").to_pandas()
        tasks = dict(zip(table["task_index"], table.index, strict=True))
    rows = [row for file in sorted(source.glob("data/*/*.parquet")) for row in pq.read_table(file).to_pylist()]
    found = [text for batch in items(tmp_path / "out")["task"] for text in batch]
    assert found == [tasks[row["task_index"]] for row in rows]
    assert any(len(meta["task_steps"]) > 1 for meta in metas(tmp_path / "out"))


def test_verify_tells_of_steps_with_another_instruction(tmp_path):
    pack(SETS / "steps_v30", tmp_path / "out")
    path = tmp_path / "out" / "shard-000000.index"
    index = ShardIndex.parse(path.read_bytes(), path.name)
    for step_task in (None, np.zeros_like(index.step_task)):
        path.write_bytes(replace(index, step_task=step_task).to_bytes())
        told = "\n".join(map(str, verify(open_dataset(str(tmp_path / "out"))).faults))
        assert "shard-000000.tar: other instructions of steps in the index, wanted those of the tar" in told


def hevc(num_frames, *, is_depth):
    """An MP4 as x265 writes it by its defaults, with open groups of 2."""
    quiet = {"g": "2", "x265-params": "log-level=none:pools=none:frame-threads=1"}
    if not is_depth:
        return encoded(("libx265", quiet), num_frames, (64, 96))
    target = io.BytesIO()
    with av.open(target, "w", format="mp4") as container:
        stream = container.add_stream("libx265", 30, options=quiet)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "gray12le"
        for step in range(num_frames):
            codes = ((np.arange(64 * 96) * 5 + 37 * step) % 4096).astype(np.uint16).reshape(64, 96)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(codes, format="gray12le")))
        container.mux(stream.encode())
    return target.getvalue()


def hevc_set(tmp_path, *, is_depth):
    """The set `groups_v21` with other videos."""
    source = copied("groups_v21", tmp_path)
    lengths = [json.loads(line)["length"] for line in (source / "meta/episodes.jsonl").read_text().splitlines()]
    info = json.loads((source / "meta/info.json").read_text())
    if is_depth:
        info["features"][TOP]["shape"] = [64, 96, 1]
        info["features"][TOP]["info"] = {"video.codec": "hevc", "video.is_depth_map": True, "video.depth_max": 4.0}
    change(source / "meta/info.json", fps=30, features=info["features"])
    for number, length in enumerate(lengths):
        video = source / f"videos/chunk-000/{TOP}/episode_{number:06d}.mp4"
        video.write_bytes(hevc(length, is_depth=is_depth))
        path = source / f"data/chunk-000/episode_{number:06d}.parquet"
        rows = pq.read_table(path)
        times = (np.arange(length) / 30).astype(np.float32)
        pq.write_table(rows.set_column(rows.column_names.index("timestamp"), "timestamp", [times]), path)
    return source


@pytest.mark.parametrize("is_depth", [False, True])
def test_hevc_with_open_groups_is_copied(tmp_path, is_depth):
    source = hevc_set(tmp_path, is_depth=is_depth)
    report = pack(source, tmp_path / "out")
    assert (report.features[TOP].codec, report.features[TOP].dtype) == ("hevc", "uint16" if is_depth else "uint8")
    assert_same_items(items(tmp_path / "out"), items(source))
    assert verify(open_dataset(str(tmp_path / "out"))).faults == []
    before = contents(tmp_path / "out")["shard-000000.index"]
    reindex(tmp_path / "out", ReindexOptions(overwrite=True))
    assert contents(tmp_path / "out")["shard-000000.index"] == before
    assert all(
        meta.get("depth", {}).get(TOP, {}).get("far_m") == (4.0 if is_depth else None)
        for meta in metas(tmp_path / "out")
    )


@pytest.mark.parametrize("options", [{"codec": "jpeg"}, {"codec": "h264"}, {"codec": "png"}])
def test_depth_that_is_encoded_again_keeps_its_bits(tmp_path, options):
    source = hevc_set(tmp_path, is_depth=True)
    assert pack(source, tmp_path / "out", **options).features[TOP].codec == "png"
    assert_same_items(items(tmp_path / "out"), items(source))


def test_a_torn_picture_is_copied_as_it_is_and_verify_tells(tmp_path):
    source = copied("groups_v21", tmp_path)
    path = source / f"videos/chunk-000/{TOP}/episode_000000.mp4"
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 4
    data[start + 700 : start + 900] = b"\xff" * 200
    path.write_bytes(data)
    pack(source, tmp_path / "out")
    [fault, *_] = verify(open_dataset(str(tmp_path / "out"))).faults
    assert f"ep-000000000.{TOP}.mp4" in fault.member


def test_bytes_are_the_same_for_any_number_of_workers_and_any_place(tmp_path, example_data):
    source = example_data / "lerobot" / "aloha"
    elsewhere = shutil.copytree(source, tmp_path / "elsewhere")
    for name, given, workers in (("one", source, 1), ("two", elsewhere, 2)):
        report = pack(given, tmp_path / name, workers=workers, shard_size="64KiB")
    assert report.num_shards == 2
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_several_sets_are_packed_one_behind_the_other(tmp_path):
    report = pack([SETS / "groups_v30", SETS / "groups_v21"], tmp_path / "out")
    assert (report.num_episodes, report.layouts) == (6, {"LeRobot v3.0": 1, "LeRobot v2.1": 3})
    assert [meta["source"] for meta in metas(tmp_path / "out")] == [
        *["groups_v30/data/chunk-000/file-000.parquet"] * 3,
        *[f"groups_v21/data/chunk-000/episode_{number:06d}.parquet" for number in range(3)],
    ]
    both = items(tmp_path / "out", features=["action"])["action"]
    parts = [np.concatenate(items(SETS / name, features=["action"])["action"]) for name in ("groups_v30", "groups_v21")]
    np.testing.assert_array_equal(np.concatenate(both), np.concatenate(parts))


def test_sets_by_a_glob_are_found(tmp_path):
    for name in ("numbers_v21", "numbers_v30"):
        copied(name, tmp_path / "in")
    assert pack(str(tmp_path / "in" / "*"), tmp_path / "out").num_episodes == 6


def test_splits_are_those_of_the_set_unless_asked_for(tmp_path):
    source = copied("cameras_v30", tmp_path)
    change(source / "meta" / "info.json", splits={"train": "0:3", "val": "3:5"})
    assert pack(source, tmp_path / "own").splits == {"train": 3, "val": 2}
    assert pack(source, tmp_path / "asked", val_fraction=0.2).splits == {"train": 4, "val": 1}
    change(source / "meta" / "info.json", splits={})
    assert pack(source, tmp_path / "none").splits == {"all": 5}


def test_cameras_names_and_what_is_dropped_are_chosen_as_of_hdf5(tmp_path):
    report = pack(SETS / "cameras_v30", tmp_path / "out", cameras=["wrist"], drop=["next.*"], rename={"wrist": "hand"})
    assert next(iter(report.features)) == "observation.images.hand"
    assert not {TOP, WRIST, "next.done"} & set(report.features)
    found, wanted = items(tmp_path / "out"), items(SETS / "cameras_v30")
    assert_same_items({"a": found["observation.images.hand"]}, {"a": wanted[WRIST]})


def test_nothing_unwanted_is_looked_at(tmp_path):
    source = copied("cameras_v30", tmp_path)
    shutil.rmtree(source / "videos" / TOP)
    assert pack(source, tmp_path / "out", drop=[TOP]).num_episodes == 5


@pytest.mark.parametrize("name", ["groups_v30", "images_v21"])
def test_png_of_decoded_frames_has_their_bits(tmp_path, name):
    report = pack(SETS / name, tmp_path / "out", codec="png")
    assert {feature.codec for feature in report.features.values() if feature.kind == "frames"} == {"png"}
    assert_same_items(items(tmp_path / "out"), items(SETS / name))


@pytest.mark.parametrize(
    ("options", "codec", "shape"),
    [
        ({"codec": "jpeg", "quality": 90}, "jpeg", (64, 96, 3)),
        ({"codec": "h264", "gop": 4, "crf": 10}, "h264", (64, 96, 3)),
        ({"image_size": (32, 24)}, "h264", (24, 32, 3)),
        ({"image_size": (32, 24), "crf": 10}, "h264", (24, 32, 3)),
        ({"codec": "jpeg", "image_size": (32, 24)}, "jpeg", (24, 32, 3)),
    ],
)
def test_frames_are_encoded_again_where_that_is_asked_for(tmp_path, options, codec, shape):
    report = pack(SETS / "groups_v30", tmp_path / "out", **options)
    feature = report.features[TOP]
    assert (feature.codec, feature.shape) == (codec, shape)
    assert report.fidelity[TOP].mean_psnr_db > 25
    if "image_size" not in options:
        found, wanted = (np.concatenate(items(url)[TOP]) for url in (tmp_path / "out", SETS / "groups_v30"))
        assert found.shape == wanted.shape
        assert np.abs(found.astype(int) - wanted.astype(int)).mean() < 8


def test_png_stays_png_at_another_size(tmp_path):
    report = pack(SETS / "images_v30", tmp_path / "out", image_size=(32, 24))
    assert [report.features[name].codec for name in (FRONT, TOP)] == ["png", "h264"]


def test_set_behind_a_url_is_packed(tmp_path):
    import fsspec

    memory = fsspec.filesystem("memory")
    for file in filter(Path.is_file, (SETS / "images_v30").rglob("*")):
        memory.pipe_file(f"/lerobot/{file.relative_to(SETS)}", file.read_bytes())
    pack("memory://lerobot/images_v30", tmp_path / "out")
    assert_same_items(items(tmp_path / "out"), items(SETS / "images_v30"))
    assert manifest_sources(tmp_path / "out")[0].checksum == ""


def test_command_tells_that_frames_are_copied(tmp_path):
    done = CliRunner().invoke(cli, ["pack", str(SETS / "groups_v30"), str(tmp_path / "out"), "--workers", "1"])
    assert done.exit_code == 0, done.output
    assert "3 episodes, 24 steps from 1 LeRobot v3.0 file" in done.output
    assert f"{TOP}: 96x64x3 h264, groups of 11, copied byte for byte" in done.output
    assert manifest(tmp_path / "out")
    with tarfile.open(tmp_path / "out" / "shard-000000.tar") as tar:
        assert len(tar.getnames()) == 3 * 4
