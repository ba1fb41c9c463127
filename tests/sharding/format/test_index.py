"""The shard index: exact places, every impossible number refused, damage never more than an error."""

import dataclasses

import numpy as np
import pytest
from handmade import members, write_tar
from hypothesis import given, settings
from hypothesis import strategies as st

from epistream.errors import FormatError
from epistream.sharding.format.episode_meta import EpisodeMeta
from epistream.sharding.format.features import Feature
from epistream.sharding.format.index import ShardIndex
from epistream.sharding.tar.index_tar import index_tar

FEATURES = {
    "camera": Feature("camera", "frames", "uint8", (4, 4, 3), "jpeg", jpeg_channels="rgb"),
    "raw": Feature("raw", "frames", "uint8", (2, 2, 1), "raw"),
    "action": Feature("action", "array", "float32", (2,), "npy"),
}


def an_index(**changes):
    parts = {
        "shard_name": "shard-000000.tar",
        "shard_bytes": 4096,
        "shard_checksum": "0123456789abcdef" * 2,
        "features": FEATURES,
        "keys": ["ep-0", "ep-1"],
        "length": np.array([3, 2]),
        "array_offset": {"action": np.array([512, 1024], np.uint64)},
        "frame_offset": {
            "camera": np.array([100, 200, 300, 400, 4000], np.uint64),
            "raw": np.array([0, 4, 8, 12, 16], np.uint64),
        },
        "frame_size": {
            "camera": np.array([10, 10, 10, 10, 96], np.uint32),
            "raw": np.full(5, 4, np.uint32),
        },
        "episodes": [EpisodeMeta(3, 0, tasks=("lift",)), EpisodeMeta(2, 1, valid_ranges=())],
        "block_checksums": np.array([1, 2], np.uint64),
        "block_bytes": 2048,
    }
    return ShardIndex(**{**parts, **changes})


def same(left, right):
    for field in dataclasses.fields(ShardIndex):
        one, other = getattr(left, field.name), getattr(right, field.name)
        if field.name in ("array_offset", "frame_offset", "frame_size"):
            assert one.keys() == other.keys()
            for name in one:
                np.testing.assert_array_equal(one[name], other[name])
        elif field.name in ("keys", "episodes"):
            assert list(one) == list(other)
        else:
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("validate", [True, False])
def test_index_comes_back_as_it_was_written(validate):
    index = an_index()
    data = index.to_bytes()
    parsed = ShardIndex.parse(memoryview(data), "a.index", validate=validate)
    same(parsed, index)
    assert parsed.first_row.tolist() == [0, 3]
    assert (parsed.num_episodes, parsed.num_rows) == (2, 5)
    assert parsed.episodes[1].valid_ranges == ()
    assert parsed.episodes[0].valid_ranges is None
    assert np.shares_memory(parsed.frame_offset["camera"], np.frombuffer(data, np.uint8))
    assert parsed.to_bytes() == data


