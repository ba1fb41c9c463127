"""A table made of an MP4's index alone says of each frame what FFmpeg says, with a few reads; else it is refused."""

import struct
from pathlib import Path

import numpy as np
import pytest
from video.clips import (
    OPEN,
    OPTIONS,
    STBL,
    changed_box,
    encoded,
    table_of,
    turned,
    with_colours,
    with_edit,
    with_sound,
    with_two_entries,
    with_two_videos,
)
from video.mp4s import Reading, copied, demuxed, mp4_table_of, rows_of, stream_in

from epistream.errors import FormatError
from epistream.sharding.pictures.mp4_boxes import next_part
from epistream.sharding.pictures.mp4_table import read_mp4_table, stream_of

CLIP = Path(__file__).parent / "clips" / "lerobot_av1.mp4"
SHARED = Path(__file__).parents[4] / "shared" / "data"
ELST = b"moov/trak/edts/elst"
ONE = 1 << 16


@pytest.fixture(scope="module")
def plain():
    return encoded()


@pytest.fixture(scope="module")
def reordered():
    return encoded("h264 b")


def assert_as_ffmpeg(data):
    table, known = mp4_table_of(data), table_of(data)
    assert rows_of(table) == demuxed(data)
    np.testing.assert_array_equal(table.back, known.back)
    assert (table.fps, table.group_steps) == (known.fps, known.group_steps)
    assert (table.offset.dtype, table.size.dtype, table.back.dtype) == (np.uint64, np.uint32, np.uint32)
    assert table.extradata == known.stream.extradata
    assert stream_in(data) == known.stream
    return table


@pytest.mark.parametrize("name", OPTIONS)
def test_frames_of_each_codec_are_where_ffmpeg_finds_them(name):
    table = assert_as_ffmpeg(encoded(name))
    assert (table.codec, table.width, table.height, table.fps) == (name.partition(" ")[0], 64, 64, 30.0)
    assert table.back.tolist() == [*range(8)] * 3
    np.testing.assert_allclose(table.time, np.arange(24) / 30, rtol=0, atol=1e-9)


def test_frames_of_lerobot_are_where_ffmpeg_finds_them():
    table = assert_as_ffmpeg(CLIP.read_bytes())
    assert (table.codec, table.fps, table.group_steps) == ("av1", 50.0, 2)


@pytest.mark.skipif(not SHARED.exists(), reason="no recordings of LeRobot here")
def test_frames_of_lerobots_files_are_where_ffmpeg_finds_them():
    paths = [path for version in ("v3", "v21") for path in (SHARED / f"lerobot_{version}").rglob("*.mp4")]
    assert len(paths) == 6
    for path in paths:
        assert_as_ffmpeg(path.read_bytes())


@pytest.mark.parametrize(
    "muxer",
    [
        {"video_track_timescale": "90000"},
        {"video_track_timescale": "30"},
        {"movflags": "negative_cts_offsets"},
        {"use_editlist": "0"},
        {"movie_timescale": "7"},
    ],
)
@pytest.mark.parametrize("name", ["h264", "h264 b"])
def test_other_ways_of_writing_times_are_read_as_ffmpeg_reads_them(name, muxer):
    assert_as_ffmpeg(encoded(name, muxer=muxer))


@pytest.mark.parametrize("first", [0, 5])
def test_uneven_times_and_late_beginnings_are_those_of_ffmpeg(first):
    table = assert_as_ffmpeg(encoded("h264 b", times=[first + number * number for number in range(24)]))
    assert np.ptp(np.diff(table.time)) > 1


@pytest.mark.parametrize("name", ["h264", "h264 b"])
def test_videos_joined_by_packet_copy_are_read_on_through(name, tmp_path):
    parts = [encoded(name, 20), encoded(name, 9), encoded(name, 1)]
    table = assert_as_ffmpeg(copied(parts, tmp_path / "a.mp4"))
    np.testing.assert_allclose(table.time, np.arange(30) / 30, rtol=0, atol=1e-9)
    assert table.back.tolist() == [*range(8), *range(8), *range(4), *range(8), 0, 0]


def test_an_index_in_front_takes_one_read_and_one_for_the_picture(reordered, tmp_path):
    data = copied([reordered], tmp_path / "a.mp4", movflags="faststart")
    assert data.index(b"moov") < data.index(b"mdat")
    assert_as_ffmpeg(data)
    long = data + struct.pack(">I4s", 1 << 20, b"free") + bytes((1 << 20) - 8)
    reading = Reading(long)
    table = read_mp4_table(reading, len(long), "clip")
    stream_of(table, reading, "clip")
    assert reading.parts == [(0, 1 << 12), (int(table.offset[0]), int(table.size[0]))]


