"""Bad episodes of LeRobot data sets: an error that names the place, or left out by choice, and no others with them."""

import contextlib
import json
import pickle

import av
import pyarrow.compute as pc
import pytest
from robots.lerobot_meta import numbers, video
from robots.lerobot_sets import RobotSet
from robots.reading import all_steps, change_info, of_episode, replace_file, rewrite, steps_seen, stream_of
from web.faulty_server import put_folder, serve

import epistream as es
from epistream.errors import EpistreamError, FormatError, SourceChangedError, SourceError

TOP = "observation.images.top"
BAD = 1  # the episode
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 123\n"


def robot_set(version, **how):
    """Five episodes; of v3 the first three in one file."""
    files = {"data_file_episodes": (3, 2), "video_file_episodes": {TOP: (3, 2)}}
    features = {"action": numbers(6), TOP: video()}
    return RobotSet(version=version, lengths=(3, 6, 4, 2, 3), features=features, **files, **how)


def video_of(root, spec):
    return root / spec.video_path(TOP, BAD)


def rows_of(root, spec):
    return root / spec.data_path(BAD)


def cut(path, share):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def cut_index(root, spec):
    data = video_of(root, spec).read_bytes()
    video_of(root, spec).write_bytes(data[: data.index(b"moov") + 60])


def garble(root, spec):
    """The second group of frames of the bad episode."""
    path = video_of(root, spec)
    data = bytearray(path.read_bytes())
    first = (0 if spec.is_v2 else spec.lengths[0]) + 2
    with av.open(str(path)) as source:
        packets = [packet for packet in source.demux(video=0) if packet.dts is not None][first : first + 2]
        for packet in packets:
            start, stop = packet.pos + 8, packet.pos + packet.size
            data[start:stop] = bytes(byte ^ 0xFF for byte in data[start:stop])
    path.write_bytes(bytes(data))


def change(name, to):
    return lambda root, spec: rewrite(rows_of(root, spec), of_episode(BAD, name, to))


def drop(column):
    return lambda root, spec: rewrite(rows_of(root, spec), lambda table: table.drop_columns([column]))


def without_a_row(root, spec):
    def change(table):
        is_it = pc.and_(pc.equal(table.column("episode_index"), BAD), pc.equal(table.column("frame_index"), 2))
        return table.filter(pc.invert(is_it))

    rewrite(rows_of(root, spec), change)


def without_rows(root, spec):
    rewrite(rows_of(root, spec), lambda table: table.filter(pc.not_equal(table.column("episode_index"), BAD)))


