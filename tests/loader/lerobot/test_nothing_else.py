"""A LeRobot data set gives what it holds or an error: no value, frame or plan of something else."""

import io
import json
import os
import pickle
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import fsspec
import numpy as np
import pyarrow as pa
import pytest
from robots.lerobot_meta import numbers, video
from robots.lerobot_sets import RobotSet, image, shown
from robots.reading import all_steps, replace_file, rewrite, steps_seen, stream_of
from video.clips import counted, number_of

import epistream as es
from epistream.errors import FormatError, SourceChangedError, SourceError
from epistream.loader.shards.shard_entry import shard_entry
from epistream.sharding.files.user_cache import default_folder
from epistream.sharding.lerobot.dataset import episode_source

TOP = "observation.images.top"
NUMBERS = {"action": numbers(2)}
BOTH = {**NUMBERS, TOP: video(codec="h264")}


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_frames_that_need_one_behind_the_last_row_are_refused(version, tmp_path):
    """The decoder would conceal what it lacks: pictures that look almost right."""
    spec = RobotSet(version, (7,), BOTH, b_frames=3, group_steps=12, spare_frames=1)
    with pytest.raises(FormatError, match="episode 0: frames that need others shown after its end"):
        list(stream_of(spec.write(tmp_path / "set")))


def test_frames_that_need_the_key_frame_of_the_next_episode_are_refused(tmp_path, caplog):
    spec = RobotSet("v3.0", (8, 8), {**NUMBERS, TOP: video(64, 64, "hevc")})
    root = spec.write(tmp_path / "set")
    replace_file(root / spec.video_path(TOP, 0), _open_groups_of_8(16, spec.fps))
    assert steps_seen(stream_of(root, on_bad="skip"), spec) == all_steps(spec, without=(0,))
    assert "episode 0: frames that need others shown after its end" in caplog.text


def _open_groups_of_8(num_frames, fps):
    target, rate = io.BytesIO(), Fraction(fps)
    with av.open(target, "w", format="mp4") as container:
        stream = container.add_stream("libx265", rate=rate)
        stream.height, stream.width, stream.pix_fmt = 64, 64, "yuv420p"
        stream.codec_context.time_base = 1 / rate
        groups = "scenecut=0:min-keyint=8:keyint=8:bframes=3:b-adapt=0"
        stream.options = {"x265-params": f"{groups}:log-level=none:pools=none:frame-threads=1"}
        for number in range(num_frames):
            picture = counted(shown(0, *divmod(number, 8)), 64, 64)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return target.getvalue()


def test_times_of_32_bits_are_those_of_frames_hours_into_an_episode(tmp_path):
    """From half an hour on their rounding alone is above LeRobot's tolerance."""
    spec = RobotSet("v2.1", (60,), BOTH, fps=0.003)
    assert steps_seen(stream_of(spec.write(tmp_path / "set")), spec) == all_steps(spec)


KEPT = [
    ("int64", "float32", 7),
    ("float64", "float32", 0.1),
    ("float32", "float16", np.nan),
    ("int64", "bool", 1),
    ("float32", "int64", 3.0),
]
LOST = [
    ("float64", "int8", 300.5),
    ("int64", "uint8", -1),
    ("int64", "uint64", -1),
    ("float32", "int64", np.nan),
    ("int64", "bool", 2),
    ("float64", "float32", 1e300),
]


def _set_of(tmp_path, found, said, value):
    def make(key, episode, length):
        values = np.zeros((length, 2), found)
        values[length - 1, 1] = value
        return values

    return RobotSet("v3.0", (5, 3), {"action": numbers(2, said)}, make=make).write(tmp_path / "set")


@pytest.mark.parametrize(("found", "said", "value"), KEPT)
def test_values_come_in_the_dtype_that_the_metadata_name(found, said, value, tmp_path):
    [batch] = stream_of(_set_of(tmp_path, found, said, value), batch_size=8)
    assert str(batch["action"].dtype) == f"torch.{said}"
    np.testing.assert_array_equal(batch["action"][4, 0], np.array([0, value]).astype(said))


@pytest.mark.parametrize(("found", "said", "value"), LOST)
def test_values_that_this_dtype_cannot_hold_are_an_error_not_other_values(found, said, value, tmp_path):
    with pytest.raises(FormatError, match=rf"episode 0, step 4: \S+ of 'action', wanted what {said} can hold"):
        list(stream_of(_set_of(tmp_path, found, said, value)))


def _exchanged(root):
    """The two files of rows of a set, each with the name of the other, and metadata that say so."""
    first, second = (root / f"data/chunk-000/file-00{number}.parquet" for number in (0, 1))
    parts = first.read_bytes(), second.read_bytes()
    replace_file(first, parts[1])
    replace_file(second, parts[0])

    def change(table):
        column = "data/file_index"
        return table.set_column(table.column_names.index(column), column, pa.array([1, 0], pa.int64()))

    rewrite(root / "meta/episodes/chunk-000/file-000.parquet", change)


