"""OptimizedEpisodicDataset against a direct reading of the files, and the defects of the class that it replaces."""

import gc
import multiprocessing
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import code_bases
import h5py
import numpy as np
import pytest
import torch
from episodic_subclasses import Told, ToldByPath
from torch.utils.data import DataLoader, DistributedSampler

import epistream as es
from epistream.errors import EpistreamError, FormatError, OptionError, SourceError
from epistream.loader.episodic import OptimizedEpisodicDataset
from epistream.loader.normalize import Normalizer

CAMERAS = ["top", "angle"]
LENGTHS = [80, 60]


class FallsBack(OptimizedEpisodicDataset):
    def _fallback_load_onestep(self, dataset_path, start_ts):
        return {
            "action": np.full((3, 14), start_ts, np.float64),
            "image": {name: np.full((4, 4, 3), 7, np.uint8) for name in self.camera_names},
            "state": np.zeros(14),
            "language_instruction": "from the fallback",
            "reasoning": "none",
        }


class LoadsItself(OptimizedEpisodicDataset):
    def load_onestep_from_episode(self, dataset_path, start_ts):
        onestep = super().load_onestep_from_episode(dataset_path, start_ts)
        return {**onestep, "state": onestep["state"] * 2, "reasoning": f"at {start_ts}"}


@pytest.fixture(params=["hdf5", "shards"])
def source(request, aloha_files, aloha_shards):
    return list(map(str, aloha_files)) if request.param == "hdf5" else [str(aloha_shards)]


@pytest.fixture
def files_copy(aloha_files, tmp_path):
    return [Path(shutil.copy(path, tmp_path / path.name)) for path in aloha_files]


def expected_sample(path, episode_id, t, chunk=16, ctrl="abs", text=""):
    episode = code_bases.aloha(path)
    episode = {**episode, "images": {name: episode["images"][name] for name in CAMERAS}}
    sample = code_bases.ilstudio(episode, t, chunk, episode_id, text)
    count = int((~sample["is_pad"]).sum())
    if ctrl == "delta":
        sample["action"][:count] -= episode["state"][t : t + count]
    if ctrl == "delta_first":
        sample["action"][:count] -= episode["state"][t]
    return sample


def assert_sample(found, expected):
    assert list(found) == list(expected)
    for key, value in expected.items():
        if isinstance(value, np.ndarray):
            assert found[key].numpy().dtype == value.dtype, key
            assert np.array_equal(found[key].numpy(), value), key
        else:
            assert found[key] == value, key
            assert type(found[key]) is type(value), key


def places_of(batch):
    return list(zip(batch["episode_id"].tolist(), batch["timestamp"].tolist(), strict=True))


def places():
    return [(episode, t) for episode, length in enumerate(LENGTHS) for t in range(length)]


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


# The defects of that class, one by one.


@pytest.mark.parametrize(("method", "num_workers"), [("spawn", 1), ("fork", 2)])
def test_defect_pickling_workers_of_either_start_method_give_the_same(aloha_files, method, num_workers):
    dataset = Told(aloha_files, CAMERAS, chunk_size=4)
    expected = dataset.__getitems__(range(12))  # used before the fork, too
    loader = DataLoader(
        dataset,
        batch_size=6,
        sampler=range(12),
        num_workers=num_workers,
        multiprocessing_context=method,
        timeout=60,
    )
    batches = list(loader)
    for key in ("image", "action", "state", "is_pad"):
        found = torch.cat([batch[key] for batch in batches])
        assert torch.equal(found, torch.stack([sample[key] for sample in expected])), key
    assert batches[0]["raw_lang"] == ["complete the task"] * 6
    assert torch.cat([batch["timestamp"] for batch in batches]).tolist() == list(range(12))


def test_defect_pickling_round_trip_reads_on(source):
    dataset = ToldByPath(source, CAMERAS, action_normalizers={}, chunk_size=5)
    dataset[0]
    again = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(again[90]["image"], dataset[90]["image"])
    assert again[90]["raw_lang"] == dataset[90]["raw_lang"]


def test_defect_open_files_number_of_descriptors_does_not_grow(source):
    dataset = OptimizedEpisodicDataset(source, CAMERAS)
    dataset.__getitems__([0, 100])
    gc.collect()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for index in range(0, 140, 10):
        dataset[index]
    gc.collect()
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


def test_defect_jpeg_rows_arrive_decoded_and_state_is_not_empty(source, aloha_files):
    sample = OptimizedEpisodicDataset(source, ["top"])[0]
    assert sample["image"].shape == (1, 3, 480, 640)
    with h5py.File(aloha_files[0]) as file:
        np.testing.assert_array_equal(sample["state"].numpy(), file["observations/qpos"][0])


def test_defect_missing_camera_is_an_error_that_names_it(source):
    with pytest.raises(OptionError, match=r"no camera 'wrist', the files have \['angle', 'top'\]"):
        OptimizedEpisodicDataset(source, ["top", "wrist"])
    with pytest.raises(OptionError, match="at least one, each once"):
        OptimizedEpisodicDataset(source, [])


