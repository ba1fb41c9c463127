"""Fixtures of the cache's tests: a place on tmpfs, and processes that are born quickly."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cache_actors import leave_all


@pytest.fixture(autouse=True)
def left() -> Iterator[None]:
    """Stores that a test did not leave are left at its end."""
    yield
    leave_all()


@pytest.fixture
def tmpfs_path() -> Iterator[Path]:
    """An empty directory in memory (on disk where there is no /dev/shm), removed afterwards."""
    shm = Path("/dev/shm")
    path = Path(tempfile.mkdtemp(prefix="cache-test-", dir=shm if shm.is_dir() else None))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def cache_path(tmpfs_path: Path) -> Path:
    """Where a cache directory may be made; its parent is empty."""
    return tmpfs_path / "cache"
