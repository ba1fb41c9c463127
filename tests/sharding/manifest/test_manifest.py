"""The manifest: written last and atomically, read without believing it, practical for a million episodes."""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from epistream.errors import FormatError, SourceError, VersionError
from epistream.sharding.dataset import open_dataset
from epistream.sharding.format.episode_meta import EpisodeMeta
from epistream.sharding.format.features import Feature
from epistream.sharding.format.index import ShardIndex
from epistream.sharding.manifest.manifest import Manifest
from epistream.sharding.manifest.manifest_builder import ManifestBuilder
from epistream.sharding.manifest.manifest_columns import ManifestColumns, fingerprint, join_columns
from epistream.sharding.manifest.manifest_file import read_manifest
from epistream.sharding.manifest.manifest_writing import write_manifest
from epistream.sharding.manifest.sources import Source

FEATURES = {"action": Feature("action", "array", "float32", (2,), "npy", fps=20.0)}


def a_shard(number, episodes, split="all"):
    metas = [
        meta if isinstance(meta, EpisodeMeta) else EpisodeMeta(length=meta[1], episode_index=meta[0], split=split)
        for meta in episodes
    ]
    return ShardIndex(
        shard_name=f"shard-{number:06d}.tar",
        shard_bytes=10_000 + number,
        shard_checksum=hashlib.md5(b"%d" % number).hexdigest(),
        features=FEATURES,
        keys=[f"ep-{meta.episode_index:09d}" for meta in metas],
        length=np.array([meta.length for meta in metas]),
        array_offset={"action": np.full(len(metas), 512, np.uint64)},
        frame_offset={},
        frame_size={},
        episodes=metas,
        block_checksums=np.array([number], np.uint64),
    )


def build(shards, splits=("all",), **parts):
    builder = ManifestBuilder(FEATURES, splits)
    for shard in shards:
        builder.add_shard(shard, shard.to_bytes())
    return builder.build(**parts)


@pytest.fixture
def manifest():
    train = a_shard(
        0,
        [
            EpisodeMeta(5, 0, "train", tasks=("lift", "raise"), source="a.h5"),
            EpisodeMeta(7, 3, "train", valid_ranges=((0, 2), (4, 7)), source="b.h5"),
        ],
    )
    val = a_shard(10, [EpisodeMeta(6, 1, "val", tasks=("raise",)), EpisodeMeta(4, 9, "val", valid_ranges=())])
    statistics = {"action": {"count": 12, "mean": [0.5, None], "std": [1.0, 2.0], "min": [0, 0], "max": [1, 1]}}
    return build(
        [val, train],  # the order in which workers finish does not matter
        ("train", "val"),
        statistics=statistics,
        statistics_split="train",
        sources=[Source("a.h5", 12, "ab" * 16), Source("b.h5")],
        provenance={"layout": "aloha"},
    )


def test_manifest_comes_back_as_it_was_written(tmp_path, manifest):
    write_manifest(manifest, str(tmp_path))
    back = read_manifest(str(tmp_path))
    assert back.features == FEATURES
    assert back.splits == ("train", "val")
    assert back.tasks == ("lift", "raise")
    assert list(back.sources) == [Source("a.h5", 12, "ab" * 16), Source("b.h5")]
    assert back.provenance == {"layout": "aloha"}
    assert back.statistics["action"]["mean"] == [0.5, None]
    assert back.statistics_split == "train"
    assert back.fingerprint == manifest.fingerprint
    columns = back.columns
    assert list(columns.names) == ["shard-000000.tar", "shard-000010.tar"]
    assert columns.shard_bytes.tolist() == [10_000, 10_010]
    assert columns.shard_split.tolist() == [0, 1]
    assert columns.shard_checksums[1].tobytes().hex() == hashlib.md5(b"10").hexdigest()
    assert columns.episode_shard.tolist() == [0, 1, 0, 1]
    assert columns.episode_in_shard.tolist() == [0, 0, 1, 1]
    assert columns.episode_length.tolist() == [5, 6, 7, 4]
    assert columns.range_offsets.tolist() == [0, 1, 2, 4, 4]
    assert columns.ranges.tolist() == [[0, 5], [0, 6], [0, 2], [4, 7]]
    assert columns.task_offsets.tolist() == [0, 2, 3, 3, 3]
    assert columns.task_ids.tolist() == [0, 1, 1]
    assert back.sources.table.episode_source.tolist() == [0, -1, 1, -1]


