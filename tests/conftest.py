"""Fixtures shared by all rooms: where the real episodes are, and two of them packed."""

import os
from pathlib import Path

import pytest

import epistream as es

# Else gcsfs asks Google itself, by gRPC, of what kind each bucket is: tests stay on this machine, and wait for nobody.
os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def example_data() -> Path:
    """The small real episodes that ship with the project."""
    return ROOT / "examples" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """A larger collection of real episodes beside the checkout; tests that want it are skipped without it."""
    path = ROOT.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip("the larger collection of episodes is not beside this checkout")
    return path


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
