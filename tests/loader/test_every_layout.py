"""Every layout that packing supports, read directly: the same windows as from shards, and known values of each."""

import every_layout
import h5py
import numpy as np
import pytest
import torch

import epistream as es
from epistream.errors import LayoutError, OptionError
from epistream.sharding.layouts.layout_file import read_layout_file
from epistream.sharding.layouts.registry import LAYOUTS, scan_source


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def batches(source):
    window = es.Window(obs=[-1, 0], action=[0, 1, 2])
    stream = es.EpisodeStream(source, batch_size=4, window=window, shuffle=False, remainder="uneven", split=None)
    return stream, list(stream)


def test_there_is_a_file_of_every_layout():
    assert list(every_layout.WRITERS) == [layout.name for layout in LAYOUTS]


@pytest.mark.parametrize("name", every_layout.WRITERS)
def test_stream_of_a_file_gives_the_windows_of_its_shards(tmp_path, name):
    path = every_layout.write(name, tmp_path / "source")
    scan = scan_source(path)
    assert (scan.layout, scan.faults) == (name, ())
    has_jpeg = any(field.feature.codec == "jpeg" for field in scan.episodes[0].fields)
    es.pack(path, tmp_path / "shards", codec=None if has_jpeg else "raw")
    direct, ours = batches(path)
    packed, theirs = batches(tmp_path / "shards")
    assert direct.num_windows == packed.num_windows == sum(episode.length for episode in scan.episodes)
    assert list(direct.job.features) == list(packed.job.features)
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key], key


def whole(source, **options):
    """All steps of a file at once, one a window."""
    stream = es.EpisodeStream(source, batch_size=100, shuffle=False, remainder="uneven", split=None, **options)
    (batch,) = stream
    return stream, {key: value[:, 0].numpy() for key, value in batch.items() if f"{key}_is_pad" in batch} | {
        "task": batch["task"]
    }


def test_robotwin_v1_states_actions_instructions_and_rate(tmp_path):
    path = every_layout.write("robotwin-v1", tmp_path)
    stream, steps = whole(path)
    with h5py.File(path) as file:
        for name in file["state"]:
            np.testing.assert_array_equal(steps[f"observation.{name}"], file[f"state/{name}"][:])
            np.testing.assert_array_equal(steps[f"action.{name}"], file[f"action/{name}"][:])
        depths = file["vision/cam_head/depths"][:]
        np.testing.assert_array_equal(steps["observation.images.cam_head_depth"][..., 0], depths)
    assert stream.job.dataset.tasks == ("stack the bowls", "pile them")
    assert {feature.fps for feature in stream.job.features.values()} == {15.0}
    assert stream.job.features["observation.images.cam_head"].jpeg_channels == "bgr"


def test_minari_leaves_the_last_observation_out_and_takes_the_mission(tmp_path):
    path = every_layout.write("minari", tmp_path)
    stream, steps = whole(path)
    assert stream.job.dataset.episode_length.tolist() == [5, 3]
    with h5py.File(path) as file:
        first, second = file["episode_9"], file["episode_10"]
        joints = np.concatenate([first["observations/robot/joints"][:5], second["observations/robot/joints"][:3]])
        np.testing.assert_array_equal(steps["observation.robot.joints"], joints.astype(np.float32))
        camera = np.concatenate([first["observations/camera"][:5], second["observations/camera"][:3]])
        np.testing.assert_array_equal(steps["observation.images.camera"], camera)
        np.testing.assert_array_equal(steps["action"], np.concatenate([first["actions"], second["actions"]]))
    assert steps["terminated"].tolist() == [0, 0, 0, 0, 1, 0, 0, 1]
    assert steps["task"] == ["go to the red door"] * 8
    (episode, _) = scan_source(path).episodes
    assert episode.left_out == ("/episode_9/infos", "/episode_9/observations/mission")


def test_minari_array_observations_are_the_state(tmp_path):
    with h5py.File(tmp_path / "main_data.hdf5", "w") as file:
        file["episode_0/observations"] = np.arange(8.0).reshape(4, 2)
        file["episode_0/actions"] = np.arange(3)
    _, steps = whole(tmp_path / "main_data.hdf5")
    assert steps["observation.state"].tolist() == [[0, 1], [2, 3], [4, 5]]
    assert steps["action"].tolist() == [0, 1, 2]