def test_manifest_is_the_same_bytes_whatever_the_order_of_shards(tmp_path):
    shards = [a_shard(n, [(2 * n, 3), (2 * n + 1, 4)]) for n in range(4)]
    for name, order in (("a", shards), ("b", shards[::-1])):
        (tmp_path / name).mkdir()
        write_manifest(build(order), str(tmp_path / name))
    for left in (tmp_path / "a").iterdir():
        assert left.read_bytes() == (tmp_path / "b" / left.name).read_bytes()


def test_dataset_json_can_be_read_by_a_person(tmp_path, manifest):
    write_manifest(manifest, str(tmp_path))
    text = (tmp_path / "dataset.json").read_text()
    value = json.loads(text)
    assert (value["num_episodes"], value["num_steps"], value["num_shards"]) == (4, 22, 2)
    assert '"shape": [2]' in text
    assert '"mean": [0.5, null]' in text
    tables = tmp_path / value["tables"]["file"]
    assert tables.name == f"dataset-{xxhash.xxh3_128_hexdigest(tables.read_bytes())[:16]}.tables"


def test_fingerprint_changes_with_what_is_read_and_with_nothing_else(manifest):
    columns = manifest.columns
    known = manifest.fingerprint
    one = FEATURES["action"]

    def of(features=FEATURES, splits=("train", "val"), **changes):
        return fingerprint(features, splits, dataclasses.replace(columns, **changes))

    assert of() == known
    assert of({"action": dataclasses.replace(one, source_path="elsewhere")}) == known
    assert of(names=("a.tar", "b.tar"), task_ids=columns.task_ids[::-1], index_bytes=columns.index_bytes + 1) == known
    different = [
        of({"action": dataclasses.replace(one, fps=10.0)}),
        of(splits=("train", "test")),
        of(shard_bytes=columns.shard_bytes + 1),
        of(shard_checksums=columns.shard_checksums[::-1]),
        of(shard_split=columns.shard_split[::-1]),
        of(episode_length=columns.episode_length + 1),
        of(episode_shard=columns.episode_shard[::-1]),
        of(episode_in_shard=columns.episode_in_shard[::-1]),
        of(ranges=columns.ranges[::-1]),
        of(range_offsets=np.array([0, 1, 2, 2, 4])),
    ]
    assert len({known, *different}) == len(different) + 1


def test_fingerprint_of_a_known_dataset_stays_what_it_was():
    """Resume states and caches of earlier releases name it."""
    assert build([a_shard(0, [(0, 5), (1, 6)])]).fingerprint == "23654492151e1d5b90b4ede734a5be7d"


def test_fingerprint_is_made_of_what_the_specification_says():
    manifest = build([a_shard(0, [(0, 5), (1, 6)])])
    feature = {"name": "action", "kind": "array", "dtype": "float32", "shape": [2], "codec": "npy", "fps": 20.0}
    feature |= {"jpeg_channels": None, "rotate": 0, "units": None}
    text = json.dumps({"features": [feature], "splits": ["all"]}, sort_keys=True).encode()
    checksum = bytes.fromhex(hashlib.md5(b"0").hexdigest())
    numbers = [[10_000], None, None, [0, 0], [0, 1], [5, 6], [0, 1, 2], [0, 5, 0, 6]]
    lists = [text, *(b"".join(n.to_bytes(8, "little") for n in row or ()) for row in numbers)]
    lists[2], lists[3] = checksum, b"\x00"
    whole = b"epistream fingerprint 1\n" + b"".join(len(one).to_bytes(8, "little") + one for one in lists)
    assert manifest.fingerprint == xxhash.xxh3_128_hexdigest(whole)


def test_overwrite_that_dies_before_the_json_leaves_the_old_dataset(tmp_path, manifest, monkeypatch):
    write_manifest(build([a_shard(0, [(0, 5)])]), str(tmp_path))
    before = read_manifest(str(tmp_path)).fingerprint
    import epistream.sharding.manifest.manifest_writing as module

    real = module.write_atomic

    def dies(url, data, options):
        if url.endswith("dataset.json"):
            raise KeyboardInterrupt
        real(url, data, options)

    monkeypatch.setattr(module, "write_atomic", dies)
    with pytest.raises(KeyboardInterrupt):
        write_manifest(manifest, str(tmp_path))
    assert read_manifest(str(tmp_path)).fingerprint == before
    monkeypatch.undo()
    write_manifest(manifest, str(tmp_path))
    assert len(list(tmp_path.glob("dataset-*.tables"))) == 1


