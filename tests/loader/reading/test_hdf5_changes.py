"""HDF5 files that change, vanish or lose their index under a stream: each is noticed and named."""

import gc
import os
import shutil
from pathlib import Path

import hdf5_world as world
import pytest
from hdf5_world import check, stream_of

import epistream as es
from epistream.errors import SourceChangedError, SourceError
from epistream.sharding.hdf5 import dataset as hdf5_dataset


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def replaced(path):
    world.write_episode(path.with_suffix(".new"), seed=9).replace(path)


def truncated(path):
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def written_to(path):
    with path.open("r+b") as file:  # not by h5py, which may have it open in this process
        file.seek(-1, os.SEEK_END)
        file.write(b"x")
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))  # coarse clocks may not have moved


@pytest.mark.parametrize("how", [replaced, truncated, written_to, Path.unlink])
@pytest.mark.parametrize("values", [None, {"compression": "gzip"}])
@pytest.mark.parametrize("in_use", [False, True])
@pytest.mark.parametrize("features", [["action"], None])
def test_file_that_changes_after_it_was_indexed_is_noticed(tmp_path, how, values, in_use, features):
    path = world.write_episode(tmp_path / "episode.hdf5", values=values)
    batches = iter(stream_of(path, cache="off", features=features))
    if in_use:
        next(batches)
    how(path)
    with pytest.raises((SourceChangedError, SourceError), match=r"episode\.hdf5: ") as caught:
        list(batches)
    assert how is Path.unlink or isinstance(caught.value, SourceChangedError)


def test_file_that_changed_is_indexed_anew_when_it_is_opened_again(tmp_path):
    path = world.write_episode(tmp_path / "episode.hdf5")
    check(path, world.read_episodes(path), cache="off")
    replaced(path)
    check(path, world.read_episodes(path), cache="off")


@pytest.fixture
def changed_behind_its_index(tmp_path, monkeypatch):
    """Three files, of which one changes when all are indexed, before its arrays are read again for statistics."""
    paths = [world.write_episode(tmp_path / f"e_{number}.hdf5", seed=number) for number in range(3)]
    keep = hdf5_dataset.keep_indexes

    def prepare(how):
        def keep_and_change(url, **options):
            found = keep(url, **options)
            if url == str(paths[2]) and paths[1] not in prepare.done:
                prepare.done.append(paths[1])
                how(paths[1])
            return found

        monkeypatch.setattr(hdf5_dataset, "keep_indexes", keep_and_change)
        return paths

    prepare.done = []
    return prepare


@pytest.mark.parametrize("how", [replaced, truncated, written_to, Path.unlink])
def test_file_that_changes_between_its_index_and_its_statistics_is_noticed_or_left_out(
    changed_behind_its_index, how, caplog
):
    paths = changed_behind_its_index(how)
    good = [episode for path in (paths[0], paths[2]) for episode in world.read_episodes(path)]
    stream = stream_of(paths, cache="off", on_bad="skip")
    assert list(stream.job.dataset.skipped) == [str(paths[1])]
    assert [record.getMessage() for record in caplog.records] == [
        f"left out: {stream.job.dataset.skipped[str(paths[1])]}"
    ]
    seen = world.assert_stream_equals(stream, good, (-1, 0), (0, 1, 2, 5), "edge")
    assert seen == world.everything(good)


@pytest.mark.parametrize("how", [replaced, truncated, written_to, Path.unlink])
def test_file_that_changes_between_its_index_and_its_statistics_is_an_error_otherwise(changed_behind_its_index, how):
    paths = changed_behind_its_index(how)
    with pytest.raises((SourceChangedError, SourceError), match=r"e_1\.hdf5: "):
        stream_of(paths, cache="off")


@pytest.mark.parametrize("how", [replaced, truncated, Path.unlink])
def test_file_that_changes_under_a_stream_is_replaced_by_choice_as_bad_shards_are(tmp_path, how):
    paths = [world.write_episode(tmp_path / f"e_{number}.hdf5", seed=number) for number in range(3)]
    stream = stream_of(paths, cache="off", on_bad="skip")
    how(paths[1])
    with es.StreamingLoader(stream, num_workers=0, num_threads=0) as loader:
        batches = list(loader)
        repeats = sum(int(batch["is_repeat"].sum()) for batch in batches)
        assert (sum(len(batch["is_repeat"]) for batch in batches), repeats) == (3 * world.LENGTH, world.LENGTH)
        assert "e_1.hdf5" in str(loader.report())


def test_index_that_is_gone_while_the_stream_runs_is_named(tmp_path):
    path = world.write_episode(tmp_path / "episode.hdf5")
    stream = stream_of(path, cache="off")
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(SourceError, match=r"wanted the index of .*episode\.hdf5\. Open the dataset again"):
        next(iter(stream))


def test_stream_that_is_dropped_leaves_no_file_open(tmp_path):
    paths = [world.write_episode(tmp_path / f"e_{n}.hdf5", values={"compression": "gzip"}) for n in range(3)]
    stream = stream_of(paths, cache="off")
    batches = iter(stream)
    next(batches)
    assert open_files(tmp_path)
    del batches
    gc.collect()
    assert open_files(tmp_path) == []


def open_files(folder):
    names = [str(entry.readlink()) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
    return [name for name in names if name.startswith(str(folder)) and name.endswith(".hdf5")]