U8 = np.uint64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"array_offset": {"action": np.array([512, 4081], U8)}}, "action, episode 1: 16 bytes at 4081"),
        ({"array_offset": {"action": np.array([2**64 - 8, 512], U8)}}, "action, episode 0"),
        ({"array_offset": {"action": np.array([512], U8)}}, "action: 1 offsets"),
        ({"length": np.array([3, 0])}, "2 episodes of 0 to 3 steps"),
        ({"length": np.array([3, 2**62])}, "steps in 4096 bytes"),
        ({"length": np.array([3, 3])}, "lengths in 'episodes'"),
        ({"keys": ["a", "a"]}, "1 different keys, wanted 2"),
        ({"keys": ["a"]}, "1 different keys, wanted 2"),
        ({"shard_bytes": 4097}, "2 block checksums, wanted 3"),
        ({"shard_bytes": 4095}, "camera, row 4: 96 bytes at 4000"),
        ({"block_bytes": 1000}, "blocks of 1000 bytes"),
        ({"shard_checksum": "xyz"}, "shard checksum 'xyz'"),
        ({"shard_name": "../../etc/passwd.tar"}, "shard name '../../etc/passwd.tar'"),
        ({"shard_name": "shard.tar.gz"}, "shard name"),
        ({"episodes": [EpisodeMeta(3, 0), EpisodeMeta(2, 1, split="val")]}, "several splits in one shard"),
        ({"features": {}}, "0 features"),
        (
            {"frame_size": {"camera": np.array([10, 10, 0, 10, 9], np.uint32), "raw": np.full(5, 4, np.uint32)}},
            "camera, row 2: 0 bytes",
        ),
        (
            {"frame_size": {"camera": np.full(5, 10, np.uint32), "raw": np.array([4, 4, 5, 4, 4], np.uint32)}},
            "raw, row 2: 5 bytes, wanted 4",
        ),
    ],
)
def test_index_that_cannot_be_is_refused_by_writer_and_reader(changes, message, monkeypatch):
    index = an_index(**changes)
    with pytest.raises(FormatError) as caught:
        index.to_bytes()
    assert message in str(caught.value)
    assert str(caught.value).endswith("Re-create the index with 'epistream index URL --overwrite'.")
    # A writer that does not check: the reader must find the same.
    monkeypatch.setattr("epistream.sharding.format.index.check", lambda index, where: None)
    data = index.to_bytes()
    monkeypatch.undo()
    with pytest.raises(FormatError):
        ShardIndex.parse(data, "a.index")


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_index_with_damaged_bytes_is_refused_or_equal(data):
    whole = an_index().to_bytes()
    torn = bytearray(whole[: data.draw(st.integers(0, len(whole)) | st.just(len(whole)))])
    for _ in range(data.draw(st.integers(0, 3))):
        if torn:
            torn[data.draw(st.integers(0, len(torn) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        index = ShardIndex.parse(bytes(torn), "a.index")
    except FormatError as error:
        text = str(error)
    else:
        text = "a.index"
        same(index, an_index())
    assert text.startswith("a.index")


NUMBERS = st.integers(0, 2**64 - 1) | st.integers(0, 5000)


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_index_of_any_numbers_reads_inside_the_shard_or_is_refused(data):
    """Checksums are right here: an attacker computes them too."""
    draw = data.draw
    index = an_index(
        length=np.array(draw(st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(1, 3), min_size=2, max_size=2))),
        array_offset={"action": np.array(draw(st.lists(NUMBERS, min_size=2, max_size=2)), U8)},
        frame_offset={
            name: np.array(draw(st.lists(NUMBERS, min_size=5, max_size=5)), U8) for name in ("camera", "raw")
        },
        shard_bytes=draw(st.integers(0, 2**63 - 1) | st.just(4096)),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("epistream.sharding.format.index.check", lambda index, where: None)
        patch.setattr(ShardIndex, "num_rows", 5)
        raw = index.to_bytes()
    try:
        parsed = ShardIndex.parse(raw, "a.index")
    except FormatError:
        return
    size = parsed.shard_bytes
    assert parsed.length.min() >= 1
    for start, length in zip(parsed.array_offset["action"].tolist(), parsed.length.tolist(), strict=True):
        assert start + 8 * length <= size
    for name in ("camera", "raw"):
        for start, count in zip(parsed.frame_offset[name].tolist(), parsed.frame_size[name].tolist(), strict=True):
            assert start + count <= size


def test_index_without_validation_still_refuses_tables_of_another_length():
    index = an_index(frame_size={"camera": np.full(4, 9, np.uint32), "raw": np.full(5, 4, np.uint32)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("epistream.sharding.format.index.check", lambda index, where: None)
        data = index.to_bytes()
    with pytest.raises(FormatError, match=r"table 'size:camera' is uint32 \(4,\), wanted uint32 \(5,\)"):
        ShardIndex.parse(data, "a.index", validate=False)


def test_index_keys_and_episodes_are_decoded_only_when_looked_at():
    tasks = tuple("t" * n for n in range(1, 50))
    data = an_index(episodes=[EpisodeMeta(3, 0, tasks=tasks), EpisodeMeta(2, 1)]).to_bytes()
    start = data.index(b'"tasks"')
    broken = bytearray(data)
    broken[start] = 0
    index = ShardIndex.parse(bytes(broken), "a.index", validate=False)
    assert index.length.tolist() == [3, 2]
    with pytest.raises(FormatError, match=r"a\.index: no readable JSON"):
        index.episodes[0]


def test_blocks_and_shard_have_the_checksums_of_the_file(tmp_path):
    import xxhash

    path = write_tar(tmp_path / "a.tar", members(0, 4))
    data = path.read_bytes()
    index = index_tar(path)
    assert index.shard_checksum == xxhash.xxh3_128_hexdigest(data)
    blocks = [data[start : start + (1 << 20)] for start in range(0, len(data), 1 << 20)]
    assert index.block_checksums.tolist() == [xxhash.xxh3_64_intdigest(block) for block in blocks]


def test_hasher_fed_in_pieces_equals_the_whole():
    import xxhash

    from epistream.sharding.format.checksums import ShardHasher

    data = np.random.default_rng(0).bytes(10_000)
    hasher = ShardHasher(block_bytes=1024)
    for start in range(0, len(data), 777):
        hasher.update(data[start : start + 777])
    assert hasher.checksum == xxhash.xxh3_128_hexdigest(data)
    wanted = [xxhash.xxh3_64_intdigest(data[start : start + 1024]) for start in range(0, 10_000, 1024)]
    assert hasher.block_checksums.tolist() == wanted
