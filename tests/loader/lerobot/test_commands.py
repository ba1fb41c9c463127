"""The command line on LeRobot data sets where they are: what it says of them, and its exit codes."""

import json

import pytest
from click.testing import CliRunner
from PIL import Image
from robots.lerobot_meta import numbers, video
from robots.lerobot_sets import RobotSet, image
from robots.reading import of_episode, rewrite

import epistream as es
from epistream.commands import cli
from epistream.configs.survey import sources_of
from epistream.errors import OptionError, SourceError

TOP = "observation.images.top"
FEATURES = {"action": numbers(3), "front": image(), TOP: video()}


def run(*arguments):
    return CliRunner().invoke(cli, list(map(str, arguments)))


@pytest.fixture(params=["v2.1", "v3.0"])
def made(request, tmp_path):
    spec = RobotSet(version=request.param, lengths=(3, 5, 4), features=FEATURES, tasks=("go", "halt"))
    return spec, spec.write(tmp_path / "set")


def test_verify_of_a_whole_set_decodes_every_frame_and_exits_with_0(made):
    done = run("verify", made[1])
    assert done.exit_code == 0, done.output
    assert "no faults: 3 shards, 3 episodes, 24 frames decoded" in done.output
    assert "6 frames decoded" in run("verify", made[1], "--sample", 1).output


def test_verify_looks_at_files_as_they_are_whatever_is_kept_of_them(made):
    spec, root = made
    list(es.EpisodeStream(str(root)))
    path = root / spec.data_path(1)
    status = path.stat()
    data = path.read_bytes()
    path.write_bytes(data.replace(b"\x89PNG", b"\x88PNG"))  # in place: nothing else tells of it
    assert path.stat().st_ino == status.st_ino
    done = run("verify", root)
    assert done.exit_code == 1
    assert "that are no PNG, wanted a picture that decodes" in done.output


def test_verify_names_each_fault_and_the_bad_episodes_and_goes_on(made):
    spec, root = made
    rewrite(root / spec.data_path(0), of_episode(0, "timestamp", lambda time: time + 0.01))
    rewrite(root / spec.data_path(2), of_episode(2, "action", lambda value: None))
    done = run("verify", root, "--statistics")
    assert done.exit_code == 1
    assert f"{spec.data_path(0)}: episode 0, step 0: timestamp 0.01, wanted 0" in done.output
    assert f"{spec.data_path(2)}: episode 2: 4 missing values of 'action', wanted one a step" in done.output
    assert "bad episodes: 0, 2; a stream leaves them out with on_bad='skip'" in done.output
    assert "2 faults: 3 shards, 3 episodes, 10 frames decoded" in done.output


def test_verify_compares_statistics_that_the_set_tells_with_its_values(made):
    done = run("verify", made[1], "--statistics")  # which are made up
    assert done.exit_code == 1
    assert "statistics of action: " in done.output


def test_verify_names_frames_that_do_not_decode(tmp_path):
    spec = RobotSet(version="v2.1", lengths=(3, 6), features={"action": numbers(3), TOP: video()})
    root = spec.write(tmp_path / "set")
    path = root / spec.video_path(TOP, 1)
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 900
    data[start : start + 900] = bytes(byte ^ 0xFF for byte in data[start : start + 900])
    path.write_bytes(bytes(data))
    done = run("verify", root)
    assert done.exit_code == 1
    assert f"{spec.video_path(TOP, 1)}, episode 1, steps " in done.output
    assert "does not decode" in done.output
    assert "bad episodes: 1;" in done.output


def test_inspect_says_what_is_there_and_that_sizes_are_reckoned(made):
    spec, root = made
    done = run("inspect", root)
    assert done.exit_code == 0, done.output
    assert "3 of 3 to 5 (median 4) steps" in done.output
    assert "by the first files of each camera; indexes are made as episodes are read" in done.output
    facts = json.loads(run("inspect", root, "--json").output)
    assert facts["has_estimated_bytes"]
    assert {one["name"]: one["codec"] for one in facts["features"]} == {"action": "npy", "front": "png", TOP: "h264"}
    pictures = sum(len(spec.picture_bytes("front", one, step)) for one in range(3) for step in range(spec.lengths[one]))
    videos = sum(path.stat().st_size for path in root.glob("videos/**/*.mp4"))
    assert 0.5 * (pictures + videos) < facts["num_bytes"] < 1.5 * (pictures + videos)
    assert [(task["task"], task["num_episodes"]) for task in facts["tasks"]] == [("go", 2), ("halt", 1)]


def test_inspect_of_an_episode_names_its_files_and_draws_it(made, tmp_path):
    spec, root = made
    facts = json.loads(run("inspect", root, "--episode", 1, "--json").output)
    assert (facts["length"], facts["tasks"], facts["split"]) == (5, ["halt"], "train")
    assert facts["files"] == [spec.data_path(1), spec.video_path(TOP, 1)]
    done = run("inspect", root, "--episode", 1, "--image", tmp_path / "out.png")
    assert done.exit_code == 0, done.output
    with Image.open(tmp_path / "out.png") as sheet:
        assert sheet.height > 2 * 48


def test_inspect_of_a_bad_episode_is_the_error_of_its_file(made):
    spec, root = made
    (root / spec.video_path(TOP, 1)).unlink()
    done = run("inspect", root, "--episode", 1)
    assert isinstance(done.exception, SourceError)
    assert spec.video_path(TOP, 1) in str(done.exception)


def test_cache_warm_keeps_good_episodes_names_bad_ones_and_ls_calls_them_what_they_are(made, tmp_path):
    spec, root = made
    rewrite(root / spec.data_path(1), of_episode(1, "action", lambda value: None))
    place = ["--directory", tmp_path / "kept", "--mode", "disk"]
    done = run("cache", "warm", root, *place)
    assert done.exit_code == 1
    assert "episode 1: 5 missing values of 'action'" in done.stderr
    assert "2 of 2 shards are in the cache" in done.stdout
    told = run("cache", "ls", *place[:2]).output
    assert "LeRobot episodes of" in " ".join(told.split())
    assert "HDF5" not in told
    run("cache", "clear", "--forget", *place[:2])


@pytest.mark.parametrize("line", [["index"], ["layouts", "detect"]])
def test_commands_for_other_things_say_what_a_set_is(made, line):
    done = run(*line, made[1])
    assert isinstance(done.exception, SourceError)
    assert "LeRobot" in str(done.exception) or "a folder" in str(done.exception)


def test_a_layout_is_refused(made):
    with pytest.raises(OptionError, match="a LeRobot data set, which says itself what it holds; layout is 'aloha'"):
        es.EpisodeStream(str(made[1]), layout="aloha")


def test_tune_opens_a_set_again_by_its_folder(made, aloha_files):
    assert sources_of(es.open_dataset(made[1])) == [str(made[1])]
    assert sources_of(es.open_dataset(aloha_files)) == list(map(str, aloha_files))