def behind(data, num_bytes, *, is_long=False):
    """The file with so many bytes more of pictures in front of its index, which lies at the end."""
    start = data.index(b"mdat") - 4
    (size,) = struct.unpack_from(">I", data, start)
    inside = data[start + 8 : start + size] + bytes(num_bytes)
    if is_long:  # with the free box in front as room, as FFmpeg does it
        assert data[start - 4 : start] == b"free"
        head = data[: start - 8] + struct.pack(">I4sQ", 1, b"mdat", len(inside) + 16)
    else:
        head = data[:start] + struct.pack(">I4s", len(inside) + 8, b"mdat")
    return head + inside + data[start + size :]


@pytest.mark.parametrize("is_long", [False, True])
def test_an_index_at_the_end_takes_two_reads(reordered, is_long):
    data = behind(reordered, 1 << 20, is_long=is_long)
    assert_as_ffmpeg(data)
    reading = Reading(data)
    read_mp4_table(reading, len(data), "clip")
    assert reading.parts == [(0, 1 << 12), (data.index(b"moov") - 4, len(data) - data.index(b"moov") + 4)]


def test_an_index_that_is_very_long_takes_three_reads(reordered):
    more = struct.pack(">I4s", 2 << 20, b"udta") + bytes((2 << 20) - 8)
    data = behind(changed_box(reordered, b"moov", lambda inside: inside + more), 1 << 17)
    assert_as_ffmpeg(data)
    reading = Reading(data)
    read_mp4_table(reading, len(data), "clip")
    start = data.index(b"moov") - 4
    assert reading.parts == [(0, 1 << 12), (start, 1 << 20), (start + (1 << 20), len(data) - start - (1 << 20))]


def test_offsets_of_64_bits_are_read(reordered):
    def long(inside):
        count, *places = struct.unpack(f">{(len(inside) - 4) // 4}I", inside[4:])
        return inside[:4] + struct.pack(f">I{count}Q", count, *places)

    data = changed_box(reordered, STBL + b"stco", long).replace(b"stco", b"co64")
    assert rows_of(mp4_table_of(data)) == demuxed(data) == demuxed(reordered)


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_compact_sizes_are_read(bits):
    data = encoded("h264", 9)
    known = mp4_table_of(data)
    sizes = [int(size) % (1 << bits) or 1 for size in known.size]

    def compact(inside):
        if bits == 4:
            pairs = [*sizes, 0]
            packed = bytes(first << 4 | second for first, second in zip(pairs[::2], pairs[1::2], strict=True))
        else:
            packed = struct.pack(f">9{'BH'[bits == 16]}", *sizes)
        return struct.pack(">IIII", 0, 0, 0, 0)[:7] + bytes([bits]) + struct.pack(">I", 9) + packed

    changed = changed_box(data, STBL + b"stsz", compact).replace(b"stsz", b"stz2")
    assert mp4_table_of(changed).size.tolist() == sizes
    assert [row[1:3] for row in demuxed(changed)] == [row[1:3] for row in rows_of(mp4_table_of(changed))]


def test_sound_beside_a_video_is_left_alone(plain, reordered):
    for data in (plain, reordered):
        assert_as_ffmpeg(with_sound(data))


def with_edits(data, edits, version=0):
    layout = ">Iii" if version == 0 else ">Qqi"
    rows = b"".join(struct.pack(layout, *edit) for edit in edits)
    return changed_box(data, ELST, lambda inside: struct.pack(">II", version << 24, len(edits)) + rows)


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize(
    "edits",
    [[], [(800, 0, ONE)], [(5000, 0, ONE)], [(267, 0, ONE)], [(800, 4096, ONE)], [(500, -1, ONE), (800, 0, ONE)]],
)
def test_edit_lists_that_leave_whole_groups_count_as_in_ffmpeg(plain, edits, version):
    assert_as_ffmpeg(with_edits(plain, edits, version))


@pytest.mark.parametrize("edit", [(1024, None), (1024 + 8 * 512, None), (1024 + 16 * 512, None)])
def test_edit_lists_of_frames_in_another_order_count_as_in_ffmpeg(reordered, edit):
    assert_as_ffmpeg(with_edit(reordered, *edit))