def test_minari_without_the_last_observation_is_the_same(tmp_path):
    paths = [every_layout.minari(tmp_path / f"{spare}.hdf5", spare=spare) for spare in (0, 1)]
    (_, one), (_, other) = (whole(path) for path in paths)
    np.testing.assert_array_equal(one["action"], other["action"])
    np.testing.assert_array_equal(one["observation.images.camera"], other["observation.images.camera"])


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda episode: episode.attrs.__setitem__("total_steps", 6), "/episode_9: 5 actions, wanted 6 as in its attr"),
        (
            lambda episode: episode.pop("actions") and episode.create_dataset("actions", data=[[1.0]]),
            "/episode_9/actions: 1 steps, wanted 5 as in /episode_9/rewards",
        ),
        (
            lambda episode: (
                episode.pop("observations/camera")
                and episode.create_dataset("observations/camera", data=np.zeros((9, 8, 8, 3), np.uint8))
            ),
            "/episode_9/observations/camera: 9 steps, wanted 6: one more than /episode_9/actions",
        ),
    ],
)
def test_minari_episode_that_does_not_agree_with_itself_is_a_fault(tmp_path, harm, words):
    path = every_layout.write("minari", tmp_path)
    with h5py.File(path, "a") as file:
        harm(file["episode_9"])
    (message,) = scan_source(path).faults
    assert words in message


def test_vla_os_numbers_of_its_reasoning_are_features_and_its_rate_is_known(tmp_path):
    path = every_layout.write("ilstudio-vla-os", tmp_path)
    stream, steps = whole(path)
    with h5py.File(path) as file:
        for name in ("gripper_position", "target_position"):
            np.testing.assert_array_equal(steps[f"reasoning.{name}"], file[f"reasoning/{name}"][:])
    assert stream.job.features["action"].fps == 20.0
    (episode,) = scan_source(path).episodes
    assert episode.left_out == (
        "/episode_len",
        "/reasoning/direction (texts, wanted numbers)",
        "/reasoning/subtask (texts, wanted numbers)",
    )


@pytest.fixture
def own(tmp_path):
    """A file of no known layout, and the file that describes it."""
    return every_layout.write_own(tmp_path)


def test_a_layout_of_ones_own_is_read_directly_as_it_is_packed(own, tmp_path):
    path, description = own
    with pytest.raises(LayoutError, match="fits no known layout"):
        es.EpisodeStream(path)
    stream, steps = whole(path, layout=description)
    assert steps["observation.state"][:, 0].tolist() == [0, 2, 4, 6, 8, 100, 102, 104, 106, 108]
    assert steps["action"][:, 0].tolist() == [2, 4, 6, 8, 10, 102, 104, 106, 108, 110]
    assert steps["task"] == ["goal 0"] * 5 + ["goal 1"] * 5
    assert stream.job.features["observation.images.front"].rotate == 180
    es.pack(path, tmp_path / "shards", layout=read_layout_file(description), codec="raw")
    _, packed = whole(tmp_path / "shards")
    for name in ("observation.state", "action", "observation.images.front"):
        np.testing.assert_array_equal(steps[name], packed[name])
    statistics = es.open_dataset(tmp_path / "shards").statistics
    assert stream.job.dataset.statistics == statistics


def test_another_description_of_the_same_file_is_another_index(own):
    path, description = own
    whole(path, layout=description)
    description.write_text(every_layout.OWN.replace("shift: 1", "shift: 2"))
    _, steps = whole(path, layout=str(description))
    assert steps["action"][:, 0].tolist() == [4, 6, 8, 10, 104, 106, 108, 110]


def test_a_layout_is_insisted_on_by_name_and_a_wrong_one_is_refused(tmp_path):
    path = every_layout.write("mobile-aloha", tmp_path)
    assert "base_action" in es.EpisodeStream(path, layout="mobile-aloha").job.features
    with pytest.raises(LayoutError, match=r"mobile-aloha\.hdf5: found .*wanted robomimic: /data"):
        es.EpisodeStream(path, layout="robomimic")
    with pytest.raises(OptionError, match="layout 'robomimik': wanted a YAML file, or one of libero, robomimic"):
        es.EpisodeStream(path, layout="robomimik")


def test_map_style_dataset_and_configurations_take_a_layout(own):
    path, description = own

    class Koch(es.OptimizedEpisodicDataset):
        layout = description

    assert Koch([path], ["front"])[9]["state"].tolist() == [108, 109]
    assert Koch([path], ["front"], skip_bad=True).num_episodes == 2
    config = es.load_config(source=str(path), layout=str(description))
    assert es.EpisodeStream.from_config(config).num_windows == 10


def test_a_layout_of_shards_is_refused_because_packing_has_settled_it(own, tmp_path):
    path, description = own
    es.pack(path, tmp_path / "shards", layout=read_layout_file(description), codec="raw")
    for source in (tmp_path / "shards", str(tmp_path / "shards" / "*.tar")):
        with pytest.raises(OptionError, match=r"shards.*: shards, .*wanted HDF5 files.* Leave 'layout' out"):
            es.EpisodeStream(source, layout=description)
    both = es.EpisodeStream([path, tmp_path / "shards"], layout=description)  # it is that of the HDF5 file
    assert both.num_windows == 20
