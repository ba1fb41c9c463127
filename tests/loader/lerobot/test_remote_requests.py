"""What is asked for of LeRobot data sets on servers, and how often: each file once a node, and nobody for versions."""

from collections import Counter

import pytest
from robots.lerobot_meta import numbers, video
from robots.lerobot_sets import RobotSet
from robots.reading import all_steps, steps_seen, stream_of
from web.faulty_server import put_folder, serve
from web.odd_ranges import serve_oddly

import epistream as es
from epistream.errors import SourceChangedError
from epistream.loader.shards import lerobot_supply
from epistream.sharding.lerobot import files as files_of_sets
from epistream.sharding.lerobot import seen, video_tables
from epistream.sharding.lerobot.video_tables import START_WITH_PICTURE

TOP, WRIST = "observation.images.top", "observation.images.wrist"
FEATURES = {"observation.state": numbers(6), TOP: video(), WRIST: video()}
# Videos of more than 4 KiB, whose index at the end is not among the first bytes.
LENGTHS = (60, 40, 50, 45)


@pytest.fixture
def server():
    with serve() as state:
        yield state


@pytest.fixture
def another_process(monkeypatch):
    """What a worker that was not forked yet has: the openings of its parent, and nothing of what another has seen."""

    def begin():
        for module, name in (
            (seen, "_seen"),
            (seen, "_brought"),
            (lerobot_supply, "_made"),
            (lerobot_supply, "_places"),
        ):
            monkeypatch.setattr(module, name, {})
        video_tables.kept_packets.cache_clear()
        files_of_sets._whole_file.cache_clear()

    return begin


def put(server, tmp_path, version, name="set", lengths=LENGTHS, **more):
    """A new data set on a server: what it is, and its URL."""
    spec = RobotSet(version=version, lengths=lengths, features=FEATURES, **more)
    root = spec.write(tmp_path / f"{name} {len(server.files)}")
    return spec, put_folder(server, root, name)


def asked(server, *, clear=True):
    """How often each file was asked for its version, and for bytes: of rows and videos."""
    of_data = [path for path in server.files if "/meta/" not in path]
    heads, gets = Counter(server.heads), Counter(path for path, _ in server.requests)
    if clear:
        server.heads.clear()
        server.requests.clear()
    return {path: heads[path] for path in of_data if heads[path]}, {path: gets[path] for path in of_data if gets[path]}


def is_video(path):
    return path.endswith(".mp4")


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_opening_reads_each_file_of_metadata_once_and_then_looks_whether_any_changed(server, tmp_path, version):
    _, url = put(server, tmp_path, version)
    es.EpisodeStream(url, batch_size=1, cache="off")
    names = {
        "v2.1": ["info.json", "episodes.jsonl", "tasks.jsonl"],
        "v3.0": ["info.json", "episodes/chunk-000/file-000.parquet", "tasks.parquet"],
    }[version]
    meta = [f"/set/meta/{name}" for name in names]
    assert [path for path, _ in server.requests][:2] == ["/set/dataset.json", "/set/meta/info.json"]
    assert Counter(path for path, _ in server.requests if "/meta/" in path) == dict.fromkeys(meta, 1)
    assert Counter(server.heads) == dict.fromkeys(meta, 1)
    # Of the first video of each camera its first bytes, with the first picture, and its index.
    assert asked(server)[1] == {
        path: 1 + (len(server.files[path]) > START_WITH_PICTURE[0])
        for path in server.files
        if path.endswith(("episode_000000.mp4", "file-000.mp4"))
    }


def test_new_files_of_one_episode_are_asked_for_bytes_alone(server, tmp_path):
    _, url = put(server, tmp_path, "v2.1")
    stream = stream_of(url, cache="off", batch_size=sum(LENGTHS))
    looked_at = asked(server)[1]
    next(iter(stream))
    heads, gets = asked(server, clear=False)
    assert heads == {}
    assert {path: count for path, count in gets.items() if not is_video(path)} == {
        f"/set/data/chunk-000/episode_00000{episode}.parquet": 1 for episode in range(len(LENGTHS))
    }
    ranges = {path: [rest for one, rest in server.requests if one == path] for path in gets if is_video(path)}
    assert len(ranges) == 2 * len(LENGTHS)
    for path, of_file in ranges.items():
        size = len(server.files[path])
        # The first bytes; the index at the end, where it is not among them; then what the frames lie in.
        assert of_file[0] == "bytes=0-4095", path
        assert (of_file[1].endswith(f"-{size - 1}")) == (size > 4096), path
        assert len(of_file) <= 3, path
    assert set(looked_at) < set(ranges)


