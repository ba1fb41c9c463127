"""Example episodes and shards as the tests of loading want them."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def aloha_shards_copy(aloha_shards, tmp_path) -> Path:
    """A copy to do harm to."""
    return Path(shutil.copytree(aloha_shards, tmp_path / "shards"))


@pytest.fixture(params=["hdf5", "shards"])
def source(request, aloha_files, aloha_shards):
    return list(map(str, aloha_files)) if request.param == "hdf5" else [str(aloha_shards)]


@pytest.fixture
def files_copy(aloha_files, tmp_path):
    return [Path(shutil.copy(path, tmp_path / path.name)) for path in aloha_files]
