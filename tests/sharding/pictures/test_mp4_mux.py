"""Videos that are joined by copying packets are shown as before, each frame at its exact time, by readers of others."""

import hashlib
import io
import itertools
from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest
from video.clips import OPTIONS, by_pyav, encoded, groups_of, table_of, with_colours
from video.mp4s import clip_of_packets, demuxed, mp4_table_of, rows_of, stream_in

from epistream.errors import FormatError, PackError, SourceError
from epistream.sharding.pictures.mp4_mux import can_join, probe_fps, write_mp4
from epistream.sharding.pictures.video import VideoStream

RATES = [
    Fraction(30),
    Fraction(50),
    Fraction(10),
    Fraction(15),
    Fraction(30_000, 1001),
    Fraction(1, 3),
    Fraction(997, 7),
]
TOY = VideoStream("h264", b"parameters", 64, 48, "yuv420p")


def clip_of(data, fps=Fraction(30)):
    """A clip of all packets of an MP4."""
    table = table_of(data)
    packets = itertools.chain.from_iterable(groups_of(data, table))
    return clip_of_packets(table.stream, fps, [(row, table.back[row] == 0, packet) for row, packet in packets])


def written(tmp_path, clips):
    """Bytes of the file, and where each clip starts."""
    starts = write_mp4(tmp_path / "a.mp4", clips, "clip")
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
    return (tmp_path / "a.mp4").read_bytes(), starts


def toy(steps=(0, 1, 2), fps=Fraction(30), stream=TOY, keys=(0,)):
    return clip_of_packets(stream, fps, [(step, step in keys, bytes([step + 1]) * (step + 1)) for step in steps])


@pytest.mark.parametrize("name", OPTIONS)
def test_joined_videos_are_decoded_by_others_to_the_same_frames(name, tmp_path):
    parts = [encoded(name, 20), encoded(name, 5), encoded(name, 24)]
    data, starts = written(tmp_path, [clip_of(part) for part in parts])
    np.testing.assert_array_equal(by_pyav(data), np.concatenate([by_pyav(part) for part in parts]))
    assert starts == [0.0, 20 / 30, 25 / 30]
    table = mp4_table_of(data)
    assert rows_of(table) == demuxed(data)
    assert stream_in(data) == table_of(parts[0]).stream == table_of(data).stream
    np.testing.assert_array_equal(table.time, np.arange(49) / 30)
    np.testing.assert_array_equal(table.back, np.concatenate([table_of(part).back for part in parts]))
    packets = [packet for part in parts for group in groups_of(part, table_of(part)) for _, packet in group]
    assert [packet for group in groups_of(data, table) for _, packet in group] == packets


@pytest.mark.parametrize("fps", RATES, ids=str)
@pytest.mark.parametrize("name", ["h264", "h264 b"])
def test_each_frame_is_found_by_the_rule_of_lerobot(name, fps, tmp_path):
    """It takes the frame `round(timestamp * average rate)`, and wants it within 1e-4 s of the timestamp."""
    data, starts = written(tmp_path, [clip_of(encoded(name, count), fps) for count in (9, 1, 12)])
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == stream.guessed_rate == fps
        shown = [float(frame.pts * frame.time_base) for frame in container.decode(stream)]
    assert len(shown) == 22
    for start, first, count in zip(starts, (0, 9, 10), (9, 1, 12), strict=True):
        for frame in range(count):
            timestamp = start + frame / float(fps)
            index = round(timestamp * float(fps))
            assert index == first + frame
            assert abs(shown[index] - timestamp) < 1e-4
    assert mp4_table_of(data).fps == float(fps)
    assert probe_fps(mp4_table_of(data).time) == fps