def test_metadata_that_change_beside_the_same_info_are_read_anew_in_the_same_process(tmp_path):
    spec = RobotSet("v3.0", (5, 3), NUMBERS, data_file_episodes=(1, 1))
    root = spec.write(tmp_path / "set")
    before = es.open_dataset(root)
    assert steps_seen(stream_of(root), spec) == all_steps(spec)
    _exchanged(root)
    assert steps_seen(stream_of(root), spec) == all_steps(spec)
    assert before.index_url[0] != es.open_dataset(root).index_url[0]


def test_a_plan_that_is_kept_no_more_is_told_from_the_one_in_its_place(tmp_path, monkeypatch):
    """As a worker meets it that starts after the metadata were replaced."""
    root = RobotSet("v3.0", (5, 3), NUMBERS, data_file_episodes=(1, 1)).write(tmp_path / "set")
    before = es.open_dataset(root)
    _exchanged(root)
    es.open_dataset(root)
    monkeypatch.setattr("epistream.sharding.lerobot.dataset._sources", {})
    with pytest.raises(SourceChangedError, match=r"set: its metadata were changed .* Open the dataset again"):
        shard_entry(before, 0)


def test_an_index_that_was_made_again_gives_no_bytes_under_the_key_of_the_first(tmp_path):
    """Who asks for an entry may open it after somebody else found a file of it replaced."""
    spec = RobotSet("v3.0", (5, 3), BOTH)
    root = spec.write(tmp_path / "set")
    dataset = es.open_dataset(root)
    entry = shard_entry(dataset, 0)
    spec.group_steps = 1
    replace_file(root / spec.video_path(TOP, 0), spec.video(TOP, range(2)))
    assert shard_entry(dataset, 0).key != entry.key
    with pytest.raises(SourceChangedError, match="the index of other files"):
        entry.parts[0].supply.open()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_indexes_that_are_removed_between_epochs_are_made_again(num_workers, tmp_path):
    """By hand, or by another process that keeps the folder small."""
    spec = RobotSet("v3.0", (5, 3, 4), BOTH)
    stream = stream_of(spec.write(tmp_path / "set"), cache="off")
    with es.StreamingLoader(stream, num_workers=num_workers) as loader:
        for _ in range(2):
            assert steps_seen(loader, spec) == all_steps(spec)
            for path in default_folder().glob("*.index"):
                path.unlink()


@pytest.mark.parametrize("part", [0, 1])
def test_index_that_is_removed_after_its_entry_was_made_is_made_again(part, tmp_path):
    root = RobotSet("v3.0", (5, 3), BOTH).write(tmp_path / "set")
    dataset = es.open_dataset(root)
    entry = shard_entry(dataset, 1)
    wanted = bytes(entry.parts[part].supply.open().read(0, entry.parts[part].size))
    for path in default_folder().glob("*.index"):
        path.unlink()
    again = pickle.loads(pickle.dumps(entry.parts[part].supply))  # as in a worker, which has not made it
    assert bytes(again.open().read(0, entry.parts[part].size)) == wanted


@pytest.mark.parametrize("part", [0, 1])
def test_index_that_would_be_another_when_it_is_made_again_is_refused(part, tmp_path):
    spec = RobotSet("v3.0", (5, 3), BOTH)
    dataset = es.open_dataset(spec.write(tmp_path / "set"))
    supply = replace(shard_entry(dataset, 1).parts[part].supply)
    for path in default_folder().glob("*.index"):
        path.unlink()
    for path in (tmp_path / "set" / "data").rglob("*.parquet"):
        os.utime(path, ns=(1, 1))
    with pytest.raises(SourceChangedError, match="Open the dataset again"):
        supply.open()


def test_index_that_is_removed_again_and_again_ends_in_an_error(tmp_path, monkeypatch):
    dataset = es.open_dataset(RobotSet("v3.0", (5, 3), BOTH).write(tmp_path / "set"))
    index = shard_entry(dataset, 1).parts[1].supply
    Path(index.path).unlink()
    monkeypatch.setattr(type(index), "_make_again", lambda self: None)
    with pytest.raises(SourceError, match=r"removed 8 times while it was wanted.*XDG_CACHE_HOME"):
        index.open()


def test_files_are_opened_with_what_the_last_to_open_the_set_gave(tmp_path):
    """Credentials are renewed while a process runs; the data set's name stays the same."""
    root = RobotSet("v3.0", (5, 3), BOTH).write(tmp_path / "set")
    for key in ("old", "new"):
        dataset = es.open_dataset(root, {"s3": {"key": key}})
        source, _ = episode_source(dataset.index_url[1], dataset.storage_options)
        supply = shard_entry(dataset, 1).parts[0].supply
        assert source.options["s3"] == supply.storage_options["s3"] == {"key": key}


class Anew(RobotSet):
    """The same set recorded again: other pictures and other values, as many of each."""

    def frame(self, key, episode, step):
        height, width, _ = self.features[key]["shape"]
        return counted(shown(self.cameras.index(key) + 1, episode, step), height, width)

    def values(self, key, episode):
        return super().values(key, episode) + 1


