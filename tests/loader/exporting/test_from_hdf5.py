"""Exports of HDF5 files without packing them: order of splits, pictures upright, rates, and what cannot be exported."""

import io
import logging

import h5py
import numpy as np
import pytest
from every_layout import libero
from exporting.folder import read_folder
from exporting.streamed import FAST, assert_same, pictures_of, rows_of, streamed, tasks_of
from hdf5_files import aloha_jpeg, numbers, picture, robomimic
from PIL import Image

import epistream as es
from epistream.errors import DatasetExistsError, OptionError, SourceChangedError
from epistream.loader.exporting.choice import source_of

AGENT = "observation.images.agentview"


def masked(path):
    masks = {"train": ["demo_1", "demo_3"], "valid": ["demo_0", "demo_2"]}
    return robomimic(path, {"demo_0": 2, "demo_1": 3, "demo_2": 1, "demo_3": 4}, masks)


@pytest.mark.parametrize("version", ["3.0", "2.1"])
def test_export_of_recordings_with_masks_has_one_split_after_the_other(tmp_path, version):
    path = masked(tmp_path / "in" / "lift.hdf5")
    es.export_lerobot(path, tmp_path / "out", fps=20, version=version, pictures="image", **FAST)
    recorded = read_folder(tmp_path / "out")
    assert recorded.info["splits"] == {"train": "0:2", "val": "2:4"}
    assert [episode["length"] for episode in recorded.episodes] == [3, 4, 2, 1]
    with h5py.File(path) as file:
        actions = [file[f"data/demo_{number}/actions"][:] for number in (1, 3, 0, 2)]
    np.testing.assert_array_equal(rows_of(tmp_path / "out", "action"), np.concatenate(actions))
    wanted = [picture(step, seed) for seed, steps in ((1, 3), (3, 4), (0, 2), (2, 1)) for step in range(steps)]
    np.testing.assert_array_equal(pictures_of(tmp_path / "out", AGENT), np.stack(wanted))
    for split in ("train", "val"):
        source, found = streamed(path, split), streamed(tmp_path / "out", split)
        del source["episode_index"], found["episode_index"]
        assert_same(found, source)


@pytest.mark.parametrize("split", ["train", "val"])
def test_export_of_a_split_has_its_episodes_only(tmp_path, split):
    path = masked(tmp_path / "in" / "lift.hdf5")
    es.export_lerobot(path, tmp_path / "out", fps=20, split=split, features=["action"], **FAST)
    recorded = read_folder(tmp_path / "out")
    assert [episode["length"] for episode in recorded.episodes] == ([3, 4] if split == "train" else [2, 1])
    assert recorded.info["splits"] == {"train": "0:2"}


@pytest.mark.parametrize("task", ["", "grasp the cube"])
def test_episodes_without_an_instruction_have_the_one_that_is_given(tmp_path, task):
    path = masked(tmp_path / "in" / "lift.hdf5")
    es.export_lerobot(path, tmp_path / "out", fps=20, task=task, features=["action"], **FAST)
    assert read_folder(tmp_path / "out").tasks == [task]
    assert {text for batch in es.EpisodeStream(tmp_path / "out", batch_size=1) for text in batch["task"]} == {task}


def test_export_of_a_split_that_is_not_there_names_those_that_are(tmp_path):
    path = masked(tmp_path / "in" / "lift.hdf5")
    with pytest.raises(OptionError, match="no split 'test', it has train, val"):
        es.export_lerobot(path, tmp_path / "out", fps=20, split="test", **FAST)


@pytest.mark.parametrize("upright", [True, False])
def test_export_turns_pictures_that_were_recorded_upside_down(tmp_path, upright):
    path = libero(tmp_path / "in_demo.hdf5")
    es.export_lerobot(path, tmp_path / "out", fps=20, pictures="image", upright=upright, **FAST)
    wanted = np.stack([picture(step, seed) for seed, steps in ((0, 4), (1, 3)) for step in range(steps)])
    found = pictures_of(tmp_path / "out", AGENT)
    np.testing.assert_array_equal(found, wanted[:, ::-1, ::-1] if upright else wanted)
    assert set(tasks_of(tmp_path / "out")) == {"lift it"}


