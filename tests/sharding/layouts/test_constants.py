"""What lies beside the steps of an episode: constants are left out and told, faults stay faults."""

import every_layout
import h5py
import numpy as np
import pytest
from hdf5_files import aloha_raw, episodes, isaac_lab, manifest, npy, robomimic

import epistream as es
from epistream.errors import LayoutError
from epistream.sharding.layouts.layout_file import read_layout_file
from epistream.sharding.layouts.registry import scan_source
from epistream.sharding.pack.pack import pack

# Where a layout looks for numbers, below the group of an episode.
PLACES = {
    "libero": "/data/demo_0/obs",
    "robomimic": "/data/demo_2/obs",
    "rdt": "/observations",
    "mobile-aloha": "/observations",
    "act-plus-plus": "/observations",
    "act-sim": "/observations",
    "aloha": "/observations",
    "robotwin": "/endpose",
    "robotwin-v1": "/state",
    "ilstudio-vla-os": "/reasoning",
    "ilstudio-teleop": "/observations",
    "minari": "/episode_9/observations",
}


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def change(path, **values):
    """Replace datasets; names have __ for /, None removes."""
    with h5py.File(path, "r+") as file:
        for key, value in values.items():
            name = key.replace("__", "/")
            if name in file:
                del file[name]
            if value is not None:
                file[name] = value
    return path


@pytest.mark.parametrize("name", every_layout.WRITERS)
def test_constants_are_left_out_with_the_reason_in_every_layout(tmp_path, name):
    path = every_layout.write(name, tmp_path)
    before = scan_source(path)
    constants = {"K": np.eye(3), "home": np.zeros((1, 14)), "limits": np.zeros((2, 14)), "scale": 2.5}
    with h5py.File(path, "r+") as file:
        for key, value in constants.items():
            file[f"{PLACES[name]}/{key}"] = value
    scan = scan_source(path)
    assert scan.faults == ()
    assert scan.layout == before.layout == name
    first, was = scan.episodes[0], before.episodes[0]
    assert [field.feature for field in first.fields] == [field.feature for field in was.fields]
    assert first.length == was.length
    for key in constants:
        (text,) = [one for one in first.left_out if one.startswith(f"{PLACES[name]}/{key} (")]
        assert "wanted" in text


def test_constants_are_told_by_the_report_and_the_manifest_of_a_pack_and_by_the_log_of_a_stream(tmp_path, caplog):
    path = change(aloha_raw(tmp_path / "a.hdf5", 5), observations__K=np.eye(3), observations__home=np.zeros((1, 7)))
    told = ["/observations/K (3 steps, wanted 5 as in action)", "/observations/home (1 steps, wanted 5 as in action)"]
    report = pack(path, tmp_path / "out")
    assert list(report.left_out) == told
    assert manifest(tmp_path / "out")["provenance"]["left_out"] == told
    es.open_dataset(path)
    assert f"{path}: not streamed: {told[0]}, {told[1]}" in caplog.text


def test_a_constant_in_the_layout_of_a_user_is_left_out(tmp_path):
    path, description = every_layout.write_own(tmp_path)
    with h5py.File(path, "r+") as file:
        file["runs/0/force"] = np.zeros((2, 3))
        file["runs/1/force"] = np.zeros((6, 3))
    words = description.read_text().replace("tasks:", "  - {path: force, name: observation.force}\ntasks:")
    description.write_text(f"{words}needs: [joints]\n")
    scan = scan_source(path, read_layout_file(description))
    assert scan.faults == ()
    assert scan.episodes[0].left_out[-1] == "/runs/0/force (1 steps, wanted 5 as in joints)"
    assert "observation.force" in [field.feature.name for field in scan.episodes[1].fields]


def test_a_layout_of_a_user_without_an_action_needs_none(tmp_path):
    path, description = every_layout.write_own(tmp_path)
    description.write_text(description.read_text().replace("  - {path: joints, name: action, shift: 1}\n", ""))
    report = pack(path, tmp_path / "out", layout=read_layout_file(description))
    assert sorted(report.features) == ["observation.images.front", "observation.state"]


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        # One row more, one less, a camera that was cut off, and each way to lose an action.
        ({"observations__qpos": np.zeros((13, 14))}, "/observations/qpos: 13 steps, wanted 12 as in /action. "),
        ({"observations__qpos": np.zeros((11, 14))}, "/observations/qpos: 11 steps, wanted 12 as in /action. "),
        ({"observations__images__top": np.zeros((7, 8, 8, 3), np.uint8)}, "/observations/images/top: 7 steps, wanted"),
        ({"action": np.zeros((11, 14))}, "/action: 11 steps, wanted 12 as in /observations/"),
        ({"action": np.zeros((1, 14))}, "/action: 1 steps, wanted 12 as in /observations/"),
        ({"action": 3.0}, "/action: a single value, wanted numbers. "),
        ({"action": h5py.Empty("f4")}, "/action: empty, wanted numbers. "),
        ({"action": np.zeros(12, "c8")}, "/action: complex64, wanted numbers. "),
        ({"action": np.zeros(12, [("arm", "f4", (7,)), ("gripper", "f4")])}, "/action: a compound of arm, gripper, wa"),
        ({"action": np.array([b"left"] * 12)}, "/action: texts, wanted numbers. "),
        ({"action": np.zeros((12, 0))}, "/action: rows without values, wanted numbers. "),
        ({"action": None, "action__left": np.zeros((12, 7))}, "/action: a group, wanted numbers. "),
        ({"action": h5py.SoftLink("/nowhere")}, "/action: cannot be opened "),
    ],
)
def test_an_action_a_state_or_a_camera_that_is_not_whole_is_an_error_unless_it_is_dropped(tmp_path, harm, words):
    path = change(aloha_raw(tmp_path / "a.hdf5", 12), **harm)
    (message,) = scan_source(path).faults
    assert message.removeprefix(f"{path}: ").startswith(words)
    with pytest.raises(LayoutError) as caught:
        es.open_dataset(path)
    assert words in str(caught.value)
    name = message.split("--drop ")[1].split("'")[0]
    report = pack(path, tmp_path / "out", drop=name)
    assert name not in report.features
    assert report.num_steps == 12


