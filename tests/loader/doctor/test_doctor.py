"""What a doctor says of real episodes, of shards, LeRobot data sets and torn files, and how it is asked."""

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from ailing.episodes import healthy, write
from ailing.faults import FAULTS
from click.testing import CliRunner
from hdf5_files import aloha_jpeg

import epistream as es
from epistream.commands import cli
from epistream.errors import OptionError
from epistream.loader.doctor.checks.registry import CHECKS


def codes(found, level="info"):
    return sorted({one.code for one in found.at_least(level)})


@pytest.fixture(scope="module")
def ill_file(tmp_path_factory):
    """Twelve episodes: 4 has a frozen camera and NaN, 7 idles at first, 9 is a copy of 2."""
    episodes = healthy()
    FAULTS["frozen-camera"](episodes)
    FAULTS["not-finite"](episodes)
    for name in ("state", "action", "quat"):
        episodes[7][name][:20] = episodes[7][name][20]
    episodes[9] = copy.deepcopy(episodes[2])
    return write(episodes, tmp_path_factory.mktemp("ill") / "demos.hdf5")


@pytest.fixture(scope="module")
def ill_shards(ill_file):
    out = ill_file.parent / "shards"
    es.pack(str(ill_file), out, val_fraction=0.2)
    return out


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("aloha", ["no-tasks"]),
        ("mobile_aloha", ["constant-dimension", "no-tasks"]),
        ("libero", ["constant-dimension", "short-episode"]),
        ("robomimic", ["constant-dimension", "no-tasks", "short-episode"]),
        ("lerobot/aloha", []),
    ],
)
def test_doctor_of_real_episodes_finds_no_error(source, found, example_data):
    assert codes(es.doctor(str(example_data / source))) == found


@pytest.mark.parametrize(
    "source", ["aloha_compressed", "aloha_mobile", "aloha_raw", "robomimic", "libero_like", "lerobot_v21", "lerobot_v3"]
)
def test_doctor_of_more_real_episodes_finds_no_warning(source, shared_data):
    paths = [shared_data / source]
    if source == "robomimic":
        paths = [shared_data / source / name for name in ("human_door.hdf5", "scripted_lift.hdf5")]
    for path in paths:
        assert codes(es.doctor(str(path)), "warning") == []


def test_doctor_of_a_recording_whose_state_never_changed_says_so(shared_data):
    found = es.doctor(str(shared_data / "ilstudio"))
    assert codes(found, "error") == ["unreadable-file"]
    assert "constant-dimension" in codes(found, "info")
    assert "tmp.hdf5" in found.findings[0].place.text


def test_doctor_of_shards_finds_what_it_finds_in_the_files(ill_file, ill_shards):
    wanted = ["duplicate-episode", "frozen-camera", "idle-start", "not-finite"]
    of_file = es.doctor(str(ill_file), skip=("split-leak",))
    assert codes(of_file) == wanted
    of_shards = es.doctor(str(ill_shards), skip=("split-leak",))
    assert codes(of_shards) == wanted
    found = {one.code: one for one in of_shards.findings}
    assert found["frozen-camera"].path == "/data/demo_4"
    assert (found["idle-start"].path, found["idle-start"].place.steps) == ("/data/demo_7", (0, 20))
    assert found["idle-start"].place.keep == (20, 60)
    step = found["not-finite"].place
    assert (step.feature, step.dims, step.steps) == ("observation.state", (3,), (25, 26))


def test_doctor_with_two_processes_finds_the_same(ill_shards):
    one, two = (es.doctor(str(ill_shards), workers=workers) for workers in (1, 2))
    assert one.to_dict() == two.to_dict()
    assert len(one.findings) >= 4


def test_doctor_of_shards_with_other_statistics_says_which(ill_shards):
    dataset = es.open_dataset(str(ill_shards))
    said = copy.deepcopy(dict(dataset.statistics))
    said["action"]["mean"][2] += 0.5
    found = es.doctor(replace(dataset, statistics=said), only=("statistics",))
    assert [(one.place.feature, one.place.dims) for one in found.findings] == [("action", (2,))]
    assert codes(es.doctor(dataset, only=("statistics",))) == []


