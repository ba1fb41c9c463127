"""OptimizedEpisodicDataset against a direct reading of the files: samples, attributes, whole episodes."""

import shutil
from pathlib import Path

import code_bases
import numpy as np
import pytest
import torch
from episodic_world import CAMERAS, LENGTHS, assert_sample, expected_sample, places

import epistream as es
from epistream.errors import OptionError
from epistream.loader.episodic.dataset import OptimizedEpisodicDataset


@pytest.mark.parametrize("ctrl", ["abs", "delta", "delta_first"])
def test_every_sample_equals_a_direct_reading(source, aloha_files, ctrl):
    dataset = OptimizedEpisodicDataset(source, CAMERAS, chunk_size=20, ctrl_type=ctrl)
    assert len(dataset) == 140
    indices = range(140) if ctrl == "abs" else range(0, 140, 7)
    for first in range(0, len(indices), 20):
        some = list(indices)[first : first + 20]
        for index, sample in zip(some, dataset.__getitems__(some), strict=True):
            episode, t = places()[index]
            assert_sample(sample, expected_sample(aloha_files[episode], episode, t, 20, ctrl))


def test_no_indices_give_no_samples(aloha_shards):
    assert OptimizedEpisodicDataset([aloha_shards], CAMERAS).__getitems__([]) == []


def test_delta_of_unlike_shapes_is_refused_with_what_would_work(example_data):
    class Lift(OptimizedEpisodicDataset):
        state_features = ("observation.robot0_eef_pos",)

    with pytest.raises(OptionError, match=r"shape \(7,\), .* \(3,\), wanted the same\. Use ctrl_type='abs'"):
        Lift([example_data / "robomimic" / "scripted_lift.hdf5"], ["agentview"])


def test_single_samples_equal_batched_ones_also_from_the_end(source):
    dataset = OptimizedEpisodicDataset(source, CAMERAS)
    batched = dataset.__getitems__([0, 79, 80, 139, 79])
    for index, sample in zip((0, 79, -60, -1, 79), batched, strict=True):
        single = dataset[index]
        for key, value in sample.items():
            assert torch.equal(single[key], value) if isinstance(value, torch.Tensor) else single[key] == value
    for index in (140, -141):
        with pytest.raises(IndexError):
            dataset[index]


def test_attributes_are_those_of_the_class_it_replaces(source, aloha_files):
    dataset = OptimizedEpisodicDataset(source, CAMERAS, data_args="kept")
    assert dataset.dataset_path_list == source
    assert (dataset.camera_names, dataset.chunk_size, dataset.ctrl_space, dataset.ctrl_type) == (
        CAMERAS,
        16,
        "ee",
        "delta",
    )
    assert dataset.data_args == "kept"
    assert dataset.episode_ids.tolist() == [0, 1]
    assert dataset.episode_len.tolist() == LENGTHS
    assert dataset.cumulative_len.tolist() == [80, 140]
    assert (dataset.max_episode_len, dataset.num_episodes) == (80, 2)
    assert len(dataset.episode_paths) == 2
    folder = aloha_files[0].parent if source[0].endswith("hdf5") else Path(source[0])
    assert dataset.get_dataset_dir() == str(folder)
    # What its trainer asks to tell map-style from iterable.
    assert hasattr(dataset, "__getitem__")
    assert hasattr(dataset, "__len__")


def test_both_constructor_forms_mean_the_same(source):
    long = OptimizedEpisodicDataset(source, CAMERAS, {}, {}, None, 8, "joint", "abs", True, 100, True)
    for short in (
        OptimizedEpisodicDataset(source, CAMERAS, 8, "joint", "abs", (64, 48), False),
        OptimizedEpisodicDataset(source, CAMERAS, 8, "joint", ctrl_type="abs", image_size=(64, 48)),
        OptimizedEpisodicDataset(source, CAMERAS, 8, ctrl_space="joint", ctrl_type="abs", image_size=(64, 48)),
        OptimizedEpisodicDataset(
            source, CAMERAS, chunk_size=8, ctrl_space="joint", ctrl_type="abs", image_size=(64, 48)
        ),
    ):
        assert (short.chunk_size, short.ctrl_space, short.ctrl_type) == (8, "joint", "abs")
        sample = short[3]
        assert sample["image"].shape == (2, 3, 48, 64)
        assert torch.equal(sample["action"], long[3]["action"])
    assert OptimizedEpisodicDataset(source, CAMERAS, 8).ctrl_type == "delta"


def test_list_of_one_folder_is_walked_in_natural_order(aloha_files, tmp_path):
    for number, path in ((10, aloha_files[0]), (9, aloha_files[1])):
        (tmp_path / "deep").mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / "deep" / f"episode_{number}.hdf5")
    dataset = OptimizedEpisodicDataset([str(tmp_path)], CAMERAS)
    assert [Path(path).name for path in dataset.dataset_path_list] == ["episode_9.hdf5", "episode_10.hdf5"]
    assert dataset.episode_len.tolist() == [60, 80]


def test_preloaded_and_uncached_datasets_give_the_same(source):
    plain = OptimizedEpisodicDataset(source, CAMERAS)[7]
    for options in ({"preload_data": True}, {"use_shared_memory": False}, {"cache": es.CacheOptions(mode="off")}):
        other = OptimizedEpisodicDataset(source, CAMERAS, **options)[7]
        assert torch.equal(plain["image"], other["image"])
        assert torch.equal(plain["action"], other["action"])


