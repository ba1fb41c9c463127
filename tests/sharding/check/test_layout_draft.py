"""`epistream layouts draft`: of files that nobody foresaw it makes a layout with which they pack and stream."""

import json

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from hdf5_files import jpeg, numbers, picture

import epistream as es
from epistream.commands import cli
from epistream.errors import LayoutError
from epistream.sharding.check import layout_draft
from epistream.sharding.layouts.layout_file import read_layout_file
from epistream.sharding.pack.pack import pack


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "indexes"))


def frames(rows, seed=0):
    return np.stack([picture(step, seed) for step in range(rows)])


def chw(rows, seed=0):
    return np.ascontiguousarray(frames(rows, seed).transpose(0, 3, 1, 2))


def one_episode(file):
    file["sensors/front"], file["sensors/wrist"] = frames(6), frames(6, 1)
    file["robot/joints"], file["command"] = numbers(6, 7, 0), numbers(6, 7, 1)
    file.attrs["instruction"] = "lift the cup"
    file.attrs["fps"] = 20


def trajectories(file):
    for number, rows in ((0, 4), (1, 6), (10, 5)):
        group = file.create_group(f"traj_{number}")
        group.attrs["task"], group.attrs["success"] = f"task {number}", number != 1
        group["img"], group["act"], group["proprio"] = frames(rows, number), numbers(rows, 4, 0), numbers(rows, 8, 1)
        group["camera_matrix"] = np.eye(3)


def nested(file):
    for scene in ("kitchen_1", "kitchen_2"):
        for number in range(2):
            demo = file.create_group(f"scenes/{scene}/rollout_{number}")
            demo["obs/cam_0/rgb"], demo["obs/cam_1/rgb"] = frames(5), frames(5, 2)
            demo["control"] = numbers(5, 6, number)


def channel_first(file):
    file["images/left"], file["images/right"] = chw(5), chw(5, 3)
    file["action"], file["state"] = numbers(5, 3, 0), numbers(5, 3, 1)


def jpeg_rows(file):
    rows = [jpeg(picture(step)) for step in range(5)]
    file["rgb"] = np.array(rows, dtype=f"S{max(map(len, rows))}")
    ragged = file.create_dataset("wrist_rgb", (5,), h5py.vlen_dtype(np.uint8))
    for step, row in enumerate(rows):
        ragged[step] = np.frombuffer(row, np.uint8)
    file["cmd"] = numbers(5, 2, 0)


def json_instruction(file):
    for number in range(3):
        demo = file.create_group(f"data/{number:03d}")
        demo.attrs["info"] = json.dumps({"lang": f"open drawer {number}", "n": 3})
        demo["a/actions"], demo["a/qpos"] = numbers(4, 2, number), numbers(4, 2, 9)


def constants_and_odd_things(file):
    file["actions"], file["joint_pos"], file["timestamp"] = numbers(7, 5, 0), numbers(7, 5, 1), np.arange(7) / 10
    file["final_pose"], file["gains"], file["empty"] = numbers(8, 5, 2), np.ones(5), h5py.Empty("f4")
    file["none"], file["names"] = np.zeros((0, 4)), np.array([b"a", b"b"])
    file["pairs"] = np.zeros(7, dtype=[("x", "f4"), ("y", "i4")])
    file["version"], file["complex"], file["stack"] = "1.0", np.zeros(7, complex), np.zeros((7, 2, 9, 9, 3), np.uint8)
    file["link"] = h5py.SoftLink("/nowhere")
    file["ref"] = np.array([file["actions"].ref] * 7, dtype=h5py.ref_dtype)


def two_arms(file):
    for arm in ("left", "right"):
        file[f"{arm}/action"], file[f"{arm}/state"] = numbers(5, 7, 0), numbers(5, 7, 1)
    file["depth"] = np.ones((5, 40, 48), np.uint16)


def digits_for_cameras(file):
    file["cameras/12345/color"], file["cameras/67890/color"] = frames(5), frames(5, 1)
    file["action"] = numbers(5, 2, 0)


def names_that_are_strange(file):
    file["Obs A/Kamera ü"], file["Obs A/q: [1]"], file["act-ion #1"] = frames(5), numbers(5, 2, 0), numbers(5, 3, 1)


def uuids(file):
    for name, rows in (("a3f-99", 4), ("b07-1c", 5), ("zz", 6)):
        file[f"{name}/actions"], file[f"{name}/img"] = numbers(rows, 2, 0), frames(rows)