@pytest.mark.parametrize("how", [{"decode": "once"}, {"shuffle": True, "order": es.OrderOptions(by="blocks")}])
@pytest.mark.parametrize("camera", [video(codec="h264"), image()])
def test_files_that_are_replaced_beside_the_same_metadata_are_seen_in_what_is_kept_of_frames(how, camera, tmp_path):
    """The pool of decoded blocks is named before anybody looked at the files, and lives as long as the node's cache."""
    facts = {"lengths": (20, 9), "features": {**NUMBERS, TOP: camera}, "group_steps": 10}
    first, second = RobotSet(**facts), Anew(**facts)
    root, other = first.write(tmp_path / "set"), second.write(tmp_path / "other")
    stream = stream_of(root, cache="shm", **how)
    frames = dict(_numbers_seen(stream))
    assert frames == {place: shown(0, *place) for place in all_steps(first)}
    for file in (first.data_path(0), first.video_path(TOP, 0)):
        if (root / file).exists():
            replace_file(root / file, (other / file).read_bytes())
    frames = dict(_numbers_seen(stream_of(root, cache="shm", **how)))
    assert frames == {place: shown(1, *place) for place in all_steps(first)}


def _numbers_seen(stream):
    for batch in stream:
        for row, place in enumerate(zip(batch["episode_index"].tolist(), batch["step_index"].tolist(), strict=True)):
            yield place, number_of(np.asarray(batch[TOP][row])[0])


@pytest.mark.parametrize("is_video", [False, True])
def test_a_file_that_is_replaced_while_an_episode_is_read_gives_none_of_its_pictures(is_video, tmp_path):
    facts = {"lengths": (20,), "features": {"front": image(), TOP: video(codec="h264")}, "rows_in_group": 4}
    first, second = RobotSet(**facts), Anew(**facts)
    root, other = first.write(tmp_path / "set"), second.write(tmp_path / "other")
    blob = shard_entry(es.open_dataset(root), 0).parts[0].supply.open()
    sizes = [len(first.picture_bytes("front", 0, step)) for step in range(20)]
    begun, later = (blob.size - 200, blob.size - 100) if is_video else (0, sum(sizes[:4]))
    blob.read(begun, 100)
    for file in (first.data_path(0), first.video_path(TOP, 0)):
        replace_file(root / file, (other / file).read_bytes())
    with pytest.raises(SourceChangedError, match="it was replaced or written to since it was indexed"):
        blob.read(later, 100)


@pytest.mark.parametrize(("camera", "changes"), [(image(), {"picture": "JPEG"}), (video(), {"group_steps": 30})])
def test_pictures_of_another_kind_beside_the_same_metadata_are_looked_at_anew(camera, changes, tmp_path):
    spec = RobotSet(lengths=(40, 3), features={**NUMBERS, TOP: camera})
    root = spec.write(tmp_path / "set")
    before = es.open_dataset(root).features[TOP]
    for name, value in changes.items():
        setattr(spec, name, value)
    other = spec.write(tmp_path / "other")
    for file in (spec.data_path(0), spec.video_path(TOP, 0)):
        if (root / file).exists():
            replace_file(root / file, (other / file).read_bytes())
    assert es.open_dataset(root).features[TOP] != before
    assert steps_seen(stream_of(root), spec) == all_steps(spec)


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_steps_have_the_task_of_their_rows_or_are_refused_where_the_table_of_episodes_names_none(version, tmp_path):
    one = RobotSet(version, (5, 3), NUMBERS, tasks=("fold it",)).write(tmp_path / "one")
    several = RobotSet(version, (5, 3), NUMBERS, tasks=("fold it", "drop it")).write(tmp_path / "several")
    for root in (one, several):
        _take_tasks(root, version)
    assert {task for batch in stream_of(one) for task in batch["task"]} == {"fold it"}
    with pytest.raises(FormatError, match="episode 0: task 0, but the metadata give the episode none"):
        list(stream_of(several))


def _take_tasks(root, version):
    if version == "v3.0":
        rewrite(root / "meta/episodes/chunk-000/file-000.parquet", lambda table: table.drop_columns(["tasks"]))
        return
    lines = (root / "meta/episodes.jsonl").read_text().splitlines()
    texts = [json.dumps({**json.loads(line), "tasks": []}) for line in lines]
    (root / "meta/episodes.jsonl").write_text("\n".join(texts))


def test_a_remote_file_that_was_replaced_is_read_when_the_set_is_opened_again(tmp_path):
    """As the message of the first stream says, and in the same process."""
    spec = RobotSet("v3.0", (6, 5), BOTH)
    url = _uploaded(spec.write(tmp_path / "set"), "memory://replaced/set")
    stream = stream_of(url, cache="off")
    assert steps_seen(stream, spec) == all_steps(spec)
    spec.group_steps = 3
    _uploaded(spec.write(tmp_path / "later"), url, spec.video_path(TOP, 0))
    assert steps_seen(stream_of(url, cache="off"), spec) == all_steps(spec)


def _uploaded(root, url, *names):
    files = [root / name for name in names] or [file for file in root.rglob("*") if file.is_file()]
    for file in files:
        fsspec.filesystem("memory").pipe_file(f"{url}/{file.relative_to(root).as_posix()}", file.read_bytes())
    return url
