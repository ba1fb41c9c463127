"""LeRobot data sets with every oddity that their format allows: each step comes once, as it was put in."""

import numpy as np
import pytest
from robots.lerobot_meta import FOLLOWS, numbers, video
from robots.lerobot_sets import RobotSet, image
from robots.reading import all_steps, change_info, steps_seen, stream_of

import epistream as es
from epistream.errors import FormatError

TOP, WRIST = "observation.images.top", "observation.images.wrist"
VERSIONS = ("v2.1", "v3.0")
PICTURES = {"observation.state": numbers(6), "front": image(), "grey": image(channels=1), TOP: video()}
PICTURE = "images/front/episode_000000/frame_000000.png"
KINDS = {
    "a.float64": numbers(3, "float64"),
    "a.float16": numbers(3, "float16"),
    "a.flag": numbers(1, "bool"),
    "a.flags": numbers(3, "bool"),
    "a.bytes": numbers(2, "uint8"),
    "a.count": numbers(1, "int32"),
    "a.counts": numbers(3, "int64"),
    "a.matrix": {"dtype": "float32", "shape": [2, 3], "names": None},
    "a.number": {"dtype": "float32", "shape": [], "names": None},
    "next.done": numbers(1, "bool"),
}

ODD = {
    "plain": {},
    "float64 times": {"time_dtype": "float64"},
    "sound": {"with_audio": True},
    "frames out of order": {"b_frames": 2, "group_steps": 6, "lengths": (9, 1, 13)},
    "frames after the rows": {"spare_frames": 3},
    "uneven rate": {"fps": 29.97, "lengths": (40, 1, 9)},
    "long groups": {"group_steps": 30, "lengths": (60, 1, 40)},
    "pictures in rows": {"features": PICTURES},
    "pictures in JPEG": {"features": PICTURES, "picture": "JPEG"},
    "pictures in WebP": {"features": {"front": image()}, "picture": "WEBP"},
    "pictures over row groups": {"features": PICTURES, "rows_in_group": 4},
    "all kinds of numbers": {"features": KINDS},
    "no numbers": {"features": {TOP: video()}},
    "other languages": {"tasks": ("Würfel übergeben", "递给 🤖\nund zurück", "")},
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ODD)
def test_odd_set_gives_each_step_once_as_it_was_put_in(name, version, tmp_path):
    spec = RobotSet(version=version, **ODD[name])
    stream = stream_of(spec.write(tmp_path / "set"))
    assert set(stream.job.features) == set(spec.features)
    assert steps_seen(stream, spec) == all_steps(spec)


@pytest.mark.parametrize("version", ["v2.0", "v3.1"])
def test_versions_beside_the_usual_ones(version, tmp_path):
    spec = RobotSet(version=version)
    assert steps_seen(stream_of(spec.write(tmp_path / "set")), spec) == all_steps(spec)


def test_files_of_three_cameras_that_end_at_different_episodes(tmp_path):
    side = "observation.images.side"
    files = {TOP: (1, 1, 2, 1), WRIST: (2, 2, 1), side: (4, 1)}
    features = {key: video() for key in files} | {"action": numbers(2)}
    spec = RobotSet(features=features, lengths=(4, 5, 1, 6, 3), data_file_episodes=(1, 3, 1), video_file_episodes=files)
    assert steps_seen(stream_of(spec.write(tmp_path / "set")), spec) == all_steps(spec)


def test_start_times_that_are_sums_of_rounded_durations(tmp_path):
    spec = RobotSet(lengths=(7,) * 12, fps=30, accumulates=True)
    assert steps_seen(stream_of(spec.write(tmp_path / "set")), spec) == all_steps(spec)


def test_a_hundred_cameras(tmp_path):
    spec = RobotSet(lengths=(2, 1), features={f"observation.images.c{n}": video() for n in range(100)})
    assert steps_seen(stream_of(spec.write(tmp_path / "set")), spec) == all_steps(spec)