def test_defect_instruction_is_the_text_itself(tmp_path):
    with h5py.File(tmp_path / "episode_0.hdf5", "w") as file:
        file.attrs["sim"] = False
        file["observations/qpos"] = np.zeros((3, 2), np.float32)
        file["observations/images/top"] = np.zeros((3, 8, 8, 3), np.uint8)
        file["action"] = np.zeros((3, 2), np.float32)
        file["language_raw"] = [b"fold the towel"]
    dataset = OptimizedEpisodicDataset([tmp_path / "episode_0.hdf5"], ["top"])
    assert dataset[0]["raw_lang"] == "fold the towel"
    assert dataset.load_feat_from_episode(dataset.episode_paths[0], "language_instruction") == {
        "language_instruction": "fold the towel"
    }


def test_defect_unreadable_file_is_an_error_or_left_out_by_name(files_copy, tmp_path):
    bad = tmp_path / "episode_2.hdf5"
    bad.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(500))
    with pytest.raises((SourceError, FormatError), match="episode_2"):
        OptimizedEpisodicDataset([*files_copy, bad], CAMERAS)
    dataset = OptimizedEpisodicDataset([*files_copy, bad], CAMERAS, skip_bad=True)
    assert dataset.episode_len.tolist() == LENGTHS
    assert list(dataset.skipped) == [str(bad)]
    assert "episode_2" in dataset.skipped[str(bad)]
    with pytest.raises(EpistreamError, match="episode_2"):
        OptimizedEpisodicDataset([bad], CAMERAS, skip_bad=True)


# Hooks.


def test_instruction_hook_is_called_with_and_without_the_path(source):
    assert Told(source, CAMERAS)[100]["raw_lang"] == "complete the task"
    dataset = ToldByPath(source, CAMERAS)
    assert dataset[100]["raw_lang"] == f"look at {Path(dataset.episode_paths[1]).name}"


def test_own_load_onestep_is_honoured_also_in_batches(source, aloha_files):
    dataset = LoadsItself(source, CAMERAS, ctrl_type="abs")
    plain = OptimizedEpisodicDataset(source, CAMERAS, ctrl_type="abs")
    for index in (0, 75, 139):
        mine, theirs = dataset[index], plain[index]
        assert torch.equal(mine["state"], theirs["state"] * 2)
        for key in ("image", "action", "is_pad"):
            assert torch.equal(mine[key], theirs[key]), key
        assert mine["reasoning"] == f"at {places()[index][1]}"


def test_fallback_gives_the_sample_when_a_file_breaks_and_only_then(files_copy):
    dataset = FallsBack(files_copy, CAMERAS, chunk_size=5)
    files_copy[1].write_bytes(b"gone")
    good, bad = dataset.__getitems__([3, 85])
    assert good["image"].shape == (2, 3, 480, 640)
    assert bad["image"].shape == (2, 3, 4, 4)
    assert bad["action"][:, 0].tolist() == [5, 5, 5, 0, 0]
    assert bad["is_pad"].tolist() == [False, False, False, True, True]
    assert bad["action"].dtype == bad["state"].dtype == torch.float32
    assert (bad["raw_lang"], bad["reasoning"]) == ("from the fallback", "none")
    assert (bad["timestamp"], bad["episode_id"]) == (5, 1)
    assert "1 by the fallback" in dataset.performance_report()


def test_without_a_fallback_the_read_error_is_raised_by_name(files_copy):
    for kind in (OptimizedEpisodicDataset, type("Passes", (FallsBack,), {"_fallback_load_onestep": _nothing})):
        dataset = kind(files_copy, CAMERAS)
        data = files_copy[1].read_bytes()
        files_copy[1].write_bytes(b"gone")
        with pytest.raises(EpistreamError, match="episode_1"):
            dataset[85]
        assert dataset[3]["timestamp"] == 3
        files_copy[1].write_bytes(data)


def _nothing(self, dataset_path, start_ts):
    pass


def test_fallback_without_a_camera_is_an_error_not_a_black_image(files_copy):
    class Forgets(FallsBack):
        def _fallback_load_onestep(self, dataset_path, start_ts):
            onestep = super()._fallback_load_onestep(dataset_path, start_ts)
            del onestep["image"]["angle"]
            return onestep

    dataset = Forgets(files_copy, CAMERAS)
    files_copy[0].write_bytes(b"gone")
    with pytest.raises(FormatError, match="without angle"):
        dataset[0]


# Normalizers.


class MeanOnly:
    """What user code has: numpy, and a method."""

    def __init__(self, mean):
        self.mean = mean

    def normalize(self, values):
        return values - self.mean


