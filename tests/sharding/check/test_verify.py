"""Verify finds every kind of damage that a dataset can take, and says where it is."""

import dataclasses
import re

import numpy as np
import pytest
from handmade import encoded, members, picture, places, publish, write_dataset, write_tar

from epistream.errors import OptionError
from epistream.sharding.check.verify import verify
from epistream.sharding.check.verify_shard import VerifyOptions
from epistream.sharding.dataset import open_dataset
from epistream.sharding.format.index import ShardIndex
from epistream.sharding.manifest.manifest_file import read_manifest
from epistream.sharding.manifest.manifest_writing import write_manifest

CAMERA = "observation.images.top"


@pytest.fixture
def folder(tmp_path):
    return write_dataset(tmp_path / "ds")


def faults(folder, **options):
    return [str(fault) for fault in verify(open_dataset(folder), VerifyOptions(**options)).faults]


def overwrite(path, offset, data):
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def republish(folder):
    """Make manifest and indexes agree with the tars' bytes again: what is left is what decoding finds."""
    indexes = {}
    for path in sorted(folder.glob("*.tar")):
        from epistream.sharding.format.checksums import hash_file

        hasher = hash_file(path)
        index = ShardIndex.parse(path.with_suffix(".index").read_bytes(), path.name)
        index = dataclasses.replace(
            index,
            shard_bytes=hasher.num_bytes,
            shard_checksum=hasher.checksum,
            block_checksums=hasher.block_checksums,
        )
        data = index.to_bytes()
        path.with_suffix(".index").write_bytes(data)
        indexes[path.name] = (index, data)
    publish(folder, indexes)


@pytest.mark.parametrize("codec", ["jpeg", "png", "raw"])
def test_verify_of_a_whole_dataset_finds_nothing_and_counts_everything(tmp_path, codec):
    folder = write_dataset(tmp_path / "ds", codec=codec, metas={0: {"tasks": ["a"], "valid_ranges": [[1, 2]]}})
    seen = []
    dataset = open_dataset(folder)
    report = verify(dataset, advance=seen.append)
    assert report.faults == []
    assert (report.num_shards, report.num_episodes, report.num_frames) == (2, 3, 12)
    assert report.num_bytes == sum(path.stat().st_size for path in folder.glob("*.tar")) == sum(seen)


@pytest.mark.parametrize("name", ["aloha", "mobile_aloha", "libero", "robomimic"])
def test_verify_of_packed_real_episodes_finds_nothing(tmp_path, example_data, name):
    from epistream.sharding.pack.pack import pack

    pack(str(example_data / name), str(tmp_path / "ds"))
    report = verify(open_dataset(tmp_path / "ds"), VerifyOptions(statistics=True, sample=20))
    assert report.faults == []
    assert report.num_frames > 0


def test_verify_with_a_sample_decodes_that_many_frames(folder):
    assert verify(open_dataset(folder), VerifyOptions(sample=2)).num_frames == 4
    assert verify(open_dataset(folder), VerifyOptions(sample=0)).num_frames == 0


