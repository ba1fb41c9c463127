"""The grid's own tools: what is started ends with its children, what it printed is kept, and what is wrong is said."""

import psutil
import pytest
from launching import Start, launch
from test_grid import difference

# Leaves a child behind in a session of its own, whose parent is gone: what Ray and torchrun do with theirs.
LEAVES_A_CHILD = """
import json, subprocess, sys
from pathlib import Path

code = "import time; time.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stdin=subprocess.DEVNULL)
Path(json.loads(Path(sys.argv[1]).read_text())["out"], "child").write_text(str(child.pid))
print("left", file=sys.stderr)
"""


@pytest.fixture
def start(tmp_path):
    return Start(data="none", out=str(tmp_path), cache="none", ranks=1, workers=0, epochs=3)


@pytest.fixture
def program(tmp_path):
    def written(code: str):
        path = tmp_path / "program.py"
        path.write_text(code)
        return path

    return written


def test_child_in_a_session_of_its_own_ends_with_the_program(program, start, tmp_path):
    ended = launch(program(LEAVES_A_CHILD), start, under_torchrun=False)
    assert (ended.status, ended.printed) == (0, "left\n")
    pid = int((tmp_path / "child").read_text())
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_program_that_never_ends_is_killed_at_the_deadline(program, start):
    ended = launch(program("import time; time.sleep(600)"), start, under_torchrun=False, deadline_s=0.5)
    assert ended.status is None


def test_error_of_a_program_is_in_what_it_printed(program, start):
    ended = launch(program("raise SystemExit('wanted: this sentence')"), start, under_torchrun=False)
    assert (ended.status, ended.printed) == (1, "wanted: this sentence\n")


def test_program_learns_its_job_and_keeps_its_files_apart(program, start):
    code = "import os, sys, json, tempfile; told = json.load(open(sys.argv[1])); print(told['stop'], told['resume'])"
    code += "; print(tempfile.gettempdir()); print(os.environ['XDG_CACHE_HOME'])"
    printed = {launch(program(code), start, under_torchrun=False).printed for _ in range(2)}
    lines = [text.splitlines() for text in printed]
    assert len(lines) == 2, "two starts share a folder"
    for told, folder, cache in lines:
        assert told == "None False"
        assert cache.startswith(folder)


def test_difference_counts_windows_that_come_too_often_and_never():
    wanted = [[[0, 0], [0, 1]], [[1, 0], [1, 1]]]
    assert difference(wanted[:1], wanted) == (
        "1 batches, wanted 2; the first 1 are equal; 0 windows too many, 2 missing"
    )
    assert difference([wanted[0], wanted[0]], wanted) == (
        "2 batches, wanted 2; the first 1 are equal; 2 windows too many, 2 missing"
    )
    assert difference(wanted[::-1], wanted) == (
        "2 batches, wanted 2; the first 0 are equal; 0 windows too many, 0 missing"
    )