@pytest.mark.parametrize("edit", [(0, 400), (0, 401), (512, 400), (0, 385), (511, 400), (0, 33), (512 * 23, 33)])
def test_edit_lists_of_key_frames_alone_count_as_in_ffmpeg(edit):
    data = with_edit(encoded(("libx264", {"x264-params": "keyint=1"})), *edit)
    try:
        table_of(data)
    except FormatError:
        with pytest.raises(FormatError, match="an edit list that hides frames"):
            mp4_table_of(data)
    else:
        assert_as_ffmpeg(data)


@pytest.mark.parametrize(
    "edits",
    [[(800, 0, ONE), (800, 0, ONE)], [(800, 0, ONE), (9, -1, ONE)], [(800, 0, 0)], [(800, 0, 2 * ONE)], [(9, -2, ONE)]],
)
def test_edit_lists_of_several_parts_or_speeds_are_refused(plain, edits):
    with pytest.raises(FormatError, match="clip: an edit list of several parts or another speed, wanted all frames on"):
        mp4_table_of(with_edits(plain, edits))


@pytest.mark.parametrize(
    "edits",
    [[(800, 1024, ONE)], [(800, 512, ONE)], [(400, 0, ONE)], [(0, 0, ONE)], [(800, 5120, ONE)], [(800, -1, ONE)]],
)
def test_edit_lists_that_hide_frames_are_refused(plain, edits):
    with pytest.raises(FormatError, match="clip: an edit list that hides frames, wanted every frame to be shown"):
        mp4_table_of(with_edits(plain, edits))


def test_groups_that_are_not_closed_are_refused():
    with pytest.raises(FormatError, match=r"clip: open groups of pictures \(frames after a key frame .* -bf 0 -g 30"):
        mp4_table_of(encoded(OPEN))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_two_videos, "2 video streams, wanted one a camera. Split it"),
        (lambda data: data.replace(b"vide", b"soun"), "0 video streams, wanted one a camera"),
        (turned, "pictures to be turned by -?90 degrees, wanted them upright"),
        (lambda data: turned(data, (1, 0, 0, -1)), "pictures to be mirrored, moved or stretched, wanted them upright"),
        (lambda data: turned(data, (-1, 0, 0, 1)), "pictures to be turned by -?180 degrees, wanted them upright"),
        (lambda data: data.replace(b"avc1", b"encv"), "an encrypted video, wanted a plain one"),
        (lambda data: data.replace(b"btrt", b"sinf"), "an encrypted video, wanted a plain one"),
        (lambda data: data.replace(b"avc1", b"vp09"), "a video as 'vp09', wanted h264, hevc, av1"),
        (lambda data: data.replace(b"avcC", b"free"), "an index without avcC, wanted a whole MP4"),
        (lambda data: data.replace(b"stss", b"stsx"), ""),
        (lambda data: changed_box(data, STBL + b"stss", lambda _: bytes(8)), "no key frame at the beginning"),
        (lambda data: changed_box(data, STBL + b"stss", lambda _: bytes(7) + b"\1" + bytes(4)), "key frame 0 of 24"),
        (lambda data: changed_box(data, STBL + b"stss", lambda _: bytes(7) + b"\1\0\0\0\x19"), "key frame 25 of 24"),
        (
            lambda data: changed_box(data, STBL + b"stts", lambda inside: inside[:12] + bytes(4)),
            "two frames at the same time, wanted each at its own",
        ),
        (
            lambda data: changed_box(data, STBL + b"stco", lambda inside: inside[:8] + struct.pack(">I", len(data))),
            r"[\d,]+ bytes, wanted [\d,]+ or more as its index says",
        ),
        (lambda data: changed_box(data, b"moov", lambda inside: inside + b"\0\0\0\x08mvex"), "an MP4 in fragments"),
        (lambda data: changed_box(data, b"moov", lambda inside: b"\0\0\0\x08cmov" + inside), "a compressed index"),
        (lambda data: data.replace(b"moov", b"moof"), "an MP4 in fragments, wanted one index of all frames"),
        (lambda data: data.replace(b"moov", b"free"), r"no index \(moov\), wanted a whole MP4"),
        (lambda data: data[:-1], r"[\d,]+ bytes, wanted [\d,]+ or more as its box 'moov' says. The file is cut off"),
        (lambda data: b"\x1aE\xdf\xa3" + data, "no MP4 .it begins with"),
        (lambda data: b"", "no index"),
    ],
)
def test_what_is_no_whole_video_is_refused_by_name(plain, change, message):
    data = change(plain)
    if message:
        with pytest.raises(FormatError, match=f"clip.*: {message}"):
            mp4_table_of(data)
    else:  # every frame is a key frame where nothing says which ones are
        assert mp4_table_of(data).back.tolist() == [0] * 24