def test_values_that_are_not_finite_come_as_they_are(tmp_path):
    spec = RobotSet(make=lambda key, episode, length: np.full((length, 6), [np.nan, np.inf, -np.inf, 0, 1, 2], "f4"))
    assert steps_seen(stream_of(spec.write(tmp_path / "set")), spec) == all_steps(spec)


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_tasks_of_steps_are_those_of_their_rows(version, tmp_path):
    spec = RobotSet(version=version, tasks=("go", "halt"), task_of=((0,), (1,), (0,)))
    root = spec.write(tmp_path / "set")
    found = {
        episode: task
        for batch in stream_of(root)
        for episode, task in zip(batch["episode_index"].tolist(), batch["task"], strict=True)
    }
    assert found == {0: "go", 1: "halt", 2: "go"}


@pytest.mark.parametrize("name", ["meta/tasks.jsonl", "meta/tasks.parquet"])
def test_without_a_file_of_tasks_they_are_numbered_as_they_appear(name, tmp_path):
    spec = RobotSet(version="v2.1" if name.endswith("jsonl") else "v3.0", tasks=("go", "halt"))
    root = spec.write(tmp_path / "set")
    (root / name).unlink()
    assert steps_seen(stream_of(root), spec) == all_steps(spec)
    assert list(es.open_dataset(root).tasks) == ["go", "halt"]


def test_keys_that_are_no_names_come_by_one_that_is_and_of_two_alike_one_is_told(tmp_path, caplog):
    features = {"Observation.Images.Top": video(), TOP: video(), "Action": numbers(2), "arm/left pos": numbers(3)}
    root = RobotSet(features=features).write(tmp_path / "set")
    stream = stream_of(root)
    assert {name: one.source_path for name, one in stream.job.features.items()} == {
        TOP: TOP,
        "action": "Action",
        "arm_left_pos": "arm/left pos",
    }
    assert f"not streamed: Observation.Images.Top (called {TOP} like {TOP})" in caplog.text


def test_features_that_cannot_be_streamed_are_left_out_with_the_reason(tmp_path, caplog):
    empty = {"dtype": "float32", "shape": [0], "names": None}
    spec = RobotSet(
        features={"action": numbers(2), "nothing": empty, "front": {**video(), "info": {"video.codec": "vp9"}}}
    )
    root = spec.write(tmp_path / "set")
    for path in root.glob("videos/**/*.mp4"):
        path.unlink()
    assert list(es.open_dataset(root).features) == ["action"]
    assert "nothing (shape (0,)" in caplog.text
    assert "front (codec 'vp9'" in caplog.text


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"picture": "TIFF", "features": PICTURES}, "no PNG, wanted a PNG picture"),
        ({"picture_paths": True, "features": PICTURES}, f"episode 0, step 0: nothing but the path '{PICTURE}' for the"),
        ({"key_frames": False, "group_steps": 4}, "begins 1 frames after a key frame"),
        ({"encoder": "mpeg4", "features": {TOP: video()}}, "a video as 'mp4v', wanted h264, hevc, av1"),
        ({"video_seconds": 0.02, "lengths": (3,)}, "no frame at 0.000000 s"),
    ],
)
def test_what_cannot_be_read_is_an_error_that_names_the_place(how, words, tmp_path):
    root = RobotSet(**how).write(tmp_path / "set")
    with pytest.raises(FormatError) as caught:
        list(stream_of(root))
    text = str(caught.value)
    assert words in text
    assert "file-000." in text


def test_pictures_of_another_size_than_said_are_named_with_their_video(tmp_path):
    root = RobotSet(features={TOP: video()}).write(tmp_path / "set")
    change_info(root, features={TOP: video(96, 128), **FOLLOWS})
    with pytest.raises(FormatError, match=r"file-000\.mp4: pictures of 64x48 .*, wanted 128x96, as info\.json says"):
        list(stream_of(root))


def test_an_episode_of_no_steps_is_named(tmp_path):
    with pytest.raises(FormatError, match=r"length\[1\] is 0, wanted 1 to"):
        stream_of(RobotSet(lengths=(3, 0, 2)).write(tmp_path / "set"))
