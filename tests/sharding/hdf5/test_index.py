"""Indexes of HDF5 files: every byte range is what h5py reads, and whatever is no episode is refused by name."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import hdf5_world as world
import numpy as np
import pytest

import epistream as es
from epistream.errors import DeadlineError, FormatError, LayoutError, SourceChangedError, SourceError
from epistream.sharding.dataset import open_dataset
from epistream.sharding.format.index import KIND, ShardIndex
from epistream.sharding.format.tables import parse_tables, write_tables
from epistream.sharding.hdf5 import kept as hdf5_kept
from epistream.sharding.hdf5 import scan as hdf5_scan
from epistream.sharding.hdf5.chunks import find_stored
from epistream.sharding.hdf5.dataset import open_hdf5_files
from epistream.sharding.hdf5.index import Extents, Hdf5Index, attributes_in
from epistream.sharding.hdf5.kept import keep_indexes
from epistream.sharding.hdf5.scan import index_hdf5


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def packed(path, index):
    """The packed bytes of an index, by its extents and the file alone; None where rows must be made."""
    data = path.read_bytes()
    ends = [*index.extents.start.tolist()[1:], index.rows.shard_bytes]
    pieces = []
    for start, place, end in zip(index.extents.start.tolist(), index.extents.place.tolist(), ends, strict=True):
        assert place >= -1
        pieces.append(bytes(end - start) if place == -1 else data[place : place + end - start])
    return b"".join(pieces)


def test_index_of_padded_jpeg_rows_points_at_the_pictures_without_their_padding(example_data):
    path = example_data / "aloha" / "episode_0.hdf5"
    (index,) = index_hdf5(str(path))
    data = packed(path, index)
    with h5py.File(path) as file:
        for camera in ("angle", "top"):
            offsets = index.rows.frame_offset[f"observation.images.{camera}"].tolist()
            sizes = index.rows.frame_size[f"observation.images.{camera}"].tolist()
            rows = [row.tobytes() for row in file[f"observations/images/{camera}"]]
            pictures = [row[: row.rindex(b"\xff\xd9") + 2] for row in rows]
            assert [data[o : o + s] for o, s in zip(offsets, sizes, strict=True)] == pictures
        start = int(index.rows.array_offset["action"][0])
        assert data[start : start + 80 * 14 * 4] == file["action"][:].tobytes()
    assert index.rows.shard_bytes == len(data) < path.stat().st_size


def test_index_of_a_file_with_masks_has_a_shard_for_each_split(example_data):
    path = example_data / "robomimic" / "scripted_lift.hdf5"
    first, second = index_hdf5(str(path))
    assert [meta.split for meta in first.rows.episodes] == ["train", "train"]
    assert [meta.split for meta in second.rows.episodes] == ["val"]
    assert list(first.rows.keys) == ["/data/demo_2", "/data/demo_10"]
    assert [meta.episode_index for meta in first.rows.episodes] == [0, 1]
    with h5py.File(path) as file:
        wanted = file["data/demo_10/actions"][:].tobytes()
    start = int(first.rows.array_offset["action"][1])
    assert packed(path, first)[start : start + len(wanted)] == wanted


def test_index_of_a_large_file_is_cut_into_shards_of_the_size_asked_for(example_data):
    path = example_data / "libero" / "pick_up_the_red_cube_demo.hdf5"
    indexes = index_hdf5(str(path), shard_bytes=1000)
    assert [index.rows.num_episodes for index in indexes] == [1, 1, 1]
    assert {index.num_shards for index in indexes} == {3}


def test_index_as_a_file_reads_back_the_same(tmp_path):
    path = world.write_episode(
        tmp_path / "episode.hdf5", values={"compression": "gzip"}, camera={"chunks": (3, 9, 9, 2)}
    )
    (index,) = index_hdf5(str(path))
    data = index.to_bytes()
    back = Hdf5Index.parse(data, "x.index")
    assert attributes_in(data, "x.index") == list(index.attributes)
    assert back.to_bytes() == data
    assert [(rows.path, rows.stored is None) for rows in back.extents.made] == [
        ("/observations/images/top", False),
        ("/observations/qpos", True),
        ("/observations/gripper", True),
        ("/observations/qvel", True),
        ("/action", True),
    ]
    assert ShardIndex.parse(data, "x.index").shard_name == "episode.hdf5"


@pytest.mark.parametrize("keep", [0, 30, 200, -1])
def test_index_that_is_torn_is_refused(tmp_path, keep):
    (index,) = index_hdf5(str(world.write_episode(tmp_path / "episode.hdf5")))
    with pytest.raises(FormatError, match=r"x\.index: .*Re"):
        Hdf5Index.parse(index.to_bytes()[:keep], "x.index")


@pytest.mark.parametrize("number", [float("inf"), -float("inf"), float("nan"), (1 << 64) - 1, "x", None])
@pytest.mark.parametrize("name", ["file_bytes", "num_shards", "bytes"])
def test_index_of_a_number_that_cannot_be_is_refused(tmp_path, name, number):
    (index,) = index_hdf5(str(world.write_episode(tmp_path / "episode.hdf5")))
    tables = parse_tables(index.to_bytes(), KIND, "x.index", "")
    tables.meta["shard" if name == "bytes" else "hdf5"][name] = number
    data = write_tables(KIND, tables.meta, tables.arrays)
    if number == (1 << 64) - 1 and name != "bytes":  # more than is read
        assert Hdf5Index.parse(data, "x.index").rows.num_episodes == 1
        return
    for parse in (Hdf5Index.parse, Extents.parse)[: 1 if name == "num_shards" else 2]:
        with pytest.raises(FormatError, match=r"^x\.index: "):
            parse(data, "x.index")


@pytest.mark.parametrize("number", [10**400, "x", None])
def test_index_of_rows_that_cannot_be_is_refused(tmp_path, number):
    (index,) = index_hdf5(str(world.write_episode(tmp_path / "episode.hdf5", values={"compression": "gzip"})))
    tables = parse_tables(index.to_bytes(), KIND, "x.index", "")
    made = json.loads(tables.arrays["hdf5:made"].tobytes())
    made[0]["first"] = number
    described = np.frombuffer(json.dumps(made).encode(), np.uint8)
    data = write_tables(KIND, tables.meta, {**tables.arrays, "hdf5:made": described})
    for parse in (Hdf5Index.parse, Extents.parse):
        with pytest.raises(FormatError, match=r"^x\.index: "):
            parse(data, "x.index")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i: {"place": i.place + i.file_bytes}, "outside of the file's"),
        (lambda i: {"place": np.full_like(i.place, -9)}, "outside of the file's"),
        (lambda i: {"start": i.start[::-1].copy()}, "from byte 0 on"),
        (lambda i: {"start": i.start * 0}, "do not ascend"),
        (lambda i: {"start": i.start[:0], "place": i.place[:0]}, "0 extents and 0 places"),
        (lambda i: {"place": i.place[:-1]}, "wanted as many"),
    ],
)
def test_index_whose_extents_cannot_be_is_refused(tmp_path, change, message):
    (index,) = index_hdf5(str(world.write_episode(tmp_path / "episode.hdf5", camera={"chunks": (1, 24, 32, 3)})))
    with pytest.raises(FormatError, match=message):
        replace(index, extents=replace(index.extents, **change(index.extents))).to_bytes()


def test_dataset_whose_bytes_are_not_where_hdf5_says_is_read_through_h5py(tmp_path, monkeypatch, caplog):
    path = world.write_episode(tmp_path / "episode.hdf5")

    def shifted(dataset):
        stored = find_stored(dataset)
        return replace(stored, table=stored.table + 8)

    monkeypatch.setattr(hdf5_scan, "find_stored", shifted)
    (index,) = index_hdf5(str(path))
    assert "/action" in index.needs_h5py
    assert "not where HDF5 says" in caplog.text


# --- keeping indexes -------------------------------------------------------------------------------------------------


def test_index_is_made_once_and_again_when_the_file_changes(tmp_path):
    path = world.write_episode(tmp_path / "episode.hdf5")
    (kept,) = open_dataset(path).index_url
    os.utime(kept, ns=(1, 1))
    assert open_dataset(path).index_url == (kept,)
    assert Path(kept).stat().st_mtime_ns == 1  # not written again
    assert kept.startswith(str(tmp_path / "cache" / "epistream" / "indexes"))
    world.write_episode(path, 7)
    assert open_dataset(path).episode_length.tolist() == [7]
    os.utime(path, ns=(5, 5))
    assert open_dataset(path).index_url != (kept,)


def test_index_that_was_torn_in_the_cache_is_made_again(tmp_path):
    path = world.write_episode(tmp_path / "episode.hdf5")
    (kept,) = open_dataset(path).index_url
    whole = Path(kept).read_bytes()
    Path(kept).write_bytes(whole[:100])
    open_dataset(path)
    assert Path(kept).read_bytes() == whole


def test_index_of_which_one_shard_is_lost_is_made_again(example_data):
    path = example_data / "robomimic" / "scripted_lift.hdf5"
    dataset = open_dataset(path)
    Path(dataset.index_url[1]).unlink()
    assert list(open_dataset(path).index_url) == list(dataset.index_url)
    assert Path(dataset.index_url[1]).exists()


def test_file_that_changes_while_it_is_indexed_is_refused(tmp_path, monkeypatch):
    path = world.write_episode(tmp_path / "episode.hdf5")

    def slowly(*arguments, **options):
        made = index_hdf5(*arguments, **options)
        os.utime(path, ns=(7, 7))
        return made

    monkeypatch.setattr(hdf5_kept, "index_hdf5", slowly)
    with pytest.raises(SourceChangedError, match=r"episode\.hdf5: changed while it was indexed"):
        keep_indexes(str(path))


def test_file_that_was_another_one_while_it_was_indexed_is_refused(tmp_path, monkeypatch):
    path = world.write_episode(tmp_path / "episode.hdf5")
    before = path.stat().st_mtime_ns

    def touched(*arguments, **options):
        os.utime(path, ns=(7, 7))
        made = index_hdf5(*arguments, **options)
        os.utime(path, ns=(before, before))
        return made

    monkeypatch.setattr(hdf5_kept, "index_hdf5", touched)
    with pytest.raises(SourceChangedError, match=r"episode\.hdf5: changed while it was indexed"):
        keep_indexes(str(path))


def test_index_waits_no_longer_than_its_deadline(tmp_path):
    path = str(world.write_episode(tmp_path / "episode.hdf5"))
    kept = Path(keep_indexes(path)[0].path)
    kept.unlink()
    holder = (
        "import fcntl,sys; f=open(sys.argv[1],'ab'); fcntl.flock(f,fcntl.LOCK_EX); print('held',flush=True); input()"
    )
    lock = str(kept).removesuffix(".0.index") + ".lock"
    command = [sys.executable, "-c", holder, lock]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(DeadlineError, match=r"held by another process for 0.2 s.*episode\.hdf5"):
            keep_indexes(path, deadline_s=0.2)
        process.communicate("\n", timeout=30)
    assert keep_indexes(path, deadline_s=0.2)[0].path == str(kept)


# --- what is given ---------------------------------------------------------------------------------------------------


def test_folder_glob_list_and_pattern_of_files_are_opened_in_natural_order(tmp_path):
    for number in (0, 1, 2, 10):
        world.write_episode(tmp_path / "demos" / f"episode_{number}.hdf5", 3 + number)
    folder = tmp_path / "demos"
    for source in (folder, str(folder / "*.hdf5"), f"{folder}/episode_{{0,1,2,10}}.hdf5", f"{tmp_path}/**/*.hdf5"):
        dataset = open_dataset(source)
        assert dataset.episode_length.tolist() == [3, 4, 5, 13], source
        assert [Path(url).name for url in dataset.shard_url] == [f"episode_{n}.hdf5" for n in (0, 1, 2, 10)]
    assert open_dataset([folder / "episode_2.hdf5", folder / "episode_0.hdf5"]).episode_length.tolist() == [5, 3]


def test_file_of_another_suffix_is_known_by_how_it_begins(tmp_path):
    path = world.write_episode(tmp_path / "episode.data")
    assert open_dataset(path).episode_length.tolist() == [11]


def test_relative_path_is_opened_wherever_workers_are(tmp_path, monkeypatch):
    world.write_episode(tmp_path / "episode.hdf5")
    monkeypatch.chdir(tmp_path)
    assert list(open_dataset("episode.hdf5").shard_url) == [str(tmp_path / "episode.hdf5")]


def test_file_without_masks_beside_files_with_them_is_for_training(example_data, tmp_path):
    masked = example_data / "robomimic" / "scripted_lift.hdf5"
    plain = tmp_path / "plain.hdf5"
    shutil.copy(masked, plain)
    plain.chmod(0o600)
    with h5py.File(plain, "r+") as file:
        del file["mask"]
    dataset = open_dataset([plain, masked])
    assert dataset.splits == ("train", "val")
    assert dataset.episode_split.tolist() == [0, 0, 0, 0, 0, 1]
    assert open_dataset(plain).splits == ("all",)


def test_tasks_and_features_are_those_of_packing(example_data, tmp_path):
    path = example_data / "libero" / "pick_up_the_red_cube_demo.hdf5"
    es.pack(path, tmp_path / "shards", codec="raw")
    ours, theirs = open_dataset(path), open_dataset(tmp_path / "shards")
    assert ours.features == theirs.features
    assert list(ours.features) == list(theirs.features)
    assert ours.tasks == theirs.tasks == ("pick up the red cube",)
    assert ours.episode_length.tolist() == theirs.episode_length.tolist() == [4, 3, 3]


def test_statistics_are_those_of_packing(example_data, tmp_path):
    path = example_data / "robomimic" / "scripted_lift.hdf5"
    es.pack(path, tmp_path / "shards", codec="raw")
    ours, theirs = open_dataset(path).statistics, open_dataset(tmp_path / "shards").statistics
    assert ours == theirs
    assert ours["action"]["count"] == 9 + 7  # the training episodes
    assert open_dataset(path).statistics == ours  # as kept


def test_copy_of_a_file_has_its_fingerprint_and_another_content_has_not(tmp_path):
    first = open_dataset(world.write_episode(tmp_path / "a" / "episode.hdf5"))
    copy = Path(shutil.copytree(tmp_path / "a", tmp_path / "b")) / "episode.hdf5"
    os.utime(copy, ns=(3, 3))
    assert open_dataset(copy).fingerprint == first.fingerprint
    with h5py.File(copy, "r+") as file:
        file["action"][3, 2] += 1
    assert open_dataset(copy).fingerprint != first.fingerprint


def broken(path, kind):
    world.write_episode(path)
    data = path.read_bytes()
    if kind == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "no HDF5":
        path.write_bytes(b"hello" * 1000)
    elif kind == "missing":
        path.unlink()
    else:
        with h5py.File(path, "r+") as file:
            if kind == "another layout":
                del file["action"]
            elif kind == "short camera":
                rows = file["observations/images/top"][:-1]
                del file["observations/images/top"]
                file["observations/images/top"] = rows
            elif kind == "cut JPEG":
                rows = np.stack([np.frombuffer(world.jpeg(world.picture(0)).ljust(4000, b"\0"), np.uint8)] * 11)
                rows[7, 300:] = 0
                del file["observations/images/top"]
                file["observations/images/top"] = rows
            elif kind == "no numbers":
                del file["observations/images/top"]
                file["observations/images/top"] = np.array(["a"] * 11, "S3")
            elif kind == "one name":
                file["observations/Force"] = file["observations/force"] = np.zeros((11, 2))


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("truncated", SourceError, "cannot be read as HDF5"),
        ("empty", SourceError, "an empty file, wanted an HDF5 file"),
        ("no HDF5", SourceError, "cannot be read as HDF5"),
        ("missing", SourceError, "No such file or directory, wanted an HDF5 file"),
        ("another layout", LayoutError, "fits no known layout"),
        ("short camera", LayoutError, "/observations/images/top: 10 steps, wanted 11"),
        ("cut JPEG", LayoutError, "/observations/images/top, step 7"),
        ("no numbers", LayoutError, "/observations/images/top"),
        ("one name", LayoutError, "would be named 'observation.force', and so would"),
    ],
)
def test_file_that_holds_no_whole_episode_is_refused_by_name(tmp_path, kind, error, message):
    path = tmp_path / "episode.hdf5"
    broken(path, kind)
    with pytest.raises(error) as caught:
        open_dataset(str(path))
    assert message in str(caught.value)
    assert "episode.hdf5" in str(caught.value)


def test_files_given_twice_or_of_different_features_are_refused(tmp_path):
    first = world.write_episode(tmp_path / "a.hdf5")
    (tmp_path / "link.hdf5").symlink_to(first)
    with pytest.raises(SourceError, match=r"link\.hdf5: given twice \(also as .*a\.hdf5\)"):
        open_dataset([first, tmp_path / "link.hdf5"])
    other = world.write_episode(
        tmp_path / "b.hdf5", values=lambda group, name, array: group.create_dataset(name, data=array * 1.0)
    )
    with pytest.raises(FormatError, match=r"b\.hdf5: observation\.gripper: dtype .* instead of int64"):
        open_dataset([first, other])


def test_episodes_of_a_packed_dataset_and_of_files_follow_each_other(tmp_path):
    first = world.write_episode(tmp_path / "a.hdf5", 5)
    es.pack(first, tmp_path / "shards", codec="raw")
    second = world.write_episode(tmp_path / "b.hdf5", 8)
    dataset = open_dataset([tmp_path / "shards", second])
    assert dataset.episode_length.tolist() == [5, 8]
    assert [Path(url).suffix for url in dataset.shard_url] == [".tar", ".hdf5"]


def test_options_of_opening_say_where_indexes_are_kept(tmp_path):
    path = world.write_episode(tmp_path / "a.hdf5")
    opened = open_hdf5_files([str(path)], folder=tmp_path / "here")
    assert Path(opened.index_url[0]).parent == tmp_path / "here"