# What is done, the error, what it says, and whether it costs the file's other episodes in v3.
FAULTS = {
    "no video": (lambda r, s: video_of(r, s).unlink(), SourceError, "wanted the video of observation.images.top", True),
    "half a video": (lambda r, s: cut(video_of(r, s), 0.5), FormatError, "The file is cut off", True),
    "half an index": (cut_index, FormatError, "as its box 'moov' says. The file is cut off", True),
    "an empty video": (lambda r, s: video_of(r, s).write_bytes(b""), FormatError, "an empty file, wanted an MP4", True),
    "a pointer": (lambda r, s: video_of(r, s).write_text(POINTER), FormatError, "Git LFS pointer", True),
    "no rows' file": (lambda r, s: rows_of(r, s).unlink(), SourceError, "wanted the rows of an episode", True),
    "half of the rows' file": (lambda r, s: cut(rows_of(r, s), 0.9), FormatError, "wanted a whole Parquet file", True),
    "a pointer for rows": (lambda r, s: rows_of(r, s).write_text(POINTER), FormatError, "Run: git lfs pull", True),
    "no column": (drop("action"), FormatError, "wanted 'action', which info.json names", True),
    "no times": (drop("timestamp"), FormatError, "no column timestamp, wanted it", True),
    "frames that do not decode": (garble, FormatError, "does not decode", False),
    "a frame late": (change("timestamp", lambda t: t + 0.02), FormatError, "step 0: timestamp 0.02, wanted 0", False),
    "between frames": (
        change("timestamp", lambda t: t + 0.01 * (t > 0.05)),
        FormatError,
        "wanted one within 0.0001 s",
        False,
    ),
    "times that are none": (change("timestamp", lambda t: float("nan")), FormatError, "wanted finite seconds", False),
    "gaps": (change("action", lambda value: None), FormatError, "6 missing values of 'action'", False),
    "uneven lists": (
        change("action", lambda value: value[: 3 if value[0] > 0 else 6]),
        FormatError,
        "3 to 6 values of 'action', wanted as many each",
        False,
    ),
    "wide lists": (
        change("action", lambda v: [*v, 1.0]),
        FormatError,
        "7 values a step of 'action', wanted (6,)",
        False,
    ),
    "other steps": (change("frame_index", lambda n: n + 3), FormatError, "step 0: frame_index 3, wanted 0", False),
    "another task": (change("task_index", lambda n: 77), FormatError, "task 77, wanted one of [0]", False),
    "a row lost": (without_a_row, FormatError, "step 2: frame_index 3, wanted 2", False),
    "all rows lost": (without_rows, FormatError, "no rows of episode 1, wanted them", False),
}


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
@pytest.mark.parametrize("name", FAULTS)
def test_a_bad_episode_is_named_or_left_out_and_no_other_that_is_whole(name, version, tmp_path):
    harm, error, words, costs_file = FAULTS[name]
    spec = robot_set(version)
    root = spec.write(tmp_path / "set")
    harm(root, spec)
    with pytest.raises(error) as caught:
        list(stream_of(root))
    text = str(caught.value)
    assert words in text
    assert "file-000." in text or "episode_000001." in text
    bad = {0, 1, 2} if costs_file and not spec.is_v2 else {BAD}
    stream = stream_of(root, on_bad="skip")
    with es.StreamingLoader(stream, num_workers=0) as loader:
        seen = steps_seen(loader, spec)
        stats = loader.stats()
    assert {place: n for place, n in seen.items() if place[0] not in bad} == all_steps(spec, without=bad)
    # Frames of a bad episode that decode are seen until a worker meets one that does not.
    assert {place for place in seen if place[0] in bad} <= (
        {(1, 0), (1, 1), (1, 4), (1, 5)} if harm is garble else set()
    )
    assert set(stats.bad_shards) == {f"{root / spec.data_path(one)}#episode={one}" for one in bad}
    lost = sum(stream.job.dataset.episode_length[list(bad)]) - sum(place[0] in bad for place in seen)
    assert stats.num_replaced_windows == lost
    assert any(words in reason for reason in stats.bad_shards.values())


def test_a_length_that_is_not_that_of_the_rows_costs_that_episode(tmp_path):
    spec = robot_set("v2.1")
    root = spec.write(tmp_path / "set")
    change_info(root, total_frames=19)
    path = root / "meta" / "episodes.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[BAD]["length"] += 1
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(FormatError, match=r"episode_000001\.parquet: episode 1: 6 rows, wanted 7, as the metadata say"):
        list(stream_of(root))
    assert steps_seen(stream_of(root, on_bad="skip"), spec) == all_steps(spec, without={BAD})


def test_metadata_that_contradict_each_other_are_an_error_whatever_is_skipped(tmp_path):
    root = robot_set("v3.0").write(tmp_path / "set")
    change_info(root, total_frames=19)
    with pytest.raises(FormatError, match=r"set/meta: episodes of 18 steps together, but info\.json says"):
        stream_of(root, on_bad="skip")


HOW = {
    "in memory": {"cache": "shm"},
    "on disk": {"cache": "disk"},
    "in place": {"cache": "off"},
    "kept decoded": {"decode": "once"},
    "shuffled": {"shuffle": True},
}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("group_steps", [2, 30])
def test_the_first_episode_is_left_out_in_every_mode(how, group_steps, tmp_path):
    spec = robot_set("v3.0", group_steps=group_steps)
    root = spec.write(tmp_path / "set")
    rewrite(root / spec.data_path(0), of_episode(0, "action", lambda value: None))
    stream = stream_of(root, on_bad="skip", **HOW[how])
    assert steps_seen(stream, spec) == all_steps(spec, without={0})


