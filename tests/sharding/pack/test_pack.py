"""What packing writes, compared with h5py and tarfile alone."""

import json
import shutil

import h5py
import numpy as np
import pytest
import simplejpeg
from hdf5_files import (
    aloha_jpeg,
    aloha_raw,
    contents,
    episodes,
    manifest,
    members,
    npy,
    png,
    robomimic,
    shards,
    tables,
)

from epistream.errors import OptionError, PackError
from epistream.sharding.format.index import ShardIndex
from epistream.sharding.pack.pack import pack


def data_of(folder):
    """Every file of a dataset, and its bytes."""
    return contents(folder)


@pytest.mark.parametrize("name", ["aloha", "mobile_aloha"])
def test_pack_real_jpeg_cameras_copies_every_byte(example_data, tmp_path, name):
    pack(example_data / name, tmp_path / "out")
    found = episodes(tmp_path / "out")
    files = sorted((example_data / name).glob("*.hdf5"))
    assert sorted(found) == [f"ep-{i:09d}" for i in range(len(files))]
    for key, path in zip(sorted(found), files, strict=True):
        with h5py.File(path) as file:
            for camera in ("top", "angle"):
                rows = file[f"observations/images/{camera}"][()]
                for step, row in enumerate(rows):
                    member = found[key][f"observation.images.{camera}.{step:06d}.jpg"]
                    assert member == row.tobytes().rstrip(b"\0")
                assert f"observation.images.{camera}.{len(rows):06d}.jpg" not in found[key]


@pytest.mark.parametrize("name", ["aloha", "mobile_aloha", "aloha_sim"])
def test_pack_arrays_are_those_of_the_source_with_their_type(example_data, tmp_path, name):
    pack(example_data / name, tmp_path / "out")
    paths = {"observation.state": "observations/qpos", "observation.qvel": "observations/qvel", "action": "action"}
    if name == "mobile_aloha":
        paths |= {"observation.effort": "observations/effort", "base_action": "base_action"}
    for fields, path in zip(
        episodes(tmp_path / "out").values(), sorted((example_data / name).glob("*.hdf5")), strict=True
    ):
        with h5py.File(path) as file:
            arrays = {field.removesuffix(".npy"): npy(data) for field, data in fields.items() if field.endswith(".npy")}
            assert arrays.keys() == paths.keys()
            for feature, source in paths.items():
                assert arrays[feature].dtype == file[source].dtype
                np.testing.assert_array_equal(arrays[feature], file[source][()])


def test_pack_real_robomimic_follows_its_masks(example_data, tmp_path):
    path = example_data / "robomimic" / "scripted_lift.hdf5"
    report = pack(path, tmp_path / "out", codec="raw")
    found = episodes(tmp_path / "out")
    assert report.splits == {"train": 2, "val": 1}
    with h5py.File(path) as file:
        for key, demo in zip(sorted(found), ("demo_2", "demo_10", "demo_17"), strict=True):
            meta = json.loads(found[key]["meta.json"])
            assert meta["source_path"] == f"/data/{demo}"
            assert meta["split"] == ("val" if demo == "demo_17" else "train")
            for field, source in (
                ("action", "actions"),
                ("observation.object", "obs/object"),
                ("observation.images.agentview", "obs/agentview_image"),
                ("action_dict.rel_rot_6d", "action_dict/rel_rot_6d"),
            ):
                np.testing.assert_array_equal(npy(found[key][f"{field}.npy"]), file[f"data/{demo}/{source}"][()])


def test_pack_real_libero_records_rotation_and_instruction(example_data, tmp_path):
    pack(example_data / "libero", tmp_path / "out")
    meta = json.loads(episodes(tmp_path / "out")["ep-000000000"]["meta.json"])
    assert meta["tasks"] == ["pick up the red cube"]
    turned = {feature["name"]: feature["rotate"] for feature in meta["features"] if feature["kind"] == "frames"}
    assert turned == {"observation.images.agentview": 180, "observation.images.eye_in_hand": 180}


