"""Frames become an MP4 of closed groups of one length: the same bytes each time, and each frame where it belongs."""

import struct

import numpy as np
import pytest
from video.clips import by_pyav, counted, decoded, number_of, table_of

from epistream.errors import LayoutError, OptionError
from epistream.sharding.pictures.video_encoder import VideoEncoder, VideoQuality, library_versions

CAMERA = "observation.images.top"


def made(num_frames, size=(64, 64), fps=None, **quality):
    encoder = VideoEncoder(CAMERA, (*size, 3), fps, VideoQuality(**quality))
    for number in range(num_frames):
        encoder.add(counted(number, *size))
    return encoder.finish()


@pytest.mark.parametrize("gop", [1, 2, 8, 30, 250])
def test_groups_are_as_long_as_asked_for_and_no_frame_is_shifted(gop):
    video = made(gop + 13, gop=gop)
    assert video.table.back.tolist() == [step % gop for step in range(gop + 13)]
    assert video.table.group_steps == gop
    found = decoded(video.data, video.table)
    assert [number_of(frame) for frame in found] == list(range(gop + 13))
    np.testing.assert_array_equal(found, by_pyav(video.data))


@pytest.mark.parametrize("gop", [1, 8, 30])
def test_single_frames_are_decoded_again(gop):
    video = made(40, gop=gop)
    found = {step: number_of(frame) for step, frame in video.pictures((64, 64, 3), [0, 20, 7, 39, 29, 30])}
    assert found == {0: 0, 20: 20, 7: 7, 39: 39, 29: 29, 30: 30}


def test_a_table_is_what_a_reader_of_the_file_finds():
    video = made(20, gop=8)
    again = table_of(video.data)
    assert again.stream == video.table.stream
    for name in ("offset", "size", "back"):
        np.testing.assert_array_equal(getattr(again, name), getattr(video.table, name))


@pytest.mark.parametrize("size", [(481, 639), (63, 65), (64, 65), (33, 64), (17, 19)])
def test_odd_sides_lose_nothing(size):
    """What is coded beyond them is a copy of the last row and column, and is cut off again."""
    video = made(4, size, crf=4, gop=2)
    assert (video.table.stream.height, video.table.stream.width) == (size[0] + size[0] % 2, size[1] + size[1] % 2)
    whole = by_pyav(video.data)
    for step, frame in video.pictures((*size, 3), range(4)):
        assert frame.shape == (*size, 3)
        np.testing.assert_array_equal(frame, whole[step][: size[0], : size[1]])
        error = np.mean((frame.astype(float) - counted(step, *size)) ** 2)
        assert error < 60  # 30 dB; a shift by a row would be far above at the squares' edges


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (1, 7), (16, 2)])
def test_the_smallest_pictures_are_kept(size):
    encoder = VideoEncoder(CAMERA, (*size, 3), 10.0, VideoQuality(crf=1, gop=2))
    values = [40, 90, 160, 220]
    for value in values:
        encoder.add(np.full((*size, 3), value, np.uint8))
    found = [frame.copy() for _, frame in encoder.finish().pictures((*size, 3), range(4))]
    for frame, value in zip(found, values, strict=True):
        np.testing.assert_allclose(frame, value, atol=6)


def test_the_same_frames_are_the_same_bytes_and_name_no_library():
    first, again = made(20, fps=50.0).data, made(20, fps=50.0).data
    assert first == again
    assert b"Lavf" not in first


@pytest.mark.parametrize(
    ("fps", "said"), [(None, 30.0), (50.0, 50.0), (29.97, 29.97), (1e-4, 1 / 1001), (1e6, 1e6), (1e8, 1e8)]
)
def test_any_rate_is_kept_or_near(fps, said):
    video = made(3, fps=fps)
    assert video.table.fps == pytest.approx(said, rel=1e-2)
    assert number_of(decoded(video.data)[2]) == 2


def test_colours_are_marked_as_bt601_of_limited_range():
    stream = made(1).table.stream
    assert (stream.codec, stream.matrix, stream.is_full_range, stream.pixel_format) == ("h264", 6, False, "yuv420p")


def test_less_quality_takes_less():
    sizes = [len(made(30, crf=crf).data) for crf in (0, 18, 40)]
    assert sizes == sorted(sizes, reverse=True)


def test_the_index_of_the_file_says_each_key_frame():
    """As any player finds them: sample numbers of the box ``stss``."""
    data = made(20, gop=8).data
    at = data.index(b"stss") + 8
    count, *keys = struct.unpack(">4I", data[at : at + 16])
    assert (count, keys) == (3, [1, 9, 17])


@pytest.mark.parametrize(
    "frame", [np.zeros((64, 63, 3), np.uint8), np.zeros((64, 64, 1), np.uint8), np.zeros((64, 64, 3), np.int16)]
)
def test_frames_of_another_shape_are_refused(frame):
    encoder = VideoEncoder(CAMERA, (64, 64, 3), None, VideoQuality())
    with pytest.raises(LayoutError, match=rf"{CAMERA}: a frame of {frame.dtype} .*, wanted uint8 \(64, 64, 3\)"):
        encoder.add(frame)


def test_a_video_without_frames_is_refused():
    with pytest.raises(LayoutError, match=f"{CAMERA}: no frames, wanted at least one"):
        VideoEncoder(CAMERA, (64, 64, 3), None, VideoQuality()).finish()


def test_frames_may_be_strided_and_of_one_buffer():
    """As sources give them: rows of a file, turned, and the same memory for each."""
    encoder = VideoEncoder(CAMERA, (64, 64, 3), None, VideoQuality(gop=2))
    buffer = np.empty((64, 64, 3), np.uint8)
    for number in range(6):
        buffer[...] = counted(number)[::-1, ::-1]
        encoder.add(buffer[::-1, ::-1])
    assert [number_of(frame) for frame in decoded(encoder.finish().data)] == list(range(6))


def test_without_pyav_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    for ask in (library_versions, lambda: VideoEncoder(CAMERA, (64, 64, 3), None, VideoQuality())):
        with pytest.raises(OptionError, match=r"wanted PyAV.* Run: pip install 'epistream\[video\]'"):
            ask()
