"""Metadata of LeRobot data sets as arrays: right in each version, kept once read, and compared with what is there."""

import contextlib
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from robots.lerobot_meta import MadeSet, numbers, write_lines

from epistream.errors import FormatError, SourceError, VersionError
from epistream.sharding.files.pruning import _OURS
from epistream.sharding.lerobot_meta.metadata import keep_metadata

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"
TOP, WRIST = "observation.images.top", "observation.images.wrist"
VERSIONS = ["v2.0", "v2.1", "v3.0", "v3.1"]
TABLE = "meta/episodes/chunk-000/file-000.parquet"


def opened(root, tmp_path):
    return keep_metadata(str(root), None, tmp_path / "kept")


def error_of(root, tmp_path, kind=FormatError):
    with pytest.raises(kind) as error:
        opened(root, tmp_path)
    assert type(error.value) is kind
    assert str(root) in str(error.value)
    return str(error.value)


def change_table(path, **columns):
    """Replace columns of a Parquet file; those that are None go."""
    table = pq.read_table(path)
    for given, values in columns.items():
        name = given.replace("__", "/")
        at = table.column_names.index(name)
        table = table.remove_column(at) if values is None else table.set_column(at, name, pa.array(values))
    pq.write_table(table, path)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_says_the_same_of_the_same_episodes(tmp_path, version):
    made = MadeSet(version, (5, 1, 7), tasks=("pick it up", "löse die Schraube 🔩"), task_of=((0,), (1, 0), (1,)))
    meta = opened(made.write(tmp_path / "set"), tmp_path)
    assert meta.info.version == (int(version[1]), int(version[3]))
    assert (meta.info.fps, meta.info.robot_type, meta.info.splits) == (50.0, "aloha", {"train": "0:3"})
    assert meta.number.tolist() == [0, 1, 2]
    assert meta.length.tolist() == [5, 1, 7]
    assert meta.first_index.tolist() == [0, 5, 6]
    assert list(meta.tasks) == ["pick it up", "löse die Schraube 🔩"]
    assert meta.task_numbers.tolist() == [0, 1]
    assert meta.task_offsets.tolist() == [0, 1, 3, 4]
    assert meta.task_ids.tolist() == [0, 1, 0, 1]
    videos = meta.video_files[WRIST]
    if version.startswith("v2"):
        assert list(meta.data_files) == [f"data/chunk-000/episode_00000{n}.parquet" for n in range(3)]
        assert videos[2] == f"videos/chunk-000/{WRIST}/episode_000002.mp4"
        assert meta.data_file_of.tolist() == meta.video_file_of[TOP].tolist() == [0, 1, 2]
        assert meta.video_start[TOP].tolist() == [0, 0, 0]
    else:
        assert list(meta.data_files) == ["data/chunk-000/file-000.parquet"]
        assert list(videos) == [f"videos/{WRIST}/chunk-000/file-000.mp4"]
        assert meta.data_file_of.tolist() == meta.video_file_of[TOP].tolist() == [0, 0, 0]
        assert meta.video_start[TOP].tolist() == [0, 0.1, 0.12]
    copy = pickle.loads(pickle.dumps(meta))
    assert copy.digest == meta.digest
    assert list(copy.data_files) == list(meta.data_files)
    assert list(copy.tasks) == list(meta.tasks)


@pytest.mark.skipif(not (SHARED / "lerobot_v3").exists(), reason="no recordings of LeRobot here")
@pytest.mark.parametrize("name", ["lerobot_v3", "lerobot_v21"])
def test_sets_that_lerobot_wrote_are_read(tmp_path, name):
    meta = opened(SHARED / name, tmp_path)
    assert meta.length.tolist() == [150, 150]
    assert list(meta.tasks) == ["transfer the cube"]
    assert meta.task_ids.tolist() == [0, 0]
    assert all((SHARED / name / file).is_file() for file in meta.data_files)
    assert all((SHARED / name / file).is_file() for files in meta.video_files.values() for file in files)
    assert meta.video_start["observation.images.top"].tolist() == ([0, 3] if name == "lerobot_v3" else [0, 0])