@pytest.mark.parametrize("upright", [True, False])
def test_export_of_videos_that_stand_on_their_heads_copies_them_only_as_recorded(tmp_path, upright):
    path = libero(tmp_path / "in_demo.hdf5")
    es.pack(path, tmp_path / "shards", codec="h264", gop=2, workers=1, crf=4)
    es.export_lerobot(tmp_path / "shards", tmp_path / "out", fps=20, crf=4, upright=upright, **FAST)
    held = streamed(tmp_path / "shards")[AGENT][:, 0].astype(int)
    found = streamed(tmp_path / "out")[AGENT][:, 0]
    if upright:
        assert np.abs(found - held[:, ::-1, ::-1]).mean() < 8
        assert np.abs(found - held).mean() > 20
    else:
        np.testing.assert_array_equal(found, held)


def test_export_of_jpegs_of_recorders_has_their_colours(tmp_path):
    path = aloha_jpeg(tmp_path / "in" / "episode_0.hdf5", 4)
    es.export_lerobot(path, tmp_path / "out", fps=50, pictures="image", **FAST)
    with h5py.File(path) as file:
        rows = file["observations/images/top"][:]
    pictures = [np.asarray(Image.open(io.BytesIO(row.tobytes())))[..., ::-1] for row in rows]
    found = pictures_of(tmp_path / "out", "observation.images.top").astype(int)
    assert np.abs(found - np.stack(pictures)).max() <= 2  # decoders round in their own ways
    assert_same(streamed(tmp_path / "out"), streamed(path))


def test_export_without_a_rate_asks_for_it(tmp_path):
    path = robomimic(tmp_path / "lift.hdf5", {"demo_0": 2})
    with h5py.File(path, "a") as file:
        del file["data"].attrs["env_args"]
    with pytest.raises(OptionError, match=r"does not say its rate, wanted steps a second.*--fps"):
        es.export_lerobot(path, tmp_path / "out", **FAST)
    assert not (tmp_path / "out").exists()
    es.export_lerobot(path, tmp_path / "out", fps=12.5, features=["action"], **FAST)
    assert rows_of(tmp_path / "out", "timestamp").tolist() == [0.0, np.float32(0.08)]
    assert read_folder(tmp_path / "out").info["fps"] == 12.5


def test_export_with_another_rate_than_the_recording_s_is_refused(tmp_path):
    path = aloha_jpeg(tmp_path / "in" / "episode_0.hdf5", 2)
    with pytest.raises(OptionError, match=r"50 steps a second, fps is 30\. Leave it out"):
        es.export_lerobot(path, tmp_path / "out", fps=30, **FAST)


def test_export_tells_what_it_leaves_out(tmp_path, caplog):
    path = robomimic(tmp_path / "lift.hdf5", {"demo_0": 3})
    with h5py.File(path, "a") as file:
        file["data/demo_0/obs/agentview_depth"] = numbers(3, 24 * 32, 0).reshape(3, 24, 32, 1)
    with caplog.at_level(logging.WARNING):
        es.export_lerobot(path, tmp_path / "out", fps=20, pictures="image", **FAST)
    told = [record.getMessage() for record in caplog.records if "depth" in record.getMessage()]
    features = read_folder(tmp_path / "out").info["features"]
    assert bool(told) != any("depth" in name for name in features)
    assert "action" in features


def test_export_of_nothing_but_what_cannot_be_exported_is_refused(tmp_path):
    path = robomimic(tmp_path / "lift.hdf5", {"demo_0": 3})
    with pytest.raises(OptionError, match="nothing"):
        es.export_lerobot(path, tmp_path / "out", fps=20, features=["nothing"], **FAST)


def test_export_of_a_recording_that_changes_meanwhile_says_so(tmp_path, monkeypatch):
    folder = tmp_path / "in"
    for number in range(2):
        aloha_jpeg(folder / f"episode_{number}.hdf5", 4, seed=number)

    def changing(*arguments):
        found = source_of(*arguments)
        aloha_jpeg(folder / "episode_1.hdf5", 4, seed=7)
        return found

    with monkeypatch.context() as patch:
        patch.setattr("epistream.loader.exporting.lerobot.source_of", changing)
        with pytest.raises(SourceChangedError, match=r"episode_1\.hdf5: .*replaced or written to since it was indexed"):
            es.export_lerobot(folder, tmp_path / "out", pictures="image", **FAST)
    assert not (tmp_path / "out" / "meta" / "info.json").exists()
    # With what is there now, it is another export.
    with pytest.raises(DatasetExistsError, match="of other source, wanted the same"):
        es.export_lerobot(folder, tmp_path / "out", pictures="image", **FAST)