def test_new_files_of_many_episodes_are_asked_for_their_version_once_and_rows_come_in_one_piece(server, tmp_path):
    _, url = put(server, tmp_path, "v3.0", data_file_episodes=(2, 2))
    stream = stream_of(url, cache="off", batch_size=sum(LENGTHS))
    asked(server)
    next(iter(stream))
    heads = asked(server, clear=False)[0]
    rows = [f"/set/data/chunk-000/file-00{number}.parquet" for number in (0, 1)]
    assert heads == dict.fromkeys(rows, 1), "those of videos are known from when the set was opened"
    assert sorted((path, asked_for) for path, asked_for in server.requests if path in rows) == [
        (path, f"bytes=0-{len(server.files[path]) - 1}") for path in rows
    ]


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_what_one_process_indexed_the_others_of_the_node_take_without_a_request(
    server, tmp_path, version, another_process
):
    spec, url = put(server, tmp_path, version)
    stream = stream_of(url, cache="off", batch_size=4)
    assert steps_seen(stream, spec) == all_steps(spec)
    asked(server)
    another_process()
    assert steps_seen(stream, spec) == all_steps(spec)
    heads, gets = asked(server)
    assert heads == {}
    assert all(is_video(path) for path in gets)


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_opening_that_finds_indexes_asks_once_a_node_whether_files_are_as_they_were(
    server, tmp_path, version, another_process, monkeypatch
):
    kept = tmp_path / "kept"
    monkeypatch.setenv("XDG_CACHE_HOME", str(kept))
    spec, url = put(server, tmp_path, version)
    assert steps_seen(stream_of(url, cache="off"), spec) == all_steps(spec)
    made = {path.name: path.stat().st_ino for path in kept.rglob("*.index")}
    another_process()
    asked(server)
    stream = stream_of(url, cache="off")
    assert steps_seen(stream, spec) == all_steps(spec)
    heads, gets = asked(server)
    rows = [path for path in server.files if "/data/" in path]
    assert {path: count for path, count in heads.items() if path in rows} == dict.fromkeys(rows, 1)
    assert all(is_video(path) for path in gets)
    another_process()
    assert steps_seen(stream, spec) == all_steps(spec)
    assert asked(server)[0] == {}, "somebody of this node did"
    # A version that an answer to a GET told is the one that a HEAD tells.
    assert {path.name: path.stat().st_ino for path in kept.rglob("*.index")} == made


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
@pytest.mark.parametrize("kind", ["/data/", ".mp4"])
def test_set_whose_files_changed_since_it_was_indexed_is_read_as_it_is_when_it_is_opened_again(
    server, tmp_path, version, kind, another_process
):
    first, url = put(server, tmp_path, version)
    assert steps_seen(stream_of(url, cache="off"), first) == all_steps(first)
    another_process()
    others = tmp_path / "other"
    changed = RobotSet(
        version=version,
        lengths=LENGTHS,
        features=FEATURES,
        group_steps=5,
        make=(lambda key, episode, length: first.values(key, episode) + 1) if kind == "/data/" else None,
    )
    root = changed.write(others)
    put_folder(server, root, only=kind)
    assert steps_seen(stream_of(url, cache="off"), changed) == all_steps(changed)


