"""The README does what it says: its blocks are run in order, in an empty folder, and print what it shows."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[tuple[str, str]]:
    return [(match[1], match[2]) for match in BLOCK.finditer(page.read_text())]


@pytest.fixture
def folder(tmp_path):
    """An empty folder with the examples of a clone."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    return tmp_path


def run(command: list[str], folder: Path) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    result = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def test_readme_blocks_run_and_print_what_it_shows(folder):
    program, printed, shown, ran = "", None, "", 0
    for language, text in blocks(ROOT / "README.md"):
        if language == "bash" and "make " not in text:
            run(["bash", "-euo", "pipefail", "-c", text], folder)
            ran += 1
        elif language == "python":
            program += text  # a block goes on where the one before it ended
            printed = run([sys.executable, "-c", program], folder)
            ran += 1
        elif language == "text":
            shown += text  # and so does what it prints
            assert printed == shown
    assert ran >= 4


def test_readme_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text())
    assert links
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


def test_demo_packs_streams_proves_and_measures(folder):
    command = [sys.executable, str(ROOT / "examples" / "demo.py"), "--rounds", "1", "--seconds", "0.2"]
    printed = run(command, folder)
    assert "no faults: 2 shards, 2 episodes" in printed
    assert printed.count("64 + 64 of 140 windows, 0 twice, 12 left over") == 2
    assert "2 for 2 shards" in printed
    assert "after 0 B" in printed
    assert (folder / "demo-out" / "episode-0.png").read_bytes().startswith(b"\x89PNG")