def test_files_differ_between_cameras_and_episodes_stand_in_the_order_of_their_numbers(tmp_path):
    root = MadeSet(lengths=(5, 5, 5, 5), episodes_per_file=2).write(tmp_path / "set")
    # One camera's videos were closed elsewhere, in another chunk, and the tables hold episodes in another order.
    for name in (TABLE, TABLE.replace("000.p", "001.p")):
        change_table(root / name, **{f"videos__{WRIST}__chunk_index": [3, 0]})
    first, second = (root / TABLE), (root / TABLE.replace("000.p", "001.p"))
    first.rename(root / "aside")
    second.rename(first)
    (root / "aside").rename(second)
    meta = opened(root, tmp_path)
    assert meta.number.tolist() == [0, 1, 2, 3]
    assert [meta.data_files[one] for one in meta.data_file_of] == [
        f"data/chunk-000/file-00{number}.parquet" for number in (0, 0, 1, 1)
    ]
    assert [meta.video_files[WRIST][one] for one in meta.video_file_of[WRIST]] == [
        f"videos/{WRIST}/chunk-00{chunk}/file-00{number}.mp4" for chunk, number in ((3, 0), (0, 0), (3, 1), (0, 1))
    ]
    assert meta.video_start[WRIST].tolist() == meta.video_start[TOP].tolist() == [0, 0.1, 0, 0.1]


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_second_opening_reads_what_is_kept_without_pyarrow(tmp_path, version):
    root = MadeSet(version, np.full(300, 9), tasks=("a", "b")).write(tmp_path / "set")
    meta = opened(root, tmp_path)
    (kept,) = (tmp_path / "kept").glob("*.index")
    code = (
        "import sys; from pathlib import Path\n"
        "from epistream.sharding.lerobot_meta.metadata import keep_metadata\n"
        f"meta = keep_metadata({str(root)!r}, None, Path({str(kept.parent)!r}))\n"
        "print(meta.digest, int(meta.length.sum()), meta.tasks[1], 'pyarrow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == [meta.digest, "2700", "b", "False"]
    names = [one.name for one in kept.parent.iterdir()]
    assert all(_OURS.fullmatch(name) for name in names if name != ".pruned"), "else nobody ever removes them"
    assert not any(name.endswith(".lock") for name in names)


@pytest.mark.parametrize("damage", ["torn", "other bytes", "empty"])
def test_what_is_kept_and_torn_is_made_again(tmp_path, damage):
    root = MadeSet().write(tmp_path / "set")
    digest = opened(root, tmp_path).digest
    (kept,) = (tmp_path / "kept").glob("*.index")
    data = kept.read_bytes()
    kept.write_bytes({"torn": data[:-9], "other bytes": data[:-9] + b"x" * 9, "empty": b""}[damage])
    assert opened(root, tmp_path).digest == digest
    assert kept.read_bytes() == data


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_a_set_that_changed_is_read_again_whichever_file_it_was(tmp_path, version):
    made = MadeSet(version)
    root = made.write(tmp_path / "set")
    before = opened(root, tmp_path)
    table = root / ("meta/episodes.jsonl" if version == "v2.1" else TABLE)
    if version == "v2.1":
        write_lines(table, ({"episode_index": n, "tasks": ["pick it up"], "length": 4 + n // 2} for n in range(3)))
    else:
        starts = {f"videos__{key}__from_timestamp": [0, 0.08, 0.12] for key in (TOP, WRIST)}
        change_table(table, length=[4, 2, 7], dataset_from_index=[0, 4, 6], dataset_to_index=[4, 6, 13], **starts)
    changed = opened(root, tmp_path)
    assert changed.length.tolist() == ([4, 4, 5] if version == "v2.1" else [4, 2, 7])
    assert changed.digest != before.digest
    moved = root.rename(tmp_path / "moved")
    assert opened(moved, tmp_path).digest == changed.digest


def test_digest_knows_all_that_decides_what_is_read(tmp_path):
    changes = [
        *({}, {"lengths": (5, 2, 6)}, {"fps": 25}, {"episodes_per_file": 2}, {"tasks": ("place it",)}),
        *({"features": {"action": numbers(6)}}, {"version": "v3.1"}, {"info": {"splits": {"train": "0:2"}}}),
        {"info": {"data_path": "rows/{chunk_index}/{file_index}.parquet"}},
    ]
    digests = [opened(MadeSet(**one).write(tmp_path / f"{n}"), tmp_path).digest for n, one in enumerate(changes)]
    assert len(set(digests)) == len(changes)
    again = MadeSet(with_statistics=False, rows_per_group=2, info={"robot_type": "so100"}).write(tmp_path / "again")
    assert opened(again, tmp_path).digest == digests[0]


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"total_frames": 14}, "13 steps together, but info.json says total_frames 14"),
        ({"total_episodes": 4}, "3 episodes in its tables, but info.json says total_episodes 4"),
    ],
)
def test_sums_that_do_not_agree_name_both(tmp_path, version, changes, what):
    assert what in error_of(MadeSet(version, info=changes).write(tmp_path / "set"), tmp_path)