def test_write_that_fails_leaves_no_temporary_files(tmp_path, manifest, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SourceError, match=r"No space left on device.*Check room"):
        write_manifest(manifest, str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_reader_that_meets_an_overwrite_reads_again(tmp_path, manifest, monkeypatch):
    write_manifest(build([a_shard(0, [(0, 5)])]), str(tmp_path))
    import epistream.sharding.manifest.manifest_file as module

    real = module.read_bytes
    replaced = []

    def racing(url, *arguments, **options):
        data = real(url, *arguments, **options)
        if url.endswith("dataset.json") and not replaced:
            replaced.append(True)
            write_manifest(manifest, str(tmp_path))
        return data

    monkeypatch.setattr(module, "read_bytes", racing)
    assert read_manifest(str(tmp_path)).fingerprint == manifest.fingerprint


def edit(folder, change):
    path = folder / "dataset.json"
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda v: v.update(version=4), VersionError, "format version 4, wanted 1 or 2 or 3. Install a release"),
        (lambda v: v.pop("version"), VersionError, "format version None, wanted 1 or 2"),
        (lambda v: v.update(format="lerobot"), FormatError, "no manifest of ours"),
        (lambda v: v.pop("features"), FormatError, "features: "),
        (lambda v: v.update(num_shards="2"), FormatError, "num_shards: '2': Input should be a valid integer"),
        (lambda v: v.update(num_episodes=5), FormatError, "2 shards and 4 episodes, dataset.json says 2 and 5"),
        (lambda v: v.update(fingerprint="0" * 32), FormatError, "fingerprint "),
        (lambda v: v["features"][0].update(dtype="float16"), FormatError, "fingerprint "),
        (lambda v: v["features"][0].update(dtype="object"), FormatError, "dtype 'object'"),
        (lambda v: v["features"][0].update(kind="frames", codec=["jpeg"]), FormatError, "codec ['jpeg'] of frames"),
        (lambda v: v["features"][0].update(shape=[2**31]), FormatError, "at most 4 axes"),
        (lambda v: v["features"][0].update(extra=1), FormatError, "extra"),
        (lambda v: v["features"].append(v["features"][0]), FormatError, "2 features with 1 names"),
        (lambda v: v["tables"].update(file="../../../etc/passwd"), FormatError, "tables.file"),
        (lambda v: v["tables"].update(file="../dataset-00000000.tables"), FormatError, "tables.file"),
        (
            lambda v: v["tables"].update(file="dataset-00000000.tables"),
            FormatError,
            "no such file, dataset.json wants it",
        ),
        (lambda v: v["tables"].update(checksum="0" * 32), FormatError, "bytes with checksum"),
        (lambda v: v.update(splits=["train"]), FormatError, "shard_split[1] is 1, wanted 0 to 0"),
        (lambda v: v.update(splits=["train", "train"]), FormatError, "1 to 255 different names"),
        (lambda v: v["statistics"]["features"]["action"].pop("mean"), FormatError, "wanted count, mean"),
        (
            lambda v: v["statistics"]["features"]["action"].update(mean=[1]),
            FormatError,
            "mean of shape (1,), wanted (2,)",
        ),
        (lambda v: v["statistics"]["features"]["action"].update(mean="x"), FormatError, "wanted numbers or null"),
        (
            lambda v: v["statistics"]["features"]["action"].update(std=[1, 10**400]),
            FormatError,
            "wanted numbers or null",
        ),
        (
            lambda v: v["statistics"]["features"]["action"].update(count=10**400),
            FormatError,
            "00, wanted at least 1 and below 2**63",
        ),
        (lambda v: v["statistics"]["features"].update(other={}), FormatError, "array features only"),
    ],
)
def test_manifest_with_a_wrong_value_is_refused_by_its_name(tmp_path, manifest, change, error, message):
    write_manifest(manifest, str(tmp_path))
    edit(tmp_path, change)
    with pytest.raises(error) as caught:
        open_dataset(tmp_path)
    assert message in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_manifest_may_say_more_than_this_release_knows(tmp_path, manifest):
    write_manifest(manifest, str(tmp_path))
    edit(tmp_path, lambda v: v.update(later="x"))
    assert read_manifest(str(tmp_path)).fingerprint == manifest.fingerprint