def test_pack_index_points_at_every_payload(tmp_path):
    aloha_jpeg(tmp_path / "in" / "e_0.hdf5", 4)
    aloha_jpeg(tmp_path / "in" / "e_1.hdf5", 6, seed=9)
    pack(tmp_path / "in", tmp_path / "out")
    (shard,) = shards(tmp_path / "out")
    data = shard.read_bytes()
    index = ShardIndex.parse(shard.with_suffix(".index").read_bytes(), "index")
    wanted = dict(members(shard))
    assert index.length.tolist() == [4, 6]
    for episode, key in enumerate(index.keys):
        for name, offsets in index.array_offset.items():
            values = npy(wanted[f"{key}.{name}.npy"])
            start = int(offsets[episode])
            assert data[start : start + values.nbytes] == values.tobytes()
        for name, offsets in index.frame_offset.items():
            for step in range(int(index.length[episode])):
                row = int(index.first_row[episode]) + step
                start, size = int(offsets[row]), int(index.frame_size[name][row])
                assert data[start : start + size] == wanted[f"{key}.{name}.{step:06d}.jpg"]


@pytest.mark.parametrize("codec", ["png", "raw"])
def test_pack_raw_cameras_lossless_keeps_every_bit(tmp_path, codec):
    path = aloha_raw(tmp_path / "a.hdf5", 5)
    report = pack(path, tmp_path / "out", codec=codec)
    fields = episodes(tmp_path / "out")["ep-000000000"]
    with h5py.File(path) as file:
        frames = file["observations/images/top"][()]
    if codec == "raw":
        np.testing.assert_array_equal(npy(fields["observation.images.top.npy"]), frames)
    else:
        for step, frame in enumerate(frames):
            np.testing.assert_array_equal(png(fields[f"observation.images.top.{step:06d}.png"]), frame)
    assert report.fidelity == {}


@pytest.mark.parametrize(("order", "decode"), [(None, "RGB"), ("bgr", "BGR")])
def test_pack_raw_cameras_as_jpeg_decode_to_about_the_source_and_say_how_near(tmp_path, order, decode):
    path = aloha_raw(tmp_path / "a.hdf5", 5)
    report = pack(path, tmp_path / "out", color_order=order)
    fields = episodes(tmp_path / "out")["ep-000000000"]
    with h5py.File(path) as file:
        frames = file["observations/images/top"][()].astype(float)
    errors = []
    for step, frame in enumerate(frames):
        decoded = simplejpeg.decode_jpeg(fields[f"observation.images.top.{step:06d}.jpg"], decode)
        errors.append(((decoded - frame) ** 2).mean())
    measured = report.fidelity["observation.images.top"]
    assert measured.num_frames == 2
    assert measured.squared_error == pytest.approx(errors[0] + errors[2], rel=1e-5)
    assert measured.mean_psnr_db == pytest.approx(10 * np.log10(255**2 / ((errors[0] + errors[2]) / 2)), rel=1e-5)
    assert report.features["observation.images.top"].jpeg_channels == decode.lower()


def test_pack_jpeg_cameras_with_codec_raw_gives_what_opencv_would_decode(tmp_path):
    path = aloha_jpeg(tmp_path / "a.hdf5", 3)
    pack(path, tmp_path / "out", codec="raw")
    frames = npy(episodes(tmp_path / "out")["ep-000000000"]["observation.images.top.npy"])
    with h5py.File(path) as file:
        rows = file["observations/images/top"][()]
    for frame, row in zip(frames, rows, strict=True):
        np.testing.assert_array_equal(frame, simplejpeg.decode_jpeg(row.tobytes().rstrip(b"\0"), "BGR"))


@pytest.mark.parametrize(("dtype", "suffix"), [("uint16", "png"), ("float32", "npy"), ("uint8", "png")])
@pytest.mark.parametrize("codec", [None, "jpeg"])
def test_pack_depth_never_becomes_lossy(tmp_path, dtype, suffix, codec):
    path = aloha_jpeg(tmp_path / "a.hdf5", 3)
    depth = (np.random.default_rng(0).random((3, 24, 32)) * 200).astype(dtype)
    with h5py.File(path, "r+") as file:
        file["observations/images/top_depth"] = depth
    pack(path, tmp_path / "out", codec=codec, image_size=(16, 12))
    fields = episodes(tmp_path / "out")["ep-000000000"]
    if suffix == "npy":
        np.testing.assert_array_equal(npy(fields["observation.images.top_depth.npy"])[..., 0], depth)
    else:
        found = [png(fields[f"observation.images.top_depth.{step:06d}.png"]) for step in range(3)]
        np.testing.assert_array_equal(np.stack(found), depth)