def test_two_sets_of_parameters_are_refused(plain):
    other = encoded(("libx264", {"x264-params": "keyint=8:ref=1:cabac=0"}))
    with pytest.raises(FormatError, match="clip: 2 sets of parameters, wanted one for all frames"):
        mp4_table_of(with_two_entries(plain, other))


def test_fragments_are_refused_with_a_cure():
    data = encoded(muxer={"movflags": "frag_keyframe+empty_moov"})
    with pytest.raises(FormatError, match=r"clip: an MP4 in fragments, .*: ffmpeg -i IN -c copy"):
        mp4_table_of(data)


@pytest.mark.parametrize("name", ["h264", "hevc", "av1"])
@pytest.mark.parametrize(("matrix", "is_full"), [(1, False), (5, True), (9, True), (77, False)])
def test_marks_of_colours_in_the_container_count_as_in_ffmpeg(name, matrix, is_full):
    data = with_colours(encoded(name), matrix, is_full)
    table = assert_as_ffmpeg(data)
    assert (table.matrix, table.is_full_range) == (matrix if matrix != 77 else 2, is_full)


@pytest.mark.parametrize("marks", [(1, 1), (1, 2), (5, 2)])
@pytest.mark.parametrize("pixels", ["yuv420p", "yuv444p", "gray", "yuv420p10le"])
def test_marks_of_colours_in_the_pictures_count(pixels, marks):
    assert_as_ffmpeg(encoded("h264 b", 3, pixels=pixels, marks=marks))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda: encoded("h264", 2, pixels="yuv444p10le"), "a video of pixels 'yuv444p10le', wanted one of gray"),
        (lambda: encoded(("libx264", {"x264-params": "tff=1"}), 4), "interlaced pictures, wanted whole ones"),
    ],
)
def test_pictures_that_nobody_shows_are_refused_by_the_first_one(data, message):
    with pytest.raises(FormatError, match=f"clip: {message}"):
        stream_in(data())


def test_a_first_picture_that_does_not_decode_is_refused(plain):
    table = mp4_table_of(plain)
    start, size = int(table.offset[0]), int(table.size[0])
    broken = plain[:start] + bytes([255]) * size + plain[start + size :]
    with pytest.raises(FormatError, match="clip: a first frame that does not decode"):
        stream_in(broken)
    with pytest.raises(FormatError, match=r"clip: 3 bytes at byte \d+, wanted [\d,]+. The file is cut off"):
        stream_of(table, lambda offset, size: plain[offset : offset + 3], "clip")


def test_reads_that_end_early_are_refused(plain):
    with pytest.raises(FormatError, match=r"clip: 100 bytes at byte 0, wanted .* The file changed while it was read"):
        read_mp4_table(lambda offset, size: plain[offset : offset + min(size, 100)], len(plain), "clip")


@pytest.fixture(scope="module")
def long():
    return encoded(num_frames=600)


@pytest.mark.parametrize("in_front", [False, True])
@pytest.mark.parametrize("first_bytes", [1 << 12, 1 << 15])
def test_part_that_is_read_after_the_first_bytes_is_told_beforehand(long, in_front, first_bytes, tmp_path):
    data = copied([long], tmp_path / "a.mp4", **({"movflags": "faststart"} if in_front else {}))
    reading = Reading(data)
    read_mp4_table(reading, len(data), "clip.mp4")
    told = next_part(data[:first_bytes], len(data))
    beyond = [(start, start + size) for start, size in reading.parts if start + size > first_bytes]
    assert beyond == ([] if told is None else [told])
    if in_front and told is not None:
        assert told[1] - told[0] < 1 << 15, "no frames behind an index whose end is known"


@pytest.mark.parametrize("data", [b"", b"ftyp", bytes(5000), b"\x00\x00\x00\x08wide" * 600])
def test_no_part_is_told_of_what_is_no_mp4(data):
    assert next_part(data[:4096], len(data)) is None
