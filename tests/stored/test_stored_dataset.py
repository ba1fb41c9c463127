"""Datasets that an earlier release packed: every value, frame and name is still read, and would be written again."""

import hashlib
import json
import shutil
from itertools import pairwise

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

import epistream as es
from epistream.commands import cli

# Where each feature of the sources went: its name in values.npz, by name in the dataset.
FEATURES = {
    "jpeg": {
        "observation.images.agentview": None,
        "observation.robot0_eef_pos": "robot0_eef_pos",
        "observation.robot0_gripper_qpos": "robot0_gripper_qpos",
        "action": "action",
    },
    "png": {"observation.images.top": "top", "observation.state": "state", "action": "action"},
    "raw": {"observation.images.top": "top", "observation.state": "state", "action": "action"},
}
FINGERPRINTS = {
    "jpeg": "8d3a6b851347ba9a56898ddb396a5afb",
    "png": "be84d61430f4bf41f5c184c423b701c1",
    "raw": "381e8f870c0b956cfcd33841839e738c",
}


def episodes_of(shards, name):
    """The episodes of a dataset in its order: (shard, position in it, what its meta.json says)."""
    found = [(shard, k, one) for shard, held in enumerate(shards[name].values()) for k, one in enumerate(held)]
    return sorted(found, key=lambda one: one[2]["episode_index"])


def source_of(episode):
    """What values.npz calls an episode."""
    path = episode.get("source_path", "/")
    return path.removeprefix("/data/") if path != "/" else episode["source"].removesuffix(".hdf5")


def steps_of(source, **options):
    """Every step of a dataset in its order, one by one."""
    stream = es.EpisodeStream(source, shuffle=False, split=None, batch_size=1, cache="off", **options)
    return {(int(batch["episode_index"]), int(batch["step_index"])): batch for batch in stream}


@pytest.mark.parametrize("name", FEATURES)
def test_stored_dataset_says_what_tarfile_found_in_it(stored, shards, name):
    dataset = es.open_dataset(stored / name)
    episodes = episodes_of(shards, name)
    assert dataset.fingerprint == FINGERPRINTS[name]
    assert list(dataset.features) == list(FEATURES[name])
    assert [url.rpartition("/")[2] for url in dataset.shard_url] == list(shards[name])
    assert dataset.episode_shard.tolist() == [shard for shard, _, _ in episodes]
    assert dataset.episode_in_shard.tolist() == [k for _, k, _ in episodes]
    assert dataset.episode_length.tolist() == [one["length"] for _, _, one in episodes]
    assert [dataset.splits[number] for number in dataset.episode_split] == [one["split"] for _, _, one in episodes]
    offsets, tasks = (part.tolist() for part in dataset.episode_tasks)
    said = [[dataset.tasks[task] for task in tasks[a:b]] for a, b in pairwise(offsets)]
    assert said == [one.get("tasks", []) for _, _, one in episodes]


@pytest.mark.parametrize("name", FEATURES)
def test_stored_dataset_gives_every_value_that_was_packed(stored, shards, name):
    values, steps = np.load(stored / "values.npz"), steps_of(stored / name)
    episodes = [one for _, _, one in episodes_of(shards, name)]
    assert list(steps) == [(e, t) for e, one in enumerate(episodes) for t in range(one["length"])]
    for (episode, step), batch in steps.items():
        for feature, kept in FEATURES[name].items():
            if kept is not None:
                expected = values[f"{source_of(episodes[episode])}/{kept}"][step]
                expected = expected.astype("f4") if expected.dtype == np.float64 else expected
                found = batch[feature][0, 0].numpy()
                assert found.dtype == expected.dtype
                np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", ["jpeg", "png"])
def test_stored_frames_are_the_pixels_that_pillow_saw(stored, shards, name):
    episodes = [one for _, _, one in episodes_of(shards, name)]
    (camera,) = (feature for feature in FEATURES[name] if "images" in feature)
    for (episode, step), batch in steps_of(stored / name, features=[camera]).items():
        pixels = batch[camera][0, 0].numpy()
        assert hashlib.sha256(pixels.tobytes()).hexdigest() == episodes[episode]["frames"][step], (episode, step)


