"""A stream of some cameras of a LeRobot data set asks for no file of another, and for no column of its pictures."""

import contextlib

import numpy as np
import pytest
from robots.lerobot_meta import numbers, video
from robots.lerobot_sets import RobotSet, image, shown
from robots.reading import all_steps, steps_seen, stream_of
from video.clips import number_of
from web.faulty_server import put_folder, serve, times_asked

import epistream as es
from epistream.errors import OptionError

TOP, WRIST = "observation.images.top", "observation.images.wrist"
VIDEOS = {"action": numbers(4), TOP: video(), WRIST: video()}
VERSIONS = ("v2.1", "v3.0")


@pytest.fixture
def server():
    with serve() as state:
        yield state


def cache_of(tmp_path):
    return es.CacheOptions(mode="shm", directory=f"/dev/shm/{tmp_path.parent.name}-{tmp_path.name}")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_stream_of_one_camera_asks_for_no_video_of_the_other(server, tmp_path, version, num_workers):
    spec = RobotSet(version=version, lengths=(6, 3, 9), features=VIDEOS)
    url = put_folder(server, spec.write(tmp_path / "set"))
    stream = stream_of(url, features=["action", TOP], cache=cache_of(tmp_path))
    with es.StreamingLoader(stream, num_workers=num_workers, start_method="spawn" if num_workers else "fork") as loader:
        assert steps_seen(loader, spec) == all_steps(spec)
    asked = {path for path, _ in server.requests}
    assert any(TOP in path for path in asked)
    assert not any(WRIST in path for path in asked)
    assert steps_seen(stream_of(url, cache=cache_of(tmp_path)), spec) == all_steps(spec), "of all features afterwards"
    assert any(WRIST in path for path, _ in server.requests)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_stream_without_cameras_asks_for_no_video(server, tmp_path, version):
    spec = RobotSet(version=version, lengths=(6, 3), features=VIDEOS)
    url = put_folder(server, spec.write(tmp_path / "set"))
    assert steps_seen(stream_of(url, features="act*", cache=cache_of(tmp_path)), spec) == all_steps(spec)
    assert not any(path.endswith(".mp4") for path, _ in server.requests)


def test_pictures_in_rows_of_another_camera_are_not_fetched(server, tmp_path):
    spec = RobotSet(noise=40, lengths=(20, 30), features={"front": image(96, 128), "side": image(96, 128)})
    root = spec.write(tmp_path / "set")
    url = put_folder(server, root)
    es.open_dataset(url, features=["side"])
    server.requests.clear()
    assert steps_seen(stream_of(url, features=["side"], cache=cache_of(tmp_path)), spec) == all_steps(spec)
    assert times_asked(server, f"/set/{spec.data_path(0)}").mean() < 0.6


def test_a_set_without_the_videos_of_another_camera_is_streamed(tmp_path):
    spec = RobotSet(lengths=(6, 3), features=VIDEOS)
    root = spec.write(tmp_path / "set")
    (root / spec.video_path(WRIST, 0)).unlink()
    assert steps_seen(stream_of(root, features=[TOP, "action"]), spec) == all_steps(spec)
    with contextlib.suppress(es.EpistreamError):
        list(stream_of(root))
        pytest.fail("read without its video")


def test_streams_of_either_camera_beside_each_other_each_have_their_own(tmp_path):
    spec = RobotSet(lengths=(6, 3), features=VIDEOS)
    root = spec.write(tmp_path / "set")
    streams = [stream_of(root, features=[key], batch_size=9) for key in (TOP, WRIST)]
    for camera, ([batch], key) in enumerate(zip(streams, (TOP, WRIST), strict=True)):
        assert {TOP, WRIST} & set(batch) == {key}
        found = [number_of(np.asarray(frame[0])) for frame in batch[key]]
        assert found == [shown(camera, episode, step) for episode, n in enumerate((6, 3)) for step in range(n)]


def test_a_name_that_fits_nothing_is_told_with_all_that_there_is(tmp_path):
    root = RobotSet(lengths=(6, 3), features=VIDEOS).write(tmp_path / "set")
    with pytest.raises(OptionError, match=r"'observation\.images\.tpo'.*'observation\.images\.wrist'"):
        stream_of(root, features=["observation.images.tpo", "action"])
    assert set(es.open_dataset(root, features=["action"]).features) == {"action"}
    assert set(es.open_dataset(root, features=["action", TOP]).features) == {"action", TOP}
    assert es.open_dataset(root, features=[*VIDEOS]).fingerprint == es.open_dataset(root).fingerprint
