"""What cannot be exported: an error that names the place, what was found and what was wanted."""

import importlib
import os
from dataclasses import replace

import numpy as np
import pytest
from exporting.made import DONE, FRONT, STATE, TOP, VIDEO, MadeEpisode, MadeSource, MadeVideo

from epistream.errors import FormatError, OptionError, PackError
from epistream.sharding.lerobot_out.export import export_lerobot
from epistream.sharding.lerobot_out.model import OutFeature
from epistream.sharding.lerobot_out.options import ExportOptions
from epistream.sharding.pictures.mp4_mux import Packets

OPTIONS = ExportOptions(workers=1, preset="ultrafast")
COPIED = MadeSource(copied=frozenset([TOP]))


@pytest.mark.parametrize(
    ("feature", "message"),
    [
        (("a/b", "float32", (3,)), "'a/b': LeRobot has no such name"),
        ((".", "float32", (3,)), "'.': LeRobot has no such name"),
        (("timestamp", "float32", (1,)), "'timestamp': LeRobot has no such name"),
        (("a", "complex64", (1,)), "dtype 'complex64', wanted a numpy name"),
        (("a", "float32", (0,)), r"shape \(0,\), wanted at most 5 axes"),
        (("a", "float32", (1,) * 6), "wanted at most 5 axes"),
        (("a", "video", (48, 64)), r"pictures of shape \(48, 64\)"),
        (("a", "image", (48, 64, 4)), r"pictures of shape \(48, 64, 4\)"),
        (("a", "string", (2,)), r"texts of shape \(2,\)"),
    ],
)
def test_feature_that_lerobot_has_not_is_refused(feature, message):
    with pytest.raises(FormatError, match=message):
        OutFeature(*feature)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": (STATE, STATE)}, "a name twice"),
        ({"lengths": np.array([], np.int64)}, "0 episodes, wanted at least one"),
        ({"lengths": np.array([3, 0])}, "each of at least one step"),
        ({"fps": 0}, "0 steps a second"),
        ({"tasks": ("a", "a")}, "two tasks with the same text"),
        (
            {"features": (OutFeature(TOP, "video", (47, 64, 3)),)},
            r"of 64x47 .* wanted even sides",
        ),
        ({"features": (OutFeature(TOP, "video", (48, 64, 1)),)}, "pictures with 1 channel to be encoded, wanted 3"),
        ({"features": (OutFeature(FRONT, "video", (30, 41, 3)),)}, "--pictures image"),
    ],
)
def test_source_that_no_set_can_be_written_from_is_refused_before_anything_is_written(tmp_path, changes, message):
    with pytest.raises(OptionError, match=message):
        export_lerobot(MadeSource(**changes), tmp_path / "out", OPTIONS)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("method", "value", "message"),
    [
        ("values", np.zeros((5, 4), np.float32), r"episode 0, observation.state: float32 \(5, 4\), wanted .* \(5, 3\)"),
        ("values", np.zeros((4, 3), np.float32), r"float32 \(4, 3\), wanted float32 \(5, 3\)"),
        ("values", np.zeros((5, 3)), r"float64 \(5, 3\), wanted float32"),
        ("task_index", np.full(5, 2), "episode 0: tasks as int64 .* wanted 5 integers of 0 to 1"),
        ("task_index", np.full(5, -1), "wanted 5 integers of 0 to 1"),
        ("task_index", np.zeros(5), "tasks as float64"),
        ("task_index", np.zeros(4, int), "wanted 5 integers"),
        ("pictures", [np.zeros((48, 64, 3), np.uint8)] * 4, rf"episode 0, {TOP}: 4 pictures, wanted 5"),
        ("pictures", [np.zeros((48, 60, 3), np.uint8)], r"a picture of uint8 \(48, 60, 3\), wanted uint8 \(48, 64"),
        ("pictures", [np.zeros((48, 64, 3), np.float32)], "a picture of float32"),
    ],
)  # fmt: skip
def test_episode_that_is_not_what_the_source_says_is_named(tmp_path, monkeypatch, method, value, message):
    monkeypatch.setattr(MadeEpisode, method, lambda self, *name: iter(value) if method == "pictures" else value)
    with pytest.raises(FormatError, match=message):
        export_lerobot(MadeSource(features=(STATE, VIDEO)), tmp_path / "out", OPTIONS)
    assert not (tmp_path / "out" / "meta").exists()


