"""Layout files: attributes as instructions, paths that fit nothing, channels first, which episodes are wanted."""

import json

import h5py
import numpy as np
import pytest
from hdf5_files import episodes, npy, numbers, picture

import epistream as es
from epistream.errors import LayoutError, OptionError, PackError, SourceError
from epistream.sharding.layouts.layout_file import layout_of_values, read_layout_file
from epistream.sharding.layouts.places import Place
from epistream.sharding.layouts.registry import scan_source
from epistream.sharding.pack.pack import pack

ACTION = {"path": "a", "name": "action"}


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "indexes"))


def layout(**said):
    return layout_of_values({"name": "mine", "features": [ACTION], **said}, "mine.yaml")


def trajectories(path, **attributes):
    """Three episodes of 3, 4 and 5 steps; of each attribute a value for each of them."""
    with h5py.File(path, "w") as file:
        for number in range(3):
            group = file.create_group(f"traj_{number}")
            group["a"] = numbers(3 + number, 2, number)
            for name, values in attributes.items():
                if values[number] is not None:
                    group.attrs[name] = values[number]
    return path


def one(path, **said):
    scan = scan_source(path, layout(**said))
    return scan.episodes[0] if scan.episodes else scan.faults[0]


WAYS = {
    "@text": ("lift it",),
    "@bytes": ("lift it",),
    "@list": ("lift it", "raise it"),
    "@array": ("lift it", "raise it"),
    "@opaque": ("lift it",),
    "@numbers": ("lift it",),
    "@json": ("lift it", "raise it"),
    "@info[lang]": ("lift it",),
    "@info[more][all]": ("lift it", "raise it"),
    "/@text": ("lift it",),
    "meta@text": ("of a group",),
    "/meta@text": ("of a group",),
    "a@text": ("of a dataset",),
    "goal": ("in a dataset",),
    "meta/goals": ("first", "second"),
    "meta/info[lang]": ("in JSON in a dataset",),
}


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    path = tmp_path_factory.mktemp("told") / "a.h5"
    info = {"lang": "lift it", "more": {"all": ["lift it", "raise it"]}, "n": 3}
    with h5py.File(path, "w") as file:
        file["a"], file["goal"] = numbers(4, 2, 0), "in a dataset"
        file["meta/goals"] = [b"first", b"second"]
        file["meta/info"] = json.dumps({"lang": "in JSON in a dataset"})
        file["meta"].attrs["text"], file["a"].attrs["text"] = "of a group", "of a dataset"
        for name, value in {
            **{"text": "lift it", "bytes": np.bytes_(b"lift it"), "list": ["lift it", "raise it"]},
            **{"array": np.array([b"lift it", b"raise it"]), "opaque": np.void(b"lift it")},
            **{"numbers": np.frombuffer(b"lift it\0\0", np.uint8), "json": json.dumps(["lift it", "raise it"])},
            **{"info": json.dumps(info), "number": 3, "matrix": np.eye(2), "torn": "{"},
        }.items():
            file.attrs[name] = value
    return path


@pytest.mark.parametrize("place", WAYS)
def test_instruction_is_found_where_the_layout_file_says(told, place):
    assert one(told, tasks=[place]).tasks == WAYS[place]
    assert str(Place.parse(place)) == place


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("@nothing", "/: tasks: nothing at @nothing, found @array, @bytes, "),
        ("none", "or say 'tasks_optional: true' there"),
        ("@number", "/@number: 3, wanted a text"),
        ("@matrix", "/@matrix: a list [[1.0, 0.0], [0.0, 1.0]], wanted a text"),
        ("@info[language]", "/@info[language]: found the keys lang, more, n, wanted the key 'language'"),
        ("@torn[lang]", "/@torn[lang]: no JSON"),
        ("meta", "/meta: a group, wanted a dataset, or one of its attributes: 'meta@NAME'"),
        ("a", "wanted a text"),
    ],
)
def test_instruction_that_is_not_there_is_an_error_that_says_what_is(told, place, words):
    assert words in one(told, tasks=[place])


def test_instruction_may_be_missing_where_the_layout_file_says_so(told):
    assert one(told, tasks=["@nothing"], tasks_optional=True).tasks == ()
    assert one(told, tasks=["@nothing", "goal"]).tasks == ("in a dataset",)


def test_instruction_of_each_episode_is_its_own(tmp_path):
    path = trajectories(tmp_path / "a.h5", task=["x", "y", "z"])
    own = layout(episodes="traj_*", tasks=["@task"])
    assert [episode.tasks for episode in scan_source(path, own).episodes] == [("x",), ("y",), ("z",)]


@pytest.mark.parametrize("episodes_pattern", ["", "traj_*"])
@pytest.mark.parametrize("wrong", ["cams/*", "joint"])
def test_path_that_fits_nothing_is_an_error_that_names_it(tmp_path, wrong, episodes_pattern):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        group = file.create_group("traj_0") if episodes_pattern else file
        group["a"], group["joints"] = numbers(3, 2, 0), numbers(3, 2, 1)
    feature = {"path": wrong, "name": "observation.*" if "*" in wrong else "observation.joints"}
    said = {"features": [ACTION, feature], "episodes": episodes_pattern}
    fault = one(tmp_path / "a.h5", **said)
    assert f"/{wrong}" in fault
    assert "joints float32" in fault
    said["features"][1]["optional"] = True
    assert [item.feature.name for item in one(tmp_path / "a.h5", **said).fields] == ["action"]


