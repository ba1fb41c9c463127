"""LeRobot data sets over HTTP: what their folder gives, in few requests that do not wait for each other."""

import contextlib
import threading
from collections import Counter

import numpy as np
import pytest
from robots.lerobot_meta import numbers, video
from robots.lerobot_sets import RobotSet, image, shown
from robots.reading import all_steps, steps_seen, stream_of
from video.clips import number_of
from web.faulty_server import put_folder, serve

import epistream as es
from epistream.errors import EpistreamError, FetchError, FormatError, SourceChangedError, SourceError

TOP, WRIST = "observation.images.top", "observation.images.wrist"
VERSIONS = ("v2.1", "v3.0")
VIDEOS = {"observation.state": numbers(6), TOP: video(), WRIST: video()}
PICTURES = {"observation.state": numbers(6), "front": image()}
LENGTHS = (6, 3, 1, 7, 2)


@pytest.fixture
def server():
    with serve() as state:
        yield state


def written(tmp_path, version="v2.1", features=VIDEOS, lengths=LENGTHS, **more):
    spec = RobotSet(version=version, lengths=lengths, features=features, **more)
    return spec, spec.write(tmp_path / "set")


def is_data(path):
    return path.endswith((".mp4", ".parquet")) and "/meta/" not in path


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("features", [VIDEOS, PICTURES])
def test_set_over_http_gives_each_step_once_as_its_folder_does(server, tmp_path, version, features):
    spec, root = written(tmp_path, version, features)
    url = put_folder(server, root)
    assert steps_seen(stream_of(url), spec) == all_steps(spec)
    assert steps_seen(stream_of(url), spec) == all_steps(spec), "from what is kept"


def test_indexes_of_a_batch_are_made_at_the_same_time(server, tmp_path):
    _, root = written(tmp_path)
    url = put_folder(server, root)
    stream = es.EpisodeStream(url, batch_size=sum(LENGTHS), shuffle=False, cache="off")
    opened = {path for path, _ in server.requests}
    rows = [path for path in server.files if path.endswith(".parquet") and path not in opened]
    together = threading.Barrier(len(rows) - 1)  # the stream looks at one episode before it reads a batch

    def wait_for_others(path, number):
        if path in rows[1:] and number == 0:
            together.wait(60)  # broken, and so an error of a thread of the server, if they come one after the other

    server.plan = wait_for_others
    batch = next(iter(stream))
    assert not together.broken
    assert batch["episode_index"].tolist() == np.repeat(range(len(LENGTHS)), LENGTHS).tolist()


def test_batches_of_several_sets_look_for_the_files_of_each_in_its_own_folder(server, tmp_path):
    urls = []
    for name, lengths in (("one", (3, 2, 4, 2)), ("two", (2, 3))):
        spec = RobotSet(version="v2.1", lengths=lengths, features={"observation.state": numbers(6), TOP: video()})
        urls.append(put_folder(server, spec.write(tmp_path / name), name))
    stream = es.EpisodeStream(urls, batch_size=8, shuffle=False, cache="off")
    batches = [(batch["episode_index"].tolist(), batch["step_index"].tolist()) for batch in stream]
    found = [step for episodes, steps in batches for step in zip(episodes, steps, strict=True)]
    assert found == [(episode, step) for episode, length in enumerate((3, 2, 4, 2, 2, 3)) for step in range(length)]


def test_nothing_of_a_video_but_its_index_is_read_before_its_frames_are_wanted(server, tmp_path):
    _, root = written(tmp_path, "v3.0", features={TOP: video()}, lengths=(60,) * 8)
    url = put_folder(server, root)
    stream = es.EpisodeStream(url, batch_size=4, shuffle=False, features=[TOP], cache="off")
    assert len(next(iter(stream))["episode_index"]) == 4
    of_videos = [asked for path, asked in server.requests if path.endswith(".mp4")]
    # The first bytes, the index at the end, the first picture; then the packets of the batch.
    assert len(of_videos) <= 4


FAULTS = ["503", "429", "drop", "cut", "short", "trickle"]