@pytest.mark.parametrize(
    ("rows", "changes", "message"),
    [
        ([0, 1, 2, 3], {}, rf"episode 0, {TOP}: a video of 4 pictures, wanted 5"),
        ([0, 1, 2, 3, 4, 4], {}, rf"episode 0, {TOP}: a video of 6 pictures, wanted 5"),
        ([0, 0, 0, 0, 0], {}, "wanted each once"),
        ([0, 1, 2, 3, 4], {"is_key": np.zeros(5, np.bool_)}, "no key frame"),
        ([0, 1, 2, 3, 4], {"size": np.full(5, 9)}, r"file-000.mp4, from episode 0 on, video 0: .* bytes, wanted 45,"),
    ],
)
def test_video_that_is_not_what_the_source_says_is_named(tmp_path, monkeypatch, rows, changes, message):
    whole = MadeVideo.packets.fget

    def packets(self: MadeVideo) -> Packets:
        found = whole(self)
        if len(found) != 5:  # of another episode
            return found
        return replace(Packets(found.step[rows], found.is_key[rows], found.size[rows]), **changes)

    monkeypatch.setattr(MadeVideo, "packets", property(packets))
    with pytest.raises(FormatError, match=message):
        export_lerobot(COPIED, tmp_path / "out", OPTIONS)
    assert not (tmp_path / "out" / "meta").exists()


def test_video_of_another_size_than_the_feature_s_is_named(tmp_path):
    # As packing encodes odd sides: with a row more, which LeRobot would show.
    source = COPIED.but(features=(OutFeature(TOP, "video", (47, 64, 3)),))
    with pytest.raises(FormatError, match=rf"episode 0, {TOP}: a video of 64x48 .*, wanted 64x47 "):
        export_lerobot(source, tmp_path / "out", OPTIONS)


def test_frames_that_do_not_all_decode_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(MadeEpisode, "frames", lambda self, camera, steps: iter(()))
    with pytest.raises(FormatError, match=rf"episode 0, {TOP}: 0 of 5 pictures decode"):
        export_lerobot(COPIED, tmp_path / "out", OPTIONS)


@pytest.mark.parametrize("package", ["pyarrow", "av"])
def test_export_without_a_package_names_the_extra(tmp_path, monkeypatch, package):
    find = importlib.import_module

    def missing(name: str, *more: object):
        if name.partition(".")[0] == package:
            raise ImportError(f"No module named '{name}'")
        return find(name, *more)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(OptionError, match=r"Run: pip install 'epistream\["):
        export_lerobot(COPIED, tmp_path / "out", OPTIONS)
    assert not (tmp_path / "out").exists()


def test_export_where_nothing_can_be_written_is_an_error_that_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PackError, match=r"wanted (a folder|room)"):
        export_lerobot(MadeSource(features=(DONE,)), tmp_path / "file", OPTIONS)


def test_export_onto_a_full_disk_says_so_and_goes_on_later(tmp_path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises((PackError, OSError), match="No space left"):
            export_lerobot(COPIED, tmp_path / "out", OPTIONS)
    assert not (tmp_path / "out" / "meta" / "info.json").exists()
    assert export_lerobot(COPIED, tmp_path / "out", OPTIONS).num_steps == 13


def test_tasks_of_other_alphabets_come_back(tmp_path):
    from exporting.folder import read_folder

    strange = ("拾う\u2028x", 'say "hi"\n', "\N{PILE OF POO}")
    for version in ("3.0", "2.1"):
        export_lerobot(
            MadeSource(features=(STATE,), tasks=strange),
            tmp_path / version,
            ExportOptions(version=version, workers=1),
        )
        assert read_folder(tmp_path / version).tasks == list(strange)
