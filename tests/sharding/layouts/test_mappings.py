import json

import h5py
import numpy as np
import pytest
from hdf5_files import aloha_jpeg, episodes, jpeg, npy, numbers, picture

from epistream.errors import OptionError, PackError
from epistream.sharding.layouts.layout_file import read_layout_file
from epistream.sharding.layouts.registry import scan_source
from epistream.sharding.pack.pack import pack


def one(path):
    scan = scan_source(path)
    assert scan.faults == ()
    (episode,) = scan.episodes
    return scan.layout, episode


def robotwin(path, rows=5):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        data = [jpeg(picture(step)) for step in range(rows)]
        for camera in ("head_camera", "left_camera"):
            file[f"observation/{camera}/rgb"] = np.array(data, dtype=f"S{max(map(len, data))}")
            file[f"observation/{camera}/intrinsic_cv"] = np.zeros((rows, 3, 3), np.float32)
        file["joint_action/vector"] = numbers(rows, 14, 1)
        file["joint_action/left_arm"] = numbers(rows, 6, 2)
        file["endpose/left_endpose"] = numbers(rows, 7, 3)
    return path


def test_robotwin_action_is_the_next_state(tmp_path):
    path = robotwin(tmp_path / "task" / "data" / "episode3.hdf5")
    beside = tmp_path / "task" / "instructions" / "episode3.json"
    beside.parent.mkdir()
    beside.write_text(json.dumps({"seen": ["lift it", "raise it"], "unseen": ["hoist it"]}))
    layout, episode = one(path)
    assert (layout, episode.length, episode.tasks) == ("robotwin", 4, ("lift it", "raise it"))
    pack(path, tmp_path / "out")
    fields = episodes(tmp_path / "out")["ep-000000000"]
    with h5py.File(path) as file:
        vector = file["joint_action/vector"][()]
        np.testing.assert_array_equal(npy(fields["observation.state.npy"]), vector[:-1])
        np.testing.assert_array_equal(npy(fields["action.npy"]), vector[1:])
        np.testing.assert_array_equal(
            npy(fields["observation.endpose.left_endpose.npy"]), file["endpose/left_endpose"][:-1]
        )
    for step in range(4):
        assert fields[f"observation.images.head_camera.{step:06d}.jpg"] == jpeg(picture(step))
    assert "observation.images.head_camera.000004.jpg" not in fields


def test_shifted_features_still_need_equal_rows(tmp_path):
    path = robotwin(tmp_path / "episode0.hdf5")
    with h5py.File(path, "r+") as file:
        del file["endpose/left_endpose"], file["observation/head_camera/rgb"]
        file["endpose/left_endpose"] = numbers(4, 7, 3)
        file["observation/head_camera/rgb"] = np.zeros((6, 8, 8, 3), np.uint8)
    (message,) = scan_source(path).faults
    assert "/observation/head_camera/rgb: 5 steps, wanted 4 as in /joint_action/vector" in message
    with h5py.File(path, "r+") as file:
        del file["observation/head_camera/rgb"]
        file["observation/head_camera/rgb"] = np.zeros((5, 8, 8, 3), np.uint8)
    (episode,) = scan_source(path).episodes
    assert "/endpose/left_endpose (3 steps, wanted 4 as in joint_action/vector)" in episode.left_out


def test_rdt_is_aloha_with_instructions_beside_it(tmp_path):
    path = aloha_jpeg(tmp_path / "a.hdf5", base_action=True)
    assert one(path)[0] == "mobile-aloha"
    (tmp_path / "expanded_instruction_gpt-4-turbo.json").write_text(
        json.dumps({"instruction": "pour", "simplified_instruction": ["pour it"], "expanded_instruction": ["", "pour"]})
    )
    layout, episode = one(path)
    assert (layout, episode.tasks) == ("rdt", ("pour", "pour it"))
    names = [item.feature.name for item in episode.fields]
    assert names == [
        "observation.images.angle",
        "observation.images.top",
        "observation.state",
        "observation.effort",
        "observation.qvel",
        "action",
        "base_action",
    ]
    assert {item.feature.jpeg_channels for item in episode.fields[:2]} == {"bgr"}


def test_instruction_file_that_is_no_json_is_a_fault(tmp_path):
    path = aloha_jpeg(tmp_path / "a.hdf5")
    (tmp_path / "expanded_instruction_gpt-4-turbo.json").write_text("{")
    (message,) = scan_source(path).faults
    assert "instructions that cannot be read" in message


def test_ilstudio_teleop_takes_numbers_and_cameras_as_they_come(tmp_path):
    path = tmp_path / "a.hdf5"
    with h5py.File(path, "w") as file:
        file["actions"] = numbers(3, 9, 0)
        file["observations/qpos"] = numbers(3, 9, 1)
        file["observations/arm/force"] = numbers(3, 6, 2)
        file["observations/wrist"] = np.stack([picture(step) for step in range(3)])
    layout, episode = one(path)
    assert layout == "ilstudio-teleop"
    assert {item.feature.name: item.path for item in episode.fields} == {
        "observation.state": "/observations/qpos",
        "action": "/actions",
        "observation.arm.force": "/observations/arm/force",
        "observation.images.wrist": "/observations/wrist",
    }


