"""Where exports go: folders, the hub through a stand-in, and what is left of one whose process was killed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from exporting.streamed import FAST, files_of

import epistream as es
from epistream.errors import DatasetExistsError, OptionError, SourceError, WorkerError

SET = Path(__file__).parents[2] / "sharding" / "lerobot" / "sets" / "cameras_v30"
KILLED = """
import os, signal, sys
from epistream.sharding.lerobot_out import work_folder
import epistream as es
left, real = int(sys.argv[3]), work_folder.WorkFolder.keep
def keep(self, name, facts):
    global left
    real(self, name, facts)
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
work_folder.WorkFolder.keep = keep
es.export_lerobot(sys.argv[1], sys.argv[2], workers=1, reencode=True, preset="ultrafast")
"""
OPTIONS = {"reencode": True, **FAST}


def test_export_whose_process_was_killed_goes_on_where_it_was(tmp_path, monkeypatch):
    run = [sys.executable, "-c", KILLED, SET, tmp_path / "out", "7"]
    assert subprocess.run(run, timeout=120, check=False).returncode == -signal.SIGKILL
    assert not (tmp_path / "out" / "meta").exists()
    assert len(list((tmp_path / "out" / ".export" / "facts").iterdir())) == 7
    with pytest.raises(DatasetExistsError, match="interrupted, of other source and options and versions, wanted"):
        es.export_lerobot(SET, tmp_path / "out", split="train", features=["action"], **OPTIONS)
    es.export_lerobot(SET, tmp_path / "out", **OPTIONS)
    es.export_lerobot(SET, tmp_path / "whole", **OPTIONS)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")
    with pytest.raises(DatasetExistsError, match="holds a LeRobot data set already"):
        es.export_lerobot(SET, tmp_path / "out", **OPTIONS)


def test_export_tells_how_far_it_is(tmp_path):
    seen = []
    report = es.export_lerobot(SET, tmp_path / "out", progress=seen.append, **OPTIONS)
    last = {now.stage: now for now in seen}
    assert list(last) == ["episodes", "files", "publishing"]
    assert all(now.num_done == now.num_total for now in last.values())
    assert report.path == tmp_path / "out"
    sizes = {name: len(data) for name, data in files_of(tmp_path / "out").items() if not name.startswith("meta/")}
    assert (report.num_files, report.num_bytes) == (len(sizes), sum(sizes.values()))


def test_export_to_a_relative_path_is_made_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert es.export_lerobot(SET, "out", features=["action"], **FAST).path == tmp_path / "out"


@pytest.mark.parametrize("out", ["s3://bucket/out", "http://127.0.0.1:9/out"])
def test_export_to_a_store_says_what_works(out):
    with pytest.raises(OptionError, match=f"{out}: a URL, wanted a folder of this machine or hf://"):
        es.export_lerobot(SET, out, **FAST)


def test_export_with_an_option_that_there_is_not_names_those_that_are(tmp_path):
    with pytest.raises(OptionError, match="no option 'quality'"):
        es.export_lerobot(SET, tmp_path / "out", quality=3, **FAST)


class Hub:
    """What talks to the hub, in memory."""

    def __init__(self, *, knows_us: bool = True) -> None:
        self.there: dict[str, bytes] = {}
        self.tags: list[str] = []
        self.asked: list[str] = []
        self._knows_us = knows_us

    def whoami(self) -> None:
        self.asked.append("whoami")
        if not self._knows_us:
            raise OSError("nobody")

    def create_repo(self, name: str, **named: Any) -> None:
        self.asked.append(f"create {name}")

    def create_branch(self, name: str, *, branch: str, **named: Any) -> None:
        self.asked.append(f"branch {branch}")

    def list_repo_files(self, name: str, **named: Any) -> list[str]:
        return sorted(self.there)

    def upload_folder(self, *, folder_path: str, ignore_patterns: list[str], **named: Any) -> None:
        from huggingface_hub.utils import filter_repo_objects

        found = files_of(Path(folder_path))
        self.there |= {name: found[name] for name in filter_repo_objects(list(found), ignore_patterns=ignore_patterns)}

    def upload_file(self, *, path_or_fileobj: Any, path_in_repo: str, **named: Any) -> None:
        data = path_or_fileobj if isinstance(path_or_fileobj, bytes) else Path(path_or_fileobj).read_bytes()
        self.there[path_in_repo] = data

    def list_repo_refs(self, name: str, **named: Any) -> Any:
        return SimpleNamespace(tags=[SimpleNamespace(name=tag) for tag in self.tags])

    def create_tag(self, name: str, *, tag: str, **named: Any) -> None:
        self.tags.append(tag)


@pytest.mark.parametrize("version", ["3.0", "2.1"])
def test_export_to_the_hub_uploads_the_set_and_tags_it(tmp_path, monkeypatch, version):
    pytest.importorskip("huggingface_hub")
    hub = Hub()
    monkeypatch.setattr("epistream.loader.exporting.lerobot.hub_api", lambda: hub)
    stages = []
    report = es.export_lerobot(
        SET,
        "hf://datasets/me/robot@main",
        version=version,
        folder=tmp_path / "made",
        progress=lambda now: stages.append(now.stage),
        **FAST,
    )
    assert report.path == tmp_path / "made"
    assert {name: data for name, data in hub.there.items() if name != "README.md"} == files_of(tmp_path / "made")
    assert (hub.asked, hub.tags) == (["whoami", "create me/robot", "branch main"], [f"v{version}"])
    assert stages[-1] == "uploading"
    assert json.loads(hub.there["meta/info.json"])["total_episodes"] == 5


def test_export_to_the_hub_is_made_below_the_user_s_cache(monkeypatch):
    pytest.importorskip("huggingface_hub")
    monkeypatch.setattr("epistream.loader.exporting.lerobot.hub_api", Hub)
    report = es.export_lerobot(SET, "hf://datasets/me/robot", features=["action"], **FAST)
    assert report.path == Path(os.environ["XDG_CACHE_HOME"]) / "epistream" / "exports" / "datasets--me--robot"


def test_export_to_a_hub_that_does_not_know_us_begins_nothing(tmp_path, monkeypatch):
    pytest.importorskip("huggingface_hub")
    monkeypatch.setattr("epistream.loader.exporting.lerobot.hub_api", lambda: Hub(knows_us=False))
    with pytest.raises(SourceError, match="hf://datasets/me/robot: OSError: nobody"):
        es.export_lerobot(SET, "hf://datasets/me/robot", folder=tmp_path / "made", **FAST)
    assert not (tmp_path / "made").exists()


def test_export_to_the_hub_again_after_the_upload_failed_uploads_what_was_made(tmp_path, monkeypatch):
    pytest.importorskip("huggingface_hub")
    hub = Hub()
    monkeypatch.setattr("epistream.loader.exporting.lerobot.hub_api", lambda: hub)
    arguments = {"folder": tmp_path / "made", "features": ["action"], **FAST}
    with monkeypatch.context() as patch:
        patch.setattr(hub, "upload_folder", lambda **named: 1 / 0, raising=False)
        with pytest.raises(SourceError, match="run the same again: what was uploaded stays"):
            es.export_lerobot(SET, "hf://datasets/me/robot", **arguments)
    assert not hub.there
    assert not es.export_lerobot(SET, "hf://datasets/me/robot", **arguments).is_new
    assert {name: data for name, data in hub.there.items() if name != "README.md"} == files_of(tmp_path / "made")


def test_export_whose_worker_dies_speaks_of_the_export_and_goes_on(tmp_path, monkeypatch):
    killed = tmp_path / "killed"
    monkeypatch.setattr("epistream.sharding.lerobot_out.export.make_facts", Dying(killed))
    with pytest.raises(WorkerError, match=r"an exporting process was ended by SIGKILL.*; the same export goes on"):
        es.export_lerobot(SET, tmp_path / "out", **{**OPTIONS, "workers": 2})
    monkeypatch.undo()
    assert es.export_lerobot(SET, tmp_path / "out", **OPTIONS).is_new


class Dying:
    """A task that ends its process."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __call__(self, task: object, pulse: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)