def one_that_is_empty_and_one_that_is_none(file):
    for number in range(3):
        file[f"run_{number}/actions"], file[f"run_{number}/n\nl"] = numbers(4, 2, 0), numbers(4, 3, 1)
    file["run_7"], file["run_9"] = np.zeros(4), h5py.SoftLink("/nowhere")


def no_action(file):
    file["frames"], file["qpos"] = frames(5), numbers(5, 2, 0)


def dated_groups_of_which_one_has_no_instruction(file):
    for number, rows in enumerate((4, 5, 6)):
        group = file.create_group(f"episode_2026-01-02_10-11-1{number}")
        group["actions"], group["img"] = numbers(rows, 2, number), frames(rows)
        if number:
            group.attrs["instruction"] = f"task {number}"


def observations_beside_actions(file):
    for head in ("actions", "observations"):
        file[f"{head}/left_arm"], file[f"{head}/right_arm"] = numbers(5, 7, 0), numbers(5, 7, 1)


def keys_that_would_become_one_name(file):
    file["cam/0"], file["cam/camera_0"] = frames(5), frames(5, 1)
    file["action"], file["state"], file["obs/state"] = numbers(5, 2, 0), numbers(5, 3, 1), numbers(5, 4, 2)
    file["force"], file["obs/force"] = numbers(5, 3, 3), numbers(5, 3, 4)


CASES = {
    # what is made: episodes, steps, features that must be there, instructions
    one_episode: (1, 6, ("observation.images.front", "observation.images.wrist", "observation.state", "action"), 1),
    trajectories: (3, 15, ("observation.images.img", "observation.state", "action"), 3),
    nested: (4, 20, ("observation.images.cam_0", "observation.images.cam_1", "action"), 0),
    channel_first: (1, 5, ("observation.images.left", "observation.images.right", "observation.state", "action"), 0),
    jpeg_rows: (1, 5, ("observation.images.rgb", "observation.images.wrist_rgb", "action"), 0),
    json_instruction: (3, 12, ("observation.state", "action"), 3),
    constants_and_odd_things: (1, 7, ("observation.state", "action", "observation.timestamp"), 0),
    two_arms: (1, 5, ("action.left", "action.right", "observation.images.depth"), 0),
    digits_for_cameras: (1, 5, ("observation.images.camera_12345", "observation.images.camera_67890", "action"), 0),
    names_that_are_strange: (1, 5, ("observation.images.kamera__",), 0),
    uuids: (3, 15, ("observation.images.img", "action"), 0),
    one_that_is_empty_and_one_that_is_none: (3, 12, ("action",), 0),
    dated_groups_of_which_one_has_no_instruction: (3, 15, ("observation.images.img", "action"), 2),
    observations_beside_actions: (1, 5, ("action.left_arm", "action.right_arm", "observation.left_arm"), 0),
    keys_that_would_become_one_name: (
        *(1, 5),
        ("observation.state", "observation.obs.state", "observation.images.camera_0", "observation.images.camera_0_"),
        0,
    ),
    no_action: (1, 5, ("observation.images.frames", "observation.state"), 0),
}


def run(*arguments):
    return CliRunner().invoke(cli, list(map(str, arguments)))


@pytest.mark.parametrize("write", CASES, ids=lambda write: write.__name__)
def test_draft_of_an_unknown_file_packs_and_streams_as_it_is(tmp_path, write):
    num_episodes, num_steps, names, num_tasks = CASES[write]
    path, layout = tmp_path / "strange.h5", tmp_path / "layout.yaml"
    with h5py.File(path, "w") as file:
        write(file)
    done = run("layouts", "draft", path, "-o", layout)
    assert done.exit_code == 0, done.output or done.exception
    text = layout.read_text()
    report = pack(path, tmp_path / "out", layout=read_layout_file(layout))
    assert (report.num_episodes, report.num_steps) == (num_episodes, num_steps), text
    assert set(names) <= set(report.features), text
    stream = es.EpisodeStream(path, layout=layout, shuffle=False, batch_size=num_steps)
    packed = es.EpisodeStream(tmp_path / "out", shuffle=False, batch_size=num_steps)
    assert len(stream.job.dataset.tasks) == num_tasks, text
    direct, shards = next(iter(stream)), next(iter(packed))
    for name, feature in report.features.items():
        assert direct[name].shape[0] == num_steps
        if feature.kind == "array":
            np.testing.assert_array_equal(direct[name], shards[name])


