"""What an earlier release wrote, and where tests find it."""

import json
import shutil
import tempfile
from pathlib import Path

import fsspec
import pytest

WRITTEN_BY = Path(__file__).resolve().parent / "0.1.0"


@pytest.fixture(scope="session")
def stored() -> Path:
    """The stored bytes; nothing may be written there."""
    return WRITTEN_BY


@pytest.fixture(scope="session")
def shards(stored) -> dict:
    """What tarfile and Pillow found in each shard when it was stored: {dataset: {shard: [episode]}}."""
    return json.loads((stored / "shards.json").read_text())


@pytest.fixture(autouse=True)
def kept_for_user(tmp_path, monkeypatch) -> Path:
    """Where indexes are kept for a user, a folder that is not there yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    return tmp_path / "xdg" / "epistream" / "indexes"


@pytest.fixture
def remote_demos(stored, monkeypatch):
    """demos.hdf5 at the URL where it was indexed: in memory, where 0.1.0 looked at its size and nothing else."""
    url = "memory://stored/demos.hdf5"
    files = fsspec.filesystem("memory")
    tell = type(files).info
    monkeypatch.setattr(type(files), "info", lambda *path, **options: {**tell(*path, **options), "created": None})
    files.pipe_file(url, (stored / "demos.hdf5").read_bytes())
    yield url
    files.rm(url)


@pytest.fixture
def cache_path():
    """Where a cache directory may be made, in memory where there is some; its parent is empty."""
    shm = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="cache-test-", dir=shm if shm.is_dir() else None))
    yield folder / "cache"
    shutil.rmtree(folder, ignore_errors=True)