def test_pack_image_size_resizes_colour_cameras(tmp_path):
    aloha_jpeg(tmp_path / "a.hdf5", 3)
    report = pack(tmp_path / "a.hdf5", tmp_path / "out", image_size=(16, 12), quality=90)
    fields = episodes(tmp_path / "out")["ep-000000000"]
    assert simplejpeg.decode_jpeg(fields["observation.images.top.000002.jpg"]).shape == (12, 16, 3)
    assert report.features["observation.images.top"].shape == (12, 16, 3)


def test_pack_image_size_that_jpeg_frames_have_copies_them(tmp_path):
    path = aloha_jpeg(tmp_path / "a.hdf5", 3)
    pack(path, tmp_path / "out", image_size=(32, 24))
    fields = episodes(tmp_path / "out")["ep-000000000"]
    with h5py.File(path) as file:
        rows = file["observations/images/top"][()]
    for step, row in enumerate(rows):
        assert fields[f"observation.images.top.{step:06d}.jpg"] == row.tobytes().rstrip(b"\0")


def test_pack_same_input_gives_same_bytes_with_1_and_3_workers_and_wherever_it_is(tmp_path):
    for seed in range(5):
        aloha_jpeg(tmp_path / "a" / f"e_{seed}.hdf5", 30, seed)
        aloha_raw(tmp_path / "a" / "raw" / f"e_{seed}.hdf5", 3, seed)
    shutil.copytree(tmp_path / "a", tmp_path / "elsewhere" / "b")
    options = {"shard_size": "64KiB", "color_order": "bgr", "val_fraction": 0.3}
    pack(tmp_path / "a", tmp_path / "one", **options)
    pack(tmp_path / "a", tmp_path / "three", workers=3, **options)
    pack(tmp_path / "elsewhere" / "b", tmp_path / "moved", **options)
    first = data_of(tmp_path / "one")
    assert len([name for name in first if name.endswith(".tar")]) > 3
    assert data_of(tmp_path / "three") == first
    assert data_of(tmp_path / "moved") == first


def test_pack_leaves_only_shards_indexes_and_manifest(tmp_path):
    pack(aloha_jpeg(tmp_path / "a.hdf5"), tmp_path / "deep" / "out")
    names = {path.name for path in (tmp_path / "deep" / "out").iterdir()}
    assert names == {"shard-000000.tar", "shard-000000.index", "dataset.json"} | tables(tmp_path / "deep" / "out")


def test_pack_shards_hold_whole_episodes_of_one_split_near_the_target_size(tmp_path):
    for number in range(12):
        aloha_raw(tmp_path / "in" / f"e_{number}.hdf5", 20, number)
    pack(tmp_path / "in", tmp_path / "out", codec="raw", shard_size=300_000, val_fraction=0.25, split_seed=2)
    seen = {}
    for shard in shards(tmp_path / "out"):
        names = [name for name, _ in members(shard)]
        keys = [name.split(".")[0] for name in names]
        # The members of a sample are contiguous.
        assert [key for i, key in enumerate(keys) if i == 0 or keys[i - 1] != key] == sorted(set(keys))
        splits = {json.loads(data)["split"] for name, data in members(shard) if name.endswith("meta.json")}
        assert len(splits) == 1
        for key in set(keys):
            assert seen.setdefault(key, shard) == shard
    assert len(seen) == 12
    # Episodes of 97 kB: 9 in train make 3 shards, 3 in val make 1.
    assert len(shards(tmp_path / "out")) == 4


