"""The page on HDF5 says what the code does: its blocks are run, and print what it shows."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def test_code_of_the_page_prints_what_the_page_shows(tmp_path):
    page = (ROOT / "docs" / "hdf5.md").read_text()
    (code, shown) = re.search(r"```python\n(.*?)```\n```text\n(.*?)```", page, re.DOTALL).groups()
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == shown
