"""HDF5 files read where they are, divided as packing divides them: the same episodes, the same statistics."""

import json
import logging
import pickle
import shutil

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

import epistream as es
from epistream.commands import cli
from epistream.errors import OptionError, StateError


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Nine files of one demonstration each, of 18 to 20 steps."""
    folder = tmp_path_factory.mktemp("files")
    for number in range(9):
        with h5py.File(folder / f"episode_{number}.hdf5", "w") as file:
            length = 20 - number % 3
            file["data/demo_0/actions"] = np.full((length, 2), number, np.float32) + np.arange(length)[:, None]
            file["data/demo_0/obs/joint_pos"] = np.full((length, 3), number, np.float32)
    return folder


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory):
    """One robomimic file of twelve demonstrations, with masks."""
    path = tmp_path_factory.mktemp("robomimic") / "demos.hdf5"
    with h5py.File(path, "w") as file:
        for number in range(12):
            demo = file.create_group(f"data/demo_{number}")
            demo["actions"] = np.full((10 + number, 2), number, np.float32)
            demo["obs/joint_pos"] = np.full((10 + number, 2), number, np.float32)
        file["mask/train"] = np.array([f"demo_{number}" for number in range(9)], "S")
        file["mask/valid"] = np.array([f"demo_{number}" for number in range(9, 12)], "S")
        file["data"].attrs["total"] = sum(10 + number for number in range(12))
        file["data"].attrs["env_args"] = "{}"
    return path


def episodes_of(dataset, split):
    """Lengths and places of the episodes of a split."""
    chosen = np.flatnonzero(dataset.episode_split == dataset.splits.index(split))
    return list(zip(chosen.tolist(), dataset.episode_length[chosen].tolist(), strict=True))


def streamed(source, split, **options):
    stream = es.EpisodeStream(source, split=split, batch_size=1, features=["action"], **options)
    return sorted((b["episode_index"].item(), b["step_index"].item(), b["action"][0, 0, 0].item()) for b in stream)


@pytest.mark.parametrize("kind", ["files", "demonstrations"])
@pytest.mark.parametrize(("fraction", "seed"), [(0.2, 0), (0.2, 7), (0.5, 0), (0.01, 3), (0.99, 3)])
def test_split_is_that_of_packing_the_same_files(request, tmp_path, kind, fraction, seed):
    source = request.getfixturevalue(kind)
    chosen = {"val_fraction": fraction, "split_seed": seed}
    es.pack(source, tmp_path / "out", **chosen)
    packed, read = es.open_dataset(tmp_path / "out"), es.open_dataset(source, **chosen)
    assert packed.splits == read.splits == ("train", "val")
    for split in packed.splits:
        assert episodes_of(packed, split) == episodes_of(read, split)
        assert streamed(tmp_path / "out", split) == streamed(source, split, **chosen)
    assert packed.statistics.keys() == read.statistics.keys()
    for name, values in packed.statistics.items():
        for key, value in values.items():
            np.testing.assert_allclose(read.statistics[name][key], value, rtol=1e-6, err_msg=f"{name} {key}")


def test_training_is_of_the_other_episodes_and_both_together_of_all(files):
    train, val, every = (streamed(files, split, val_fraction=0.3) for split in ("auto", "val", None))
    assert sorted(train + val) == every
    assert not {e for e, *_ in train} & {e for e, *_ in val}
    assert streamed(files, "auto", val_fraction=0.3, validation=True) == val
    assert {e for e, *_ in val} == {1, 2, 4, 6}


def test_statistics_of_a_divided_dataset_are_of_its_training_episodes(files):
    dataset = es.open_dataset(files, val_fraction=0.3)
    numbers = np.array([e for e, length in episodes_of(dataset, "train") for _ in range(length)], np.float64)
    assert dataset.statistics["observation.joint_pos"]["mean"][0] == pytest.approx(numbers.mean())
    assert dataset.statistics["observation.joint_pos"]["count"] == len(numbers)
    # Kept for the whole and for each division by itself.
    whole = es.open_dataset(files)
    assert whole.statistics["observation.joint_pos"]["count"] == 171
    assert es.open_dataset(files, val_fraction=0.3).statistics["observation.joint_pos"]["count"] == len(numbers)
    seeds = [es.open_dataset(files, val_fraction=0.3, split_seed=seed).fingerprint for seed in range(3)]
    assert len({whole.fingerprint, dataset.fingerprint, *seeds}) == 4
    assert es.open_dataset(files).fingerprint == whole.fingerprint


def test_masks_of_a_file_are_its_splits_only_without_a_fraction(demonstrations):
    assert [e for e, _ in episodes_of(es.open_dataset(demonstrations), "val")] == [9, 10, 11]
    assert es.open_dataset(demonstrations, val_fraction=0.25).splits == ("train", "val")


def test_division_reaches_workers_and_survives_pickling(files):
    stream = pickle.loads(pickle.dumps(es.EpisodeStream(files, val_fraction=0.3, validation=True, batch_size=4)))
    for workers in ({"num_workers": 2}, {"num_workers": 1, "start_method": "spawn"}):
        with es.StreamingLoader(stream, **workers) as loader:
            episodes = {e for batch in loader for e in batch["episode_index"].tolist()}
        assert sorted(episodes) == sorted({e for e, *_ in streamed(files, "val", val_fraction=0.3)})


def test_state_of_another_division_is_refused(files):
    state = es.EpisodeStream(files, val_fraction=0.3).state_dict()
    es.EpisodeStream(files, val_fraction=0.3).load_state_dict(state)
    for others in ({}, {"val_fraction": 0.8}, {"val_fraction": 0.3, "split_seed": 1}):
        with pytest.raises(StateError, match="dataset is"):
            es.EpisodeStream(files, **others).load_state_dict(state)


def test_file_left_out_is_left_out_of_the_choice_as_in_packing(files, tmp_path):
    shutil.copytree(files, tmp_path / "in")
    (tmp_path / "in" / "episode_4.hdf5").write_bytes(b"no HDF5 at all")
    es.pack(tmp_path / "in", tmp_path / "out", val_fraction=0.3, skip_bad=True)
    read = es.open_dataset(tmp_path / "in", on_bad="skip", val_fraction=0.3)
    for split in ("train", "val"):
        assert episodes_of(es.open_dataset(tmp_path / "out"), split) == episodes_of(read, split)


def test_one_episode_that_cannot_be_divided_is_told_as_in_packing(files, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        dataset = es.open_dataset(files / "episode_0.hdf5", val_fraction=0.1)
    assert dataset.splits == ("train",)
    [told] = [record.getMessage() for record in caplog.records if "val_fraction" in record.getMessage()]
    [note] = es.pack(files / "episode_0.hdf5", tmp_path / "out", val_fraction=0.1).notes
    assert told.endswith(note)


def test_validation_on_one_episode_does_not_advise_the_fraction_that_was_given(files):
    with pytest.raises(OptionError) as caught:
        es.EpisodeStream(files / "episode_3.hdf5", val_fraction=0.5, validation=True)
    assert "val_fraction=" not in str(caught.value)
    assert "split=None for all episodes, or more episodes: one cannot be divided" in str(caught.value)
    whole = es.EpisodeStream(files / "episode_3.hdf5", val_fraction=0.5, validation=True, split=None)
    assert whole.num_windows == 20
    assert es.EpisodeStream(files, val_fraction=0.5, validation=True).num_windows


@pytest.mark.parametrize("with_files", [False, True])
def test_shards_are_not_divided_again(files, tmp_path, with_files):
    es.pack(files, tmp_path / "out", val_fraction=0.3)
    source = [str(tmp_path / "out"), *([str(files)] if with_files else [])]
    with pytest.raises(OptionError, match="shards with the splits train, val, settled when they were packed"):
        es.EpisodeStream(source, val_fraction=0.3)


@pytest.mark.parametrize(("wrong", "message"), [(0, "val_fraction: 0"), (1.5, "val_fraction: 1.5")])
def test_impossible_fractions_are_refused_by_both_doors(files, wrong, message):
    for opened in (es.open_dataset, es.EpisodeStream):
        with pytest.raises(OptionError, match=message):
            opened(files, val_fraction=wrong)


def test_commands_and_configurations_divide_likewise(files, tmp_path):
    val = episodes_of(es.open_dataset(files, val_fraction=0.3, split_seed=5), "val")
    chosen = ["--val-fraction", "0.3", "--split-seed", "5"]
    shown = CliRunner().invoke(cli, ["inspect", str(files), "--json", *chosen])
    splits = {split["name"]: split["num_episodes"] for split in json.loads(shown.stdout)["splits"]}
    assert splits == {"train": 9 - len(val), "val": len(val)}
    planned = CliRunner().invoke(cli, ["plan", str(files), "--json", "--split", "val", "--batch-size", "4", *chosen])
    assert json.loads(planned.stdout)["num_windows"] == sum(length for _, length in val)
    file = tmp_path / "run.yaml"
    file.write_text(f"source: {files}\nstream: {{val_fraction: 0.3, split_seed: 5}}\n")
    assert es.EpisodeStream.from_config(es.load_config(file), validation=True).num_windows == sum(n for _, n in val)