def test_load_onestep_gives_unpadded_actions_and_pictures_by_camera(source, aloha_files):
    dataset = OptimizedEpisodicDataset(source, CAMERAS, ctrl_type="abs")
    onestep = dataset.load_onestep_from_episode(dataset.episode_paths[1], 55)
    episode = code_bases.aloha(aloha_files[1])
    np.testing.assert_array_equal(onestep["action"], episode["action"][55:60])
    np.testing.assert_array_equal(onestep["state"], episode["state"][55])
    assert list(onestep["image"]) == CAMERAS
    for camera in CAMERAS:
        np.testing.assert_array_equal(onestep["image"][camera], episode["images"][camera][55])
    assert (onestep["language_instruction"], onestep["reasoning"]) == ("", "")
    for path, step in ((dataset.episode_paths[1], 60), ("nowhere.hdf5", 0)):
        with pytest.raises(OptionError):
            dataset.load_onestep_from_episode(path, step)


def test_features_of_whole_episodes(source, aloha_files):
    dataset = OptimizedEpisodicDataset(source, ["angle"])
    episode = code_bases.aloha(aloha_files[1])
    whole = dataset.extract_from_episode(1, ["action", "state", "observation.qvel"])
    assert list(whole) == ["action", "state", "observation.qvel"]
    np.testing.assert_array_equal(whole["action"], episode["action"])
    np.testing.assert_array_equal(whole["state"], episode["state"])
    np.testing.assert_array_equal(whole["observation.qvel"], episode["low_dim"]["qvel"])
    everything = dataset.load_feat_from_episode(dataset.episode_paths[1])
    assert list(everything) == ["action", "state", "image", "language_instruction"]
    np.testing.assert_array_equal(everything["image"]["angle"], episode["images"]["angle"])
    with pytest.raises(OptionError, match=r"observation\.touch"):
        dataset.extract_from_episode(0, "observation.touch")
    with pytest.raises(OptionError, match="episode 2 of 2"):
        dataset.extract_from_episode(2)


@pytest.mark.parametrize("ctrl", ["abs", "delta", "delta_first"])
def test_dataset_statistics_equal_numpy(source, aloha_files, ctrl):
    statistics = OptimizedEpisodicDataset(source, CAMERAS, ctrl_type=ctrl, chunk_size=7).get_dataset_statistics()
    episodes = [code_bases.aloha(path) for path in aloha_files]
    state = np.concatenate([episode["state"] for episode in episodes]).astype(np.float64)
    parts = []
    for episode in episodes:
        for t in range(len(episode["action"])):
            if ctrl == "abs":
                parts.append(episode["action"][t : t + 1])
            elif ctrl == "delta":
                parts.append(episode["action"][t : t + 1] - episode["state"][t : t + 1])
            else:
                parts.append(episode["action"][t : t + 7] - episode["state"][t])
    action = np.concatenate(parts).astype(np.float64)
    assert (statistics["num_transitions"], statistics["num_trajectories"]) == (140, 2)
    for name, values in (("state", state), ("action", action)):
        assert list(statistics[name]) == ["mean", "std", "min", "max", "q01", "q99"]
        for key, expected in (
            ("mean", values.mean(axis=0)),
            ("std", values.std(axis=0)),
            ("min", values.min(axis=0)),
            ("max", values.max(axis=0)),
            ("q01", np.quantile(values, 0.01, axis=0)),
        ):
            np.testing.assert_allclose(statistics[name][key], expected, atol=2e-5, err_msg=f"{name} {key}")


def test_files_of_several_episodes_are_told_apart_by_number(example_data):
    path = example_data / "robomimic" / "scripted_lift.hdf5"

    class Lift(OptimizedEpisodicDataset):
        state_features = ("observation.robot0_eef_pos", "observation.robot0_gripper_qpos")

    dataset = Lift([path], ["agentview_image"], ctrl_type="abs")
    demos = code_bases.robomimic(path)
    assert dataset.episode_len.tolist() == [len(demo["action"]) for demo in demos]
    assert dataset.episode_paths[1] == f"{path}#1"
    index = 0
    for demo in demos:
        expected = np.concatenate([demo["low_dim"]["robot0_eef_pos"], demo["low_dim"]["robot0_gripper_qpos"]], axis=1)
        for t in range(len(demo["action"])):
            sample = dataset[index]
            np.testing.assert_array_equal(sample["state"].numpy(), expected[t].astype(np.float32))
            np.testing.assert_array_equal(sample["action"][0].numpy(), demo["action"][t].astype(np.float32))
            np.testing.assert_array_equal(
                sample["image"][0].numpy(), demo["images"]["agentview_image"][t].transpose(2, 0, 1)
            )
            index += 1
    assert index == len(dataset)
    with pytest.raises(OptionError, match="Append its number"):
        dataset.load_onestep_from_episode(path, 0)
    with pytest.raises(OptionError, match="Set state_features"):
        OptimizedEpisodicDataset([path], ["agentview"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunk_size": 0}, "chunk_size: 0"),
        ({"chunk_size": True}, "chunk_size: True"),
        ({"ctrl_type": "relative"}, "ctrl_type: 'relative', wanted one of abs, absolute, delta"),
        ({"image_size": (0, 10)}, "image_size"),
    ],
)
def test_impossible_options_are_refused(aloha_shards, options, message):
    with pytest.raises(OptionError) as caught:
        OptimizedEpisodicDataset([aloha_shards], CAMERAS, **options)
    assert message in str(caught.value)
