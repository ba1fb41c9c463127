"""What messages about homes, folders and caches advise works when it is done."""

import errno
import re
import shutil

import hdf5_world as world
import pytest
from click.testing import CliRunner
from handmade import members, write_tar
from machine.no_home import refuse_writes, temporary, use_home  # noqa: F401, a fixture

import epistream as es
from epistream.cache import tiers
from epistream.commands import cli
from epistream.errors import CacheError, OptionError


def num_read(source):
    stream = es.EpisodeStream(source, batch_size=1, features=["action"])
    return sum(len(batch["action"]) for batch in stream)


def told_of(caplog):
    texts = [record.getMessage() for record in caplog.records if "wanted to keep indexes" in record.getMessage()]
    caplog.clear()
    return texts


@pytest.mark.parametrize("kind", ["no home", "relative", "full"])
def test_home_that_keeps_nothing_is_replaced_by_the_variable_it_names(kind, tmp_path, monkeypatch, caplog, temporary):  # noqa: F811
    path = world.write_episode(tmp_path / "episode.hdf5")
    use_home(monkeypatch, tmp_path, kind)
    assert num_read(path) == world.LENGTH
    [told] = told_of(caplog)
    assert "Set XDG_CACHE_HOME to a folder that can be written" in told
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "mine"))
    assert num_read(path) == world.LENGTH
    assert told_of(caplog) == []
    assert any((tmp_path / "mine" / "epistream" / "indexes").glob("*.index"))


def test_tar_without_a_place_for_its_index_is_indexed_for_good(tmp_path, monkeypatch, caplog, temporary):  # noqa: F811
    (tmp_path / "tars").mkdir()
    write_tar(tmp_path / "tars" / "a.tar", members(0, 4, "jpeg"))
    use_home(monkeypatch, tmp_path, "a file")
    assert num_read(tmp_path / "tars" / "a.tar") == 4
    [told] = told_of(caplog)
    command = re.search(r"epistream (index \S+)$", told)[1]
    result = CliRunner().invoke(cli, command.split())
    assert result.exit_code == 0, result.output
    use_home(monkeypatch, tmp_path, "full")
    assert num_read(tmp_path / "tars" / "a.tar") == 4
    assert told_of(caplog) == []


def test_machine_without_room_gets_a_folder_that_has_some(tmp_path, monkeypatch, temporary):  # noqa: F811
    path = world.write_episode(tmp_path / "episode.hdf5")
    refuse_writes(monkeypatch, tmp_path / "home", errno.ENOSPC)
    refuse_writes(monkeypatch, temporary, errno.ENOSPC)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    with pytest.raises(CacheError, match="Set XDG_CACHE_HOME to a folder that can be written"):
        num_read(path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "mine"))
    assert num_read(path) == world.LENGTH


@pytest.mark.parametrize("cure", ["an absolute path", "another directory"])
def test_working_directory_that_is_gone_is_left_or_done_without(cure, tmp_path, monkeypatch, aloha_shards):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(OptionError, match="Give an absolute path, or change to a directory that is there first"):
        num_read(aloha_shards.name)
    if cure == "another directory":
        monkeypatch.chdir(aloha_shards.parent)
    assert num_read(aloha_shards if cure == "an absolute path" else aloha_shards.name) == 140


@pytest.mark.parametrize("cure", ["epistream cache clear", "another one"])
def test_cache_that_was_removed_is_cleared_or_named_otherwise(cure, tmp_path, monkeypatch, caplog, aloha_shards):
    monkeypatch.setattr(tiers, "_LOOK_EVERY_S", 0.0)

    def told_in(directory, clear):
        cache = es.CacheOptions(mode="shm", directory=directory)
        stream = es.EpisodeStream(aloha_shards, batch_size=4, features=["action"], cache=cache)
        caplog.clear()
        with es.StreamingLoader(stream, num_workers=0) as loader:
            for number, _ in enumerate(loader):
                if number == 3:
                    clear()
        return [record.getMessage() for record in caplog.records if "removed while" in record.getMessage()]

    old = tmp_path / "cache"
    [told] = told_in(old, lambda: shutil.rmtree(old, ignore_errors=True))
    assert "Clean up with 'epistream cache clear'" in told
    assert "Name another one with CacheOptions (directory" in told
    if cure == "another one":
        assert told_in(tmp_path / "another", lambda: shutil.rmtree(old, ignore_errors=True)) == []
    else:
        assert told_in(old, lambda: CliRunner().invoke(cli, ["cache", "clear", "--directory", str(old)])) == []
