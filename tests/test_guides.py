"""The guides do what they say: their blocks are run in order, in one process, and print what they show."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from epistream import errors

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Blocks of pages that have few.
FEWEST = {"video": 3, "quality": 1, "doctor": 5, "cluster": 4}
GUIDES = (
    *(
        "concepts",
        "trainers",
        "troubleshooting",
        "hdf5",
        "lerobot",
        "selecting",
        "datasets",
        "doctor",
        "video",
        "cluster",
    ),
    "quality",
)

# Runs the blocks of the page that it is given and compares what each prints with the text block behind it.
RUNNER = """
import contextlib, io, os, re, subprocess, sys
text = open(sys.argv[1], encoding="utf-8").read()
blocks = re.findall(sys.argv[2], text, re.MULTILINE | re.DOTALL)
names = {"__name__": "guide"}
for (kind, code), (next_kind, shown) in zip(blocks, [*blocks[1:], ("", "")]):
    printed = io.StringIO()
    if kind == "python":
        with contextlib.redirect_stdout(printed):
            exec(compile(code, "block", "exec"), names)
    elif kind == "bash":
        subprocess.run(["bash", "-euo", "pipefail", "-c", code], check=True, timeout=100, stdout=subprocess.DEVNULL)
    if kind == "python" and next_kind == "text" and printed.getvalue() != shown:
        sys.exit(f"{code}\\nprinted:\\n{printed.getvalue()}\\nshown:\\n{shown}")
print(len(blocks))
"""


@pytest.mark.parametrize("guide", GUIDES)
def test_guide_blocks_run_and_print_what_it_shows(guide, tmp_path):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    result = subprocess.run(
        [sys.executable, "-c", RUNNER, str(ROOT / "docs" / f"{guide}.md"), BLOCK.pattern],
        cwd=tmp_path,
        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) >= FEWEST.get(guide, 9)


@pytest.mark.parametrize("guide", GUIDES)
def test_guide_links_lead_somewhere(guide):
    page = ROOT / "docs" / f"{guide}.md"
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        name, _, heading = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        if heading:
            titles = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", t).lower().replace(" ", "-") for t in titles}, link


def test_troubleshooting_has_a_section_for_every_error():
    names = {name for name, value in vars(errors).items() if isinstance(value, type)}
    text = (ROOT / "docs" / "troubleshooting.md").read_text()
    assert {name for name in names if f"\n### {name}\n" not in text} == set()


def test_troubleshooting_lists_every_limit():
    from typing import get_args

    from epistream.loader.monitoring.diagnosis import Limit

    text = (ROOT / "docs" / "troubleshooting.md").read_text()
    assert [limit for limit in get_args(Limit) if f"| `{limit}` |" not in text] == []


def test_trainers_were_run_with_the_versions_that_tests_install():
    text = (ROOT / "docs" / "trainers.md").read_text().partition("## What was run")[2]
    told = dict(re.findall(r"^\| ([\w-]+) \| ([\d.]+) \|", text, re.MULTILINE))
    assert set(told) == {"torch", "lightning", "transformers", "accelerate", "torchdata", "ray"}
    pinned = dict(re.findall(r"^([\w-]+)==([\w.]+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    assert told == {name: pinned[name] for name in told}


def test_trainers_page_links_the_program_of_every_row_of_the_grid():
    from launching import ROWS

    text = (ROOT / "docs" / "trainers.md").read_text()
    assert [row.program for row in ROWS if f"(../tests/trainers/programs/{row.program}.py)" not in text] == []