def test_verify_finds_a_flipped_bit_in_a_frame_and_names_the_block(folder):
    tar = folder / "shard-000000.tar"
    offset, size = places(tar)[f"ep-000000001.{CAMERA}.000002.jpg"]
    overwrite(tar, offset + size // 2, bytes([tar.read_bytes()[offset + size // 2] ^ 0x10]))
    first, block, *_ = faults(folder)
    assert re.fullmatch(r"shard-000000\.tar: checksum [0-9a-f]{32}, wanted [0-9a-f]{32}", first)
    assert block.startswith(f"shard-000000.tar, bytes 0 to {tar.stat().st_size:,}: block checksum ")


def test_verify_finds_a_frame_that_does_not_decode_though_checksums_agree(folder):
    tar = folder / "shard-000000.tar"
    offset, size = places(tar)[f"ep-000000001.{CAMERA}.000002.jpg"]
    overwrite(tar, offset + 30, bytes(size - 30))
    republish(folder)
    found = faults(folder)
    assert len(found) == 1
    assert found[0].startswith(f"shard-000000.tar, ep-000000001.{CAMERA}.000002.jpg: ")
    assert found[0].endswith("wanted a frame that decodes")


def test_verify_finds_a_frame_of_another_size(tmp_path):
    pairs = members(0, 3)
    small = encoded(picture(0, 1)[:16, :16], "jpeg")
    pairs[-1] = (pairs[-1][0], small)
    folder = tmp_path / "ds"
    write_dataset(folder, lengths=((3,),))
    write_tar(folder / "shard-000000.tar", pairs)
    from epistream.sharding.tar.index_tar import index_tar

    index = index_tar(folder / "shard-000000.tar")
    (folder / "shard-000000.index").write_bytes(index.to_bytes())
    publish(folder, {index.shard_name: (index, index.to_bytes())})
    assert faults(folder) == [
        f"shard-000000.tar, ep-000000000.{CAMERA}.000002.jpg: a JPEG of 16x16x3 "
        f"(width x height x channels), wanted 32x24x3 (width x height x channels), wanted a "
        "frame that decodes"
    ]


def test_verify_finds_an_index_that_points_beside_the_members(folder):
    path = folder / "shard-000001.index"
    index = ShardIndex.parse(path.read_bytes(), "x")
    offset = index.frame_offset[CAMERA].copy()
    offset[2] += 1
    arrays = {"action": index.array_offset["action"] + np.uint64(4)}
    data = dataclasses.replace(index, frame_offset={CAMERA: offset}, array_offset=arrays).to_bytes()
    path.write_bytes(data)
    found = faults(folder)
    start = int(offset[2])
    size = int(index.frame_size[CAMERA][2])
    assert found[0].startswith(f"shard-000001.index: {len(data):,} bytes with checksum ")
    real = int(index.array_offset["action"][0])
    assert (
        f"shard-000001.tar, ep-000000002.action.npy: byte {real + 4} in the index, wanted {real} as in the tar" in found
    )
    member = f"shard-000001.tar, ep-000000002.{CAMERA}.000002.jpg: "
    assert f"{member}{size} bytes at {start} in the index, wanted {size} at {start - 1}" in found
    assert any(line.startswith(member) and "JPEG" in line for line in found)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "shard-000001.tar").unlink(), r"shard-000001\.tar: no such file, wanted it to be whole"),
        (lambda f: (f / "shard-000001.index").unlink(), r"shard-000001\.index: no such file, wanted the index of"),
        (
            lambda f: (f / "shard-000001.index").write_bytes(b"x" * 100),
            r"shard-000001\.index: begins with 78 78 .*, wanted 89 45",
        ),
        (
            lambda f: (f / "shard-000001.tar").write_bytes((f / "shard-000001.tar").read_bytes()[:3000]),
            r"shard-000001\.tar: 3,000 bytes, wanted [0-9,]+",
        ),
        (
            lambda f: (f / "extra.tar").write_bytes(b""),
            r"extra\.tar: a tar that the manifest does not name, wanted no other tars in the dataset's folder",
        ),
        (
            lambda f: (f / "shard-000001.index").write_bytes((f / "shard-000000.index").read_bytes()),
            r"shard-000001\.index: index of a tar of",
        ),
    ],
)
def test_verify_finds_files_that_are_missing_torn_or_exchanged(folder, damage, message):
    damage(folder)
    found = faults(folder)
    assert any(re.match(message, line) for line in found), found


def test_verify_finds_a_manifest_that_disagrees_with_its_indexes(folder):
    manifest = read_manifest(str(folder))
    offsets, ranges = manifest.columns.valid_ranges
    columns = dataclasses.replace(manifest.columns, range_offsets=offsets, ranges=ranges + np.array([1, 0]))
    write_manifest(dataclasses.replace(manifest, columns=columns), str(folder))
    assert faults(folder)[0] == (
        "shard-000000.index, ep-000000000: length, valid ranges (5, ((0, 5),)) and tasks (), wanted (5, ((1, 5),)), ()"
    )


