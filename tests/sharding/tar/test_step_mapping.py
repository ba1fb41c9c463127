"""What a mapping of steps may say, how it is refused, and what is deduced where it says nothing."""

import json

import numpy as np
import pytest
from handmade import encoded, npy, picture, write_tar

from epistream.errors import FormatError, OptionError
from epistream.sharding.tar.reindex import draft_mapping
from epistream.sharding.tar.step_draft import complete, draft_of, to_yaml
from epistream.sharding.tar.step_mapping import StepMapping, read_step_mapping
from epistream.sharding.tar.step_samples import MISSING, find_path

KEY = {"key": "ep{episode}_{step}"}


def test_a_mapping_is_read_from_yaml_and_says_itself(tmp_path):
    text = """key: ep{episode}_{step}
task: json.task
fps: 10.0
features:
  action: action.npy
  observation.images.top:
    from: top.jpg
    jpeg_channels: bgr
    rotate: 180
"""
    (tmp_path / "steps.yaml").write_text(text)
    mapping = read_step_mapping(tmp_path / "steps.yaml")
    assert to_yaml(mapping) == text
    assert StepMapping.of(mapping.plain(), "again") == mapping


@pytest.mark.parametrize(
    ("key", "name", "found"),
    [
        ("ep{episode}_{step}", "ep000_00012", ("000", "00012")),
        ("traj_{episode}/{step}", "traj_7/3", ("7", "3")),
        ("{episode}_{step}", "pick_the_cup_12", ("pick_the_cup", "12")),
        ("*/{episode}-{step}.*", "lab/a-5.x", ("a", "5")),
        ("*{step}-{episode}", "frame00012-a", None),
        ("{episode}*{step}", "a-00012", ("a-", "00012")),
        ("ep{episode}_{step}", "ep000_cam", None),
        ("ep{episode}_{step}", "x/ep000_1", None),
        ("{episode}+{step}", "a+1", ("a", "1")),
        ("{episode}_{step}", "a_1700000000123456789", ("a", "1700000000123456789")),
        ("{episode}_{step}", "a_" + "1" * 5000, None),
    ],
)
def test_patterns_of_keys(key, name, found):
    matched = StepMapping.of({"key": key}, "x").key_pattern().fullmatch(name)
    if key == "*{step}-{episode}":
        found = ("a", "00012")  # the star takes the word, and none of the digits
    assert (matched and (matched["episode"], matched["step"])) == found


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({}, "episode said 0 times, wanted once"),
        ({"key": "ep{episode}"}, r"step said 0 times, wanted once: \{step\} in 'key', or 'step: FIELD'"),
        ({**KEY, "step": "json.step"}, "step said 2 times"),
        ({"key": "{episode}{step}"}, "nothing between"),
        ({"key": "{episode}_{step}_{camera}"}, r"part \{camera\} in 'key'"),
        ({"key": "{episode}_{episode}_{step}"}, "episode said 2 times"),
        ({**KEY, "task": "task.jpg"}, "task from 'task.jpg', wanted one of json, text"),
        ({**KEY, "features": {"action": "action.pickle"}}, r"action from 'action\.pickle', wanted \.npy, JSON"),
        ({**KEY, "features": {"action": "json"}}, r"action from all of 'json', wanted a path in it: json\.state"),
        ({**KEY, "fps": 0}, "fps"),
        ({**KEY, "feature": {}}, "Known: key, episode, step, task, fps, gaps, features"),
        ({**KEY, "features": {"action": {"from": "a.npy", "colour": 1}}}, "of a feature: from, jpeg_channels, rotate"),
        ([1], "the file"),
    ],
)
def test_mappings_that_make_no_sense_are_refused(value, words):
    with pytest.raises(OptionError, match=words) as caught:
        StepMapping.of(value, "steps.yaml")
    assert str(caught.value).startswith("steps.yaml: ")


@pytest.mark.parametrize("text", ["a: [", "\x00"])
def test_files_that_are_no_yaml_are_refused(tmp_path, text):
    (tmp_path / "steps.yaml").write_text(text)
    with pytest.raises(OptionError, match=r"steps\.yaml: no YAML"):
        read_step_mapping(tmp_path / "steps.yaml")
    with pytest.raises(OptionError, match=r"none\.yaml: No such file"):
        read_step_mapping(tmp_path / "none.yaml")