def test_all_observations_one_longer_than_the_actions_are_an_error_not_left_out(tmp_path):
    path = robomimic(tmp_path / "a.hdf5", {"demo_0": 8}, cameras=())
    change(path, data__demo_0__obs__robot0_eef_pos=np.zeros((9, 3)))
    (message,) = scan_source(path).faults
    assert (
        "/data/demo_0/obs/robot0_eef_pos: 9 steps, wanted 8 as in actions, and no other observation is left" in message
    )


def test_an_observation_that_one_episode_lacks_is_told_with_the_reason(tmp_path):
    path = robomimic(tmp_path / "a.hdf5", {"demo_0": 8, "demo_1": 9, "demo_2": 5})
    change(path, data__demo_1__obs__robot0_eef_pos=np.zeros((4, 3)))
    report = pack(path, tmp_path / "out", skip_bad=True)
    assert report.num_episodes == 2
    (fault,) = report.faults
    assert "/data/demo_1: lacks observation.robot0_eef_pos" in fault
    assert "obs/robot0_eef_pos: 4 steps, wanted 9 as in actions" in fault


def test_demos_without_actions_are_faults_not_passed_over(tmp_path):
    path = robomimic(tmp_path / "a.hdf5", {"demo_0": 8, "demo_1": 9})
    change(path, data__demo_1__actions=None)
    with h5py.File(path, "r+") as file:
        file["data/demo_2"] = h5py.SoftLink("/elsewhere")
    scan = scan_source(path)
    assert [episode.group for episode in scan.episodes] == ["/data/demo_0"]
    assert [fault.removeprefix(f"{path}: ").split(" (")[0][:50] for fault in scan.faults] == [
        "/data/demo_1/actions: not there, wanted numbers. R",
        "/data/demo_2: cannot be opened",
    ]


@pytest.mark.parametrize("flat", [False, True])
def test_isaac_lab_recordings_pack_and_stream(tmp_path, flat):
    path = isaac_lab(tmp_path / "dataset.hdf5", (6, 4), flat_observations=flat, camera=not flat)
    names = ["observation.state"] if flat else ["observation.joint_pos", "observation.policy.eef_pos"]
    names += [] if flat else ["observation.images.table_cam"]
    report = pack(path, tmp_path / "out", codec="raw")
    assert sorted(report.features) == sorted(["action", "processed_actions", *names])
    assert report.left_out == ("/states", "/initial_state")
    with h5py.File(path) as file:
        for number in range(2):
            fields = episodes(tmp_path / "out")[f"ep-{number:09d}"]
            np.testing.assert_array_equal(npy(fields["action.npy"]), file[f"data/demo_{number}/actions"][()])
    for source in (path, tmp_path / "out"):
        stream = es.EpisodeStream(str(source), batch_size=10, shuffle=False)
        batch = next(iter(stream))
        assert [int(row[0]) for row in batch["action"].reshape(10, 7)] == [*range(6), *range(100, 104)]
        for name in names:
            assert int(batch[name].reshape(10, -1)[-1, 0]) == 103


def test_actions_in_a_group_are_actions(tmp_path):
    path = robomimic(tmp_path / "a.hdf5", {"demo_0": 4})
    change(path, data__demo_0__actions=None)
    change(path, data__demo_0__actions__left=np.zeros((4, 3)), data__demo_0__actions__right=np.zeros((4, 3)))
    names = [field.feature.name for field in scan_source(path).episodes[0].fields]
    assert names[:2] == ["action.left", "action.right"]


def test_what_a_link_leads_to_is_packed_and_a_circle_of_links_ends(tmp_path):
    path = robomimic(tmp_path / "a.hdf5", {"demo_0": 4})
    with h5py.File(path, "r+") as file:
        file["tactile"] = np.ones((4, 2))
        file["data/demo_0/obs/tactile"] = h5py.SoftLink("/tactile")
        file["data/demo_0/obs/again"] = h5py.SoftLink("/data/demo_0")
        file["data/demo_0/obs/up"] = file["data"]
    (episode,) = scan_source(path).episodes
    assert "observation.tactile" in [field.feature.name for field in episode.fields]
