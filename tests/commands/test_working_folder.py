"""A working directory that was removed: relative paths say so, absolute ones go on, and so does what was opened."""

import os
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

import epistream as es
from epistream.cache.node import NodeCache
from epistream.commands import cli
from epistream.errors import OptionError
from epistream.loader.episodic.dataset import OptimizedEpisodicDataset
from epistream.working_folder import absolute, is_gone, standing_somewhere

GONE = r": a relative path, and the working directory is gone \(No such file or directory\)"


@pytest.fixture
def gone(tmp_path, monkeypatch):
    """The process stands in a directory that was removed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert is_gone()


def num_read(stream, **options):
    with es.StreamingLoader(stream, **options) as loader:
        return sum(len(batch["action"]) for batch in loader)


@pytest.mark.parametrize(
    "source",
    [
        *("dataset", "dataset/dataset.json", "a.tar", "*.tar", "shard-{000000..000003}.tar", "file:a.tar"),
        *("episode.hdf5", "*.hdf5", "**/*.hdf5", "~nobody-of-that-name/x", ".", ["a.tar", "b.tar"]),
    ],
)
def test_relative_source_of_a_stream_names_the_directory_that_is_gone(gone, source):
    with pytest.raises(OptionError, match=GONE):
        es.EpisodeStream(source, batch_size=4)


@pytest.mark.parametrize(
    "command",
    [
        *("inspect dataset", "verify dataset", "inspect *.hdf5", "index tars", "cache ls --directory x"),
        *("cache clear --directory x", "cache stats --directory x", "cache resize 1GiB --directory x"),
        *("pack episodes /nowhere/out", "pack *.hdf5 /nowhere/out", "config show run.yaml", "tune dataset"),
    ],
)
def test_relative_path_of_a_command_names_the_directory_that_is_gone(gone, command):
    result = CliRunner().invoke(cli, command.split())
    assert result.exit_code != 0
    assert re.search(GONE, str(result.exception) + result.output)


def test_relative_folder_to_pack_into_names_the_directory_that_is_gone(gone, aloha_files):
    with pytest.raises(OptionError, match="out" + GONE):
        es.pack(aloha_files, "out")


@pytest.mark.parametrize("name", ["directory", "disk_directory"])
def test_relative_directory_of_a_cache_names_the_directory_that_is_gone(gone, aloha_shards, name):
    with pytest.raises(OptionError, match="mine" + GONE):
        es.EpisodeStream(aloha_shards, batch_size=4, cache=es.CacheOptions(**{name: "mine"}))


def test_episodes_have_their_paths_where_the_directory_is_gone(gone, aloha_files):
    dataset = OptimizedEpisodicDataset([aloha_files[0]], ["top"], chunk_size=2)
    assert len(dataset.load_feat_from_episode(str(aloha_files[0]), ["action"])["action"]) == 80
    with pytest.raises(OptionError, match="episode_0.hdf5" + GONE):
        dataset.load_feat_from_episode("episode_0.hdf5", ["action"])
    with pytest.raises(OptionError, match=r"no episode of this dataset\. Its episodes are called like /"):
        dataset.load_feat_from_episode("https://host/episode_0.hdf5", ["action"])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_absolute_paths_are_streamed_by_workers_where_the_directory_is_gone(gone, aloha_shards, method, tmp_path):
    cache = es.CacheOptions(mode="shm", directory=tmp_path / "shm")
    stream = es.EpisodeStream(aloha_shards, batch_size=4, features=["action"], cache=cache)
    assert num_read(stream, num_workers=1, start_method=method) == 140
    assert is_gone()  # this process has not moved


def test_absolute_paths_are_packed_and_verified_where_the_directory_is_gone(gone, aloha_files, tmp_path):
    es.pack(aloha_files, tmp_path / "out", workers=2)
    assert num_read(es.EpisodeStream(tmp_path / "out", batch_size=4, features=["action"])) == 140
    assert CliRunner().invoke(cli, ["verify", str(tmp_path / "out")]).exit_code == 0


@pytest.mark.parametrize("kind", ["shards", "tars", "hdf5"])
def test_relative_paths_mean_the_same_after_the_process_went_elsewhere(tmp_path, monkeypatch, aloha_files, kind):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    data = tmp_path / "data"
    data.mkdir()
    for file in aloha_files:
        (data / file.name).symlink_to(file)
    es.pack(sorted(data.glob("*.hdf5")), data / "packed", shard_size="1MiB")
    source = {"shards": "packed", "tars": "packed/shard-*.tar", "hdf5": "*.hdf5"}[kind]
    if kind == "tars":
        for file in ("dataset.json", *data.glob("packed/*.index")):
            (data / "packed" / file).unlink()
    options = {"batch_size": 4, "features": ["action"], "seed": 3}
    monkeypatch.chdir(data)
    cache = es.CacheOptions(mode="shm", directory="kept", keep=True)
    stream = es.EpisodeStream(source, cache=cache, **options)
    wanted = [batch["step_index"].tolist() for batch in es.EpisodeStream(source, **options)]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with es.StreamingLoader(stream, num_workers=1) as loader:
        batches = iter(loader)
        seen = [next(batches)["step_index"].tolist() for _ in range(5)]
        state = loader.state_dict()
    with es.StreamingLoader(stream, num_workers=1, start_method="spawn") as loader:
        loader.load_state_dict(state)
        seen += [batch["step_index"].tolist() for batch in loader]
    assert seen == wanted
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert (data / "kept").is_dir()


def test_path_is_made_absolute_where_it_is_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute(Path("x")) == tmp_path / "x"
    assert NodeCache(es.CacheOptions(directory="x")).options.directory == str(tmp_path / "x")
    assert NodeCache(es.CacheOptions()).options == es.CacheOptions()


def test_process_stands_somewhere_only_while_it_must(gone, tmp_path, monkeypatch):
    with standing_somewhere():
        assert os.getcwd() == "/"  # noqa: PTH109
    assert is_gone()
    monkeypatch.chdir(tmp_path)
    with standing_somewhere():
        assert Path.cwd() == tmp_path