def test_verify_finds_statistics_of_other_values(folder):
    manifest = read_manifest(str(folder))
    values = {"count": 12, "mean": [98.125, 98.25, 98.375], "std": [1, 1, 1]}
    values |= {"min": [0, 0.125, 0.25], "max": [201.125, 201.25, 201.375]}
    whole = np.concatenate([np.arange(n * 3).reshape(n, 3) / 8 + 100 * e for e, n in enumerate((5, 3, 4))])
    values |= {
        "mean": whole.mean(axis=0).tolist(),
        "min": whole.min(axis=0).tolist(),
        "max": whole.max(axis=0).tolist(),
    }
    write_manifest(dataclasses.replace(manifest, statistics={"action": values}, statistics_split="all"), str(folder))
    assert faults(folder, statistics=True) == []
    part = verify(open_dataset(f"{folder}/shard-{{000001..000001}}.tar"), VerifyOptions(statistics=True))
    assert part.faults == []
    values["min"][1] = -5.0
    write_manifest(dataclasses.replace(manifest, statistics={"action": values}, statistics_split="all"), str(folder))
    assert faults(folder) == []
    assert faults(folder, statistics=True) == ["dataset.json, statistics of action: min[1] -5, wanted 0.125"]
    values["count"] = 11
    write_manifest(dataclasses.replace(manifest, statistics={"action": values}, statistics_split="all"), str(folder))
    assert faults(folder, statistics=True) == ["dataset.json, statistics of action: of 11 steps, wanted 12"]


def test_verify_stops_listing_a_shard_that_is_wrong_everywhere(tmp_path):
    folder = write_dataset(tmp_path / "ds", lengths=((80,), (2,)))
    tar = folder / "shard-000000.tar"
    for name, (offset, size) in places(tar).items():
        if name.endswith(".jpg") and not name.endswith("000000.jpg"):
            overwrite(tar, offset + 30, bytes(size - 30))
    republish(folder)
    found = faults(folder)
    assert len(found) == 51
    assert found[-1] == "shard-000000.tar: more faults, not looked for, wanted none"


def test_verify_of_a_remote_dataset_reads_it_through_fsspec(folder):
    import fsspec

    memory = fsspec.filesystem("memory")
    for path in folder.iterdir():
        memory.pipe_file(f"/verify/{path.name}", path.read_bytes())
    report = verify(open_dataset("memory://verify"))
    assert (report.faults, report.num_frames) == ([], 12)
    memory.rm_file("/verify/shard-000000.tar")
    assert [str(f) for f in verify(open_dataset("memory://verify")).faults] == [
        "shard-000000.tar: no such file, wanted it to be whole"
    ]


def test_verify_options_that_cannot_work_are_refused():
    with pytest.raises(OptionError, match="sample -1"):
        VerifyOptions(sample=-1)


def test_verify_command_prints_a_line_a_fault_and_exits_with_one(folder):
    from click.testing import CliRunner

    from epistream.commands import cli

    runner = CliRunner()
    good = runner.invoke(cli, ["verify", str(folder)])
    assert (good.exit_code, good.output.split(":")[0]) == (0, "no faults")
    (folder / "shard-000001.tar").unlink()
    bad = runner.invoke(cli, ["verify", str(folder), "--sample", "1"])
    lines = bad.output.splitlines()
    assert bad.exit_code == 1
    assert lines[0] == "shard-000001.tar: no such file, wanted it to be whole"
    assert lines[-1].startswith("1 fault: 2 shards, 3 episodes, 1 frame decoded")
    wrong = runner.invoke(cli, ["verify", str(folder), "--storage-options", "{"])
    assert isinstance(wrong.exception, OptionError)