def test_paths_in_json():
    value = {"a.b": {"c": [1, {"d": 2}]}, "a": {"x": None}, "n": 0}
    assert find_path(value, "a.b.c.1.d") == 2
    assert find_path(value, "a.x") is None
    assert find_path(value, "n") == 0
    for path in ("a.y", "a.b.c.2", "a.b.c.d", "n.m", "a.b.c." + "1" * 5000):
        assert find_path(value, path) is MISSING


def tar(folder, fields, steps=3):
    return write_tar(
        folder / "s.tar", [(f"ep0_{step}.{name}", data) for step in range(steps) for name, data in fields.items()]
    )


def test_features_are_deduced_where_a_mapping_names_none(tmp_path):
    fields = {
        "jpg": encoded(picture(0, 0), "jpeg"),
        "image.left.png": encoded(picture(0, 0), "png"),
        "observation.images.hand.webp": encoded(picture(0, 0), "webp"),
        "depth.npy": npy(np.zeros((240, 320), np.float32)),
        "actions.npy": npy(np.zeros(7, np.float32)),
        "State.npy": npy(np.zeros(7, np.float32)),
        "json": json.dumps(
            {"reward": 0.5, "robot": {"Pose": [1, 2]}, "frame_index": 1, "language_instruction": "go"}
        ).encode(),
        "pickle": b"x",
    }
    mapping = complete(StepMapping.of(KEY, "x"), tar(tmp_path, fields))
    assert mapping.plain() == {
        **KEY,
        "task": "json.language_instruction",
        "features": {
            "observation.images.image": "jpg",
            "observation.images.left": "image.left.png",
            "observation.images.hand": "observation.images.hand.webp",
            "observation.images.depth": "depth.npy",
            "action": "actions.npy",
            "observation.state": "state.npy",
            "reward": "json.reward",
            "robot.pose": "json.robot.Pose",
        },
    }


def test_tars_of_one_episode_are_drafted_so(tmp_path):
    path = write_tar(tmp_path / "s.tar", [(f"{step:06d}.action.npy", npy(np.zeros(7))) for step in range(4)])
    assert draft_of(path).plain() == {"key": "{step}", "episode": "tar", "features": {"action": "action.npy"}}


@pytest.mark.parametrize(
    ("place", "draft"),
    [
        (
            lambda e, s: {"json": json.dumps({"episode_index": float(e), "frame_index": float(s)}).encode()},
            {"episode": "json.episode_index", "step": "json.frame_index"},
        ),
        (
            lambda e, s: {"episode_index.npy": npy(np.int64(e)), "frame_index.npy": npy(np.array([s]))},
            {"episode": "episode_index.npy", "step": "frame_index.npy"},
        ),
        (
            lambda e, s: {"episode_id.txt": b"e%d" % e, "step.txt": b"%d" % s},
            {"episode": "episode_id.txt", "step": "step.txt"},
        ),
    ],
)
def test_fields_that_name_the_step_are_found_where_keys_count_all_steps(tmp_path, place, draft):
    members = [
        (f"{4 * e + s:06d}.{field}", data)
        for e in (0, 1)
        for s in range(4)
        for field, data in {**place(e, s), "action.npy": npy(np.zeros(7))}.items()
    ]
    mapping = draft_of(write_tar(tmp_path / "s.tar", members))
    assert mapping.plain() == {**draft, "features": {"action": "action.npy"}}


def test_files_that_lie_among_the_steps_do_not_keep_from_a_draft(tmp_path):
    steps = [(f"ep0_{step}.action.npy", npy(np.zeros(7))) for step in range(4)]
    path = write_tar(tmp_path / "s.tar", [("README.md", b"x"), *steps, ("dataset_info.json", b"{}")])
    assert draft_of(path).plain() == {"key": "ep{episode}_{step}", "features": {"action": "action.npy"}}


def test_what_tells_no_step_gets_no_draft(tmp_path):
    write_tar(tmp_path / "s.tar", [(f"{name}.action.npy", npy(np.zeros(7))) for name in ("left", "right")])
    with pytest.raises(FormatError, match="samples left, right, wanted a number of the step in their keys"):
        draft_mapping(tmp_path)
