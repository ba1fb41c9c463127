"""Entries of a cache that releases share on a node: what they are called, what they hold, and that others' are used."""

import hashlib
import json
import os
import pickle
import re
from pathlib import Path

import h5py
import numpy as np
import pytest
import xxhash
from machine.waiting import wait_until

import epistream as es
from epistream.cache.node import NodeCache
from epistream.cache.source.entry import Entry, Part

DEADLINE_S = 30.0
NUM_STEPS = {"demo_0": 9, "demo_1": 6, "demo_2": 8, "demo_3": 5, "demo_4": 7}
DEMOS_OF_SHARD = (("demo_0", "demo_1", "demo_3"), ("demo_2", "demo_4"))
CAMERA = (
    '{"name": "observation.images.agentview", "kind": "frames", "dtype": "uint8", "shape": [24, 24, 3], '
    '"codec": "jpeg", "jpeg_channels": "rgb", "rotate": 0, "fps": 20.0, "units": null, '
    '"source_path": "obs/agentview_image"}'
)
GRIPPER = (
    '{"name": "observation.robot0_gripper_qpos", "kind": "array", "dtype": "float32", "shape": [2], '
    '"codec": "npy", "jpeg_channels": null, "rotate": 0, "fps": 20.0, "units": null, '
    '"source_path": "obs/robot0_gripper_qpos"}'
)
ACTION = (
    '{"name": "action", "kind": "array", "dtype": "float64", "shape": [7], "codec": "npy", '
    '"jpeg_channels": null, "rotate": 0, "fps": 20.0, "units": null, "source_path": "actions"}'
)
# What is said of entries that are made of shards, each with its version: 1 of columns, 2 of decoded frames.
COLUMNS = f'["columns", 1, [{GRIPPER}, {ACTION}]]'


# Steps whose decoded frames are one entry, at least so many bytes.
CHUNK_BYTES = 1 << 20
STEPS_OF_SHARD = [sum(NUM_STEPS[demo] for demo in demos) for demos in DEMOS_OF_SHARD]


def decoded_key(stored, shard, side=24):
    """The key of the decoded frames of a shard, which are few enough for one entry; it begins with their group."""
    about = f"[2, {CHUNK_BYTES // (side * side * 3)}, [[{CAMERA}, [{side}, {side}, 3]]]]"
    group = f"decoded frames of {es.open_dataset(stored / 'jpeg').fingerprint} {side * side * 3} {about}"
    begin = hashlib.blake2b(group.encode(), digest_size=4).hexdigest()
    return begin + key(parts_of(stored, shard), f"decoded rows 0 {about}")[8:]


