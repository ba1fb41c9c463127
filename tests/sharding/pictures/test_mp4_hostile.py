"""Whatever bytes an MP4 holds, its table is right or refused: no other error, no allocation by announced counts."""

import itertools
import struct
import tracemalloc

import numpy as np
import pytest
from fuzzing import damaged, fuzzed, only_named_errors
from hypothesis import given
from hypothesis import strategies as st
from video.clips import STBL, changed_box, encoded, with_colours, with_sound
from video.mp4s import Reading, copied, cut_places, mp4_table_of

from epistream.errors import FormatError
from epistream.sharding.pictures.mp4_table import read_mp4_table, stream_of

_TABLES = (b"stsz", b"stts", b"ctts", b"stsc", b"stco", b"stss", b"elst", b"stsd", b"mvhd", b"mdhd", b"tkhd", b"hdlr")
_EXTREME = (0, 1, 2, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x01000000, 0x10000)


@pytest.fixture(scope="module")
def clip():
    """With everything that a file may have: sound, colours, frames in another order."""
    return with_sound(with_colours(encoded("h264 b", 12), 1, True))


@pytest.fixture(scope="module")
def index(clip):
    """The index alone, and what lies before it."""
    return clip[: clip.index(b"moov") - 4], clip[clip.index(b"moov") - 4 :]


def assert_right_or_refused(data, file_bytes=None):
    """Rows that a reader may trust, or an error of ours."""
    reading = Reading(data)
    file_bytes = len(data) if file_bytes is None else file_bytes
    with only_named_errors():
        table = read_mp4_table(reading, file_bytes, "clip")
        steps = np.arange(len(table.time))
        assert 0 < len(steps) == len(table.offset) == len(table.size) == len(table.back)
        assert (np.diff(table.time) >= 0).all()
        assert np.isfinite(table.time).all()
        assert (table.offset.astype(object) + table.size <= file_bytes).all()
        assert (table.size > 0).all()
        assert (table.back <= steps).all()
        assert (table.back[steps - table.back] == 0).all()
        np.testing.assert_array_equal(np.diff(table.back)[table.back[1:] > 0], 1)
        stream_of(table, reading, "clip")
    assert len(reading.parts) <= 17


@fuzzed
@given(st.binary(max_size=400))
def test_random_bytes_are_refused(data):
    with pytest.raises(FormatError, match="clip: "):
        mp4_table_of(data)


@fuzzed
@given(st.data())
def test_a_damaged_index_is_right_or_refused(index, data):
    head, moov = index
    assert_right_or_refused(head + data.draw(damaged(moov)))


@fuzzed
@given(st.data())
def test_damaged_numbers_of_tables_are_right_or_refused(clip, data):
    changed = bytearray(clip)
    for _ in range(data.draw(st.integers(1, 3))):
        kind = data.draw(st.sampled_from(_TABLES))
        start = clip.index(kind, clip.index(b"moov"))
        size = struct.unpack_from(">I", clip, start - 4)[0]
        place = start + 4 * data.draw(st.integers(-1, size // 4 - 2))
        struct.pack_into(">I", changed, place, data.draw(st.sampled_from(_EXTREME) | st.integers(0, 0xFFFFFFFF)))
    assert_right_or_refused(bytes(changed))


def test_each_number_of_each_table_at_its_extremes_is_right_or_refused(clip):
    for kind in _TABLES:
        start = clip.index(kind, clip.index(b"moov"))
        size = struct.unpack_from(">I", clip, start - 4)[0]
        for place, value in itertools.product(range(start - 4, min(start + size - 4, start + 44), 4), _EXTREME):
            assert_right_or_refused(clip[:place] + struct.pack(">I", value) + clip[place + 4 :])


@pytest.mark.parametrize("is_in_front", [False, True])
def test_a_file_that_ends_at_any_border_is_refused(tmp_path, is_in_front):
    options = {"movflags": "faststart"} if is_in_front else {}
    data = copied([encoded("h264 b", 12)], tmp_path / "a.mp4", **options)
    places = sorted(
        {size for place in cut_places(data) for size in (place - 1, place, place + 1) if 0 <= size < len(data)}
    )
    assert len(places) > 40
    for size in places:
        with pytest.raises(FormatError, match="clip: "):
            mp4_table_of(data[:size])


def test_announced_counts_are_compared_before_anything_is_allocated(clip):
    def many(inside, at):
        return inside[:at] + struct.pack(">I", 0xFFFFFFF0) + inside[at + 4 :]

    tracemalloc.start()
    try:
        for kind, at in [
            (b"stsz", 8),
            (b"stts", 4),
            (b"stts", 8),
            (b"stsc", 4),
            (b"stsc", 12),
            (b"stco", 4),
            (b"stss", 4),
        ]:
            data = changed_box(clip, STBL + kind, lambda inside, at=at: many(inside, at))
            with pytest.raises(FormatError, match="clip: "):
                mp4_table_of(data)
        equal = changed_box(clip, STBL + b"stsz", lambda _: struct.pack(">III", 0, 1, 0xFFFFFFFF))
        with pytest.raises(FormatError, match=r"clip: 4,294,967,295 frames of 1 bytes, wanted them in [\d,]+ bytes"):
            mp4_table_of(equal)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_an_index_of_more_than_256_mib_is_not_read():
    head = struct.pack(">I4s", (1 << 28) + 1, b"moov")
    parts = []

    def read(offset, size):
        parts.append(size)
        return (head + bytes(size))[:size]

    with pytest.raises(FormatError, match=r"clip: an index \(moov\) of 256.0 MiB, wanted at most 256.0 MiB|bytes"):
        read_mp4_table(read, 1 << 30, "clip")
    assert parts == [1 << 12]


def test_boxes_without_number_are_refused(clip):
    small = struct.pack(">I4s", 8, b"free")
    with pytest.raises(FormatError, match="clip: an index of more than 256 boxes side by side"):
        mp4_table_of(changed_box(clip, b"moov", lambda inside: small * 1000 + inside))
    with pytest.raises(FormatError, match="clip: no index"):
        mp4_table_of(small * 1000 + clip)
    far = (struct.pack(">I4s", 1 << 17, b"free") + bytes((1 << 17) - 8)) * 20
    for data in (far + clip, far * 10 + clip):
        assert_right_or_refused(data)
