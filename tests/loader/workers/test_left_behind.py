"""Whoever is killed, and whatever is removed: no cache directory stays, and no batch is another one."""

import contextlib
import os
import secrets
import shutil
import signal
from pathlib import Path

import pytest
import torch
from machine.waiting import wait_until

import epistream as es
from epistream.cache import admin, tiers
from epistream.cache.node import NodeCache
from epistream.errors import CacheError
from epistream.loader.shards.shard_entry import shard_entry
from epistream.loader.workers import pool

REMOVED = "removed while it was in use"


@pytest.fixture
def directory():
    path = Path(f"/dev/shm/epistream-test-{os.getpid()}-left")
    yield path
    for each in path.parent.glob(f"*{path.name}*"):
        shutil.rmtree(each, ignore_errors=True)


@pytest.fixture(autouse=True)
def looks_at_once(monkeypatch):
    monkeypatch.setattr(tiers, "_LOOK_EVERY_S", 0.0)


def stream_of(shards, directory, **options):
    cache = es.CacheOptions(mode="shm", directory=directory, **options)
    return es.EpisodeStream(shards, batch_size=4, seed=1, features=["action", "observation.images.top"], cache=cache)


def reached(loader, num_batches=3):
    """A loader of which some batches were read, so that its cache is in use."""
    batches = iter(loader)
    for _ in range(num_batches):
        next(batches)
    return loader


def filled(directory):
    """Wait for a shard in the cache: the first batches may be read before one is there."""
    wait_until(lambda: any(directory.glob("*.shard")), "a shard is there")


# --- workers that end otherwise than they should ----------------------------------------------------------------------


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_workers_that_must_be_killed_leave_no_cache(aloha_shards, directory, monkeypatch, sent):
    monkeypatch.setattr(pool, "_STOP_S", 0.3)
    loader = reached(es.StreamingLoader(stream_of(aloha_shards, directory), num_workers=2))
    filled(directory)
    for pid in loader.worker_pids:
        os.kill(pid, sent)
    loader.close()
    assert list(directory.parent.glob(f"*{directory.name}*")) == []


def test_loader_that_is_dropped_with_killed_workers_leaves_no_cache(aloha_shards, directory):
    loader = reached(es.StreamingLoader(stream_of(aloha_shards, directory), num_workers=1))
    filled(directory)
    os.kill(loader.worker_pids[0], signal.SIGKILL)
    del loader
    assert not directory.exists()


def test_cache_that_is_kept_or_used_by_others_outlives_killed_workers(aloha_shards, directory):
    kept = stream_of(aloha_shards, directory, keep=True)
    loader = reached(es.StreamingLoader(kept, num_workers=1))
    filled(directory)
    os.kill(loader.worker_pids[0], signal.SIGKILL)
    loader.close()
    shards = list(directory.glob("*.shard"))
    assert shards
    admin.clear(directory, forget=True)
    assert not directory.exists()

    loader = reached(es.StreamingLoader(stream_of(aloha_shards, directory), num_workers=1))
    with NodeCache(es.CacheOptions(mode="shm", directory=directory)) as other:
        other.open(shard_entry(loader.stream.job.dataset, 0)).close()
        os.kill(loader.worker_pids[0], signal.SIGKILL)
        loader.close()
        assert any(directory.glob("*.shard"))
    assert not directory.exists()


def test_folder_that_never_was_a_cache_is_left_alone(aloha_shards, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir(mode=0o700)
    (mine / "thesis.tex").write_text("all of it")
    cache = es.CacheOptions(mode="auto", directory=mine, disk_directory=mine)
    stream = es.EpisodeStream(aloha_shards, batch_size=4, features=["action"], cache=cache, decode="per_read")
    loader = reached(es.StreamingLoader(stream, num_workers=1))
    os.kill(loader.worker_pids[0], signal.SIGKILL)
    loader.close()
    assert [file.name for file in mine.iterdir()] == ["thesis.tex"]


# --- directories that somebody removes --------------------------------------------------------------------------------


def remove(directory, how):
    if how == "removed":
        shutil.rmtree(directory, ignore_errors=True)
    elif how == "emptied":
        for file in directory.glob("*"):
            file.unlink(missing_ok=True)
        for file in directory.glob(".*"):
            file.unlink(missing_ok=True)
    elif how == "moved" and directory.is_dir():
        directory.rename(directory.with_name(f"{directory.name}-moved-{secrets.token_hex(4)}"))
    elif how == "cleared":
        admin.clear(directory, forget=True)


@pytest.mark.parametrize("decode", ["per_read", "once"])
@pytest.mark.parametrize(("num_processes", "num_threads"), [(0, 0), (2, 0), (0, 2)])
@pytest.mark.parametrize("how", ["removed", "emptied", "moved", "cleared"])
def test_directory_that_is_taken_away_changes_no_batch(
    aloha_shards, directory, how, num_processes, num_threads, decode
):
    options = {"batch_size": 10, "seed": 1, "features": ["action", "observation.images.top"]}
    plain = es.EpisodeStream(aloha_shards, cache="off", **options)
    wanted = [(batch["action"].clone(), batch["observation.images.top"].clone()) for batch in plain]
    cache = es.CacheOptions(mode="shm", directory=directory, room_timeout_s=5, fill_timeout_s=20)
    stream = es.EpisodeStream(aloha_shards, cache=cache, decode=decode, **options)
    with es.StreamingLoader(stream, num_workers=num_processes, num_threads=num_threads) as loader:
        for number, (batch, (action, top)) in enumerate(zip(loader, wanted, strict=True)):
            assert torch.equal(batch["action"], action)
            assert torch.equal(batch["observation.images.top"], top)
            if number % 4 == 1:
                remove(directory, how)
    assert not directory.exists()
    assert how == "moved" or list(directory.parent.glob(f"*{directory.name}*")) == []


def test_directory_that_is_removed_is_told_once_and_kept_in_again(aloha_shards, directory, caplog):
    stream = stream_of(aloha_shards, directory, budget_bytes="1GiB")
    loader = reached(es.StreamingLoader(stream, num_workers=0))
    for how in ("removed", "emptied", "removed"):
        cap = (directory / ".budget").read_text()
        remove(directory, how)
        reached(loader, 30)
        assert any(directory.glob("*.shard"))
        assert (directory / ".budget").read_text() == cap  # what the user allows holds in the new one
    loader.close()
    [told] = [record.getMessage() for record in caplog.records if "cache" in record.name]
    assert told.startswith(f"{directory}: {REMOVED}, wanted it until its last user leaves; it is made anew.")


def test_directory_that_became_a_file_is_named(aloha_shards, directory):
    loader = reached(es.StreamingLoader(stream_of(aloha_shards, directory), num_workers=0))
    while not directory.is_file():
        remove(directory, "moved")
        with contextlib.suppress(IsADirectoryError):  # it was made anew meanwhile
            directory.write_text("")
    with pytest.raises(CacheError, match=f"{directory}: a symbolic link or a file, wanted a directory of our own"):
        reached(loader, 140)
    directory.unlink()
    loader.close()
