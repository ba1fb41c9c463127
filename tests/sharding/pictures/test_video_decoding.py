"""Every frame of a run is the one that PyAV and torchcodec give, bit for bit, or the run is refused."""

import gc
import hashlib
import io
import os
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from video.clips import OPTIONS, by_pyav, decoded, encoded, groups_of, number_of, table_of, with_colours

from epistream.errors import FormatError
from epistream.sharding.pictures.video import VideoDecoder, VideoStream
from epistream.sharding.pictures.video_file import read_video_table

CLIP = Path(__file__).parent / "clips" / "lerobot_av1.mp4"
# What LeRobot 0.4.4 gave for these frames, which reads them by torchcodec: SHA-256 of the pixels, (480, 640, 3) bytes.
BY_TORCHCODEC = {
    0: "9b3c93175699e66637f04c641c53dffa7612075ba26f5723fa76f71d9eb3606e",
    1: "78dc9f1474185ec1cfc1cd3cfc3a67066969cc3c959b66cce8dca3abc029d766",
    17: "fa4969deb70e64b61e8733d0bc44d2461a5d5870ccc8151290a97e72c3bd92bf",
}
SHARED = Path(__file__).parents[4] / "shared" / "data"
BT709, FULL = 1, 2


@pytest.fixture(scope="module")
def clips():
    """Bytes of an MP4 of 24 counted frames of 64 x 64, by name of `OPTIONS`."""
    return {name: encoded(name) for name in OPTIONS}


def num_threads():
    return len(list(Path("/proc/self/task").iterdir()))


def run_of(clips, name):
    """Decoder, table, and packets of the first group of a clip."""
    table = table_of(clips[name])
    return VideoDecoder((64, 64, 3)), table, groups_of(clips[name], table)[0]


@pytest.mark.parametrize("name", OPTIONS)
def test_frames_of_each_codec_are_those_that_pyav_gives(clips, name):
    found = decoded(clips[name])
    assert [number_of(frame) for frame in found] == list(range(24))
    np.testing.assert_array_equal(found, by_pyav(clips[name]))