@pytest.mark.parametrize(
    ("columns", "what"),
    [
        ({"episode_index": [0, 1, 1]}, "episode_index 1 2 times and 2 never"),
        ({"episode_index": [0, 1, 3]}, "episode_index[2] is 3, wanted 0 to 2"),
        ({"episode_index": [0, -1, 2]}, "episode_index[1] is -1"),
        ({"episode_index": ["a", "b", "c"]}, "episode_index: string"),
        ({"episode_index": [0, None, 2]}, "episode_index: int64 with 1 values missing"),
        ({"length": [5, 0, 8], "dataset_to_index": None}, "length[1] is 0"),
        ({"length": [5, 1, 7.5]}, "length: double"),
        ({"length": [5, 1, float("nan")]}, "length: double"),
        ({"length": [5, 1, 1 << 62], "dataset_to_index": None}, "length: int64"),
        ({"length": None}, "without length"),
        ({"length": [4, 2, 7]}, "episode 0: rows 0 to 5, but length 4"),
        ({"dataset_from_index": [-1, 4, 5], "dataset_to_index": None}, "dataset_from_index[0] is -1"),
        ({"data__chunk_index": [0, -1, 0]}, "data chunk_index and file_index[2] is -1"),
        ({"data__file_index": [0, 0, 1 << 40]}, "data chunk_index and file_index[5]"),
        ({f"videos__{TOP}__file_index": [0, 0, -2]}, f"videos/{TOP} chunk_index and file_index[5] is -2"),
        (
            {f"videos__{TOP}__from_timestamp": [0, -0.1, 0.12]},
            "episode 1: videos/observation.images.top/from_timestamp",
        ),
        ({f"videos__{TOP}__from_timestamp": [0, 0.1, 0.0]}, "begins at"),
        (
            {f"videos__{TOP}__from_timestamp": [0, 0.08, 0.12]},
            "episode 1 begins at 0.08 s of a video in which episode 0",
        ),
        ({f"videos__{TOP}__from_timestamp": [0, float("inf"), 0.12]}, "from_timestamp: double"),
        ({f"videos__{WRIST}__from_timestamp": None}, f"without videos/{WRIST}/from_timestamp"),
        ({"tasks": [["pick it up"], ["drop it"], []]}, "no task 'drop it'"),
        ({"tasks": ["pick it up", "pick it up", "pick it up"]}, "tasks of string"),
        ({"tasks": [[1], [2], [3]]}, "tasks of list"),
        ({"tasks": [["pick it up"], None, []]}, "tasks that are missing"),
    ],
)
def test_tables_that_say_what_cannot_be_are_named(tmp_path, columns, what):
    root = MadeSet(with_statistics=False).write(tmp_path / "set")
    change_table(root / TABLE, **columns)
    assert what in error_of(root, tmp_path)


def test_numbers_written_as_floats_and_narrow_integers_are_whole_numbers_all_the_same(tmp_path):
    root = MadeSet().write(tmp_path / "set")
    change_table(root / TABLE, length=[5.0, 1.0, 7.0], data__file_index=np.zeros(3, np.int16), dataset_to_index=None)
    meta = opened(root, tmp_path)
    assert meta.length.dtype == np.int64
    assert meta.length.tolist() == [5, 1, 7]


