"""Exports that are killed: nothing that looks whole, and the same bytes when they go on, in any number of processes."""

import contextlib
import os
import sys
import threading
import warnings
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from exporting.made import FRONT, IMAGE, STATE, TOP, VIDEO, MadeSource

from epistream.errors import DatasetExistsError, FormatError, PackError
from epistream.sharding.lerobot_out import export
from epistream.sharding.lerobot_out.export import export_lerobot
from epistream.sharding.lerobot_out.options import ExportOptions
from epistream.sharding.lerobot_out.work_folder import WorkFolder

OURS = str(Path(export.__file__).parent)
KILLED = 9


def options(version="3.0", **more):
    return ExportOptions(**{"version": version, "workers": 1, "preset": "ultrafast", **more})


def source(**changes):
    shape = (16, 16, 3)
    wrist = "observation.images.wrist"
    features = (
        STATE,
        *(type(VIDEO)(name, "video", shape) for name in (TOP, wrist)),
        type(IMAGE)(FRONT, "image", shape),
    )
    return MadeSource(features=features, copied=frozenset([wrist])).but(**changes)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def lines_of(work: Any, stop_at: int | None = None) -> int:
    """Run, and count the lines of ours that it takes; at that line the process is gone."""
    count = 0

    def local(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal count
        if event == "line":
            count += 1
            if count == stop_at:
                os._exit(KILLED)
        return local

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        return local if frame.f_code.co_filename.startswith(OURS) else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


def killed_at(line: int, work: Any) -> bool:
    """Run in a child that is gone at that line; whether it came so far."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads that a fork loses are none of this child's
        child = os.fork()
    if not child:
        try:
            lines_of(work, line)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) == KILLED


@pytest.mark.parametrize("version", ["3.0", "2.1"])
def test_export_killed_at_any_line_looks_unfinished_and_goes_on_to_the_same_bytes(tmp_path, version):
    whole = tmp_path / "whole"
    export_lerobot(source(), tmp_path / "first", options(version))  # which runs lines of modules, once a process
    num_lines = lines_of(lambda: export_lerobot(source(), whole, options(version)))
    expected = contents(whole)
    assert not [name for name in expected if name.startswith(".")]
    # The last ones are where the set becomes one; how many there are depends a little on the time, which is told.
    lines = [*np.linspace(1, num_lines - 100, 10, dtype=int).tolist(), *range(num_lines - 60, num_lines, 5)]
    num_killed = 0
    for number, line in enumerate(lines):
        out = tmp_path / f"out-{number}"
        num_killed += killed_at(line, lambda out=out: export_lerobot(source(), out, options(version)))
        if (out / "meta" / "info.json").exists():
            there = contents(out)
            assert {name: there[name] for name in expected} == expected
        # A second kill, on the way of the one that goes on.
        killed_at(line // 2 + 1, lambda out=out: export_lerobot(source(), out, options(version)))
        is_complete = (out / "meta" / "info.json").exists() and not (out / ".export" / "job.json").exists()
        with pytest.raises(DatasetExistsError, match="already") if is_complete else contextlib.nullcontext():
            export_lerobot(source(), out, options(version))
        assert contents(out) == expected
    assert num_killed >= len(lines) - 4


def test_export_that_goes_on_does_not_encode_again_what_is_staged(tmp_path, monkeypatch):
    def fail(*arguments: object) -> None:
        raise OSError("no room")

    with monkeypatch.context() as patch:
        patch.setattr("epistream.sharding.lerobot_out.export.lay_out", fail)
        with pytest.raises(OSError, match="no room"):
            export_lerobot(source(), tmp_path / "out", options())
    monkeypatch.setattr("epistream.sharding.lerobot_out.episode_facts._of_encoded", fail)
    assert export_lerobot(source(), tmp_path / "out", options()).is_new


def test_export_gives_the_same_bytes_with_any_number_of_processes(tmp_path):
    export_lerobot(source(), tmp_path / "one", options())
    export_lerobot(source(), tmp_path / "three", options(workers=3))
    assert contents(tmp_path / "one") == contents(tmp_path / "three")


def test_export_that_failed_on_an_episode_goes_on_when_that_is_mended(tmp_path):
    with pytest.raises(OSError, match="gone"):
        export_lerobot(source(fails_at=2), tmp_path / "out", options())
    assert not (tmp_path / "out" / "meta").exists()
    report = export_lerobot(source(), tmp_path / "out", options())
    assert report.is_new
    export_lerobot(source(), tmp_path / "whole", options())
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize("damage", ["torn", "gone"])
def test_export_makes_again_what_is_torn_of_its_facts(tmp_path, monkeypatch, damage):
    with monkeypatch.context() as patch:
        patch.setattr("epistream.sharding.lerobot_out.export.write_metadata", lambda job, layout: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            export_lerobot(source(copied=frozenset([TOP, "observation.images.wrist"])), tmp_path / "out", options())
    facts = sorted((tmp_path / "out" / ".export" / "facts").iterdir())
    for path in facts:
        if damage == "gone":
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:-1])
    export_lerobot(source(copied=frozenset([TOP, "observation.images.wrist"])), tmp_path / "out", options())
    export_lerobot(source(copied=frozenset([TOP, "observation.images.wrist"])), tmp_path / "whole", options())
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("changes", "of_options", "what"),
    [
        ({"identity": "another"}, {}, "source"),
        ({}, {"crf": 30}, "options"),
        ({}, {"version": "2.1"}, "options"),
    ],
)
def test_export_that_was_interrupted_does_not_go_on_with_another(tmp_path, changes, of_options, what):
    with pytest.raises(OSError, match="gone"):
        export_lerobot(source(fails_at=2), tmp_path / "out", options())
    before = contents(tmp_path / "out")
    with pytest.raises(DatasetExistsError, match=rf"interrupted, of other {what}, wanted the same"):
        export_lerobot(source(**changes), tmp_path / "out", options(**of_options))
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("there", ["notes.txt", "data/x.parquet", "meta/info.json", ".export/../x"])
def test_export_into_a_folder_with_something_else_is_refused(tmp_path, there):
    (tmp_path / "out" / there).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "out" / ".export").mkdir(exist_ok=True)
    (tmp_path / "out" / there).write_text("mine")
    before = contents(tmp_path / "out")
    with pytest.raises(DatasetExistsError, match="wanted an empty folder"):
        export_lerobot(source(), tmp_path / "out", options())
    assert contents(tmp_path / "out") == before


def test_export_over_a_complete_set_is_refused(tmp_path):
    export_lerobot(source(), tmp_path / "out", options())
    with pytest.raises(DatasetExistsError, match="holds a LeRobot data set already"):
        export_lerobot(source(), tmp_path / "out", options())


def test_export_killed_after_its_end_is_cleaned_up_and_says_that_it_was_complete(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(WorkFolder, "conclude", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            export_lerobot(source(), tmp_path / "out", options())
    report = export_lerobot(source(), tmp_path / "out", options())
    assert (report.is_new, report.num_episodes) == (False, 3)
    assert not (tmp_path / "out" / ".export").exists()


def test_export_beside_another_into_the_same_folder_is_refused(tmp_path):
    tried: list[BaseException] = []

    def second() -> None:
        try:
            export_lerobot(source(), tmp_path / "out", options())
        except PackError as error:
            tried.append(error)

    with WorkFolder(tmp_path / "out") as folder:
        folder.begin({})
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(60)
    assert "another export writes there, wanted it alone" in str(tried[0])


def test_export_with_staged_pictures_that_somebody_cut_is_an_error(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("epistream.sharding.lerobot_out.export.lay_out", lambda job: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            export_lerobot(source(), tmp_path / "out", options())
    for path in (tmp_path / "out" / ".export" / "pictures").iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FormatError, match=r"ends at step 4, wanted 5\. Begin the export again"):
        export_lerobot(source(), tmp_path / "out", options())