def test_doctor_of_episodes_with_hardly_a_valid_step_names_them(ill_shards):
    dataset = es.open_dataset(str(ill_shards))
    ranges = np.array([[0, 60]] * 12)
    ranges[5] = [10, 13]
    columns = replace(dataset.columns, range_offsets=np.arange(13), ranges=ranges)
    found = es.doctor(replace(dataset, columns=columns), only=("few-valid-steps",))
    assert [(one.place.episode, one.place.text) for one in found.findings] == [(5, "3 of 60 steps may be drawn")]


def test_doctor_of_a_torn_shard_names_its_episodes(ill_shards, tmp_path):
    shutil.copytree(ill_shards, tmp_path / "shards")
    tar = sorted((tmp_path / "shards").glob("*.tar"))[0]
    with tar.open("r+b") as file:
        file.truncate(1000)
    found = es.doctor(str(tmp_path / "shards"), frames=False)
    assert "unreadable-episode" in codes(found, "error")
    assert all(tar.name in one.place.text for one in found.findings if one.code == "unreadable-episode")


def test_doctor_of_jpegs_finds_one_that_is_torn_and_a_camera_that_hangs(tmp_path):
    for number in range(2):
        aloha_jpeg(tmp_path / f"episode_{number}.hdf5", steps=16, seed=number)
    with h5py.File(tmp_path / "episode_0.hdf5", "r+") as file:
        frames = file["observations/images/top"]
        lengths = file["compress_len"][:]
        frames[4, 660:] = 0
        frames[4, 660:662] = 0xFF, 0xD9  # ends too soon, but ends: else the file would be refused
        lengths[1, 4] = 662
        angle = file["observations/images/angle"]
        for step in range(2, 15):
            angle[step] = angle[2]
            lengths[0, step] = lengths[0, 2]
        file["compress_len"][:] = lengths
    found = es.doctor(str(tmp_path), sample=16, only=("undecodable-frame", "repeated-frames", "unreadable-file"))
    places = {one.code: one.place for one in found.findings}
    assert (places["undecodable-frame"].episode, places["undecodable-frame"].feature) == (0, "observation.images.top")
    assert places["undecodable-frame"].steps == (4, 5)
    assert (places["repeated-frames"].episode, places["repeated-frames"].steps) == (0, (2, 15))


def test_doctor_of_a_folder_with_a_file_of_no_layout_goes_on_without_it(ill_file, tmp_path):
    shutil.copy(ill_file, tmp_path / "demos.hdf5")
    with h5py.File(tmp_path / "other.hdf5", "w") as file:
        file["numbers"] = np.zeros(3)
    found = es.doctor(str(tmp_path), frames=False)
    assert "unreadable-file" in codes(found, "error")
    assert found.num_episodes == 12


