"""Fixtures shared by all rooms: where the real episodes are."""

from pathlib import Path

import pytest

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
