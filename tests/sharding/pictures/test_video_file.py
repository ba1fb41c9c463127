"""An MP4 becomes a table of its frames in the order in which they are shown, or is refused by name."""

import io
import struct

import numpy as np
import pytest
from video.clips import (
    OPEN,
    OPTIONS,
    STBL,
    by_pyav,
    changed_box,
    decoded,
    encoded,
    number_of,
    table_of,
    turned,
    with_edit,
    with_sound,
    with_two_entries,
    with_two_videos,
)

from epistream.errors import FormatError
from epistream.sharding.pictures.video_file import read_video_table


@pytest.fixture(scope="module")
def plain():
    return encoded()


@pytest.fixture(scope="module")
def reordered():
    """With frames that are shown in another order than they lie in, and so with an edit list that shifts them."""
    return encoded("h264 b")


def assert_frames(data, numbers):
    found = decoded(data)
    assert [number_of(frame) for frame in found] == list(numbers)
    np.testing.assert_array_equal(found, by_pyav(data))


@pytest.mark.parametrize("name", OPTIONS)
def test_groups_and_packets_are_found(name):
    data = encoded(name, 20)
    table = table_of(data)
    assert table.back.tolist() == [*range(8), *range(8), *range(4)]
    assert (table.group_steps, table.fps) == (8, 30.0)
    assert (table.stream.height, table.stream.width, table.stream.codec) == (64, 64, name.partition(" ")[0])
    assert (np.sort(table.offset)[:-1] + table.size[np.argsort(table.offset)][:-1] <= np.sort(table.offset)[1:]).all()


def test_frames_that_are_shown_in_another_order_stand_where_they_are_shown(reordered):
    assert (np.diff(table_of(reordered).offset.astype(np.int64)) < 0).any()
    assert_frames(reordered, range(24))


def test_an_edit_list_that_only_shifts_is_right(plain, reordered):
    started = []
    changed_box(reordered, b"moov/trak/edts/elst", lambda inside: started.append(inside[12:16]) or inside)
    assert struct.unpack(">i", started[0])[0] > 0
    assert_frames(with_edit(plain, 0), range(24))


@pytest.mark.parametrize(("start", "duration"), [(1024, None), (512, None), (0, 400), (512 * 10, None)])
def test_an_edit_list_that_hides_frames_is_refused(plain, start, duration):
    with pytest.raises(FormatError, match="clip: an edit list that hides frames, wanted every frame to be shown"):
        table_of(with_edit(plain, start, duration))


def test_an_edit_list_that_hides_frames_behind_others_is_refused(reordered):
    with pytest.raises(FormatError, match="clip: an edit list that hides frames"):
        table_of(with_edit(reordered, 1024 + 3 * 512))


def test_an_edit_list_that_begins_with_a_later_group_gives_what_players_show(plain):
    assert_frames(with_edit(plain, 8 * 512), range(8, 24))


def test_uneven_times_are_one_step_each(plain):
    data = encoded(times=[number * number for number in range(24)])
    assert_frames(data, range(24))
    np.testing.assert_array_equal(table_of(data).back, table_of(plain).back)


def test_fragments_are_read():
    assert_frames(encoded(muxer={"movflags": "frag_keyframe+empty_moov"}), range(24))


def test_sound_beside_a_video_is_left_alone(plain):
    data = with_sound(plain)
    assert b"soun" in data
    assert_frames(data, range(24))


def test_open_groups_are_refused():
    with pytest.raises(FormatError, match=r"clip: open groups of pictures \(frames after a key frame"):
        table_of(encoded(OPEN))


def test_two_videos_in_one_file_are_refused(plain):
    with pytest.raises(FormatError, match="clip: 2 video streams, wanted one a camera"):
        table_of(with_two_videos(plain))


def test_two_sets_of_parameters_are_refused(plain):
    other = encoded(("libx264", {"x264-params": "keyint=8:ref=1:cabac=0"}))
    with pytest.raises(FormatError, match="clip: several sets of parameters, wanted one for all frames"):
        table_of(with_two_entries(plain, other))


def test_pictures_that_must_be_turned_are_refused(plain):
    with pytest.raises(FormatError, match=r"clip: pictures to be turned by -?90 degrees, wanted them upright"):
        table_of(turned(plain))


@pytest.mark.parametrize("matrix", [(1, 0, 0, -1), (-1, 0, 0, 1)])
def test_pictures_that_must_be_mirrored_are_refused(plain, matrix):
    with pytest.raises(FormatError, match=r"clip: pictures to be (mirrored|turned by -?180 degrees), wanted them upr"):
        table_of(turned(plain, matrix))


def test_codecs_that_nobody_reads_are_refused():
    with pytest.raises(FormatError, match="clip: a video as mpeg4, wanted h264, hevc, av1"):
        table_of(encoded(("mpeg4", {})))


@pytest.mark.parametrize(("pixels", "found"), [("yuv444p10le", "yuv444p10le"), ("yuv422p10le", "yuv422p10le")])
def test_pixels_that_nobody_converts_are_refused(pixels, found):
    with pytest.raises(FormatError, match=f"clip: a video of pixels '{found}', wanted one of gray"):
        table_of(encoded("h264", 2, pixels=pixels))


def test_pixels_without_a_matrix_are_refused():
    with pytest.raises(FormatError, match=r"clip: a video (of pixels 'gbrp'|with colour matrix 0), wanted one of"):
        table_of(encoded(("libx264rgb", {}), 2, pixels="rgb24"))


def test_interlaced_pictures_are_refused():
    with pytest.raises(FormatError, match="clip: interlaced pictures, wanted whole ones"):
        table_of(encoded(("libx264", {"x264-params": "tff=1"}), 4))


def test_two_frames_at_one_time_are_refused(plain):
    still = changed_box(plain, STBL + b"stts", lambda inside: inside[:12] + bytes(4))
    with pytest.raises(FormatError, match=r"clip: (two frames at the same time|packets without a time)"):
        table_of(still)


@pytest.mark.parametrize("data", [b"", b"\0" * 100, b"RIFF....WEBPVP8 ", b"\x1aE\xdf\xa3" + bytes(50)])
def test_what_is_no_mp4_is_refused(data):
    with pytest.raises(FormatError, match="clip: no MP4 that FFmpeg reads"):
        table_of(data)


def test_a_torn_file_is_refused_wherever_it_ends(plain):
    """The index lies at the end: without it nothing is found, and with it nothing is missing."""
    for size in range(0, len(plain) - 64, 97):
        with pytest.raises(FormatError, match="clip: "):
            table_of(plain[:size])


def test_packets_beyond_the_end_are_refused(plain):
    data = changed_box(plain, STBL + b"stco", lambda inside: inside[:8] + struct.pack(">I", len(plain) - 40))
    with pytest.raises(FormatError, match="clip: "):
        table_of(data)


def test_a_file_is_read_from_its_beginning_wherever_it_stands(plain):
    file = io.BytesIO(plain)
    file.seek(100)
    np.testing.assert_array_equal(read_video_table(file, "clip").offset, table_of(plain).offset)


def test_tags_in_any_encoding_are_left_alone(plain):
    named = plain.replace(b"Lavf", b"\xff\xfe\xfa\xfb")
    assert named != plain
    assert [number_of(frame) for frame in decoded(named)] == list(range(24))
