"""Small datasets that are packed once, and copies of them to edit."""

from pathlib import Path

import pytest
from editing.small import copied, packed, recordings


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> list[Path]:
    """Ten recordings, numbered from 0: of 4, 5, 6, 7, 8, 9, 10, 4, 5 and 6 steps."""
    return recordings(tmp_path_factory.mktemp("recordings"), range(10))


@pytest.fixture(scope="session")
def more_files(tmp_path_factory) -> list[Path]:
    """Four more, 10 to 13: of 7, 8, 9 and 10 steps."""
    return recordings(tmp_path_factory.mktemp("more") / "later", range(10, 14))


@pytest.fixture(scope="session")
def packed_once(files, tmp_path_factory) -> str:
    """The ten recordings in a few shards, without a split."""
    return packed(files, tmp_path_factory.mktemp("packed") / "set")


@pytest.fixture(scope="session")
def packed_more(more_files, tmp_path_factory) -> str:
    """The four others."""
    return packed(more_files, tmp_path_factory.mktemp("packed") / "more")


@pytest.fixture
def url(packed_once, tmp_path) -> str:
    """The ten recordings to edit."""
    return copied(packed_once, tmp_path / "set")
