"""Tars without sidecars: their indexes agree with tarfile, and what is no episode is refused by name."""

import gzip
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import pytest
from handmade import HEIGHT, WIDTH, actions, encoded, members, npy, picture, places, write_tar
from hypothesis import given, settings
from hypothesis import strategies as st

from epistream.errors import DeadlineError, FormatError, SourceError
from epistream.sharding.dataset import open_dataset
from epistream.sharding.format.index import ShardIndex
from epistream.sharding.tar.index_cache import index_local_tars
from epistream.sharding.tar.index_tar import index_tar


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("codec", ["jpeg", "png", "raw"])
@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_index_of_a_foreign_tar_points_at_what_tarfile_reads(tmp_path, codec, format):
    long_key = "folder-" + "x" * 90 + "/ep1"  # makes PAX and GNU long names
    key = "ep1" if format == tarfile.USTAR_FORMAT else long_key
    path = write_tar(tmp_path / "a.tar", members(0, 4, codec) + members(1, 2, codec, key=key), format)
    data = path.read_bytes()

    index = index_tar(path)

    assert list(index.keys) == ["ep-000000000", key]
    assert index.length.tolist() == [4, 2]
    assert index.first_row.tolist() == [0, 4]
    camera = index.features["observation.images.top"]
    assert (camera.shape, camera.dtype, camera.codec, camera.fps) == ((HEIGHT, WIDTH, 3), "uint8", codec, None)
    for episode, length in enumerate([4, 2]):
        start = int(index.array_offset["action"][episode])
        found = np.frombuffer(data, "<f4", length * 3, start).reshape(length, 3)
        np.testing.assert_array_equal(found, actions(episode, length))
        for step in range(length):
            row = index.first_row[episode] + step
            start = int(index.frame_offset["observation.images.top"][row])
            frame = data[start : start + int(index.frame_size["observation.images.top"][row])]
            image = picture(episode, step)
            assert frame == (image.tobytes() if codec == "raw" else encoded(image, codec))


def test_index_of_a_raw_camera_split_by_time_reads_all_frames(tmp_path):
    frames = np.stack([picture(0, step) for step in range(5)])
    camera = "ep.observation.images.top"
    path = write_tar(
        tmp_path / "a.tar",
        [
            ("ep.action.npy", npy(actions(0, 5))),
            (f"{camera}.000000.npy", npy(frames[:3])),
            (f"{camera}.000003.npy", npy(frames[3:])),
        ],
    )
    index = index_tar(path)
    data = path.read_bytes()
    offsets = index.frame_offset["observation.images.top"]
    read = [data[int(start) : int(start) + frames[0].nbytes] for start in offsets]
    assert read == [frame.tobytes() for frame in frames]


def test_open_dataset_on_a_glob_of_foreign_tars_numbers_their_episodes(tmp_path):
    for shard in (0, 1, 10):
        write_tar(tmp_path / f"part-{shard}.tar", members(shard, 3 + shard, key="ep"))

    dataset = open_dataset(str(tmp_path / "part-*.tar"))

    assert [url.rsplit("/", 1)[1] for url in dataset.shard_url] == ["part-0.tar", "part-1.tar", "part-10.tar"]
    assert dataset.episode_length.tolist() == [3, 4, 13]
    assert dataset.splits == ("all",)
    for url, size, checksum in zip(dataset.index_url, dataset.index_bytes, dataset.index_checksum, strict=True):
        data = Path(url).read_bytes()
        assert (len(data), len(checksum)) == (size, 32)
        assert ShardIndex.parse(data, url).num_episodes == 1
    assert dataset.index_url[0].startswith(str(tmp_path / "cache" / "epistream" / "indexes"))


def test_meta_json_in_a_foreign_tar_gives_tasks_ranges_and_split(tmp_path):
    meta = {"tasks": ["lift", "pick up"], "valid_ranges": [[1, 3]], "split": "val"}
    write_tar(tmp_path / "a.tar", members(0, 4, meta=meta))
    write_tar(tmp_path / "b.tar", members(1, 2, meta={"split": "train"}))
    dataset = open_dataset([tmp_path / "a.tar", tmp_path / "b.tar"])
    assert dataset.splits == ("train", "val")
    assert dataset.episode_split.tolist() == [1, 0]
    assert dataset.tasks == ("lift", "pick up")
    assert dataset.episode_tasks[0].tolist() == [0, 2, 2]
    assert dataset.valid_ranges[1].tolist() == [[1, 3], [0, 2]]


