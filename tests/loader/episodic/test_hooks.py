"""What users put into OptimizedEpisodicDataset: hooks of subclasses, fallbacks, normalizers."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from episodic_world import CAMERAS, places
from of_users import Told, ToldByPath

import epistream as es
from epistream.errors import EpistreamError, FormatError, OptionError
from epistream.loader.episodic.dataset import OptimizedEpisodicDataset
from epistream.loader.samples.normalize import Normalizer


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


def test_subclass_written_for_the_base_class_of_il_studio_opens_files_itself(aloha_files):
    class Sim(OptimizedEpisodicDataset):
        def load_onestep_from_episode(self, dataset_path, start_ts=None):
            root = self.loaded_data[dataset_path] if self.loaded_data is not None else h5py.File(dataset_path, "r")
            action = root["/action"][start_ts : start_ts + self.chunk_size]
            state = root["/observations/qpos"][start_ts]
            if self.loaded_data is None:
                root.close()
            image = {name: np.zeros((4, 4, 3), np.uint8) for name in self.camera_names}
            return {"action": action, "image": image, "state": state, "language_instruction": "go", "reasoning": ""}

    sample = Sim(list(map(str, aloha_files)), CAMERAS, chunk_size=30)[130]
    with h5py.File(aloha_files[1]) as file:
        np.testing.assert_array_equal(sample["action"][:10].numpy(), file["action"][50:])
        np.testing.assert_array_equal(sample["state"].numpy(), file["observations/qpos"][50])
    assert (sample["raw_lang"], sample["is_pad"].sum().item()) == ("go", 20)


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


class OfBoth:
    """As IL-Studio's: one object for states and actions, told which it gets."""

    def normalize(self, data, datatype="action"):
        return data - {"action": 3.0, "state": -7.0}[datatype]


def test_normalizers_of_il_studio_are_told_whether_they_get_a_state_or_an_action(source):
    plain = OptimizedEpisodicDataset(source, CAMERAS, ctrl_type="abs")[3]
    both = {OptimizedEpisodicDataset(source, CAMERAS).get_dataset_dir(): OfBoth()}
    sample = OptimizedEpisodicDataset(source, CAMERAS, both, both, ctrl_type="abs")[3]
    np.testing.assert_allclose(sample["action"].numpy(), plain["action"].numpy() - 3, rtol=1e-6)
    np.testing.assert_allclose(sample["state"].numpy(), plain["state"].numpy() + 7, rtol=1e-6)


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
