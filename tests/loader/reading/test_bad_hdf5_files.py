"""HDF5 files that cannot be streamed among others that can: an error that names one, or left out by choice."""

import pickle
import shutil

import h5py
import hdf5_world as world
import pytest

import epistream as es
from epistream.errors import FormatError, LayoutError, SourceError
from epistream.sharding.hdf5 import dataset as hdf5_dataset


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def files(tmp_path):
    """Five good episodes, and between them one cut off, one of another kind and one whose state is wider."""
    folder = tmp_path / "demos"
    good = [world.write_episode(folder / f"episode_{n}.hdf5", 11 - n, seed=n) for n in (0, 2, 4, 6, 7)]
    cut = folder / "episode_1.hdf5"
    cut.write_bytes(good[0].read_bytes()[:3000])
    with h5py.File(folder / "episode_3.hdf5", "w") as file:
        file["notes"] = [1, 2]
    wide = shutil.copy(good[1], folder / "episode_5.hdf5")
    with h5py.File(wide, "a") as file:
        del file["observations/qpos"]
        file["observations/qpos"] = world.np.zeros((9, 8), world.np.float32)
    return folder, good


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("episode_1.hdf5", SourceError, "cannot be read as HDF5"),
        ("episode_3.hdf5", LayoutError, "fits no known layout"),
        ("episode_5.hdf5", FormatError, "wanted the same features"),
    ],
)
def test_a_bad_file_among_good_ones_is_an_error_that_names_it(files, name, error, words):
    folder, good = files
    with pytest.raises(error, match=name) as caught:
        es.EpisodeStream([good[0], folder / name])
    assert words in str(caught.value)


def test_bad_files_are_left_out_by_choice_and_reported_and_every_other_window_is_right(files, caplog):
    folder, good = files
    episodes = [episode for path in good for episode in world.read_episodes(path)]
    stream = world.stream_of(folder, on_bad="skip", cache="off")
    seen = world.assert_stream_equals(stream, episodes, (-1, 0), (0, 1, 2, 5), "edge")
    assert seen == world.everything(episodes)
    skipped = stream.job.dataset.skipped
    assert [path.rsplit("/", 1)[1] for path in skipped] == ["episode_1.hdf5", "episode_3.hdf5", "episode_5.hdf5"]
    assert "cannot be read as HDF5" in skipped[str(folder / "episode_1.hdf5")]
    assert "fits no known layout" in skipped[str(folder / "episode_3.hdf5")]
    assert "observation.state" in skipped[str(folder / "episode_5.hdf5")]
    messages = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert len(messages) == 3
    assert pickle.loads(pickle.dumps(stream)).job.dataset.skipped == skipped
    report = es.StreamingLoader(stream, num_workers=0).report()
    assert report.to_json()["left_out"] == skipped
    assert f"left out {folder / 'episode_1.hdf5'}: " in str(report)


def test_a_list_without_bad_files_is_the_same_dataset_either_way(files):
    _, good = files
    one, other = es.open_dataset(good), es.open_dataset(good, on_bad="skip")
    assert one.fingerprint == other.fingerprint
    assert other.skipped == {}


def test_the_first_file_is_left_out_where_most_are_unlike_it(files):
    folder, good = files
    dataset = es.open_dataset([folder / "episode_5.hdf5", *good], on_bad="skip")
    assert list(dataset.skipped) == [str(folder / "episode_5.hdf5")]
    assert dataset.num_episodes == 5


def test_no_good_file_at_all_is_the_error_of_the_first(files):
    folder, _ = files
    with pytest.raises(SourceError, match=r"episode_1\.hdf5: cannot be read"):
        es.EpisodeStream([folder / "episode_1.hdf5", folder / "episode_3.hdf5"], on_bad="skip")


def test_map_style_dataset_leaves_out_files_that_are_unlike_the_others(files):
    folder, good = files
    dataset = es.OptimizedEpisodicDataset([folder], ["top"], skip_bad=True)
    assert dataset.dataset_path_list == [str(path) for path in good]
    assert len(dataset) == sum(11 - n for n in (0, 2, 4, 6, 7))
    assert [path.rsplit("/", 1)[1] for path in dataset.skipped] == [f"episode_{n}.hdf5" for n in (1, 3, 5)]


def test_map_style_dataset_looks_at_each_file_once(files, monkeypatch):
    folder, _ = files
    looked = []
    keep = hdf5_dataset.keep_indexes
    monkeypatch.setattr(hdf5_dataset, "keep_indexes", lambda url, **how: looked.append(url) or keep(url, **how))
    es.OptimizedEpisodicDataset([folder], ["top"], skip_bad=True)
    assert len(looked) == len(set(looked)) == 8


@pytest.fixture
def torn_shards(files, tmp_path):
    """A dataset of shards whose manifest is cut off, and a good one."""
    _, good = files
    for name in ("torn", "whole"):
        es.pack(good[0], tmp_path / name, codec="raw")
    manifest = tmp_path / "torn" / "dataset.json"
    manifest.write_bytes(manifest.read_bytes()[:100])
    return tmp_path / "torn", tmp_path / "whole"


def test_a_torn_dataset_of_shards_is_left_out_by_choice_and_named(torn_shards, caplog):
    torn, whole = torn_shards
    with pytest.raises(FormatError, match="torn"):
        es.open_dataset([torn, whole])
    dataset = es.open_dataset([torn, whole], on_bad="skip")
    assert (dataset.num_episodes, list(dataset.skipped)) == (1, [str(torn)])
    assert str(torn) in dataset.skipped[str(torn)]
    assert [record.getMessage() for record in caplog.records] == [f"left out: {dataset.skipped[str(torn)]}"]
    with pytest.raises(FormatError, match="torn"):
        es.open_dataset(torn, on_bad="skip")


def test_hdf5_files_none_of_which_is_good_are_left_out_beside_shards_each_for_its_reason(files, torn_shards):
    folder, _ = files
    bad = [folder / "episode_1.hdf5", folder / "episode_3.hdf5"]
    skipped = es.open_dataset([*bad, torn_shards[1]], on_bad="skip").skipped
    assert list(skipped) == list(map(str, bad))
    assert "cannot be read as HDF5" in skipped[str(bad[0])]
    assert "fits no known layout" in skipped[str(bad[1])]


def test_files_none_of_which_is_good_are_told_of_once_each(files, torn_shards, caplog):
    folder, _ = files
    bad = [folder / "episode_1.hdf5", folder / "episode_3.hdf5"]
    skipped = es.open_dataset([*bad, torn_shards[1]], on_bad="skip").skipped
    assert [record.getMessage() for record in caplog.records] == [f"left out: {reason}" for reason in skipped.values()]


def test_map_style_dataset_leaves_out_torn_shards_and_calls_files_as_they_were_given(files, torn_shards, monkeypatch):
    folder, _ = files
    torn, whole = torn_shards
    monkeypatch.chdir(folder)
    given = ["episode_1.hdf5", str(torn), "episode_2.hdf5", str(whole)]
    dataset = es.OptimizedEpisodicDataset(given, ["top"], skip_bad=True)
    assert dataset.dataset_path_list == ["episode_2.hdf5", str(whole)]
    assert list(dataset.skipped) == ["episode_1.hdf5", str(torn)]
    assert len(dataset) == 9 + 11