def test_frames_in_another_order_are_decoded_before_they_are_shown(tmp_path):
    data, _ = written(tmp_path, [clip_of(encoded("h264 b", 20)), clip_of(encoded("h264 b", 9))])
    with av.open(io.BytesIO(data)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    assert [packet.pts for packet in packets] != sorted(packet.pts for packet in packets)
    assert [packet.dts for packet in packets] == [512 * (number - 2) for number in range(29)]
    assert all(packet.dts <= packet.pts for packet in packets)
    assert {packet.duration for packet in packets} == {512}


@pytest.mark.parametrize("name", ["h264", "hevc", "av1"])
@pytest.mark.parametrize(("matrix", "is_full"), [(1, False), (2, True), (9, True)])
def test_colours_that_only_the_container_says_are_kept(name, matrix, is_full, tmp_path):
    marked = with_colours(encoded(name), matrix, is_full)
    data, _ = written(tmp_path, [clip_of(marked)])
    assert stream_in(data) == stream_in(marked)
    np.testing.assert_array_equal(by_pyav(data), by_pyav(marked))


def test_colours_that_nothing_says_stay_unsaid(tmp_path):
    data, _ = written(tmp_path, [clip_of(encoded())])
    assert b"colr" not in data


def test_the_same_packets_give_the_same_bytes(tmp_path):
    """Written out, so that no release of FFmpeg and no clock has a say."""
    data, starts = written(tmp_path, [toy((0, 3, 1, 2)), toy()])
    assert starts == [0.0, 4 / 30]
    assert data[:32] == b"\0\0\0\x20ftypisom\0\0\x02\0isomiso2mp41avc1"
    assert data[32:64] == b"\0\0\0\x01mdat\0\0\0\0\0\0\0\x20" + bytes([1, 4, 4, 4, 4, 2, 2, 3, 3, 3, 1, 2, 2, 3, 3, 3])
    assert hashlib.sha256(data).hexdigest() == "742b23fac5fa595e0257f40674b021d87c80de2cabb4f230fc8589da976fa416"
    table = mp4_table_of(data)
    assert table.time.tolist() == [step / 30 for step in range(7)]
    assert table.size.tolist() == [1, 2, 3, 4, 1, 2, 3]
    assert table.offset.tolist() == [48, 53, 55, 49, 58, 59, 61]
    assert table.back.tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert (table.width, table.height, table.extradata) == (64, 48, b"parameters")


def test_a_file_that_is_there_is_replaced_only_by_a_whole_one(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"old")

    def torn():
        yield b"a"
        raise SourceError("a.tar: gone. Copy it again.")

    with pytest.raises(SourceError, match=r"a.tar: gone"):
        write_mp4(tmp_path / "a.mp4", [toy(), replace(toy(), data=torn())], "clip")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.mp4", b"old")]
    written(tmp_path, [toy()])


def test_bytes_in_pieces_of_any_size_give_the_same_file(tmp_path):
    whole, _ = written(tmp_path, [toy(), toy((0, 2, 1))])
    pieces = [memoryview(b"\1\2"), b"", b"\2\3\3\3"]
    assert written(tmp_path, [replace(toy(), data=pieces), toy((0, 2, 1))])[0] == whole


def test_a_file_that_the_caller_publishes_is_not_waited_for(tmp_path, monkeypatch):
    whole, _ = written(tmp_path, [toy()])
    monkeypatch.setattr("os.fsync", lambda _: 1 / 0)
    write_mp4(tmp_path / "a.mp4", [toy()], "clip", publishes=False)
    assert (tmp_path / "a.mp4").read_bytes() == whole


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(PackError, match=r"no/a.mp4: cannot write after 0 bytes \(No such file or directory\)"):
        write_mp4(tmp_path / "no" / "a.mp4", [toy()], "clip")


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(PackError, match=r"a.mp4: cannot write after \d+ bytes \(No space left on device\). Make room"):
        write_mp4(tmp_path / "a.mp4", [toy()], "clip")
    assert list(tmp_path.iterdir()) == []


OTHER = VideoStream("h264", b"other", 64, 48, "yuv420p")


@pytest.mark.parametrize(
    ("clips", "message"),
    [
        (lambda: [], "clip: no videos to be written, wanted at least one"),
        (
            lambda: [toy(), toy(fps=Fraction(25))],
            "clip: video 1 has 25 frames a second, the first one 30, wanted one rate",
        ),
        (lambda: [toy(), toy(stream=OTHER)], "clip: video 1 has other parameters than the first one, wanted the same"),
        (lambda: [toy(), toy(())], "clip, video 1: no frames, wanted at least one"),
        (lambda: [toy((0, 2))], "clip, video 0: steps from 0 to 2 of 2 frames, wanted each once"),
        (lambda: [toy((0, 1, 1))], "clip, video 0: steps from 0 to 1 of 3 frames, wanted each once"),
        (lambda: [toy(), toy((1, 0), keys=(1,))], "clip, video 1: step 1 first, which is no key frame or not shown fi"),
        (lambda: [toy(keys=())], "clip, video 0: step 0 first, which is no key frame or not shown first"),
        (lambda: [toy(fps=Fraction(0))], "clip: 0 frames a second, wanted a positive ratio of numbers below 2,147"),
        (lambda: [toy(fps=Fraction(1, 1 << 31))], "clip: 1/2147483648 frames a second, wanted a positive ratio"),
        (
            lambda: [toy(fps=Fraction(1, (1 << 31) - 1))],
            "clip: 3 frames of 2,147,483,647 ticks, wanted less than 4,294",
        ),
        (
            lambda: [clip_of_packets(TOY, Fraction(30), [(0, True, b"")])],
            "clip: a frame of no bytes, wanted a picture in each",
        ),
        (lambda: [toy(), replace(toy(), data=[bytes(3)])], "clip, video 1: 3 bytes, wanted 6, which its packets have"),
        (lambda: [replace(toy(), data=[bytes(5), b"ab"])], "clip, video 0: 7 bytes, wanted 6, which its packets have"),
    ],
)
def test_what_is_no_row_of_clips_is_refused_and_leaves_nothing(clips, message, tmp_path):
    with pytest.raises(FormatError, match=message):
        write_mp4(tmp_path / "a.mp4", clips(), "clip")
    assert list(tmp_path.iterdir()) == []


def test_videos_of_other_parameters_cannot_be_joined():
    assert can_join(TOY, VideoStream("h264", b"parameters", 64, 48, "yuv420p"))
    assert not can_join(TOY, OTHER)
    assert not can_join(TOY, VideoStream("h264", b"parameters", 64, 64, "yuv420p"))
    assert not can_join(TOY, VideoStream("hevc", b"parameters", 64, 48, "yuv420p"))


@pytest.mark.parametrize(
    ("time", "fps"),
    [
        (np.arange(300) / 50, Fraction(50)),
        (2.5 + np.arange(300) * 1001 / 30_000, Fraction(30_000, 1001)),
        (np.round(np.arange(300) / 30, 6), Fraction(30)),
        (np.arange(300) / 30 + 2e-4 * (np.arange(300) == 7), None),
        (np.arange(5.0) ** 2, None),
        (np.arange(1.0), None),
        (np.zeros(3), None),
        (np.array([0.0, 1e9]), None),
    ],
)
def test_the_rate_of_even_times_is_found(time, fps):
    assert probe_fps(time) == fps
