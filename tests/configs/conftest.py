"""Packed example episodes."""

from pathlib import Path

import pytest

import epistream as es


@pytest.fixture(scope="session")
def aloha_files(example_data) -> list[Path]:
    """Two ALOHA episodes with JPEG cameras, 80 and 60 steps."""
    return [example_data / "aloha" / f"episode_{number}.hdf5" for number in range(2)]


@pytest.fixture(scope="session")
def aloha_shards(tmp_path_factory, aloha_files) -> Path:
    """The two episodes, one shard each."""
    out = tmp_path_factory.mktemp("aloha") / "shards"
    es.pack(aloha_files, out, shard_size="1MiB")
    return out
