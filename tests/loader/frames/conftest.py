"""Fixtures of reading by blocks: episodes that were packed, and a place for caches in memory."""

import shutil
import tempfile
from pathlib import Path

import pytest
from pooling.readings import record

import epistream as es


@pytest.fixture(scope="session")
def packed(tmp_path_factory):
    """Packs the same episodes by a codec; once each."""
    folder = tmp_path_factory.mktemp("pool")
    files, done = record(folder), {}

    def pack(codec):
        if codec not in done:
            more = {"gop": 8} if codec == "h264" else {}
            es.pack(files, folder / codec, codec=codec, shard_size="64KiB", **more)
            done[codec] = folder / codec
        return done[codec]

    return pack


@pytest.fixture
def shm():
    """A place for cache directories, in memory; nothing is left in it."""
    memory = Path("/dev/shm")
    path = Path(tempfile.mkdtemp(prefix="pool-test-", dir=memory if memory.is_dir() else None))
    yield path
    left = list(path.iterdir())
    shutil.rmtree(path)
    assert not left
