"""CONTRIBUTING.md says what the sources say: every room with its sentence, and files that are there."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "CONTRIBUTING.md").read_text()


def test_contributing_names_every_room_with_its_sentence():
    rows = dict(re.findall(r"^\| `([\w/]+)/` \| (.+) \|$", PAGE, re.MULTILINE))
    said = {}
    for top in ("sharding", "cache", "loader", "configs", "epistream/commands", "epistream/integrations"):
        for file in (ROOT / top).rglob("__init__.py"):
            said[str(file.parent.relative_to(ROOT))] = ast.get_docstring(ast.parse(file.read_text()))
    assert {folder: rows.get(folder) for folder in said} == said
    assert set(rows) - set(said) == {"epistream"}


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/concepts.md"])
def test_files_that_pages_name_are_there(page):
    named = set(
        re.findall(
            r"`((?:sharding|cache|loader|configs|epistream|tests|docs|benchmarks)/[\w/.-]*)", (ROOT / page).read_text()
        )
    )
    assert len(named) > 8
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def test_picture_of_the_rooms_is_drawn_from_the_sources(tmp_path):
    pytest.importorskip("matplotlib")
    subprocess.run(
        [sys.executable, ROOT / "docs" / "rooms.py", "--out", tmp_path], check=True, timeout=120, cwd=tmp_path
    )
    assert (tmp_path / "rooms.png").read_bytes().startswith(b"\x89PNG")
    assert (ROOT / "docs" / "pictures" / "rooms.png").exists()