def test_starts_may_be_rounded_by_less_than_half_a_step(tmp_path):
    root = MadeSet().write(tmp_path / "set")
    change_table(root / TABLE, **{f"videos__{TOP}__from_timestamp": [0, 0.0999, 0.1195]})
    assert opened(root, tmp_path).video_start[TOP].tolist() == [0, 0.0999, 0.1195]


@pytest.mark.parametrize(
    ("lines", "what"),
    [
        (b'{"episode_index": 0, "tasks": ["pick it up"], "length": 13}\n{"episode_index": 1,', "line 2"),
        (b'{"episode_index": 0, "length": 13}\n' * 3, "'tasks'"),
        (b"[1]\n" * 3, "episode_index, length and tasks"),
        (b'{"episode_index": "0", "tasks": [], "length": 13}\n' * 3, "episode_index, length and tasks"),
        (b'{"episode_index": true, "tasks": [], "length": 13}\n' * 3, "episode_index, length and tasks"),
        (b'{"episode_index": 0, "tasks": [3], "length": 13}\n' * 3, "line 1: tasks [3]"),
        (b'{"episode_index": 0, "tasks": [], "length": 99999999999999999999999}\n' * 3, "length and tasks"),
        (b"[" * 100_000, "line 1"),
        (b"", "0 episodes"),
    ],
)
def test_lines_that_say_what_cannot_be_are_named(tmp_path, lines, what):
    root = MadeSet("v2.1").write(tmp_path / "set")
    (root / "meta/episodes.jsonl").write_bytes(lines)
    assert what in error_of(root, tmp_path)


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (lambda data: data[: len(data) // 2], "finalize()"),
        (lambda data: data[:-1], "finalize()"),
        (lambda data: b"", "finalize()"),
        (lambda data: b"PAR1", "finalize()"),
        (lambda data: data[:-8] + b"\xff\xff\xff\x7fPAR1", "finalize()"),
        (lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        (lambda data: b"<!DOCTYPE html><html>", "a web page"),
    ],
)
@pytest.mark.parametrize("name", [TABLE, "meta/tasks.parquet"])
def test_torn_tables_are_named_with_what_to_do(tmp_path, name, damage, what):
    root = MadeSet().write(tmp_path / "set")
    (root / name).write_bytes(damage((root / name).read_bytes()))
    text = error_of(root, tmp_path)
    assert what in text
    assert name in text


def test_bytes_that_were_changed_in_a_table_are_an_error_of_ours_or_change_nothing_that_is_read(tmp_path):
    root = MadeSet(with_statistics=False).write(tmp_path / "set")
    whole = (root / TABLE).read_bytes()
    rng = np.random.default_rng(3)
    for number in range(120):
        data = bytearray(whole)
        for place in rng.integers(0, len(data), 3):
            data[place] = rng.integers(256)
        (root / TABLE).write_bytes(bytes(data))
        os.utime(root / TABLE, ns=(number, number))
        with contextlib.suppress(FormatError):
            assert opened(root, tmp_path).length.sum() == 13


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_missing_tables_are_named(tmp_path, version):
    name = "meta/episodes.jsonl" if version == "v2.1" else TABLE
    root = MadeSet(version).write(tmp_path / "set")
    (root / name).unlink()
    assert f"{name}: no such file" in error_of(root, tmp_path, SourceError)
    (root / "meta/info.json").unlink()
    assert "meta/info.json: no such file" in error_of(root, tmp_path, SourceError)


@pytest.mark.parametrize(("version", "name"), [("v2.1", "meta/tasks.jsonl"), ("v3.0", "meta/tasks.parquet")])
def test_without_a_file_of_tasks_episodes_say_theirs_unless_one_has_several(tmp_path, version, name):
    made = MadeSet(version, (5, 1, 7), tasks=("a", "b"), task_of=((1,), (0,), (1,)))
    root = made.write(tmp_path / "one")
    (root / name).unlink()
    meta = opened(root, tmp_path)
    assert list(meta.tasks) == ["b", "a"]  # as LeRobot numbers them, by appearance
    assert meta.task_numbers.tolist() == [0, 1]
    assert meta.task_ids.tolist() == [0, 1, 0]
    made.task_of = ((1,), (0, 1), (1,))
    root = made.write(tmp_path / "several")
    (root / name).unlink()
    assert f"{name}: no such file, but episodes have several" in error_of(root, tmp_path)


def test_episodes_without_any_task_are_right(tmp_path):
    made = MadeSet(task_of=((), (), ()), tasks=())
    root = made.write(tmp_path / "set")
    change_table(root / TABLE, tasks=pa.array([[], [], []], pa.list_(pa.string())))
    (root / "meta/tasks.parquet").unlink()
    meta = opened(root, tmp_path)
    assert list(meta.tasks) == []
    assert meta.task_offsets.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("index", ["__index_level_0__", "task", "instruction"])
def test_texts_of_tasks_are_found_by_the_notes_of_pandas(tmp_path, index):
    root = MadeSet().write(tmp_path / "set")
    notes = json.dumps({"index_columns": [index], "columns": []})
    table = pa.table({"task_index": [4, 2], index: ["put it there", "pick it up"]})
    pq.write_table(table.replace_schema_metadata({"pandas": notes}), root / "meta/tasks.parquet")
    meta = opened(root, tmp_path)
    assert list(meta.tasks) == ["pick it up", "put it there"]
    assert meta.task_numbers.tolist() == [2, 4]


@pytest.mark.parametrize(
    ("table", "what"),
    [
        ({"task_index": [0, 1], "task": ["pick it up", "pick it up"]}, "twice"),
        ({"task_index": [0, 0], "task": ["pick it up", "b"]}, "twice"),
        ({"task_index": [0, None], "task": ["pick it up", "b"]}, "task 1: None"),
        ({"task_index": [-1], "task": ["pick it up"]}, "-1"),
        ({"task_index": [0], "task": [b"\xff\xfe"]}, "wanted a number and a text"),
        ({"task_index": [0], "text": ["pick it up"]}, "columns task_index, text"),
        ({"number": [0], "task": ["pick it up"]}, "columns number, task"),
    ],
)
def test_tables_of_tasks_that_cannot_be_are_named(tmp_path, table, what):
    root = MadeSet().write(tmp_path / "set")
    pq.write_table(pa.table(table), root / "meta/tasks.parquet")
    assert what in error_of(root, tmp_path)


def test_versions_that_are_not_read_are_named_before_anything_else_is(tmp_path):
    root = MadeSet(info={"codebase_version": "v1.6"}).write(tmp_path / "set")
    (root / TABLE).write_bytes(b"")
    assert "Convert it" in error_of(root, tmp_path, VersionError)


def test_snapshots_of_the_hub_s_cache_are_folders_of_links(tmp_path):
    plain = MadeSet(lengths=(5, 1, 7)).write(tmp_path / "plain")
    home = tmp_path / "datasets--lab--cubes"
    snapshot = home / "snapshots" / ("a" * 40)
    for number, file in enumerate(sorted(one for one in plain.rglob("*") if one.is_file())):
        blob = home / "blobs" / f"{number:040x}"
        blob.parent.mkdir(parents=True, exist_ok=True)
        file.rename(blob)
        link = snapshot / file.relative_to(plain)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    assert opened(snapshot, tmp_path).length.tolist() == [5, 1, 7]


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_remote_folders_are_listed_once_and_read_again_only_when_they_change(tmp_path, version):
    root = f"memory://sets/{version}"
    made = MadeSet(version, np.full(40, 5), episodes_per_file=15)
    files = fsspec.filesystem("memory")
    local = made.write(tmp_path / "set")
    for file in sorted(one for one in local.rglob("*") if one.is_file()):
        files.pipe_file(f"{root}/{file.relative_to(local).as_posix()}", file.read_bytes())
    for _ in range(2):
        meta = keep_metadata(root, None, tmp_path / "kept")
        assert meta.length.tolist() == [5] * 40
        assert meta.root == root
    assert meta.digest == opened(local, tmp_path).digest
    name = "meta/episodes.jsonl" if version == "v2.1" else TABLE
    files.rm(f"{root}/{name}")
    with pytest.raises((SourceError, FormatError)):
        keep_metadata(root, None, tmp_path / "kept")
    with pytest.raises(SourceError, match=r"memory://sets/none/meta/info\.json: no such file"):
        keep_metadata("memory://sets/none", None, tmp_path / "kept")