def test_stored_statistics_are_those_of_the_training_episodes(stored):
    values, dataset = np.load(stored / "values.npz"), es.open_dataset(stored / "jpeg")
    for feature, kept in FEATURES["jpeg"].items():
        if kept is None:
            continue
        rows = np.concatenate([values[f"{demo}/{kept}"] for demo in ("demo_0", "demo_1", "demo_3")]).astype("f8")
        found = dataset.statistics[feature]
        assert list(found) == ["count", "mean", "std", "min", "max", "q01", "q99"]
        assert found["count"] == 20
        low, high = np.quantile(rows, [0.01, 0.99], axis=0)
        expected = {"mean": rows.mean(0), "std": rows.std(0), "min": rows.min(0), "max": rows.max(0)}
        for name, value in {**expected, "q01": low, "q99": high}.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-6, err_msg=f"{feature} {name}")


@pytest.mark.parametrize("name", FEATURES)
def test_stored_dataset_is_whole_to_verify(stored, name):
    done = CliRunner().invoke(cli, ["verify", str(stored / name), "--statistics"])
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("name", FEATURES)
def test_stored_indexes_are_made_again_to_the_byte(stored, tmp_path, name):
    for path in stored.glob(f"{name}/*.tar"):
        shutil.copy(path, tmp_path)
    assert CliRunner().invoke(cli, ["index", str(tmp_path)]).exit_code == 0
    for path in stored.glob(f"{name}/*.index"):
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()
    assert es.open_dataset(tmp_path).fingerprint == FINGERPRINTS[name]


def test_stored_raw_dataset_is_packed_again_to_the_byte(stored, tmp_path):
    # Raw, because other versions of libraries may make other JPEG and PNG of the same pixels.
    es.pack(stored / "tiny", tmp_path / "raw", codec="raw")
    latest, made = stored.parent / "manifest-2" / "raw", tmp_path / "raw"
    kinds = ("shard-*.tar", "shard-*.index", "dataset-*.tables", "sources-*.tables")
    for kind in kinds:  # of version 3 on tables have longer names, and there are more of them
        [[written], [kept]] = (sorted(folder.glob(kind)) for folder in (made, latest))
        assert written.read_bytes() == kept.read_bytes(), kind
        assert not kind.startswith("shard-") or kept.read_bytes() == (stored / "raw" / kept.name).read_bytes()
    written, kept = (json.loads((folder / "dataset.json").read_text()) for folder in (made, latest))
    assert (written.pop("version"), kept.pop("version")) == (3, 2)
    assert [one["count"] for one in written.pop("episodes")] == [2]
    for document in (written, kept):
        del document["writer"], document["provenance"]["versions"]
        for about in (document["tables"], document["sources"]):
            about["file"] = about["checksum"]
    for values in written["statistics"]["features"].values():
        del values["q10"], values["q50"], values["q90"]
    assert written.pop("provenance").keys() == kept.pop("provenance").keys()
    assert json.dumps(written) == json.dumps(kept)


def test_stored_hdf5_file_gives_every_value_that_h5py_reads(stored, remote_demos):
    demos = [f"demo_{number}" for number in range(5)]  # though a shard has episodes of one split only
    steps = steps_of(remote_demos)
    with h5py.File(stored / "demos.hdf5") as file:
        assert len(steps) == sum(len(file[f"data/{demo}/actions"]) for demo in demos) == 35
        for (episode, step), batch in steps.items():
            demo = file[f"data/{demos[episode]}"]
            for feature, path in {
                "observation.images.agentview": "obs/agentview_image",
                "observation.robot0_eef_pos": "obs/robot0_eef_pos",
                "observation.robot0_gripper_qpos": "obs/robot0_gripper_qpos",
                "action": "actions",
            }.items():
                expected = demo[path][step]
                expected = expected.astype("f4") if expected.dtype == np.float64 else expected
                np.testing.assert_array_equal(batch[feature][0, 0].numpy(), expected)