def test_file_that_is_replaced_between_its_first_bytes_and_its_index_is_told_and_then_read_as_it_is(server, tmp_path):
    spec, url = put(server, tmp_path, "v2.1")
    stream = stream_of(url, cache="off", batch_size=sum(LENGTHS))
    path = next(one for one in server.files if one.endswith(f"{TOP}/episode_000002.mp4"))
    whole = server.files[path]
    other = whole[:-1] + bytes([whole[-1] ^ 1])  # of the same size: nothing but the version tells them apart

    def replace(asked_for, number):
        if asked_for == path and number == 1:
            server.files[path] = other

    server.plan = replace
    with pytest.raises(SourceChangedError, match=r"episode_000002\.mp4: ETag=.*, wanted .*Open the dataset again"):
        next(iter(stream))
    server.plan = lambda asked_for, number: None
    server.files[path] = whole
    assert steps_seen(stream_of(url, cache="off"), spec) == all_steps(spec)


def test_video_that_is_replaced_after_it_was_indexed_is_never_read_by_its_old_index(server, tmp_path):
    _, url = put(server, tmp_path, "v2.1", lengths=(60, 40, 50, 45))
    batches = iter(stream_of(url, cache="off", batch_size=2))
    next(batches)
    for path, data in server.files.items():
        if is_video(path):
            server.files[path] = data[:100] + bytes([data[100] ^ 1]) + data[101:]
    with pytest.raises(SourceChangedError, match=r"\.mp4"):
        list(batches)


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_server_without_versions_gives_each_step_and_is_read_anew_when_sizes_change(
    server, tmp_path, version, another_process
):
    server.etags = False
    spec, url = put(server, tmp_path, version)
    assert steps_seen(stream_of(url, cache="off"), spec) == all_steps(spec)
    another_process()
    changed = RobotSet(version=version, lengths=LENGTHS, features=FEATURES, group_steps=7)
    root = changed.write(tmp_path / "other")
    for file in root.rglob("*.mp4"):
        server.files[f"/set/{file.relative_to(root).as_posix()}"] = file.read_bytes()
    assert steps_seen(stream_of(url, cache="off"), changed) == all_steps(changed)


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
@pytest.mark.parametrize("kind", ["whole file", "whole file of no length", "other part", "shorter part", "refused"])
def test_server_that_answers_otherwise_gives_each_step_all_the_same(tmp_path, version, kind):
    with serve_oddly(kind) as server:
        spec = RobotSet(version=version, lengths=(6, 3), features=FEATURES)
        root = spec.write(tmp_path / "set")
        url = put_folder(server, root)
        cache = es.CacheOptions(mode="off", attempts=2, fetch_timeout_s=5.0)
        assert steps_seen(stream_of(url, cache=cache), spec) == all_steps(spec)


def test_first_bytes_of_a_file_that_is_replaced_before_it_is_looked_at_again_are_not_taken_for_the_new_ones(
    server, monkeypatch
):
    """What was seen of thousands of files is forgotten now and then, also between a look and its use."""
    root = f"{server.url}/set"
    server.files |= {"/set/a": b"one" * 1000, "/set/b": b"", "/set/c": b""}
    monkeypatch.setattr(seen, "_MOST_SEEN", 2)
    seen.bring_starts(root, {"a": (512, None)}, None)
    server.files["/set/a"] = b"two" * 1000
    for name in "bc":
        seen.look(root, name, None, "a file")
    file = files_of_sets.SourceFile.at(root, "a", None, "a file", afresh=False)
    assert file.read(0, 6) == b"twotwo"


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
@pytest.mark.parametrize("head_etag", ["", "W/{}"])
def test_servers_that_tell_more_of_a_file_when_they_send_it_are_read(server, tmp_path, version, head_etag):
    spec, url = put(server, tmp_path, version, lengths=(5, 3))
    server.head_etag = head_etag
    for _ in range(2):
        assert steps_seen(stream_of(url), spec) == all_steps(spec)


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_files_of_servers_that_tell_no_version_but_with_bytes_are_refused_once_they_are_replaced(
    server, tmp_path, version
):
    spec, url = put(server, tmp_path, version, lengths=(5, 3))
    server.head_etag = ""
    assert steps_seen(stream_of(url, cache="off"), spec) == all_steps(spec)
    stream = stream_of(url, cache="off")
    path = next(path for path in server.files if is_video(path))
    server.files[path] = server.files[path][:-8] + bytes(8)
    with pytest.raises(SourceChangedError, match="replaced or written to while it was read"):
        list(stream)
