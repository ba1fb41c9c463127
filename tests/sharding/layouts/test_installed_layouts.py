"""Layouts of other packages, by entry points: taken last, imported late, named where they are broken."""

import sys

import h5py
import numpy as np
import pytest
from hdf5_files import aloha_raw, numbers

import epistream as es
from epistream.errors import LayoutError
from epistream.sharding.layouts.installed import installed_layouts
from epistream.sharding.layouts.registry import layout_names, scan_source
from epistream.sharding.pack.pack import pack

MODULE = """
from epistream.sharding.layouts.layout_file import layout_of_values

IMPORTED = True

def arm():
    features = [{"path": "moves", "name": "action"}, {"path": "joints", "name": "observation.state"}]
    return layout_of_values({"name": "made-up-arm", "features": features}, "made_up")

class Odd:
    name, looks_for = "made-up-odd", "/odd"
    def matches(self, file):
        return file["odd"].shape[0] > 0
    def groups(self, file):
        return ["/"]
    def episode(self, file, group, choice=None):
        return 1 / 0

class Twice(Odd):
    name = "robomimic"

nothing = 5
"""
ENTRIES = {
    "arm": "made_up_layouts:arm",
    "odd": "made_up_layouts:Odd",
    "twice": "made_up_layouts:Twice",
    "number": "made_up_layouts:nothing",
    "gone": "made_up_layouts:no_such_name",
    "lost": "no_such_module_of_layouts:arm",
}


def install(folder, entries, version="1.0"):
    info = folder / f"made_up_layouts-{version}.dist-info"
    for old in folder.glob("*.dist-info"):
        for file in old.iterdir():
            file.unlink()
        old.rmdir()
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: made-up-layouts\nVersion: {version}\n")
    lines = "\n".join(f"{name} = {value}" for name, value in entries.items())
    (info / "entry_points.txt").write_text(f"[epistream.layouts]\n{lines}\n")
    (folder / "made_up_layouts.py").write_text(MODULE)
    installed_layouts.cache_clear()


@pytest.fixture
def package(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "indexes"))
    folder = tmp_path / "site"
    install(folder, {"arm": ENTRIES["arm"]})
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    sys.modules.pop("made_up_layouts", None)
    installed_layouts.cache_clear()


def arm(path):
    with h5py.File(path, "w") as file:
        file["moves"], file["joints"] = numbers(4, 2, 0), numbers(4, 3, 1)
    return path


def test_layout_of_a_package_is_found_by_its_marks_and_by_its_name(package, tmp_path):
    path = arm(tmp_path / "a.h5")
    assert layout_names()[-1] == "made-up-arm"
    assert pack(path, tmp_path / "out").layouts == {"made-up-arm": 1}
    stream = es.EpisodeStream(path, batch_size=4, shuffle=False)
    np.testing.assert_array_equal(next(iter(stream))["action"][:, 0], numbers(4, 2, 0))
    assert es.EpisodeStream(path, layout="made-up-arm", batch_size=4).num_windows == 4


def test_package_is_not_imported_for_files_that_are_known(package, tmp_path):
    assert scan_source(aloha_raw(tmp_path / "a.hdf5")).layout == "act-sim"
    assert "made_up_layouts" not in sys.modules


def test_broken_ones_are_named_once_and_keep_nobody_from_the_others(package, tmp_path, caplog):
    install(package, ENTRIES)
    assert layout_names()[-2:] == ["made-up-arm", "made-up-odd"]
    for name, words in {
        "number": "int without name, looks_for, matches, groups, episode, wanted a layout",
        "gone": "no_such_name",
        "lost": "No module named 'no_such_module_of_layouts'",
        "robomimic": "there is another of this name",
    }.items():
        (said,) = [one for one in caplog.messages if one.startswith(f"layout {name} of made-up-layouts 1.0: left out")]
        assert words in said
    assert scan_source(arm(tmp_path / "a.h5")).layout == "made-up-arm"


def test_one_that_fails_on_a_file_is_an_error_that_names_its_package(package, tmp_path, caplog):
    install(package, ENTRIES)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["odd"] = numbers(3, 2, 0)
    with pytest.raises(LayoutError, match=r"/: the layout made-up-odd of made-up-layouts 1\.0 failed \(ZeroDivision"):
        es.EpisodeStream(tmp_path / "a.h5")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["other"] = numbers(3, 2, 0)
    with pytest.raises(LayoutError, match="fits no known layout"):
        es.EpisodeStream(tmp_path / "b.h5")
    assert "layout made-up-odd of made-up-layouts 1.0: cannot look at a file (KeyError" in caplog.text


def test_kept_index_goes_with_the_version_of_the_package(package, tmp_path, caplog):
    path = arm(tmp_path / "a.h5")

    def indexed():
        caplog.clear()
        es.EpisodeStream(path)
        return f"indexing {path}" in caplog.text

    with caplog.at_level("INFO"):
        assert [indexed(), indexed()] == [True, False]
        install(package, {"arm": ENTRIES["arm"]}, "1.1")
        assert [indexed(), indexed()] == [True, False]
