"""The defects of the class that OptimizedEpisodicDataset replaces, one by one."""

import gc
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from episodic_world import CAMERAS, LENGTHS
from of_users import Told, ToldByPath
from torch.utils.data import DataLoader

from epistream.errors import EpistreamError, FormatError, OptionError, SourceError
from epistream.loader.episodic.dataset import OptimizedEpisodicDataset


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


def test_defect_unreadable_file_of_a_real_recording_is_named(shared_data, aloha_files):
    bad = shared_data / "ilstudio" / "tmp.hdf5"
    with pytest.raises(EpistreamError, match=r"tmp\.hdf5"):
        OptimizedEpisodicDataset([aloha_files[0], bad], CAMERAS)
    dataset = OptimizedEpisodicDataset([aloha_files[0], bad], CAMERAS, skip_bad=True)
    assert (len(dataset), list(dataset.skipped)) == (80, [str(bad)])