def key(parts, content=""):
    """The key of an entry, by the definition: BLAKE2b of JSON, whose first number is its version."""
    text = json.dumps([1, content, parts], separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def checksum(data):
    return xxhash.xxh3_128_hexdigest(data)


def parts_of(stored, shard):
    """What the key of a shard of the stored dataset is made of: URL, bytes, checksum and version of tar and index."""
    paths = [stored / "jpeg" / f"shard-{shard:06d}.{suffix}" for suffix in ("tar", "index")]
    return [[str(path), path.stat().st_size, checksum(path.read_bytes()), None] for path in paths]


def joined(*parts):
    """Parts as an entry has them: one after the other, each from a multiple of 64 bytes on."""
    data = b""
    for part in parts:
        data += bytes(-len(data) % 64) + bytes(part)
    return data


def shard_bytes(stored, shard):
    return joined(*((stored / "jpeg" / f"shard-{shard:06d}.{suffix}").read_bytes() for suffix in ("tar", "index")))


def stream_of(stored, folder, mode="shm", **options):
    cache = es.CacheOptions(mode=mode, directory=str(folder), budget_bytes=64 << 20)
    options = {"batch_size": 4, "split": None, "seed": 7, "order": es.OrderOptions(lanes=2), **options}
    return es.EpisodeStream(stored / "jpeg", cache=cache, **options)


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_key_of_a_known_entry_is_the_one_written_here():
    tar = Part("s3://bucket/shard-000000.tar", 47616, "00112233445566778899aabbccddeeff")
    index = Part("s3://bucket/shard-000000.index", 2304, version="etag=5")
    assert Entry((tar, index)).key == "38a9da171931dfee7d995e881f8fbf22"
    assert Entry((tar, index), content="decoded 3 [1, []]").key == "85fd8091d8d893fc80ada4263a9b9293"
    assert Entry((tar,)).key == key([["s3://bucket/shard-000000.tar", 47616, "00112233445566778899aabbccddeeff", None]])


def test_key_of_an_entry_of_a_group_begins_with_the_group_and_ends_as_without_one():
    tar = Part("s3://bucket/shard-000000.tar", 47616, "00112233445566778899aabbccddeeff")
    plain = Entry((tar,), content="decoded 3 [1, []]").key
    grouped = Entry((tar,), content="decoded 3 [1, []]", group="decoded s3://bucket/")
    begin = hashlib.blake2b(b"decoded s3://bucket/", digest_size=4).hexdigest()
    assert grouped.key == begin + plain[8:]
    assert grouped.with_versions(["etag=5"]).key.startswith(begin)
    assert pickle.loads(pickle.dumps(grouped)).key == grouped.key


def test_entry_that_was_pickled_before_there_were_groups_has_none():
    entry = Entry((Part("u", 10, "aa"),), content="decoded 3 [1, []]")
    old = Entry.__new__(Entry)
    old.__dict__.update(parts=entry.parts, content=entry.content)
    assert old == entry == pickle.loads(pickle.dumps(old))
    assert old.key == entry.key


def test_directory_after_epochs_holds_these_files_and_no_others(stored, cache_path):
    shards = [key(parts_of(stored, shard)) for shard in range(2)]
    frames = [decoded_key(stored, shard) for shard in range(2)]
    with es.StreamingLoader(stream_of(stored, cache_path, decode="once"), num_workers=0, num_threads=1) as loader:
        for epoch in range(60):  # keeping takes a share of the time only
            for batch in loader:
                assert len(batch["task"]) == 4
                if epoch == 0:  # filling ahead goes on beside the loop
                    wait_until(
                        lambda: any(name.startswith("prefetch-") for name in names(cache_path)),
                        "it prefetches",
                        DEADLINE_S,
                    )
            if {f"{entry}.shard" for entry in frames} <= names(cache_path):
                break
        entries = {*shards, *frames}
        assert names(cache_path) == {
            ".users",
            ".lock",
            ".budget",
            "prefetch-faef82557b5ddbe8.lock",
            f"claim-{frames[0][:8]}",
            *(f"{entry}.shard" for entry in entries),
        }
        for shard, entry in enumerate(shards):
            assert (cache_path / f"{entry}.shard").read_bytes() == shard_bytes(stored, shard)
        for num_steps, entry in zip(STEPS_OF_SHARD, frames, strict=True):
            size = num_steps * 24 * 24 * 3
            assert (cache_path / f"{entry}.shard").stat().st_size == num_steps + -num_steps % 64 + size
        assert (cache_path / ".budget").read_text() == "67108864"
        assert (cache_path / ".users").read_bytes() == b""
        pages = sum(-(-(cache_path / f"{entry}.shard").stat().st_size // 4096) for entry in entries)
        assert re.fullmatch(rf"clean {4096 * pages:020d} \d{{12}}\.\d{{6}}\n", (cache_path / ".lock").read_text())
        assert cache_path.stat().st_mode & 0o777 == 0o700
    assert not cache_path.exists()


def test_decoded_entry_holds_which_pixels_are_there_and_then_those_that_pillow_saw(stored, shards, cache_path):
    with es.StreamingLoader(stream_of(stored, cache_path, decode="once"), num_workers=0, num_threads=0) as loader:
        for _ in range(60):  # keeping takes a share of the time only
            list(loader)
            if loader.stats().decoded.num_kept == sum(STEPS_OF_SHARD):
                break
        for shard, held in enumerate(shards["jpeg"].values()):
            data = (cache_path / f"{decoded_key(stored, shard)}.shard").read_bytes()
            expected = [digest for episode in held for digest in episode["frames"]]
            assert data.startswith(b"\1" * len(expected))
            begin = len(expected) + -len(expected) % 64
            frames = np.frombuffer(data, np.uint8, offset=begin).reshape(-1, 24, 24, 3)
            assert [hashlib.sha256(frame.tobytes()).hexdigest() for frame in frames] == expected


def test_decoded_entry_of_a_smaller_size_has_a_name_of_its_own(stored, cache_path):
    options = {"decode": "once", "image_size": (8, 8)}
    with es.StreamingLoader(stream_of(stored, cache_path, **options), num_workers=0, num_threads=0) as loader:
        path = cache_path / f"{decoded_key(stored, 1, side=8)}.shard"
        for _ in range(60):
            list(loader)
            if path.exists():
                break
        size = STEPS_OF_SHARD[1] * 8 * 8 * 3
        assert path.stat().st_size == STEPS_OF_SHARD[1] + -STEPS_OF_SHARD[1] % 64 + size


def test_columns_entry_holds_the_rows_of_its_features_one_after_the_other(stored, cache_path):
    # Made where a shard is read in place, as local ones are in mode "auto".
    features = ["observation.robot0_gripper_qpos", "action"]
    stream = stream_of(stored, cache_path, mode="auto", features=features)
    list(stream)
    values = np.load(stored / "values.npz")
    entries = [key(parts_of(stored, shard), COLUMNS) for shard in range(2)]
    assert names(cache_path) == {
        ".users",
        ".lock",
        ".budget",
        *(f"{entry}.shard" for entry in entries),
    }
    for entry, demos in zip(entries, DEMOS_OF_SHARD, strict=True):
        rows = [
            np.concatenate([values[f"{demo}/{name}"] for demo in demos]).tobytes()
            for name in ("robot0_gripper_qpos", "action")
        ]
        assert (cache_path / f"{entry}.shard").read_bytes() == joined(*rows)
    stream.job.cache.close()


def test_entry_of_an_hdf5_file_is_named_by_its_kept_index_and_holds_packed_bytes(stored, remote_demos, cache_path):
    options = es.CacheOptions(mode="shm", directory=str(cache_path), budget_bytes=64 << 20)
    stream = es.EpisodeStream(remote_demos, batch_size=4, split=None, cache=options, decode="per_read")
    list(stream)
    for number, index in enumerate(stream.job.dataset.index_url):
        data = Path(index).read_bytes()
        features = ("obs/agentview_image", "obs/robot0_eef_pos", "obs/robot0_gripper_qpos", "actions")
        with h5py.File(stored / "demos.hdf5") as file:
            packed = b"".join(
                file[f"data/{demo}/{path}"][:].tobytes() for demo in DEMOS_OF_SHARD[number] for path in features
            )
        parts = [[remote_demos, len(packed), None, checksum(data)], [index, len(data), checksum(data), None]]
        assert (cache_path / f"{key(parts, 'packed bytes of HDF5')}.shard").read_bytes() == joined(packed, data)
    stream.job.cache.close()


def test_entry_names_the_url_that_it_came_from_without_its_query(tmp_path):
    probe = tmp_path / "probe"
    probe.touch()
    try:
        os.setxattr(probe, "user.epistream.url", b"x")
    except OSError:
        pytest.skip("the file system of temporary files knows no attributes")
    source = tmp_path / "a.bin"
    source.write_bytes(b"12345")
    entry = Entry((Part(str(source), 5, checksum(b"12345")),))
    with NodeCache(es.CacheOptions(mode="disk", disk_directory=str(tmp_path / "disk"))) as cache:
        cache.open(entry).close()
        assert os.getxattr(tmp_path / "disk" / f"{entry.key}.shard", "user.epistream.url") == str(source).encode()


# --- a directory that another release has filled ---------------------------------------------------------------------


def as_another_release_left_it(folder, entries):
    """A directory with these entries, {key: bytes}, that is to outlive its users."""
    folder.mkdir(mode=0o700)
    for name, data in {".users": b"", ".lock": b"", ".budget": b"none", ".keep": b""}.items():
        (folder / name).write_bytes(data)
    for entry, data in entries.items():
        (folder / f"{entry}.shard").write_bytes(data)
        (folder / f"{entry}.fill").write_bytes(b"")


def test_entries_of_another_release_are_used_and_not_filled_again(stored, cache_path):
    # Pixels that no decoder would give, so that one sees where they come from.
    white = {
        decoded_key(stored, shard): joined(b"\1" * num_steps, b"\xff" * (num_steps * 24 * 24 * 3))
        for shard, num_steps in enumerate(STEPS_OF_SHARD)
    }
    shards = {key(parts_of(stored, shard)): shard_bytes(stored, shard) for shard in range(2)}
    as_another_release_left_it(cache_path, {**shards, **white})
    stream = stream_of(stored, cache_path, decode="once")
    frames = [batch["observation.images.agentview"] for batch in stream]
    assert len(frames) == 8
    assert all((frame == 255).all() for frame in frames)
    stats = stream.job.cache.stats()
    assert (stats.fills, stats.made_fills) == (0, 0)
    assert stats.hits > 0
    stream.job.cache.close()
    assert {f"{entry}.shard" for entry in {**shards, **white}} <= names(cache_path)


def test_columns_of_another_release_are_used_and_not_made_again(stored, cache_path):
    rows = {
        key(parts_of(stored, shard), COLUMNS): joined(
            np.full((num_rows, 2), 3, "<f4"), np.full((num_rows, 7), 4, "<f8")
        )
        for shard, num_rows in enumerate((20, 15))
    }
    as_another_release_left_it(cache_path, rows)
    features = ["observation.robot0_gripper_qpos", "action"]
    stream = stream_of(stored, cache_path, mode="auto", features=features)
    for batch in stream:
        assert (batch["observation.robot0_gripper_qpos"] == 3).all()
        assert (batch["action"] == 4).all()
    assert stream.job.cache.stats().made_fills == 0
    stream.job.cache.close()