def test_real_ilstudio_recording_packs(shared_data, tmp_path):
    path = shared_data / "ilstudio" / "episode_0000.hdf5"
    report = pack(path, tmp_path / "out")
    assert (report.num_steps, dict(report.layouts)) == (1572, {"ilstudio-teleop": 1})
    with h5py.File(path) as file:
        fields = episodes(tmp_path / "out")["ep-000000000"]
        np.testing.assert_array_equal(npy(fields["action.npy"]), file["actions"][()])


def test_ilstudio_vla_os_is_found(tmp_path):
    path = tmp_path / "a.hdf5"
    with h5py.File(path, "w") as file:
        file["observations/image/primary"] = np.stack([picture(step) for step in range(3)])
        file["observations/state_ee"] = numbers(3, 7, 0)
        file["action_ee"] = numbers(3, 7, 1)
        file["language_instruction"] = np.array([b"open it"])
        file["episode_len"] = 3
    layout, episode = one(path)
    assert (layout, episode.tasks, episode.left_out) == ("ilstudio-vla-os", ("open it",), ("/episode_len",))


YAML = """
name: my-robot
fps: 30
tasks: [goal]
features:
  - {path: "cams/*/color", camera: "*", jpeg_channels: bgr, rotate: 180}
  - {path: joints, name: observation.state}
  - {path: joints, name: action, shift: 1}
"""


def my_robot(path, rows=4):
    with h5py.File(path, "w") as file:
        file["cams/Left/color"] = np.stack([picture(step) for step in range(rows)])
        file["cams/right/color"] = np.stack([picture(step) for step in range(rows)])
        file["joints"] = numbers(rows, 6, 0)
        file["goal"] = "stack the cups"
        file["battery"] = np.ones(rows)
    return path


def test_layout_file_packs_what_it_names(tmp_path):
    (tmp_path / "mine.yaml").write_text(YAML)
    path = my_robot(tmp_path / "a.hdf5")
    report = pack(path, tmp_path / "out", layout=read_layout_file(tmp_path / "mine.yaml"), codec="raw")
    fields = episodes(tmp_path / "out")["ep-000000000"]
    with h5py.File(path) as file:
        np.testing.assert_array_equal(npy(fields["action.npy"]), file["joints"][1:])
        np.testing.assert_array_equal(npy(fields["observation.images.left.npy"]), file["cams/Left/color"][:3])
    assert json.loads(fields["meta.json"])["tasks"] == ["stack the cups"]
    assert report.left_out == ("/battery",)
    camera = report.features["observation.images.right"]
    assert (camera.rotate, camera.fps) == (180, 30.0)


def test_layout_file_with_many_episodes_a_file(tmp_path):
    (tmp_path / "mine.yaml").write_text("name: many\nepisodes: traj_*\nfeatures: [{path: a, name: action}]\n")
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        for number in (10, 9):
            file[f"traj_{number}/a"] = numbers(number, 2, 0)
    pack(tmp_path / "a.hdf5", tmp_path / "out", layout=read_layout_file(tmp_path / "mine.yaml"))
    found = [npy(fields["action.npy"]).shape for _, fields in sorted(episodes(tmp_path / "out").items())]
    assert found == [(9, 2), (10, 2)]


def test_layout_file_packs_the_same_with_workers_and_resumes_only_with_itself(tmp_path):
    (tmp_path / "mine.yaml").write_text(YAML)
    layout = read_layout_file(tmp_path / "mine.yaml")
    (tmp_path / "in").mkdir()
    for number in range(3):
        my_robot(tmp_path / "in" / f"{number}.hdf5", 30)
    reports = [
        pack(
            tmp_path / "in", tmp_path / f"out{workers}", layout=layout, codec="raw", shard_size="64KiB", workers=workers
        )
        for workers in (1, 2)
    ]
    assert reports[0].fingerprint == reports[1].fingerprint
    assert reports[0].num_shards == 3


def test_layout_file_that_a_source_does_not_fit_is_a_fault(tmp_path):
    (tmp_path / "mine.yaml").write_text(YAML)
    path = aloha_jpeg(tmp_path / "a.hdf5")
    with pytest.raises(PackError, match=r"wanted my-robot: /cams/\*/color, /joints"):
        pack(path, tmp_path / "out", layout=read_layout_file(tmp_path / "mine.yaml"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: x\nfeatures: []\n", "features"),
        ("features: [{path: a, name: b}]\n", "name"),
        ("name: x\nfeatures: [{path: a}]\n", "either 'name' (of numbers) or 'camera'"),
        ("name: x\nfeatures: [{path: a, name: b, colour: rgb}]\n", "features.0.colour"),
        ("name: x\nfps: 0\nfeatures: [{path: a, name: b}]\n", "fps"),
        ("- just a list\n", "the file"),
        ("a: [b\n", "no YAML"),
    ],
)
def test_layout_file_that_makes_no_sense_is_refused(tmp_path, text, words):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(OptionError) as caught:
        read_layout_file(tmp_path / "mine.yaml")
    assert words in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "mine.yaml"))


def test_layout_file_that_is_missing_is_refused(tmp_path):
    with pytest.raises(OptionError, match="No such file"):
        read_layout_file(tmp_path / "none.yaml")