@pytest.mark.parametrize("fault", FAULTS)
def test_passing_faults_change_nothing(server, tmp_path, fault):
    spec, root = written(tmp_path, lengths=(6, 3, 5))
    url = put_folder(server, root)
    server.plan = lambda path, number: fault if number == 0 and is_data(path) else None
    assert steps_seen(stream_of(url), spec) == all_steps(spec)


def test_server_without_ranges_gives_each_step_once(server, tmp_path):
    spec, root = written(tmp_path, lengths=(6, 3, 5))
    server.ranges = False
    assert steps_seen(stream_of(put_folder(server, root)), spec) == all_steps(spec)


@pytest.mark.parametrize("fault", ["503", "404", "drop", "stall"])
@pytest.mark.parametrize("kind", ["observation.images.top/episode_000001.mp4", "data/chunk-000/episode_000001.parquet"])
def test_lasting_fault_of_a_file_is_an_error_that_names_it_within_its_time(server, tmp_path, fault, kind):
    _, root = written(tmp_path, lengths=(6, 3, 5))
    url = put_folder(server, root)
    server.plan = lambda path, number: fault if path.endswith(kind) else None
    cache = es.CacheOptions(mode="off", fetch_timeout_s=1.0, request_timeout_s=0.4, attempts=2)
    with pytest.raises((SourceError, FetchError), match=kind.split("/")[-1]):
        list(es.EpisodeStream(url, batch_size=4, shuffle=False, cache=cache))
    stream = es.EpisodeStream(url, batch_size=4, shuffle=False, cache=cache, on_bad="skip", remainder="pad")
    seen = Counter(np.concatenate([batch["episode_index"][~batch["is_repeat"]] for batch in stream]).tolist())
    assert seen == {0: 6, 2: 5}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("mode", ["off", "shm"])
def test_set_that_is_replaced_during_a_run_is_an_error_never_other_frames(server, tmp_path, version, mode):
    spec, root = written(tmp_path, version, lengths=(40, 40))
    url = put_folder(server, root)
    cache = es.CacheOptions(mode=mode, directory=f"/dev/shm/{tmp_path.parent.name}-{tmp_path.name}")
    stream = es.EpisodeStream(url, batch_size=4, shuffle=False, cache=cache)
    batches = iter(stream)
    next(batches)
    whole = dict(server.files)
    for path, data in whole.items():
        if path.endswith(".mp4"):  # of the same size: nothing but the version tells it from the other
            server.files[path] = data[: len(data) // 2] + bytes(len(data) - len(data) // 2)
    steps = 4
    # A node's cache may have brought all of it before; of an episode that nobody had looked at the file is torn now.
    with (
        contextlib.suppress(SourceChangedError, FormatError)
        if mode == "shm"
        else pytest.raises((SourceChangedError, FormatError), match=r"\.mp4: .*, wanted")
    ):
        for batch in batches:
            assert batch["episode_index"].tolist() == [steps // 40] * 4
            for row, step in enumerate(range(steps, steps + 4)):
                assert number_of(np.asarray(batch[TOP][row, 0])) == shown(0, step // 40, step % 40)
            steps += 4
    del batches
    server.files |= whole
    assert steps_seen(stream_of(url), spec) == all_steps(spec)


@pytest.mark.parametrize("version", VERSIONS)
def test_set_that_was_replaced_is_read_as_it_is_now_when_it_is_opened_again(server, tmp_path, version):
    first, root = written(tmp_path / "a", version, lengths=(6, 3))
    url = put_folder(server, root)
    assert steps_seen(stream_of(url), first) == all_steps(first)
    second, root = written(tmp_path / "b", version, lengths=(6, 3), group_steps=6)
    put_folder(server, root)
    assert steps_seen(stream_of(url), second) == all_steps(second)


def test_video_that_is_cut_off_after_it_was_looked_at_is_an_error(server, tmp_path):
    _, root = written(tmp_path, lengths=(40, 40))
    url = put_folder(server, root)
    batches = iter(es.EpisodeStream(url, batch_size=4, shuffle=False, cache="off"))
    next(batches)
    for path, data in list(server.files.items()):
        if path.endswith(".mp4"):
            server.files[path] = data[:-100]
    with pytest.raises(EpistreamError, match=r"\.mp4"):
        list(batches)
