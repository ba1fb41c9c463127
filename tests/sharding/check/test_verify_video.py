"""Verify finds every kind of damage that videos can take, and names episode, camera and steps."""

import dataclasses
import shutil
import sys

import numpy as np
import pytest
from handmade import places
from video.clips import encoded
from video.episodes import counted_folder, foreign_pairs, foreign_tar

from epistream.errors import OptionError
from epistream.sharding.check.verify import verify
from epistream.sharding.check.verify_shard import VerifyOptions
from epistream.sharding.dataset import open_dataset
from epistream.sharding.format.checksums import hash_file
from epistream.sharding.format.index import ShardIndex
from epistream.sharding.manifest.manifest_builder import ManifestBuilder
from epistream.sharding.manifest.manifest_writing import write_manifest
from epistream.sharding.pack.pack import pack
from epistream.sharding.tar.reindex import reindex

TOP, ANGLE = "observation.images.top", "observation.images.angle"
SHARD = "shard-000000.tar"


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed")
    pack(counted_folder(folder / "in", (20, 7)), folder / "out", codec="h264", gop=8)
    return folder / "out"


@pytest.fixture
def folder(packed, tmp_path):
    return shutil.copytree(packed, tmp_path / "ds")


def faults(folder, **options):
    return [str(fault) for fault in verify(open_dataset(folder), VerifyOptions(**options)).faults]


def republished(folder, change=lambda index: index):
    """Make manifest and index agree with the tar's bytes again, the index changed."""
    path = folder / SHARD
    hasher = hash_file(path)
    index = ShardIndex.parse(path.with_suffix(".index").read_bytes(), path.name)
    index = dataclasses.replace(
        change(index),
        shard_bytes=hasher.num_bytes,
        shard_checksum=hasher.checksum,
        block_checksums=hasher.block_checksums,
    )
    data = index.to_bytes()
    path.with_suffix(".index").write_bytes(data)
    builder = ManifestBuilder()
    builder.add_shard(ShardIndex.parse(data, "changed"), data)
    write_manifest(builder.build(), str(folder))


def with_video(index, **changes):
    """The index with other tables of the top camera's videos."""
    return dataclasses.replace(index, videos={**index.videos, TOP: dataclasses.replace(index.videos[TOP], **changes)})


def overwrite(path, offset, data):
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def test_a_whole_dataset_has_no_fault_and_every_frame_counts(folder):
    seen = []
    report = verify(open_dataset(folder), advance=seen.append)
    assert report.faults == []
    assert report.num_frames == 2 * 27
    assert report.num_bytes == (folder / SHARD).stat().st_size == sum(seen)


def test_a_sample_decodes_what_it_needs(folder):
    assert verify(open_dataset(folder), VerifyOptions(sample=2)).num_frames == 4
    assert verify(open_dataset(folder), VerifyOptions(sample=0)).num_frames == 0


@pytest.mark.parametrize("name", ["h264 b", "hevc", "av1"])
def test_tars_of_others_have_no_fault(tmp_path, name):
    foreign_tar(tmp_path / "a.tar", [foreign_pairs("ep0", 20, name), foreign_pairs("ep1", 9, name)])
    reindex(str(tmp_path))
    report = verify(open_dataset(tmp_path))
    assert (report.faults, report.num_frames) == ([], 29)


def test_torn_packets_are_named_with_their_steps(folder):
    index = ShardIndex.parse((folder / SHARD).with_suffix(".index").read_bytes(), "")
    start, size = index.frame_range(TOP, 12)
    overwrite(folder / SHARD, start + 8, bytes(size - 8))
    republished(folder)
    [fault] = faults(folder)
    assert fault.startswith(f"{SHARD}, ep-000000000.{TOP}.mp4, step 8 to 15: frame 12 does not decode (")
    assert fault.endswith("), wanted frames that decode")


def test_bytes_that_changed_are_told_by_checksums_too(folder):
    index = ShardIndex.parse((folder / SHARD).with_suffix(".index").read_bytes(), "")
    overwrite(folder / SHARD, index.frame_range(ANGLE, 22)[0] + 10, bytes(30))
    found = faults(folder)
    assert f"{SHARD}: checksum" in found[0]
    assert f"{SHARD}, bytes 0 to " in found[1]
    assert f"{SHARD}, ep-000000001.{ANGLE}.mp4, step 0 to 6: frame 2 does not decode" in found[-1]


@pytest.mark.parametrize(("row", "back"), [(8, 1), (13, 0), (20, 0)])
def test_groups_that_begin_elsewhere_are_named(folder, row, back):
    def change(index):
        found = index.videos[TOP].back.copy()
        if row == 20:
            found[21:24] = [0, 1, 2]
            found[24:27] = [0, 1, 2]
        else:
            found[row:16] = np.arange(16 - row) + (8 if back else 0)
        return dataclasses.replace(
            with_video(index, back=found),
            features={**index.features, TOP: dataclasses.replace(index.features[TOP], group_steps=16)},
        )

    republished(folder, change)
    found = faults(folder)
    wrong = {8: ("ep-000000000", 8), 13: ("ep-000000000", 13), 20: ("ep-000000001", 1)}[row]
    assert f"{SHARD}, {wrong[0]}.{TOP}.mp4, step {wrong[1]}: " in found[0]
    assert " steps back to a key frame in the index, wanted " in found[0]
    if row != 8:  # a group that begins with no key frame
        assert any("frame" in fault and "wanted frames that decode" in fault for fault in found)


def test_swapped_packets_are_named(folder):
    def change(index):
        offset, size = index.frame_offset[TOP].copy(), index.frame_size[TOP].copy()
        offset[[9, 10]], size[[9, 10]] = offset[[10, 9]], size[[10, 9]]
        return dataclasses.replace(
            index, frame_offset={**index.frame_offset, TOP: offset}, frame_size={**index.frame_size, TOP: size}
        )

    republished(folder, change)
    found = faults(folder)
    assert f"{SHARD}, ep-000000000.{TOP}.mp4, step 9: " in found[0]
    assert " bytes at " in found[0]
    assert " in the index, wanted " in found[0]


def test_other_parameters_are_named(folder):
    def change(index):
        stream = index.videos[TOP].streams[0]
        wrong = dataclasses.replace(stream, extradata=stream.extradata + b"\0")
        return with_video(index, streams=(wrong, stream), stream_of=np.array([1, 0], np.uint32))

    republished(folder, change)
    expected = f"{SHARD}, ep-000000001.{TOP}.mp4, step 0: other parameters of its stream in the index"
    assert expected in faults(folder)[0]


def test_a_video_that_was_replaced_by_another_of_its_size_is_named(folder):
    """All bytes of the MP4 are other ones: the index points at what lies elsewhere now."""
    start, size = places(folder / SHARD)[f"ep-000000000.{TOP}.mp4"]
    other = encoded("h264", 20)
    assert len(other) < size
    overwrite(folder / SHARD, start, other + b"\0\0\0\x08free" * ((size - len(other)) // 8))
    republished(folder)
    assert f"{SHARD}, ep-000000000.{TOP}.mp4, step 0: " in faults(folder)[0]


def test_without_pyav_verify_says_so_at_once(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(OptionError, match=r"pip install 'epistream\[video\]'"):
        verify(open_dataset(folder))
