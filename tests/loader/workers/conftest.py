"""Where the caches of these tests lie."""

import os
import subprocess
from pathlib import Path

import pytest


@pytest.fixture
def cache_directory():
    directory = Path(f"/dev/shm/epistream-test-{os.getpid()}")
    yield directory
    subprocess.run(["rm", "-rf", str(directory)], check=True)
