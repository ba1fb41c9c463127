"""A shard that grows is synced on the way, and what the disk says of it is not lost."""

import errno
import os
import threading

import pytest

from epistream.errors import PackError
from epistream.sharding.files import early_sync
from epistream.sharding.format.episode_meta import EpisodeMeta
from epistream.sharding.format.features import Feature
from epistream.sharding.tar.shard_writer import ShardWriter

CAMERA = Feature(
    name="observation.images.top", kind="frames", dtype="uint8", shape=(8, 8, 3), codec="jpeg", jpeg_channels="rgb"
)


@pytest.fixture
def writer(tmp_path, monkeypatch):
    monkeypatch.setattr(early_sync, "_STEP_BYTES", 1000)
    with ShardWriter(tmp_path, "shard-000000.tar", {CAMERA.name: CAMERA}) as made:
        yield made


def add(writer, number):
    meta = EpisodeMeta(length=3, episode_index=number, source=f"{number}.hdf5")
    writer.add(meta, {}, {CAMERA.name: [bytes([number + 1]) * 900] * 3})


def test_what_was_written_is_synced_beside_the_writer(writer, monkeypatch):
    begun, may_end, synced, real = threading.Event(), threading.Event(), [], os.fdatasync

    def slow(fd):
        synced.append(os.fstat(fd).st_size)
        begun.set()
        assert may_end.wait(30)
        real(fd)

    monkeypatch.setattr(os, "fdatasync", slow)
    add(writer, 0)
    assert begun.wait(30)
    add(writer, 1)  # does not wait
    may_end.set()
    writer.finish()
    assert len(synced) == 1
    assert not any("epistream-sync" in one.name for one in threading.enumerate())


@pytest.mark.parametrize("when", ["the next episode", "the end"])
def test_disk_that_fails_while_more_is_written_fails_the_shard(writer, tmp_path, monkeypatch, when):
    failed = threading.Event()

    def refuse(fd):
        failed.set()
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fdatasync", refuse)
    add(writer, 0)
    assert failed.wait(30)
    go_on = writer.finish if when == "the end" else lambda: [add(writer, number) for number in range(1, 1000)]
    with pytest.raises(PackError, match=r"shard-000000.tar: cannot write after [\d,]+ bytes \(Input/output error\)"):
        go_on()
    writer.abort()
    assert not list(tmp_path.glob("*.tar"))


def test_shard_that_is_given_up_waits_for_the_sync_before_it_closes_the_file(writer, tmp_path, monkeypatch):
    begun, order = threading.Event(), []

    def slow(fd):
        begun.set()
        threading.Event().wait(0.2)
        os.fstat(fd)
        order.append("synced")

    monkeypatch.setattr(os, "fdatasync", slow)
    add(writer, 0)
    assert begun.wait(30)
    writer.abort()
    assert order == ["synced"]
    assert not list(tmp_path.iterdir())