def test_foreign_index_is_made_once_and_again_when_the_tar_changes(tmp_path):
    path = write_tar(tmp_path / "a.tar", members(0, 4))
    first = open_dataset(path)
    kept = first.index_url[0]
    os.utime(kept, ns=(1, 1))
    assert open_dataset(path).index_url[0] == kept
    assert Path(kept).stat().st_mtime_ns == 1  # not written again
    write_tar(path, members(0, 6))
    assert open_dataset(path).episode_length.tolist() == [6]


def test_foreign_index_that_was_torn_in_the_cache_is_made_again(tmp_path):
    path = write_tar(tmp_path / "a.tar", members(0, 4))
    kept = open_dataset(path).index_url[0]
    whole = Path(kept).read_bytes()
    Path(kept).write_bytes(whole[:100])
    open_dataset(path)
    assert Path(kept).read_bytes() == whole


def test_foreign_index_waits_no_longer_than_its_deadline(tmp_path):
    path = write_tar(tmp_path / "a.tar", members(0, 4))
    _, (kept,) = index_local_tars([str(path)])
    Path(kept).unlink()
    holder = (
        "import fcntl,sys; f=open(sys.argv[1],'ab'); fcntl.flock(f,fcntl.LOCK_EX); print('held',flush=True); input()"
    )
    lock = kept.removesuffix(".index") + ".lock"
    command = [sys.executable, "-c", holder, lock]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(DeadlineError, match=r"held by another process for 0.2 s.*a\.tar.*epistream index"):
            index_local_tars([str(path)], deadline_s=0.2)
        process.communicate("\n", timeout=30)
    assert index_local_tars([str(path)], deadline_s=0.2)[1] == (kept,)


def _frames(*numbers):
    return [(f"ep.observation.images.top.{n:06d}.jpg", encoded(picture(0, n), "jpeg")) for n in numbers]


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([], "0 members (none), no episodes: wanted one sample an episode"),
        ([("0001.jpg", b"x"), ("0001.json", b"{}")], "2 members (0001.jpg, 0001.json), no episodes"),
        ([("ep.action.npy", npy(actions(0, 3))), *_frames(0, 1)], "observation.images.top has 2 steps, wanted 3"),
        ([*_frames(0, 1, 3)], "no frame 2 of 3"),
        ([*_frames(0), *_frames(0)], "this field twice in one sample"),
        ([("ep.action.npy", npy(np.asfortranarray(actions(0, 3))))], "in Fortran order"),
        ([("ep.action.npy", npy(actions(0, 3).astype(">f4")))], "dtype '>f4', wanted little-endian"),
        ([("ep.action.npy", npy(np.array(["a", "b"])))], "dtype '<U1', wanted little-endian numbers"),
        ([("ep.action.npy", npy(actions(0, 3))[:-4])], "160 bytes, wanted 164"),
        ([("ep.action.npy", b"\x93NUMPY\x01\x00\xff\xffrubbish")], "no .npy file"),
        ([("ep.action.npy", npy(np.float32(3)))], "a single number, wanted steps as the first axis"),
        ([("ep.action.npy", npy(actions(0, 0)))], "wanted at least 1 step"),
        ([("ep.observation.images.top.000000.jpg", b"no picture")], "10 bytes that are no JPEG"),
        ([("ep.observation.images.top.000000.png", b"no picture")], "no PNG"),
        (members(0, 3, meta={"length": 4}), "has 3 steps, wanted 4"),
        (members(0, 3, meta={"valid_ranges": [[2, 9]]}), "a valid range that ends at 9"),
        ([("ep.meta.json", b"[" * 100_000), *_frames(0)], "no readable JSON"),
        ([("ep.meta.json", b"[]"), *_frames(0)], "a list, wanted a map"),
        (
            members(0, 3) + members(1, 3, "png"),
            "ep-000000001: observation.images.top: codec png instead of jpeg, wanted the features of ep-00000000",
        ),
        ([("ep.Äction.npy", npy(actions(0, 3)))], "this name cannot be used"),
    ],
)
def test_foreign_tar_that_holds_no_whole_episodes_is_refused_by_name(tmp_path, pairs, message):
    path = write_tar(tmp_path / "a.tar", pairs)
    with pytest.raises(FormatError, match=re.escape(message)) as caught:
        open_dataset(path)
    assert "a.tar" in str(caught.value)


