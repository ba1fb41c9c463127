"""What IL-Studio's files say about the thinking behind a step, in the samples of the class that its users have."""

import pickle
from argparse import Namespace

import every_layout
import h5py
import numpy as np
import pytest
from torch.utils.data import DataLoader

import epistream as es
from epistream.errors import LayoutError, OptionError

WITH = Namespace(use_reasoning=True, use_prev_subtask=False)


@pytest.fixture
def path(tmp_path):
    return every_layout.write("ilstudio-vla-os", tmp_path)


def dataset_of(path, data_args, **options):
    return es.OptimizedEpisodicDataset([path], ["primary", "wrist"], data_args=data_args, ctrl_type="abs", **options)


def test_reasoning_of_each_step_has_the_keys_of_il_studio(path):
    dataset = dataset_of(path, WITH)
    with h5py.File(path) as file:
        gripper, target = file["reasoning/gripper_position"][:], file["reasoning/target_position"][:]
    for step in range(every_layout.ROWS):
        reasoning = dataset[step]["reasoning"]
        assert sorted(reasoning) == ["direction", "gripper_pos", "subtask", "target pos"]
        assert (reasoning["subtask"], reasoning["direction"]) == (f"subtask {step // 3}", f"up {step}")
        np.testing.assert_array_equal(reasoning["gripper_pos"], gripper[step])
        np.testing.assert_array_equal(reasoning["target pos"], target[step])
    assert dataset.load_onestep_from_episode(path, 4)["reasoning"]["direction"] == "up 4"
    assert dataset[0]["raw_lang"] == "put the cup on the plate"


def test_previous_subtask_is_told_behind_the_instruction(path):
    dataset = dataset_of(path, Namespace(use_reasoning=True, use_prev_subtask=True))
    told = [sample["raw_lang"] for sample in dataset.__getitems__([0, 3, 4])]
    head = "put the cup on the plate. The previous step is: "
    assert told == [head + "Init", head + "subtask 0", head + "subtask 1"]


def test_without_being_asked_for_reasoning_is_empty(path):
    for data_args in (None, Namespace(), Namespace(use_reasoning=False)):
        assert dataset_of(path, data_args)[3]["reasoning"] == ""


@pytest.mark.parametrize("name", ["substep_reasonings", "reasoning"])
def test_texts_by_step_are_the_text(tmp_path, name):
    path = every_layout.vla_os(tmp_path / "a.hdf5", reasoning=False)
    with h5py.File(path, "a") as file:
        file[name] = [f"because {step}".encode() for step in range(every_layout.ROWS)]
    assert [dataset_of(path, WITH)[step]["reasoning"] for step in (0, 6)] == ["because 0", "because 6"]


def test_file_without_any_gives_an_empty_text(tmp_path):
    path = every_layout.vla_os(tmp_path / "a.hdf5", reasoning=False)
    assert dataset_of(path, WITH)[2]["reasoning"] == ""


def test_worker_processes_read_it_for_themselves(path):
    dataset = pickle.loads(pickle.dumps(dataset_of(path, WITH)))
    batch = next(iter(DataLoader(dataset, batch_size=4, num_workers=1, timeout=60)))
    assert batch["reasoning"]["direction"] == ["up 0", "up 1", "up 2", "up 3"]
    assert batch["reasoning"]["gripper_pos"].shape == (4, 2)


def test_shards_which_hold_no_texts_of_steps_are_refused_at_construction(path, tmp_path):
    es.pack(path, tmp_path / "shards", codec="raw")
    with pytest.raises(OptionError, match=r"is a shard, which holds no texts of steps\. Give the HDF5 files"):
        dataset_of(tmp_path / "shards", WITH)


def test_a_shard_is_told_from_a_file_by_its_name_alone(path):
    bare = path.rename(path.with_suffix(""))
    assert dataset_of(bare, WITH)[4]["reasoning"]["direction"] == "up 4"


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("reasoning", b"one for all", r"/reasoning: shape \(\), wanted \(7,\)"),
        ("substep_reasonings", [b"short"] * 3, r"/substep_reasonings: shape \(3,\), wanted \(7,\)"),
        ("reasoning", [[b"nested"]] * 7, r"/reasoning: shape \(7, 1\), wanted \(7,\)"),
        ("reasoning/subtask", b"one for all", r"/reasoning/subtask: shape \(\), wanted \(7,\)"),
        ("reasoning/gripper_position", 1.0, r"/reasoning/gripper_position: shape \(\), wanted \(7,\)"),
        ("reasoning", h5py.Empty("f4"), r"/reasoning: shape \(\), wanted \(7,\)"),
    ],
)
def test_a_column_that_does_not_say_something_of_every_step_is_named(tmp_path, name, values, words):
    path = every_layout.vla_os(tmp_path / "a.hdf5", reasoning=False)
    with h5py.File(path, "a") as file:
        file[name] = values
    with pytest.raises(LayoutError, match=rf"a\.hdf5: {words}.*use_reasoning"):
        dataset_of(path, WITH)