@pytest.mark.parametrize("name", OPTIONS)
def test_each_frame_at_random_is_the_one_that_comes_in_order(clips, name):
    data = clips[name]
    table, whole = table_of(data), by_pyav(data)
    decoder = VideoDecoder((64, 64, 3))
    groups = groups_of(data, table)
    for step in np.random.default_rng(0).permutation(24).tolist():
        packets = groups[step // 8]
        stop = next(at for at, (number, _) in enumerate(packets) if number == step) + 1
        [(number, frame)] = decoder.pictures(table.stream, packets[:stop], {step}, "a run")
        assert number == step
        np.testing.assert_array_equal(frame, whole[step])


def test_frames_of_lerobot_are_those_that_torchcodec_gave():
    found = decoded(CLIP.read_bytes())
    assert len(found) == 18
    assert {number: hashlib.sha256(found[number].tobytes()).hexdigest() for number in BY_TORCHCODEC} == BY_TORCHCODEC


@pytest.mark.skipif(not SHARED.exists(), reason="no recordings of LeRobot here")
@pytest.mark.parametrize(
    ("version", "place", "first"),
    [
        ("v3", "{camera}/chunk-000/file-000.mp4", 0),
        ("v21", "chunk-000/{camera}/episode_000000.mp4", 0),
        ("v21", "chunk-000/{camera}/episode_000001.mp4", 150),
    ],
)
@pytest.mark.parametrize("camera", ["observation.images.top", "observation.images.angle"])
def test_recordings_of_lerobot_are_read_as_its_reader_reads_them(version, place, first, camera):
    expected = np.load(SHARED / f"lerobot_{version}_expected.npz")
    path = SHARED / f"lerobot_{version}" / "videos" / place.format(camera=camera)
    data = path.read_bytes()
    table = table_of(data)
    groups = groups_of(data, table)
    decoder = VideoDecoder((480, 640, 3))
    compared = 0
    for index, wanted in zip(expected["index"].tolist(), expected[camera], strict=True):
        step = index - first
        if 0 <= step < len(table.back):
            group = next(packets for packets in groups if step in dict(packets))
            [(_, frame)] = decoder.pictures(table.stream, group, {step}, "a run")
            np.testing.assert_array_equal(frame, wanted.transpose(1, 2, 0))
            compared += 1
    assert compared == {("v3", 0): 6, ("v21", 0): 4, ("v21", 150): 2}[version, first]


@pytest.mark.parametrize("name", ["h264 b", "hevc", "av1"])
@pytest.mark.parametrize("pixels", ["yuv420p", "yuv422p", "yuv444p", "gray", "yuv420p10le", "gray10le"])
@pytest.mark.parametrize("marks", [(None, None), (BT709, 1), (BT709, FULL), (5, FULL)])
def test_planes_and_colours_are_converted_as_pyav_converts_them(name, pixels, marks):
    if name == "av1" and pixels not in ("yuv420p", "yuv420p10le"):
        pytest.skip("SVT-AV1 does not encode it")
    if name == "hevc" and marks == (5, FULL):
        pytest.skip("as BT.709")
    data = encoded(name, 3, pixels=pixels, marks=marks)
    found = decoded(data)
    assert [number_of(frame) for frame in found] == [0, 1, 2]
    np.testing.assert_array_equal(found, by_pyav(data))


@pytest.mark.parametrize(("matrix", "is_full"), [(1, False), (1, True), (5, True), (9, False), (9, True)])
def test_a_mark_of_colours_in_the_container_alone_counts(clips, matrix, is_full):
    data = with_colours(clips["h264"], matrix, is_full)
    stream = table_of(data).stream
    assert (stream.matrix, stream.is_full_range, stream.pixel_format) == (matrix, is_full, "yuv420p")
    found = decoded(data)
    np.testing.assert_array_equal(found, by_pyav(data))
    assert not np.array_equal(found, by_pyav(clips["h264"]))


@pytest.mark.parametrize("name", OPTIONS)
def test_what_was_not_asked_for_is_not_given(clips, name):
    decoder, table, packets = run_of(clips, name)
    assert [number for number, _ in decoder.pictures(table.stream, packets, {2, 5}, "a run")] == [2, 5]
    assert list(decoder.pictures(table.stream, packets, set(), "a run")) == []


@pytest.mark.parametrize("name", OPTIONS)
def test_a_run_that_nobody_finished_leaves_nothing_to_the_next(clips, name):
    decoder, table, packets = run_of(clips, name)
    whole = by_pyav(clips[name])
    left = decoder.pictures(table.stream, packets, range(8), "left")
    next(left)
    for _ in range(2):  # beside the one that was left, and after it
        got = {number: frame.copy() for number, frame in decoder.pictures(table.stream, packets, range(8), "a run")}
        np.testing.assert_array_equal([got[number] for number in range(8)], whole[:8])
        left.close()


def test_a_decoder_goes_from_stream_to_stream(clips):
    decoder = VideoDecoder((64, 64, 3))
    for name in [*OPTIONS, *reversed(OPTIONS)]:
        np.testing.assert_array_equal(decoded(clips[name], decoder=decoder), by_pyav(clips[name]))


@pytest.mark.parametrize("name", OPTIONS)
def test_decoding_starts_no_threads_and_keeps_its_memory(clips, name):
    decoder, table, packets = run_of(clips, name)
    before = num_threads()
    for _ in decoder.pictures(table.stream, packets, range(8), "a run"):
        assert num_threads() <= before  # those of others may end meanwhile

    def resident():
        gc.collect()
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    for _ in range(100):
        list(decoder.pictures(table.stream, packets[:2], {0}, "a run"))
    warm = resident()
    for _ in range(1000):  # 12 KiB a frame: one that is kept of each run would show
        list(decoder.pictures(table.stream, packets[:2], {0}, "a run"))
    assert resident() - warm < 4 << 20


@pytest.mark.parametrize("name", OPTIONS)
def test_swapped_and_torn_packets_are_refused(clips, name):
    decoder, table, packets = run_of(clips, name)
    whole = by_pyav(clips[name])

    def answer(changed):
        try:
            found = list(decoder.pictures(table.stream, changed, range(8), "ep-000000001.top"))
        except FormatError as error:
            text = str(error)
            is_named = text.startswith("ep-000000001.top: ") and text.endswith("or download this episode again.")
            return "refused" if is_named else str(error)
        return all(np.array_equal(frame, whole[number]) for number, frame in found)

    for at in range(1, 8):
        number, data = packets[at]
        for size in (1, 2, len(data) // 2, len(data) - 1):
            # What AV1 lost behind its last tile was of no use.
            assert answer([*packets[:at], (number, data[:size]), *packets[at + 1 :]]) in ("refused", True)
        if name.startswith("h264"):  # of the others swapped ones may be whole pictures in another place
            other = packets[at - 1]
            swapped = [*packets[: at - 1], (other[0], data), (number, other[1]), *packets[at + 1 :]]
            assert answer(swapped) == "refused"
    assert answer(packets[1:]) == "refused"
    assert answer(packets) is True


def test_packets_of_other_streams_are_refused(clips):
    """Each stream's packets under each other's parameter sets."""
    for name in OPTIONS:
        for other in OPTIONS:
            table, packets = table_of(clips[name]), groups_of(clips[other], table_of(clips[other]))[0]
            if other == name or {name, other} == {"h264", "h264 b"}:
                continue
            with pytest.raises(FormatError, match="frame 0 "):
                list(VideoDecoder((64, 64, 3)).pictures(table.stream, packets, range(8), "a run"))


def test_packets_of_larger_pictures_are_refused_before_memory_is_taken(clips):
    large = encoded(("libx264", {"preset": "ultrafast"}), 1, (2048, 4096))
    stream = replace(table_of(large).stream, height=64, width=64)
    with pytest.raises(FormatError, match=r"a run: (frame 0 does not decode|a video that no decoder takes)"):
        list(VideoDecoder((64, 64, 3)).pictures(stream, groups_of(large, table_of(large))[0], {0}, "a run"))
    stream = replace(table_of(clips["h264"]).stream, height=62)
    with pytest.raises(FormatError, match=r"frame 0 is of yuv420p 64x64 \(width x height\), wanted yuv420p 64x62 \("):
        list(VideoDecoder((62, 64, 3)).pictures(stream, run_of(clips, "h264")[2], {0}, "a run"))


def test_parameter_sets_that_are_none_are_refused(clips):
    packets = run_of(clips, "h264")[2]
    stream = replace(table_of(clips["h264"]).stream, extradata=b"\x01" + bytes(20))
    with pytest.raises(FormatError, match="a run: "):
        list(VideoDecoder((64, 64, 3)).pictures(stream, packets, {0}, "a run"))


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"codec": "vp9"}, "a video as 'vp9', wanted h264, hevc, av1"),
        ({"extradata": "00"}, "parameter sets are no bytes"),
        ({"height": 0}, "width 64 and height 0"),
        ({"width": 1 << 15, "height": 1 << 15}, "wanted at most 67,108,864 pixels in all"),
        ({"pixel_format": "yuvj420p"}, "pixels 'yuvj420p', wanted one of gray"),
        ({"matrix": 0}, "colour matrix 0, wanted one of"),
        ({"is_full_range": 1}, "is_full_range 1"),
    ],
)
def test_a_stream_that_cannot_be_is_refused(changes, found):
    with pytest.raises(FormatError, match=found):
        VideoStream(**{"codec": "h264", "extradata": b"", "width": 64, "height": 64, "pixel_format": "gray"} | changes)


def test_a_stream_goes_through_plain_values():
    stream = VideoStream("hevc", b"\0\xff", 640, 480, "yuv420p10le", 9, is_full_range=True)
    assert VideoStream.from_dict(stream.to_dict()) == stream
    for wrong in (None, {}, {**stream.to_dict(), "more": 1}, {**stream.to_dict(), "extradata": "0"}, {"extradata": 3}):
        with pytest.raises(FormatError, match="a video stream"):
            VideoStream.from_dict(wrong)


def test_the_container_of_a_clip_is_not_needed_to_decode_it(clips):
    """The packets of a table alone, without the MP4 around them."""
    table = read_video_table(io.BytesIO(clips["h264"]), "clip")
    context = av.CodecContext.create("h264", "r")
    context.extradata = table.stream.extradata
    found = []
    for _, data in groups_of(clips["h264"], table)[1]:
        found += context.decode(av.Packet(data))
    found += context.decode(None)
    assert [number_of(frame.to_ndarray(format="rgb24")) for frame in found] == list(range(8, 16))