def test_doctor_of_lerobot_rows_with_nan_names_the_episode(example_data, tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    shutil.copytree(example_data / "lerobot" / "aloha", tmp_path / "set")
    [file] = (tmp_path / "set" / "data").rglob("*.parquet")
    table = parquet.read_table(file)
    rows = np.array(table["action"].to_pylist(), np.float32)
    rows[90, 2] = np.nan
    column = arrow.array(list(rows), table.schema.field("action").type)
    parquet.write_table(table.set_column(table.schema.get_field_index("action"), "action", column), file)
    found = es.doctor(str(tmp_path / "set"), frames=False)
    places = [one.place for one in found.findings if one.code == "not-finite"]
    assert [(one.episode, one.feature, one.dims) for one in places] == [(1, "action", (2,))]


def test_doctor_with_an_unknown_check_names_the_nearest(ill_shards):
    with pytest.raises(OptionError, match="Did you mean 'frozen-camera'"):
        es.doctor(str(ill_shards), only=("frozen-cameras",))
    with pytest.raises(OptionError, match="no check is left"):
        es.doctor(str(ill_shards), only=("frozen-camera",), frames=False)


def run(*arguments):
    return CliRunner().invoke(cli, ["doctor", *map(str, arguments)])


def test_doctor_command_tells_places_and_exits_with_1(ill_file):
    result = run(ill_file, "--skip", "near-duplicate")
    assert result.exit_code == 1
    lines = result.output.splitlines()
    start = lines.index("error   frozen-camera: a camera that shows one picture all along while the robot moves")
    assert lines[start + 1 : start + 3] == [
        "  episode 4 (demos.hdf5:data/demo_4), observation.images.top: all 8 pictures looked at are equal while the "
        "robot moves",
        "  -> Remove the episode: the camera hung.",
    ]
    assert lines[-1] == "3 errors, 1 warning: 12 episodes, 720 steps, 2 cameras, 65 checks"


@pytest.mark.parametrize(("level", "code"), [("never", 0), ("error", 0), ("warning", 1), ("info", 1)])
def test_doctor_command_fails_on_the_level_that_is_asked_for(level, code, ill_file):
    assert run(ill_file, "--only", "idle-start", "--fail-on", level, "--no-frames").exit_code == code


def test_doctor_command_writes_json_and_a_selection(ill_file, tmp_path):
    result = run(ill_file, "--json", "--select-out", tmp_path / "bad.json")
    said = json.loads(result.stdout)
    assert said["counts"] == {"error": 3, "warning": 1, "info": 0}
    [copied] = [one for one in said["findings"] if one["code"] == "duplicate-episode"]
    assert (copied["episode"], copied["others"], copied["path"]) == (9, [2], "/data/demo_9")
    selection = json.loads((tmp_path / "bad.json").read_text())
    assert selection == {
        "format": "epistream-selection",
        "version": 1,
        "of": f"{ill_file}@{es.open_dataset(ill_file).fingerprint}",
        "episodes": [
            {
                "index": 4,
                "source": "demos.hdf5",
                "path": "/data/demo_4",
                "key": said["findings"][1]["key"],
                "codes": ["not-finite", "frozen-camera"],
            },
            {
                "index": 9,
                "source": "demos.hdf5",
                "path": "/data/demo_9",
                "key": copied["key"],
                "codes": ["duplicate-episode"],
            },
        ],
    }


def test_doctor_command_lists_every_check():
    output = CliRunner().invoke(cli, ["doctor", "--list"]).output
    assert [check.code for check in CHECKS if check.code not in output] == []


def test_doctor_page_has_the_table_of_all_checks():
    page = (Path(__file__).resolve().parents[3] / "docs" / "doctor.md").read_text()
    rows = [f"| `{one.code}` | {one.level} | {one.sentence} | {one.advice} |" for one in CHECKS]
    assert page.partition("<!-- checks -->\n")[2].partition("<!-- /checks -->")[0].splitlines()[2:] == rows
    assert len({check.code for check in CHECKS}) == len(CHECKS) == 66


def test_doctor_of_a_split_of_one_episode_in_sixty_says_so(tmp_path):
    episodes = healthy(num=60, steps=10)
    episodes[30]["mask"] = "valid"
    found = es.doctor(str(write(episodes, tmp_path / "demos.hdf5")), only=("small-split",))
    assert [one.place.text for one in found.findings] == ["1 episode of 60 in split val"]


def test_doctor_of_a_camera_that_is_taller_than_wide_names_it(ill_shards):
    dataset = es.open_dataset(str(ill_shards))
    top = dataset.features["observation.images.top"]
    features = {**dataset.features, top.name: replace(top, shape=(90, 30, 3))}
    found = es.doctor(replace(dataset, features=features), only=("picture-shape",), frames=True)
    assert [one.place.feature for one in found.findings] == ["observation.images.top"]
    assert [one.place.text for one in found.findings] == ["pictures are 30x90 (width x height)"]


def test_file_with_other_features_than_most_is_a_warning_and_not_looked_at(tmp_path):
    from hdf5_files import aloha_raw

    for number in range(3):
        aloha_raw(tmp_path / f"episode_{number}.hdf5", seed=number, cameras=("top", "angle") if number else ("top",))
    found = es.doctor(str(tmp_path), frames=False, only=("unlike-file", "unreadable-file"))
    assert [(one.code, one.level) for one in found.findings] == [("unlike-file", "warning")]
    assert "episode_0.hdf5" in found.findings[0].place.text