def test_normalizers_are_applied_after_zero_padding(source):
    plain = OptimizedEpisodicDataset(source, CAMERAS, ctrl_type="abs")
    folder = plain.get_dataset_dir()
    mean = np.arange(14, dtype=np.float64)
    dataset = OptimizedEpisodicDataset(
        source, CAMERAS, {folder: MeanOnly(mean)}, {folder: lambda state: state * 2}, ctrl_type="abs"
    )
    mine, theirs = dataset[79], plain[79]
    assert mine["is_pad"].tolist() == [False] + [True] * 15
    np.testing.assert_array_equal(mine["action"][15].numpy(), -mean.astype(np.float32))
    np.testing.assert_allclose(mine["action"][0].numpy(), theirs["action"][0].numpy() - mean, rtol=1e-6)
    assert torch.equal(mine["state"], theirs["state"] * 2)
    assert mine["action"].dtype == torch.float32
    dataset.set_action_normalizers({})
    dataset.set_state_normalizers(None)
    assert torch.equal(dataset[79]["action"], theirs["action"])


def test_one_normalizer_for_all_and_ours(source):
    statistics = es.open_dataset(source).statistics
    normalizer = Normalizer(statistics, {"action": "mean_std"})
    plain = OptimizedEpisodicDataset(source, CAMERAS, ctrl_type="abs")[10]["action"]
    dataset = OptimizedEpisodicDataset(source, CAMERAS, normalizer, ctrl_type="abs")
    np.testing.assert_allclose(normalizer.unnormalize("action", dataset[10]["action"]), plain, atol=1e-5)


def test_normalizers_of_other_folders_are_refused(source):
    dataset = OptimizedEpisodicDataset(source, CAMERAS, {"/elsewhere": MeanOnly(0)})
    with pytest.raises(OptionError, match=r"for \['/elsewhere'\], wanted one for"):
        dataset[0]


# By episode.


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


# Processes and threads.


def test_threads_share_one_dataset(source):
    dataset = OptimizedEpisodicDataset(source, ["top"], chunk_size=4)
    expected = {index: dataset[index] for index in range(0, 140, 9)}
    with ThreadPoolExecutor(4) as pool:
        for index, sample in zip(expected, pool.map(dataset.__getitem__, expected), strict=True):
            assert torch.equal(sample["image"], expected[index]["image"])
            assert torch.equal(sample["action"], expected[index]["action"])


def _read_in_child(dataset, out):
    out.send(dataset[90]["action"].numpy())
    out.close()


def test_fork_while_another_thread_reads_does_not_deadlock(source):
    dataset = OptimizedEpisodicDataset(source, CAMERAS)
    expected = dataset[90]["action"].numpy()
    here, there = multiprocessing.Pipe(duplex=False)
    with dataset._access._lock:  # as if a read were going on in a thread that the child does not have
        child = multiprocessing.get_context("fork").Process(target=_read_in_child, args=(dataset, there))
        child.start()
        assert here.poll(60)
        np.testing.assert_array_equal(here.recv(), expected)
        child.join(60)
    assert child.exitcode == 0


def test_distributed_sampler_divides_the_windows_and_follows_set_epoch(source):
    dataset = OptimizedEpisodicDataset(source, ["top"], chunk_size=2)
    seen = []
    for rank in range(2):
        sampler = DistributedSampler(dataset, num_replicas=2, rank=rank, seed=1)
        loader = DataLoader(dataset, batch_size=35, sampler=sampler)
        sampler.set_epoch(0)
        first = [place for batch in loader for place in places_of(batch)]
        sampler.set_epoch(1)
        assert first[:35] != places_of(next(iter(loader)))
        seen += first
    assert sorted(seen) == places()


def test_dataloader_reads_a_batch_in_one_call(source, monkeypatch):
    dataset = OptimizedEpisodicDataset(source, ["top"])
    sizes = []
    read = dataset._access.read
    monkeypatch.setattr(
        dataset._access, "read", lambda episodes, steps: sizes.append(len(steps)) or read(episodes, steps)
    )
    next(iter(DataLoader(dataset, batch_size=10)))
    assert sizes == [10]


def test_reports_and_clearing_the_cache(source, capsys):
    dataset = OptimizedEpisodicDataset(source, ["top"], enable_monitoring=True)
    dataset[0]
    dataset.print_performance_report()
    assert "1 samples" in capsys.readouterr().out
    dataset.clear_cache()
    assert dataset[0]["timestamp"] == 0


def test_defect_unreadable_file_of_a_real_recording_is_named(shared_data, aloha_files):
    bad = shared_data / "ilstudio" / "tmp.hdf5"
    with pytest.raises(EpistreamError, match=r"tmp\.hdf5"):
        OptimizedEpisodicDataset([aloha_files[0], bad], CAMERAS)
    dataset = OptimizedEpisodicDataset([aloha_files[0], bad], CAMERAS, skip_bad=True)
    assert (len(dataset), list(dataset.skipped)) == (80, [str(bad)])