def test_group_that_lacks_what_others_have_is_a_fault_of_its_own(tmp_path):
    path = trajectories(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        del file["traj_1/a"]
        file["traj_1/b"] = numbers(3, 2, 0)
    scan = scan_source(path, layout(episodes="traj_*"))
    assert [episode.group for episode in scan.episodes] == ["/traj_0", "/traj_2"]
    assert scan.faults == (
        f"{path}: /traj_1: features.0: 'a' fits nothing there, found b. Correct the path in the layout file, or say "
        "'optional: true' beside it.",
    )


def test_path_of_something_that_is_no_numbers_is_an_error(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["a"], file["s"] = numbers(3, 2, 0), ["x", "y", "z"]
    fault = one(tmp_path / "a.h5", features=[ACTION, {"path": "s", "name": "observation.s"}])
    assert "features.1: 's' fits /s (texts, wanted numbers), wanted a row for each step. Leave it out" in fault


@pytest.mark.parametrize("stored", ["chw", "cwh", "whc", "wch", "hcw"])
@pytest.mark.parametrize("how", [{}, {"compression": "gzip"}, {"chunks": True}])
def test_frames_of_other_axes_are_streamed_and_packed_upright(tmp_path, stored, how):
    frames = np.stack([picture(step) for step in range(5)])
    with h5py.File(tmp_path / "a.h5", "w") as file:
        order = [1 + "hwc".index(axis) for axis in stored]
        file.create_dataset("rgb", data=frames.transpose(0, *order), **how)
        file["a"] = numbers(5, 2, 0)
    (tmp_path / "mine.yaml").write_text(
        "name: mine\nfeatures:\n  - {path: a, name: action}\n"
        f"  - {{path: rgb, camera: top, transpose: {stored}, shift: 1, rotate: 180}}\n"
    )
    stream = es.EpisodeStream(tmp_path / "a.h5", layout=tmp_path / "mine.yaml", batch_size=4, shuffle=False)
    np.testing.assert_array_equal(next(iter(stream))["observation.images.top"][:, 0], frames[1:])
    again = es.EpisodeStream(tmp_path / "a.h5", layout=tmp_path / "mine.yaml", batch_size=4, shuffle=False)
    np.testing.assert_array_equal(next(iter(again))["observation.images.top"][:, 0], frames[1:])
    pack(tmp_path / "a.h5", tmp_path / "out", layout=read_layout_file(tmp_path / "mine.yaml"), codec="raw")
    packed = npy(episodes(tmp_path / "out")["ep-000000000"]["observation.images.top.npy"])
    np.testing.assert_array_equal(packed, frames[1:])


@pytest.mark.parametrize(("shape", "words"), [((5, 24, 32, 3), "32 would be channels"), ((5, 24, 32), "wanted (T, C,")])
def test_frames_that_are_not_as_the_layout_file_says_are_an_error(tmp_path, shape, words):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["rgb"], file["a"] = np.zeros((5, 3, 24, 4) if "channels" in words else shape, np.uint8), numbers(5, 2, 0)
    camera = {"path": "rgb", "camera": "top", "transpose": "wch" if "channels" in words else "chw"}
    fault = one(tmp_path / "a.h5", features=[ACTION, camera])
    assert words.replace("32", "24") in fault


WANTED = {
    "a truth": ([True, False, np.bool_(True)], True),
    "a number for a truth": ([1, 0, 1.0], True),
    "a number": ([2, 1, 2.0], 2),
    "a text": (["yes", "no", b"yes"], "yes"),
    "one of several": (["a", "c", "b"], ["a", "b"]),
    "a list of one": ([[1], [0], [1]], 1),
}


@pytest.mark.parametrize("name", WANTED)
def test_episodes_are_taken_by_an_attribute(tmp_path, name):
    values, wanted = WANTED[name]
    values = [np.bytes_(value) if isinstance(value, bytes) else value for value in values]
    path = trajectories(tmp_path / "a.h5", success=values)
    scan = scan_source(path, layout(episodes="traj_*", where={"@success": wanted}))
    assert scan.faults == ()
    assert [episode.length for episode in scan.episodes] == [3, 5]
    assert len(scan.excluded) == 1
    assert scan.excluded[0].startswith("/traj_1 (@success is ")


@pytest.mark.parametrize(
    ("values", "wanted", "words"),
    [
        ([True, None, True], True, "/traj_1/@success: not there, and 'where' of the layout file asks for it"),
        ([True, "true", True], True, "/traj_1/@success: \"true\", which 'where' of the layout file compares with true"),
        ([True, 7, True], True, "/traj_1/@success: 7, which"),
        ([True, [1, 2], True], True, "/traj_1/@success: a list [1, 2], wanted one value"),
    ],
)
def test_episode_that_cannot_be_judged_is_a_fault(tmp_path, values, wanted, words):
    path = trajectories(tmp_path / "a.h5", success=values)
    scan = scan_source(path, layout(episodes="traj_*", where={"@success": wanted}))
    assert (len(scan.episodes), len(scan.faults)) == (2, 1)
    assert words in scan.faults[0]


def write_where(tmp_path):
    (tmp_path / "in").mkdir()
    for number, success in enumerate([True, False, True]):
        with h5py.File(tmp_path / "in" / f"{number}.h5", "w") as file:
            file["a"], file.attrs["success"] = numbers(4, 2, number), success
    (tmp_path / "mine.yaml").write_text('name: mine\nwhere: {"@success": true}\nfeatures: [{path: a, name: action}]\n')
    return tmp_path / "in", tmp_path / "mine.yaml"


def test_unwanted_files_are_left_out_and_listed_by_packs_and_streams(tmp_path, caplog):
    folder, own = write_where(tmp_path)
    report = pack(folder, tmp_path / "out", layout=read_layout_file(own))
    assert (report.num_episodes, report.faults) == (2, ())
    assert report.left_out == ("1 episode of 1.h5: / (@success is false)",)
    stream = es.EpisodeStream(folder, layout=own, batch_size=1)
    assert stream.num_windows == 8
    assert list(stream.job.dataset.skipped) == [str(folder / "1.h5")]
    assert "@success is false" in stream.job.dataset.skipped[str(folder / "1.h5")]
    assert "left out as the layout file says: 1, such as" in caplog.text


def test_unwanted_episodes_of_a_file_are_listed_also_when_its_index_is_kept(tmp_path):
    path = trajectories(tmp_path / "a.h5", success=[True, False, True])
    (tmp_path / "mine.yaml").write_text(
        'name: mine\nepisodes: traj_*\nwhere: {"@success": true}\nfeatures: [{path: a, name: action}]\n'
    )
    for _ in range(2):
        stream = es.EpisodeStream(path, layout=tmp_path / "mine.yaml", batch_size=1)
        assert stream.num_windows == 8
        assert stream.job.dataset.skipped == {f"{path}:/traj_1": f"{path}: /traj_1 (@success is false)."}


def test_nothing_that_is_wanted_is_an_error(tmp_path):
    path = trajectories(tmp_path / "a.h5", success=[False, False, False])
    own = layout(episodes="traj_*", where={"@success": True})
    with pytest.raises(PackError, match=r"3 episodes of a.h5: /traj_0 \(@success is false\).*Correct its 'where'"):
        pack(path, tmp_path / "out", layout=own)
    with pytest.raises(SourceError, match=r"No episode is left of 1 files. Correct 'where' in the layout file"):
        es.open_dataset(path, layout=own)


def test_kept_indexes_of_layout_files_that_say_nothing_new_stay_good():
    plain = layout(fps=30, tasks=["goal"]).plain()
    assert plain["rules"] == [
        {"path": "a", "name": "action", "kind": "array", "jpeg_channels": "rgb", "rotate": 0, "shift": 0}
    ]
    assert list(plain) == [
        *("name", "needs", "rules", "episodes", "lacks", "tasks", "task_files", "task_key", "needs_task_file", "fps"),
        "fps_path",
    ]


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"features": [{"path": "a", "name": "x", "transpose": "chw"}]}, "'transpose' with 'name'"),
        ({"features": [{"path": "a", "camera": "x", "transpose": "cha"}]}, "features.0.transpose"),
        ({"features": [{"path": "*/*/*/*/*", "name": "x"}]}, "at most 4 stars"),
        ({"features": [{"path": "/", "name": "x"}]}, "wanted a path"),
        ({"tasks": ["@"]}, "'@' names nothing"),
        ({"where": {"@x": []}}, "where"),
        ({"where": {"@x": {"a": 1}}}, "where"),
        ({"where": {"@x": float("nan")}}, "where"),
        ({"fps": float("inf")}, "fps"),
        ({"features": [{"path": "a", "name": "x", "shift": 10**30}]}, "features.0.shift"),
        ({"features": [{"path": "cam", "camera": "*"}]}, "a star in the name and none in the path"),
        ({"features": [{"path": "a", "name": "Joint angles"}]}, "wanted a name of a-z"),
        ({"task_files": ["{episode}.json"]}, "no braces but {stem} and {number}"),
        ({"task_files": ["{}.json"]}, "no braces but {stem} and {number}"),
    ],
)
def test_layout_file_that_cannot_be_is_refused(said, words):
    with pytest.raises(OptionError) as caught:
        layout(**said)
    assert words in str(caught.value)


def test_wrong_layout_file_is_an_error_that_says_which_path_is_missing(tmp_path):
    path = trajectories(tmp_path / "a.h5")
    (tmp_path / "mine.yaml").write_text("name: mine\nfeatures: [{path: b, name: action}]\n")
    with pytest.raises(LayoutError, match=r"wanted mine: /b\. Not there: /b\. Correct its paths, say"):
        es.EpisodeStream(path, layout=tmp_path / "mine.yaml")