def test_pack_order_is_natural_and_episode_index_follows_it(tmp_path):
    for number in (10, 2, 1):
        aloha_raw(tmp_path / "in" / f"e_{number}.hdf5", number)
    pack(tmp_path / "in", tmp_path / "out")
    metas = [json.loads(fields["meta.json"]) for _, fields in sorted(episodes(tmp_path / "out").items())]
    assert [(meta["source"], meta["length"]) for meta in metas] == [("e_1.hdf5", 1), ("e_2.hdf5", 2), ("e_10.hdf5", 10)]


def test_pack_sources_are_taken_in_the_order_given(tmp_path):
    for number in (1, 2, 3):
        aloha_raw(tmp_path / "in" / f"e_{number}.hdf5", number)
    given = [tmp_path / "in" / "e_3.hdf5", str(tmp_path / "in" / "e_[12].hdf5")]
    pack(given, tmp_path / "out")
    metas = [json.loads(fields["meta.json"]) for _, fields in sorted(episodes(tmp_path / "out").items())]
    assert [meta["length"] for meta in metas] == [3, 1, 2]


def test_pack_val_fraction_is_reproducible_and_depends_on_the_seed(tmp_path):
    for number in range(10):
        aloha_raw(tmp_path / "in" / f"e_{number}.hdf5", 1, number)

    def val(out, seed):
        pack(tmp_path / "in", tmp_path / out, val_fraction=0.3, split_seed=seed)
        found = episodes(tmp_path / out)
        return {key for key, fields in found.items() if json.loads(fields["meta.json"])["split"] == "val"}

    assert val("a", 0) == val("b", 0)
    assert val("c", 0) == {"ep-000000002", "ep-000000003"}
    assert len({frozenset(val(f"s{seed}", seed)) for seed in range(5)}) > 1


@pytest.mark.parametrize(("fraction", "num_val"), [(0.001, 1), (0.999, 2)])
def test_pack_val_fraction_leaves_something_in_both_splits(tmp_path, fraction, num_val):
    for number in range(3):
        aloha_raw(tmp_path / "in" / f"e_{number}.hdf5", 1, number)
    report = pack(tmp_path / "in", tmp_path / "out", val_fraction=fraction)
    assert report.splits == {"train": 3 - num_val, "val": num_val}


def test_pack_has_no_split_unless_asked(tmp_path):
    report = pack(aloha_raw(tmp_path / "a.hdf5"), tmp_path / "out")
    assert report.splits == {"all": 1}
    assert manifest(tmp_path / "out")["splits"] == ["all"]


def test_pack_statistics_are_numpys_on_the_train_split(tmp_path):
    path = robomimic(
        tmp_path / "a.hdf5",
        {"demo_1": 40, "demo_2": 30, "demo_3": 20},
        {"train": ["demo_1", "demo_3"], "valid": ["demo_2"]},
    )
    pack(path, tmp_path / "out", shard_size="64KiB")
    statistics = manifest(tmp_path / "out")["statistics"]
    assert statistics["split"] == "train"
    with h5py.File(path) as file:
        values = np.concatenate([file[f"data/{demo}/actions"][()] for demo in ("demo_1", "demo_3")])
    found = statistics["features"]["action"]
    assert found["count"] == 60
    for name, expected in (
        ("mean", values.mean(0)),
        ("std", values.std(0)),
        ("min", values.min(0)),
        ("max", values.max(0)),
        ("q01", np.quantile(values, 0.01, axis=0)),
        ("q99", np.quantile(values, 0.99, axis=0)),
    ):
        np.testing.assert_allclose(found[name], expected, rtol=1e-12)


def test_pack_raw_camera_beyond_the_member_limit_is_split_by_time(tmp_path, monkeypatch):
    path = aloha_raw(tmp_path / "a.hdf5", 7, cameras=("top",))
    monkeypatch.setattr("epistream.sharding.tar.shard_writer.MAX_MEMBER_BYTES", 4096 + 3 * 24 * 32 * 3)
    pack(path, tmp_path / "out", codec="raw")
    fields = episodes(tmp_path / "out")["ep-000000000"]
    parts = [name for name in fields if "images" in name]
    assert parts == [f"observation.images.top.{first:06d}.npy" for first in (0, 3, 6)]
    with h5py.File(path) as file:
        frames = file["observations/images/top"][()]
    np.testing.assert_array_equal(np.concatenate([npy(fields[name]) for name in parts]), frames)
    (shard,) = shards(tmp_path / "out")
    index = ShardIndex.parse(shard.with_suffix(".index").read_bytes(), "index")
    data = shard.read_bytes()
    for frame, start in zip(frames, index.frame_offset["observation.images.top"].tolist(), strict=True):
        assert data[start : start + frame.nbytes] == frame.tobytes()