def test_all_ranks_get_as_many_batches_when_one_of_them_meets_bad_episodes(tmp_path):
    spec = robot_set("v2.1")
    root = spec.write(tmp_path / "set")
    for episode in (1, 2):
        (root / spec.video_path(TOP, episode)).unlink()
    counts, seen = [], {}
    for rank in range(2):
        batches = list(stream_of(root, on_bad="skip", world=es.World.of(rank, 2, local_size=2), shuffle=True))
        counts.append(len(batches))
        seen |= steps_seen(batches, spec)
    assert counts[0] == counts[1] > 0
    assert seen == all_steps(spec, without={1, 2})


def test_episodes_side_by_side_that_are_bad_in_one_batch_are_left_out(tmp_path):
    spec = robot_set("v2.1")
    root = spec.write(tmp_path / "set")
    for episode in (1, 2, 3):
        (root / spec.data_path(episode)).unlink()
    stream = stream_of(root, on_bad="skip", batch_size=16)
    assert steps_seen(stream, spec) == all_steps(spec, without={1, 2, 3})


def test_a_data_set_without_videos_says_so_in_few_words(tmp_path):
    spec = robot_set("v2.1")
    root = spec.write(tmp_path / "set")
    for path in root.glob(f"videos/*/{TOP}/*.mp4"):
        path.unlink()
    with pytest.raises(FormatError, match=r"no shard of it can be read\. SourceError: .*And 2 more\.$"):
        list(stream_of(root, on_bad="skip", batch_size=64))


def with_index_in_front(path):
    """As ``-movflags +faststart`` writes it."""
    spare = path.with_name("spare.mp4")
    with av.open(str(path)) as source, av.open(str(spare), "w", options={"movflags": "faststart"}) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    spare.replace(path)


def test_of_a_video_that_is_cut_behind_its_index_the_first_episodes_go_on(tmp_path):
    spec = robot_set("v3.0")
    root = spec.write(tmp_path / "set")
    with_index_in_front(video_of(root, spec))
    cut(video_of(root, spec), 0.9)
    with pytest.raises(FormatError, match=r"file-000\.mp4: episode 2: .* The file is cut off: download it again"):
        list(stream_of(root))
    assert steps_seen(stream_of(root, on_bad="skip"), spec) == all_steps(spec, without={2})


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
@pytest.mark.parametrize("what", ["rows", "video"])
@pytest.mark.parametrize("cache", ["off", "shm"])
def test_a_file_that_is_replaced_between_epochs_is_read_as_it_is_now_or_named(version, what, cache, tmp_path):
    spec = robot_set(version)
    root = spec.write(tmp_path / "set")
    stream = stream_of(root, cache=cache)
    assert steps_seen(stream, spec) == all_steps(spec)
    path = rows_of(root, spec) if what == "rows" else video_of(root, spec)
    replace_file(path, path.read_bytes())
    with contextlib.suppress(SourceChangedError):
        assert steps_seen(stream, spec) == all_steps(spec)
    assert steps_seen(stream_of(root, cache=cache), spec) == all_steps(spec)


def test_an_error_of_an_episode_pickles(tmp_path):
    spec = robot_set("v3.0")
    root = spec.write(tmp_path / "set")
    video_of(root, spec).unlink()
    with pytest.raises(EpistreamError) as caught, es.StreamingLoader(stream_of(root), num_workers=1) as loader:
        list(loader)
    assert "file-000.mp4" in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize("name", ["no video", "a pointer", "gaps"])
@pytest.mark.parametrize("cache", ["shm", "off"])
def test_over_http_a_bad_episode_is_named_or_left_out_likewise(name, cache, tmp_path):
    harm, error, words, costs_file = FAULTS[name]
    spec = robot_set("v3.0")
    root = spec.write(tmp_path / "set")
    harm(root, spec)
    with serve() as server:
        url = put_folder(server, root)
        with pytest.raises(error) as caught:
            list(stream_of(url, cache=cache))
        assert words in str(caught.value)
        assert str(caught.value).startswith(url)
        bad = {0, 1, 2} if costs_file else {BAD}
        assert steps_seen(stream_of(url, cache=cache, on_bad="skip"), spec) == all_steps(spec, without=bad)
