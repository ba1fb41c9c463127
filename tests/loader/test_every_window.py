"""Every window of every real file, every feature, from HDF5 and from shards, against h5py and a JPEG decoder.

The larger collection of episodes is read where it lies beside the checkout; the samples that ship with the project
always are. What is compared are decoded arrays, so that raw cameras are packed without loss here.
"""

import hdf5_world as world
import numpy as np
import pytest

import epistream as es
from epistream.errors import LayoutError, PackError

OBS, ACTION = (-2, 0), (-1, 0, 1, 9)
LARGER = [
    "aloha_compressed/episode_0.hdf5",
    "aloha_compressed/episode_1.hdf5",
    "aloha_mobile/episode_0.hdf5",
    "aloha_raw/episode_0.hdf5",
    "ilstudio/episode_0000.hdf5",
    "libero_like/pick_up_the_red_cube_demo.hdf5",
    "robomimic/human_door.hdf5",
    "robomimic/scripted_lift.hdf5",
]


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def sources(path, tmp_path):
    """The file itself, and shards of it."""
    shards = tmp_path / "shards"
    es.pack([path], shards, codec="raw" if world.has_raw_cameras(path) else None)
    return {"hdf5": str(path), "shards": str(shards)}


def assert_every_window(source, episodes, tasks):
    stream = world.stream_of(source, OBS, ACTION, "zero", batch_size=16, cache="off")
    places = []
    for batch in stream:
        features = [key.removesuffix("_is_pad") for key in batch if key.endswith("_is_pad")]
        assert sorted(features) == sorted(episodes[0])
        for name in features:
            offsets = ACTION if name == "action" else OBS
            values, mask = world.expected_batch(episodes, batch, name, offsets, "zero")
            found = batch[name].numpy()
            assert found.dtype == values.dtype, name
            assert np.array_equal(found, values), name  # assert_array_equal takes ten times as long
            assert np.array_equal(batch[f"{name}_is_pad"].numpy(), mask), name
        places += zip(batch["episode_index"].tolist(), batch["step_index"].tolist(), strict=True)
        assert batch["task"] == [tasks[episode] for episode in batch["episode_index"].tolist()]
    assert places == world.everything(episodes)


def check(path, tmp_path):
    episodes, tasks = world.read_episodes(path), world.read_tasks(path)
    for source in sources(path, tmp_path).values():
        assert_every_window(source, episodes, tasks)


@pytest.mark.parametrize("name", world.SHIPPED)
def test_every_window_of_a_shipped_file_equals_direct_reading_from_hdf5_and_shards(example_data, name, tmp_path):
    check(example_data / name, tmp_path)


@pytest.mark.parametrize("name", LARGER)
def test_every_window_of_a_larger_file_equals_direct_reading_from_hdf5_and_shards(shared_data, name, tmp_path):
    check(shared_data / name, tmp_path)


def test_every_larger_file_is_compared_or_known_to_be_bad(shared_data):
    found = {str(path.relative_to(shared_data)) for path in shared_data.glob("*/*.hdf5")}
    assert found == {*LARGER, "ilstudio/tmp.hdf5"}


def test_the_bad_larger_file_is_refused_by_name_from_both(shared_data, tmp_path):
    path = shared_data / "ilstudio" / "tmp.hdf5"
    said = r"ilstudio/tmp\.hdf5: holds lan, which cannot be opened .*likely file corruption.*Copy or record it again"
    with pytest.raises(LayoutError, match=said):
        es.EpisodeStream(path)
    with pytest.raises(PackError, match=said):
        es.pack([path], tmp_path / "shards")
    assert not (tmp_path / "shards" / "dataset.json").exists()