def test_pack_camera_drop_and_rename_choose_and_name_features(tmp_path):
    path = aloha_jpeg(tmp_path / "a.hdf5", cameras=("cam_high", "cam_low"))
    report = pack(
        path,
        tmp_path / "out",
        cameras="cam_high",
        drop=["*.qvel"],
        rename={"cam_high": "top", "action": "action.joint"},
    )
    assert list(report.features) == ["observation.images.top", "observation.state", "action.joint"]
    assert report.features["observation.images.top"].source_path == "observations/images/cam_high"
    assert "observation.images.top.000000.jpg" in episodes(tmp_path / "out")["ep-000000000"]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"cameras": ["wrist"]}, PackError, "no camera 'wrist': found angle, top"),
        ({"rename": {"wrist": "hand"}}, OptionError, "nothing is called 'wrist'"),
        ({"rename": {"top": "angle"}}, PackError, "would be named 'observation.images.angle', and so would"),
        ({"rename": {"top": "observation.images." + "x" * 60}}, PackError, "wanted at most"),
        ({"rename": {"top": "observation.images." + "x" * 59}}, PackError, "bytes, wanted at most 100"),
        ({"drop": ["*"]}, PackError, "no feature is left"),
        ({"drop": ["*.qvel", "effort"]}, OptionError, "drop 'effort': no feature is called so, found observation.im"),
        ({"quality": 50}, OptionError, "quality: 50, but no camera is encoded as JPEG"),
        ({"quality": 50, "codec": "raw"}, OptionError, "quality: 50, but no camera is encoded as JPEG"),
        ({"codec": "hevc"}, OptionError, "codec: 'hevc', wanted jpeg, png, raw, webp or h264"),
        ({"quality": 0}, OptionError, "quality: 0, wanted 1 to 100"),
        ({"shard_size": "1 parsec"}, OptionError, "shard_size: '1 parsec', wanted a size such as 128MiB"),
        ({"shard_size": 10}, OptionError, "wanted 64 KiB"),
        ({"val_fraction": 1.0}, OptionError, "val_fraction: 1.0"),
        ({"image_size": (0, 3)}, OptionError, "image_size"),
        ({"workers": 0}, OptionError, "workers: 0"),
        ({"fps": -1}, OptionError, "fps: -1"),
        ({"resume": True, "overwrite": True}, OptionError, "wanted one"),
        ({"shard_sise": 1}, OptionError, "Did you mean 'shard_size'?"),
        ({"layout": "alohaa"}, OptionError, "or one of"),
    ],
)
def test_pack_option_that_cannot_work_is_refused_and_leaves_nothing(tmp_path, options, error, words):
    path = aloha_jpeg(tmp_path / "in" / "a.hdf5")
    with pytest.raises(error) as caught:
        pack(path, tmp_path / "out", **options)
    assert words in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_pack_to_a_url_uploads_and_publishes(tmp_path):
    import fsspec

    path = aloha_jpeg(tmp_path / "a.hdf5")
    pack(path, "memory://bucket/aloha")
    pack(path, tmp_path / "local")
    memory = fsspec.filesystem("memory")
    uploaded = {name.rsplit("/", 1)[1]: memory.cat_file(name) for name in memory.ls("/bucket/aloha", detail=False)}
    assert uploaded == data_of(tmp_path / "local")
    with pytest.raises(FileExistsError, match="holds a dataset already"):
        pack(path, "memory://bucket/aloha")
    pack(path, "memory://bucket/aloha", overwrite=True, cameras=["top"])
    names = {name.rsplit("/", 1)[1] for name in memory.ls("/bucket/aloha", detail=False)}
    assert {name for name in names if name.endswith(".tar")} == {"shard-r1-000000.tar"}
    memory.rm("/bucket", recursive=True)