@pytest.mark.parametrize("keep", [100, 512, 700, -1024 * 9, 0])
def test_foreign_tar_that_is_torn_is_refused(tmp_path, keep):
    path = write_tar(tmp_path / "a.tar", members(0, 4))
    whole = path.read_bytes()
    path.write_bytes(whole[:keep])
    with pytest.raises(FormatError, match=r"a\.tar.*(torn|wanted an uncompressed tar|no episodes)"):
        open_dataset(path)


def test_foreign_tar_with_a_broken_header_in_the_middle_is_refused(tmp_path):
    path = write_tar(tmp_path / "a.tar", members(0, 4))
    middle = places(path)["ep-000000000.observation.images.top.000002.jpg"][0] - 512
    with path.open("r+b") as file:
        file.seek(middle + 150)
        file.write(b"????")
    with pytest.raises(FormatError, match="no end mark after 3 members"):
        open_dataset(path)


def test_foreign_tar_that_is_compressed_is_refused_with_the_cure(tmp_path):
    path = write_tar(tmp_path / "a.tar", members(0, 4))
    path.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(FormatError, match="Decompress it first"):
        open_dataset(path)


def test_foreign_tar_that_is_missing_is_refused(tmp_path):
    with pytest.raises(SourceError, match=r"a-1\.tar: No such file.*Check the path or pattern"):
        open_dataset(str(tmp_path / "a-{1..2}.tar"))


def test_remote_tar_without_a_manifest_is_refused_with_the_command_that_cures_it():
    with pytest.raises(SourceError, match="Run: epistream index memory://nowhere/x"):
        open_dataset("memory://nowhere/x/a-{0..3}.tar")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KNOWN = ["length", "episode_index", "split", "tasks", "valid_ranges", "source", "layout", "features", "attributes"]
FEATURE = {"name": "action", "kind": "array", "dtype": "float32", "shape": [3], "codec": "npy"}


@given(st.dictionaries(st.sampled_from(KNOWN), JSON), st.dictionaries(st.sampled_from([*FEATURE, "rotate"]), JSON))
@settings(max_examples=200, deadline=None)
def test_any_meta_json_is_read_or_refused_by_name(meta, feature):
    camera = {"kind": "frames", "dtype": "uint8", "shape": [HEIGHT, WIDTH, 3], "codec": "jpeg", "jpeg_channels": "rgb"}
    features = [{**FEATURE, **feature}, {"name": "observation.images.top", **camera}]
    with tempfile.TemporaryDirectory() as folder:
        path = write_tar(Path(folder) / "a.tar", members(0, 2, meta={"features": features, **meta}))
        try:
            index = index_tar(path)
        except FormatError as error:
            message = str(error)
        else:
            message = "a.tar"
            assert ShardIndex.parse(index.to_bytes(), "x").length.tolist() == [2]
    assert message.startswith("a.tar")


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_tar_with_damaged_bytes_is_indexed_within_itself_or_refused(data):
    with tempfile.TemporaryDirectory() as folder:
        path = write_tar(Path(folder) / "a.tar", members(0, 2, meta={}), data.draw(st.sampled_from([0, 1, 2])))
        torn = bytearray(path.read_bytes())
        del torn[data.draw(st.integers(0, len(torn)) | st.just(len(torn))) :]
        for _ in range(data.draw(st.integers(0, 4))):
            # mostly in headers: bytes of pictures are nobody's business here
            place = data.draw(st.integers(0, len(torn) // 512)) * 512 + data.draw(st.integers(0, 345))
            if place < len(torn):
                torn[place] = data.draw(st.integers(0, 255))
        path.write_bytes(torn)
        try:
            index = index_tar(path)
        except FormatError as error:
            message = str(error)
        else:
            message = "a.tar"
            ShardIndex.parse(index.to_bytes(), "x")
    assert "a.tar" in message


def test_processes_that_open_foreign_tars_at_once_agree_and_index_once(tmp_path):
    for shard in range(3):
        write_tar(tmp_path / f"part-{shard}.tar", members(shard, 30, key=f"ep{shard}"))
    code = (
        "import sys, logging; logging.basicConfig(level='INFO', stream=sys.stdout, format='%(message)s')\n"
        "from epistream.sharding.dataset import open_dataset\n"
        "print('fingerprint', open_dataset(sys.argv[1]).fingerprint)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "part-*.tar")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    lines = [line for process in running for line in process.communicate(timeout=120)[0].splitlines()]
    assert [process.returncode for process in running] == [0] * 4
    assert len({line for line in lines if line.startswith("fingerprint")}) == 1
    assert sorted(line.rsplit("/", 1)[1] for line in lines if line.startswith("indexing")) == [
        "part-0.tar",
        "part-1.tar",
        "part-2.tar",
    ]