def test_episode_without_rows_among_others_is_a_fault_of_its_own(tmp_path):
    path = tmp_path / "strange.h5"
    with h5py.File(path, "w") as file:
        trajectories(file)
        file.create_group("traj_11")
    run("layouts", "draft", path, "-o", tmp_path / "layout.yaml")
    done = pack(path, tmp_path / "out", layout=read_layout_file(tmp_path / "layout.yaml"), skip_bad=True)
    assert done.num_episodes == 3
    assert len(done.faults) == 1
    assert "/traj_11: features.0: 'act' fits nothing there, found nothing" in done.faults[0]


@pytest.mark.parametrize("most", range(20, 26))
def test_draft_of_a_file_too_large_to_be_looked_at_whole_is_of_its_whole_episodes(tmp_path, monkeypatch, most):
    path = tmp_path / "strange.h5"
    with h5py.File(path, "w") as file:
        for number in range(9):
            group = file.create_group(f"data/{number:06d}")
            group["actions"], group["note"], group["obs/q"] = numbers(4, 2, 0), "x", numbers(4, 2, 1)
    monkeypatch.setattr(layout_draft, "MAX_OBJECTS", most)
    text = run("layouts", "draft", path).stdout
    assert "episodes: data/*" in text
    assert [line for line in text.splitlines() if line.startswith("  - ")] == [
        "  - {path: actions, name: action}  # float32 (4, 2)",
        "  - {path: obs/q, name: observation.q}  # float32 (4, 2)",
    ]


def test_draft_says_what_it_left_out_and_why(tmp_path):
    path = tmp_path / "strange.h5"
    with h5py.File(path, "w") as file:
        constants_and_odd_things(file)
    text = run("layouts", "draft", path).stdout
    for words in (
        "#   final_pose: float32 (8, 5): 8 rows, not the 7 steps of actions",
        "#   gains: float64 (5,): 5 rows, not the 7 steps of actions",
        "#   stack: uint8 (7, 2, 9, 9, 3): more than four axes; a camera is a dataset of its own",
        "#   version: object (): texts; under 'tasks' if they are instructions",
        "#   pairs: ",
        "#   complex: ",
        "#   ref: ",
    ):
        assert words in text


def test_draft_of_trajectories_reads_well(tmp_path):
    path = tmp_path / "strange.h5"
    with h5py.File(path, "w") as file:
        trajectories(file)
    lines = run("layouts", "draft", path).stdout.splitlines()
    assert lines[3:] == [
        "name: strange",
        "episodes: traj_*  # 3 groups, each an episode; paths are below them",
        "# fps: 30            # steps per second, if you know them",
        "tasks: ['@task']  # the instruction",
        "# where: {'@success': true}  # takes only episodes for which this holds",
        "features:  # of 4 steps, as many as rows of act",
        "  - {path: act, name: action}  # float32 (4, 4)",
        "  - {path: img, camera: img}  # uint8 (4, 24, 32, 3)",
        "  - {path: proprio, name: observation.state}  # float32 (4, 8)",
        "# Left out:",
        "#   camera_matrix: float64 (3, 3): 3 rows, not the 4 steps of act",
    ]


def test_draft_of_a_channel_first_camera_gives_the_pictures_as_they_were(tmp_path):
    path, layout = tmp_path / "strange.h5", tmp_path / "layout.yaml"
    with h5py.File(path, "w") as file:
        channel_first(file)
    assert "transpose: chw" in run("layouts", "draft", path).stdout
    run("layouts", "draft", path, "-o", layout)
    batch = next(iter(es.EpisodeStream(path, layout=layout, shuffle=False, batch_size=5)))
    np.testing.assert_array_equal(batch["observation.images.left"][:, 0], frames(5))
    pack(path, tmp_path / "out", layout=read_layout_file(layout), codec="png")
    batch = next(iter(es.EpisodeStream(tmp_path / "out", shuffle=False, batch_size=5)))
    np.testing.assert_array_equal(batch["observation.images.right"][:, 0], frames(5, 3))


def test_draft_of_a_file_without_rows_is_an_error_that_says_what_is_there(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["note"] = "nothing to see"
    failed = run("layouts", "draft", tmp_path / "a.h5").exception
    assert isinstance(failed, LayoutError)
    assert "found /note object (), of which none can be rows of steps" in str(failed)
