"""Exports from packed shards: rows, pictures and videos of the set are those of the recordings, whatever the codec."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from exporting.folder import packets, read_folder
from exporting.streamed import FAST, assert_same, files_of, pictures_of, rows_of, streamed, tasks_of
from hdf5_files import aloha_raw, episodes, npy, picture
from PIL import Image

import epistream as es
from epistream.errors import OptionError
from epistream.sharding.lerobot_meta.episode_statistics import ATTRIBUTE, told_by, told_plainly
from epistream.sharding.lerobot_out import episode_facts

SETS = Path(__file__).parents[2] / "sharding" / "lerobot" / "sets"
TOP, ANGLE = "observation.images.top", "observation.images.angle"
LENGTHS = (5, 1, 4)
QUICK = {"gop": 3, "preset": "ultrafast"}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recorded")
    for number, steps in enumerate(LENGTHS):
        aloha_raw(folder / f"episode_{number}.hdf5", steps, seed=10 * number)
    return folder


@pytest.fixture(scope="module")
def shards(recorded, tmp_path_factory):
    """By codec."""
    made = {}

    def make(codec):
        if codec not in made:
            made[codec] = tmp_path_factory.mktemp(codec) / "shards"
            es.pack(recorded, made[codec], codec=codec, workers=1, **(QUICK if codec == "h264" else {}))
        return made[codec]

    return make


def recorded_pictures(camera):
    name = camera.rpartition(".")[2]
    return np.stack([picture(step, 10 * n + len(name)) for n, steps in enumerate(LENGTHS) for step in range(steps)])


@pytest.mark.parametrize("version", ["3.0", "2.1"])
@pytest.mark.parametrize("codec", ["png", "raw", "jpeg"])
def test_export_of_pictures_as_png_keeps_every_bit(tmp_path, shards, codec, version):
    report = es.export_lerobot(shards(codec), tmp_path / "out", version=version, pictures="image", **FAST)
    assert (report.num_episodes, report.num_steps, report.is_new) == (3, 10, True)
    assert_same(streamed(tmp_path / "out"), streamed(shards(codec)))
    for camera in (TOP, ANGLE):
        found = pictures_of(tmp_path / "out", camera)
        if codec != "jpeg":
            np.testing.assert_array_equal(found, recorded_pictures(camera))
        assert np.abs(found.astype(int) - recorded_pictures(camera)).mean() < 8
    held = [npy(fields["action.npy"]) for _, fields in sorted(episodes(shards(codec)).items())]
    np.testing.assert_array_equal(rows_of(tmp_path / "out", "action"), np.concatenate(held))
    info = read_folder(tmp_path / "out").info
    assert info["features"][TOP] == {
        "dtype": "image",
        "shape": [24, 32, 3],
        "names": ["height", "width", "channels"],
    }
    assert (info["fps"], info["robot_type"], info["splits"]) == (50, None, {"train": "0:3"})


def test_export_of_pngs_copies_them(tmp_path, shards):
    es.export_lerobot(shards("png"), tmp_path / "out", pictures="image", **FAST)
    fields = [fields for _, fields in sorted(episodes(shards("png")).items())]
    wanted = [data for one in fields for name, data in sorted(one.items()) if name.startswith(f"{TOP}.")]
    assert [row["bytes"] for row in read_folder(tmp_path / "out").rows[TOP]] == wanted


@pytest.mark.parametrize("version", ["3.0", "2.1"])
def test_export_of_videos_copies_their_packets(tmp_path, shards, version):
    es.export_lerobot(shards("h264"), tmp_path / "out", version=version, **FAST)
    assert_same(streamed(tmp_path / "out"), streamed(shards("h264")))
    recorded = read_folder(tmp_path / "out")
    for (_, fields), episode in zip(sorted(episodes(shards("h264")).items()), recorded.episodes, strict=True):
        path, first_s = episode["videos"][TOP]
        found = packets(tmp_path / "out" / path, first_s, episode["length"], 50)
        (tmp_path / "one.mp4").write_bytes(fields[f"{TOP}.mp4"])
        assert found == packets(tmp_path / "one.mp4", 0.0, episode["length"], 50)


def test_export_encodes_videos_of_other_pictures(tmp_path, shards):
    es.export_lerobot(shards("png"), tmp_path / "out", crf=4, **FAST)
    assert_same(streamed(tmp_path / "out"), streamed(shards("png")), but=(TOP, ANGLE))
    found = pictures_of(tmp_path / "out", TOP).astype(int)
    assert np.abs(found - recorded_pictures(TOP)).mean() < 12  # colours have half the sides
    np.testing.assert_array_equal(streamed(tmp_path / "out")[TOP][:, 0], found)


def test_export_encodes_videos_again_only_when_asked(tmp_path, shards):
    es.export_lerobot(shards("h264"), tmp_path / "copied", **FAST)
    es.export_lerobot(shards("h264"), tmp_path / "again", reencode=True, crf=40, **FAST)
    es.export_lerobot(shards("h264"), tmp_path / "image", pictures="image", **FAST)
    wanted = streamed(shards("h264"))
    assert_same(streamed(tmp_path / "again"), wanted, but=(TOP, ANGLE))
    assert (streamed(tmp_path / "again")[TOP] != wanted[TOP]).any()
    assert_same(streamed(tmp_path / "image"), wanted)
    assert not (tmp_path / "image" / "videos").exists()


def test_export_of_features_by_pattern_has_these(tmp_path, shards):
    es.export_lerobot(shards("png"), tmp_path / "out", features=["action", "observation.images.a*"], **FAST)
    assert list(read_folder(tmp_path / "out").info["features"])[:-5] == ["observation.images.angle", "action"]


def test_export_of_episodes_without_instruction_has_an_empty_task(tmp_path, shards):
    es.export_lerobot(shards("png"), tmp_path / "out", pictures="image", **FAST)
    assert (read_folder(tmp_path / "out").tasks, set(tasks_of(tmp_path / "out"))) == ([""], {""})
    assert set(streamed(tmp_path / "out")["task"].tolist()) == {""}


def test_export_gives_the_same_bytes_with_one_process_and_two(tmp_path, shards):
    es.export_lerobot(shards("png"), tmp_path / "one", **FAST)
    es.export_lerobot(shards("png"), tmp_path / "two", **{**FAST, "workers": 2})
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


def test_export_of_cameras_with_odd_sides_as_video_says_what_works(tmp_path):
    folder = tmp_path / "in"
    aloha_raw(folder / "episode_0.hdf5", 3)
    es.pack(folder, tmp_path / "odd", codec="png", workers=1, image_size=(23, 31))
    with pytest.raises(OptionError, match=r"of 31x23 .*wanted even sides.*[Ll]eave it out|pictures"):
        es.export_lerobot(tmp_path / "odd", tmp_path / "out", **FAST)
    assert not (tmp_path / "out").exists()
    es.export_lerobot(tmp_path / "odd", tmp_path / "out", pictures="image", **FAST)
    assert_same(streamed(tmp_path / "out"), streamed(tmp_path / "odd"))


@pytest.mark.parametrize("version", ["3.0", "2.1"])
@pytest.mark.parametrize("name", ["cameras_v21", "groups_v30"])
def test_export_of_shards_packed_from_a_set_decodes_nothing_and_has_its_statistics(
    tmp_path, monkeypatch, name, version
):
    monkeypatch.setattr(episode_facts, "_measuring", lambda camera: 1 / 0)
    es.pack(SETS / name, tmp_path / "shards", workers=1)
    es.export_lerobot(tmp_path / "shards", tmp_path / "out", version=version, **FAST)
    assert_same(streamed(tmp_path / "out"), streamed(SETS / name))
    source, out = read_folder(SETS / name), read_folder(tmp_path / "out")
    cameras = [key for key, said in source.info["features"].items() if said["dtype"] in ("video", "image")]
    for found, wanted in zip(out.statistics, source.statistics, strict=True):
        for camera in cameras:
            for key in found[camera]:
                np.testing.assert_array_equal(found[camera][key], wanted[camera][key])


def test_export_of_shards_whose_meta_somebody_changed_measures_its_pictures(tmp_path):
    es.pack(SETS / "cameras_v30", tmp_path / "shards", workers=1)
    for path in (tmp_path / "shards").glob("*.tar"):
        path.write_bytes(path.read_bytes().replace(b'"lerobot_statistics":{', b'"lerobot_statistics":['))
    es.export_lerobot(tmp_path / "shards", tmp_path / "out", **FAST)
    means = [one[TOP]["mean"].ravel() for one in read_folder(tmp_path / "out").statistics]
    wanted = [one[TOP]["mean"].ravel() for one in read_folder(SETS / "cameras_v30").statistics]
    np.testing.assert_allclose(means, wanted, atol=0.02)


@pytest.mark.parametrize(
    "said",
    [
        None,
        [],
        {"a": 1},
        {"a": {"mean": 1.0}},
        {"a": {"mean": ["x"]}},
        {"a": {"mean": [True]}},
        {"a": {"mean": [float("nan")]}},
        {"a": {"mean": [1.0], "count": [1e300]}},
        {"b": {"mean": [1.0]}},
    ],
)
def test_statistics_that_are_no_lists_of_numbers_are_not_believed(said):
    assert told_by({ATTRIBUTE: said}, "a") is None


def test_statistics_come_back_bit_for_bit_as_plain_numbers():
    found = {"mean": np.array([0.1, 1 / 3, 2e-17]).reshape(3, 1, 1), "count": np.array([7])}
    back = told_by(json.loads(json.dumps({ATTRIBUTE: {"a": told_plainly(found)}})), "a")
    assert (back["mean"] == found["mean"].ravel()).all()
    assert back["count"].tolist() == [7]
    assert told_plainly({"mean": np.array([np.inf])}) is None


def test_export_of_a_list_of_datasets_has_all_of_them(tmp_path, shards, recorded):
    es.export_lerobot([shards("raw"), recorded], tmp_path / "out", pictures="image", **FAST)
    assert_same(streamed(tmp_path / "out"), streamed([shards("raw"), recorded]))
    assert json.loads((tmp_path / "out" / "meta" / "info.json").read_text())["total_episodes"] == 6
    first = read_folder(tmp_path / "out").rows[TOP][0]["bytes"]
    with Image.open(io.BytesIO(first)) as image:
        np.testing.assert_array_equal(np.asarray(image), picture(0, 3))
