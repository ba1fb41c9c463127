"""Videos that are damaged or of anybody, and tables that lie of them: pictures of the right size, or named errors."""

import dataclasses
import functools
import struct

import numpy as np
import pytest
from fuzzing import JUNK, damaged, fuzzed, only_named_errors
from hypothesis import given
from hypothesis import strategies as st
from video.clips import OPTIONS, encoded, groups_of, table_of
from video.episodes import foreign_pairs, foreign_tar

from epistream.sharding.check.verify import verify
from epistream.sharding.dataset import open_dataset
from epistream.sharding.format.index import ShardIndex
from epistream.sharding.format.videos import streams_from
from epistream.sharding.pictures.video import VideoDecoder, VideoStream
from epistream.sharding.tar.index_tar import index_tar
from epistream.sharding.tar.reindex import ReindexOptions, reindex

TOP = "observation.images.top"
# What a field of a box may be set to: counts, sizes and places that are none.
_WORDS = st.sampled_from([0, 1, 2, 255, 65_535, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1])
_NUMBERS = st.sampled_from([0, 1, 2, 7, 8, 63, 1 << 20, (1 << 31) - 1, (1 << 32) - 1])


@functools.cache
def clip(name):
    return encoded(name, 20)


def decode_all(data, table, shape=None):
    """All frames that a table says, none of them of another shape."""
    shape = shape or (table.stream.height, table.stream.width, 3)
    decoder = VideoDecoder(shape)
    for packets in groups_of(data, table):
        for _, frame in decoder.pictures(table.stream, packets, range(len(table.back)), "clip"):
            assert frame.shape == shape


@pytest.mark.parametrize("name", OPTIONS)
@fuzzed
@given(data=st.data())
def test_a_damaged_file_is_read_or_named(name, data):
    torn = data.draw(damaged(clip(name)))
    with only_named_errors():
        decode_all(torn, table_of(torn))


@pytest.mark.parametrize("name", ["h264 b", "av1"])
@fuzzed
@given(data=st.data())
def test_a_file_whose_boxes_lie_is_read_or_named(name, data):
    torn = bytearray(clip(name))
    begin = torn.index(b"moov")
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(begin, len(torn) - 4))
        struct.pack_into(">I", torn, place, data.draw(_WORDS))
    with only_named_errors():
        decode_all(bytes(torn), table_of(bytes(torn)))


@pytest.mark.parametrize("kind", [b"stsz", b"stts", b"stsc", b"stco", b"stss", b"ctts", b"elst", b"stsd"])
@fuzzed
@given(data=st.data())
def test_a_file_with_huge_counts_is_named(kind, data):
    """Tables of samples are where a reader allocates by what is said."""
    torn = bytearray(clip("h264 b"))
    begin = torn.index(kind) + 4
    for _ in range(data.draw(st.integers(1, 3))):
        place = begin + 4 * data.draw(st.integers(0, 4))
        struct.pack_into(">I", torn, place, data.draw(_WORDS))
    with only_named_errors():
        decode_all(bytes(torn), table_of(bytes(torn)))


@pytest.mark.parametrize("name", OPTIONS)
@fuzzed
@given(data=st.data())
def test_damaged_packets_are_pictures_or_named(name, data):
    table = table_of(clip(name))
    packets = groups_of(clip(name), table)[0]
    for _ in range(data.draw(st.integers(1, 2))):
        at = data.draw(st.integers(0, len(packets) - 1))
        packets[at] = (packets[at][0], data.draw(damaged(packets[at][1])))
    with only_named_errors():
        for _, frame in VideoDecoder((64, 64, 3)).pictures(table.stream, packets, range(8), "a run"):
            assert frame.shape == (64, 64, 3)


@pytest.mark.parametrize("name", OPTIONS)
@fuzzed
@given(data=st.data())
def test_damaged_parameters_are_named_or_of_use(name, data):
    table = table_of(clip(name))
    sides = st.sampled_from([1, 2, 62, 64, 66, 8192])
    with only_named_errors():
        stream = dataclasses.replace(
            table.stream,
            extradata=data.draw(st.one_of(st.just(table.stream.extradata), damaged(table.stream.extradata))),
            codec=data.draw(st.sampled_from([table.stream.codec] * 3 + ["h264", "hevc", "av1"])),
            height=data.draw(sides),
            width=data.draw(sides),
        )
        shape = (stream.height, stream.width, 3)
        for packets in groups_of(clip(name), table):
            for _, frame in VideoDecoder(shape).pictures(stream, packets, range(20), "a run"):
                assert frame.shape == shape


@fuzzed
@given(value=JUNK, name=st.sampled_from([field.name for field in dataclasses.fields(VideoStream)]))
def test_streams_of_other_values_are_named(value, name):
    stream = VideoStream("h264", b"\1", 64, 64, "yuv420p").to_dict()
    with only_named_errors():
        streams_from([{**stream, name: value}])
    with only_named_errors():
        streams_from(value)
    with only_named_errors():
        streams_from([value])


@pytest.fixture(scope="module")
def tar(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tars")
    path = foreign_tar(folder / "a.tar", [foreign_pairs("ep0", 20, "h264 b"), foreign_pairs("ep1", 9, "h264 b")])
    return path, index_tar(path)


@fuzzed
@given(data=st.data())
def test_tables_that_lie_give_pictures_or_named_errors(tar, data):
    path, index = tar
    content = path.read_bytes()
    tables = {
        "offset": index.frame_offset[TOP].copy(),
        "size": index.frame_size[TOP].copy(),
        "back": index.videos[TOP].back.copy(),
        "stream_of": index.videos[TOP].stream_of.copy(),
    }
    for _ in range(data.draw(st.integers(1, 3))):
        table = tables[data.draw(st.sampled_from(sorted(tables)))]
        at, other = (data.draw(st.integers(0, len(table) - 1)) for _ in range(2))
        change = data.draw(st.sampled_from(["number", "more", "swap"]))
        if change == "swap":
            table[[at, other]] = table[[other, at]]
        else:
            number = data.draw(_NUMBERS)
            table[at] = number if change == "number" else table.dtype.type((int(table[at]) + number) % (1 << 32))
    videos = dataclasses.replace(index.videos[TOP], back=tables["back"], stream_of=tables["stream_of"])
    lying = dataclasses.replace(
        index,
        frame_offset={TOP: tables["offset"]},
        frame_size={TOP: tables["size"]},
        videos={TOP: videos},
        features={**index.features, TOP: dataclasses.replace(index.features[TOP], group_steps=20)},
    )
    with only_named_errors():
        read = ShardIndex.parse(lying.to_bytes(), "a.index")
        rows = np.arange(read.num_rows)
        decoder = VideoDecoder((64, 64, 3))
        for run in read.runs(TOP, data.draw(st.sampled_from([rows, rows[::-3], rows[5:6], rows[:0]]))):
            ranges = [read.frame_range(TOP, row) for row in run.rows.tolist()]
            packets = zip(run.rows.tolist(), (content[at : at + size] for at, size in ranges), strict=True)
            for _, frame in decoder.pictures(run.stream, packets, set(run.wanted.tolist()), "a run"):
                assert frame.shape == (64, 64, 3)


@fuzzed
@given(data=st.data())
def test_a_damaged_tar_with_videos_is_indexed_and_checked_or_named(tar, data, tmp_path):
    (tmp_path / "a.tar").write_bytes(data.draw(damaged(tar[0].read_bytes())))
    with only_named_errors():
        reindex(str(tmp_path), ReindexOptions(overwrite=True))
        verify(open_dataset(tmp_path))