@given(st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_manifest_with_damaged_bytes_is_refused_or_equal(tmp_path, manifest, data):
    if not list(tmp_path.iterdir()):
        write_manifest(manifest, str(tmp_path))
    path = data.draw(st.sampled_from(sorted(tmp_path.iterdir())))
    whole = path.read_bytes()
    torn = bytearray(whole[: data.draw(st.integers(0, len(whole)) | st.just(len(whole)))])
    for _ in range(data.draw(st.integers(0, 2))):
        if torn:
            torn[data.draw(st.integers(0, len(torn) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(torn)
    found = expected = (manifest.fingerprint, list(manifest.sources))
    with contextlib.suppress(FormatError):
        back = read_manifest(str(tmp_path))
        found = (back.fingerprint, list(back.sources))
    assert found == expected
    path.write_bytes(whole)


INTEGERS = st.integers(-(2**63), 2**63 - 1) | st.integers(-1, 6)


@given(st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_manifest_of_any_numbers_is_whole_or_refused(tmp_path, manifest, data):
    """An attacker's checksums are right; what passes must be usable without any index out of range."""
    columns = manifest.columns
    more = {
        "episode_split": np.array([0, 1, 0, 1], np.uint8),
        "episode_edits": np.array([0, 2, 4, 6], np.uint8),
        "episode_record": np.arange(4),
        "shard_num_episodes": np.array([2, 2]),
        "shard_group": np.zeros(2, np.int64),
    }
    columns = dataclasses.replace(columns, **more)
    manifest = dataclasses.replace(manifest, columns=columns)
    names = [name for name in ManifestColumns.__dataclass_fields__ if name != "names"]
    name = data.draw(st.sampled_from(names))
    array = getattr(columns, name).copy()
    flat = array.reshape(-1)
    for _ in range(data.draw(st.integers(1, 3))):
        value = data.draw(INTEGERS)
        flat[data.draw(st.integers(0, len(flat) - 1))] = np.int64(value).astype(array.dtype)
    forged = dataclasses.replace(manifest, columns=dataclasses.replace(columns, **{name: array}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Manifest, "check", lambda self, where: None)
        write_manifest(forged, str(tmp_path))
    try:
        dataset = open_dataset(tmp_path)
    except FormatError:
        return
    assert sorted(zip(dataset.episode_shard.tolist(), dataset.episode_in_shard.tolist(), strict=True)) == [
        (shard, place) for shard in range(2) for place in range(2)
    ]
    assert dataset.episode_length.min() > 0
    offsets, ranges = dataset.valid_ranges
    for episode, length in enumerate(dataset.episode_length.tolist()):
        for start, stop in ranges[offsets[episode] : offsets[episode + 1]].tolist():
            assert 0 <= start < stop <= length
    offsets, ids = dataset.episode_tasks
    assert all(dataset.tasks[task] for task in ids.tolist())


@pytest.mark.parametrize(
    "name", ["../evil.tar", "/etc/x.tar", "a/b.tar", ".hidden.tar", "a b.tar", "x.zip", "a{1..2}.tar"]
)
def test_shard_names_that_leave_the_folder_are_refused(tmp_path, manifest, name):
    forged = dataclasses.replace(manifest, columns=dataclasses.replace(manifest.columns, names=("a.tar", name)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Manifest, "check", lambda self, where: None)
        write_manifest(forged, str(tmp_path))
    with pytest.raises(FormatError, match=f"shard name {re.escape(repr(name))}"):
        read_manifest(str(tmp_path))


@pytest.mark.parametrize(
    ("shards", "splits", "message"),
    [
        ([], ("all",), "no shards"),
        ([a_shard(0, [(0, 5)]), a_shard(1, [(0, 5)])], ("all",), "episode_index 0 in two episodes"),
        ([a_shard(0, [(0, 5)]), a_shard(0, [(1, 5)])], ("all",), "added twice"),
        ([a_shard(0, [(0, 5)], "test")], ("train", "val"), "split 'test', wanted one of train, val"),
    ],
)
def test_builder_refuses_shards_that_do_not_make_a_dataset(shards, splits, message):
    with pytest.raises(FormatError, match=message):
        build(shards, splits)


def test_builder_refuses_a_shard_with_other_features():
    shard = a_shard(0, [(0, 5)])
    other = dataclasses.replace(FEATURES["action"], shape=(3,))
    builder = ManifestBuilder({"action": other})
    with pytest.raises(FormatError, match=r"shard-000000\.tar: action: shape \(2,\) instead of \(3,\)"):
        builder.add_shard(shard, shard.to_bytes())


def test_million_episodes_in_a_hundred_thousand_shards_open_in_a_small_process(tmp_path):
    num_shards, num_episodes = 100_000, 1_000_000
    length = np.full(num_episodes, 300, np.int64)
    columns = ManifestColumns(
        names=tuple(f"shard-{number:06d}.tar" for number in range(num_shards)),
        shard_bytes=np.full(num_shards, 1 << 27, np.int64),
        shard_checksums=np.zeros((num_shards, 16), np.uint8),
        index_bytes=np.full(num_shards, 120_000, np.int64),
        index_checksums=np.zeros((num_shards, 16), np.uint8),
        shard_split=np.zeros(num_shards, np.uint8),
        episode_shard=np.arange(num_episodes) // 10,
        episode_in_shard=np.arange(num_episodes) % 10,
        episode_length=length,
        task_offsets=np.arange(num_episodes + 1),
        task_ids=np.arange(num_episodes) % 1000,
    )
    tasks = tuple(f"task {n}" for n in range(1000))
    write_manifest(Manifest(FEATURES, ("all",), columns, tasks=tasks), str(tmp_path))
    assert (tmp_path / "dataset.json").stat().st_size < 5_000
    code = """
import re, sys, time
from pathlib import Path
from epistream.sharding.dataset import open_dataset
def peak(): return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = peak()
start = time.perf_counter()
dataset = open_dataset(sys.argv[1])
print(time.perf_counter() - start, peak() - before,
      dataset.num_steps, dataset.shard_url[99_999], dataset.index_url[0])
"""
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=120, check=True
    )
    seconds, kilobytes, steps, last, first = run.stdout.split()
    print(f"opened in {float(seconds):.2f} s with {int(kilobytes) / 1024:.0f} MiB more")
    assert steps == "300000000"
    assert last == str(tmp_path / "shard-099999.tar")
    assert first == str(tmp_path / "shard-000000.index")
    assert int(kilobytes) < 100 * 1024


def test_ranges_are_made_when_somebody_looks_where_every_step_is_valid(tmp_path):
    whole = ((0, 5),)  # said by the episode, though nothing would be the same
    write_manifest(
        build([a_shard(0, [EpisodeMeta(5, 0, valid_ranges=whole), (1, 6)]), a_shard(1, [(2, 7)])]), str(tmp_path)
    )
    manifest = read_manifest(str(tmp_path))
    columns = manifest.columns
    assert (columns.range_offsets, columns.ranges) == (None, None)
    assert [part.tolist() for part in columns.valid_ranges] == [[0, 1, 2, 3], [[0, 5], [0, 6], [0, 7]]]
    assert columns.ranges_of(1).tolist() == [[0, 6]]
    offsets, ranges = columns.valid_ranges
    written_out = dataclasses.replace(columns, range_offsets=offsets, ranges=ranges)
    assert fingerprint(FEATURES, ("all",), written_out) == manifest.fingerprint
    assert [part.tolist() for part in columns.select([1]).valid_ranges] == [[0, 1], [[0, 7]]]
    assert columns.select([1]).ranges is None


def test_ranges_of_datasets_are_joined_whether_written_out_or_not(manifest):
    some, every = manifest.columns, build([a_shard(0, [(0, 5), (1, 6)])]).columns
    splits, no_tasks = [np.zeros(2, np.uint8)] * 3, [np.zeros(2, np.int64)] * 3
    joined = join_columns([every, some, every], splits, no_tasks)
    assert joined.range_offsets.tolist() == [0, 1, 2, 3, 4, 6, 6, 7, 8]
    assert joined.ranges.tolist() == [[0, 5], [0, 6], [0, 5], [0, 6], [0, 2], [4, 7], [0, 5], [0, 6]]
    assert join_columns([every, every], splits[:2], no_tasks[:2]).ranges is None
    assert [joined.ranges_of(episode).tolist() for episode in (1, 4, 5)] == [[[0, 6]], [[0, 2], [4, 7]], []]
