"""HEVC as x265 writes it by default: frames that lie behind a key frame and are shown before it decode all the same."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
from video.clips import by_pyav, encoded, number_of, table_of
from video.mp4s import clip_of_packets, copied, demuxed, mp4_table_of, rows_of, stream_in

from epistream.errors import FormatError
from epistream.sharding.format.features import Feature
from epistream.sharding.format.videos import Videos
from epistream.sharding.pictures.mp4_mux import write_mp4
from epistream.sharding.pictures.video import VideoDecoder

QUIET = "log-level=none:pools=none:frame-threads=1"
# Groups of 2 are what LeRobot asks of every encoder.
OPTIONS = {
    "groups of 2": {"g": "2", "x265-params": QUIET},
    "groups of 8": {"g": "8", "x265-params": f"scenecut=0:min-keyint=8:{QUIET}"},
    "pyramids": {"g": "12", "x265-params": f"bframes=6:b-adapt=0:b-pyramid=1:ref=5:rc-lookahead=12:{QUIET}"},
    "closed": {"g": "8", "x265-params": f"open-gop=0:{QUIET}"},
}


def clip(name, num_frames=30):
    """An MP4 of counted frames; shifted pictures, that frames refer to others."""
    return encoded(("libx265", OPTIONS[name]), num_frames)


def videos_of(data, lengths):
    """What an index of episodes of these lengths says of the frames, and the number of the first row of each."""
    table, length = mp4_table_of(data), np.array(lengths, np.int64)
    videos = Videos((stream_in(data),), np.zeros(len(length), np.uint32), table.back)
    first_row = np.cumsum(length) - length
    feature = Feature("a", "frames", "uint8", (64, 64, 3), codec="hevc", group_steps=table.group_steps)
    assert list(videos.problems(feature, first_row, length)) == []
    return videos, first_row, table


def frame_by_itself(data, videos, first_row, table, row, decoder):
    """A frame as a reader gets it that wants no other one, and how many packets that took."""
    [run] = videos.runs(first_row, table.offset, np.array([row]))
    packets = ((at, data[int(table.offset[at]) :][: int(table.size[at])]) for at in run.rows.tolist())
    [(number, frame)] = decoder.pictures(run.stream, packets, {row}, "a run")
    assert number == row
    return frame.copy(), len(run.rows)


@pytest.mark.parametrize("name", OPTIONS)
def test_each_frame_by_itself_is_the_one_that_comes_in_order(name):
    data = clip(name)
    videos, first_row, table = videos_of(data, [30])
    assert rows_of(table) == demuxed(data)
    keys = np.flatnonzero(table.back == 0)
    lead = [int(table.offset[start:stop].max()) > table.offset[stop] for start, stop in itertools.pairwise(keys)]
    assert any(lead) == (name != "closed")
    whole, decoder = by_pyav(data), VideoDecoder((64, 64, 3))
    assert [number_of(frame) for frame in whole] == list(range(30))
    for row in np.random.default_rng(0).permutation(30).tolist():
        found, num_packets = frame_by_itself(data, videos, first_row, table, row, decoder)
        np.testing.assert_array_equal(found, whole[row])
        assert num_packets <= table.group_steps + 1


@pytest.mark.parametrize("name", ["groups of 2", "groups of 8"])
def test_all_frames_at_once_are_those_that_come_in_order(name):
    data = clip(name)
    videos, first_row, table = videos_of(data, [30])
    whole, decoder, found = by_pyav(data), VideoDecoder((64, 64, 3)), {}
    for run in videos.runs(first_row, table.offset, np.arange(30)):
        packets = [(at, data[int(table.offset[at]) :][: int(table.size[at])]) for at in run.rows.tolist()]
        wanted = run.wanted.tolist()
        found |= {row: frame.copy() for row, frame in decoder.pictures(run.stream, packets, wanted, "a run")}
    np.testing.assert_array_equal([found[row] for row in range(30)], whole)


def test_whole_files_in_tars_are_read_alike():
    for name in OPTIONS:
        data = clip(name)
        table, of_index = table_of(data), mp4_table_of(data)
        for part in ("offset", "size", "back"):
            np.testing.assert_array_equal(getattr(table, part), getattr(of_index, part))


def test_episodes_joined_in_one_file_need_nothing_of_each_other(tmp_path):
    parts = [clip("groups of 2", 9), clip("groups of 2", 4), clip("groups of 2", 12)]
    data = copied(parts, tmp_path / "a.mp4")
    videos, first_row, table = videos_of(data, [9, 4, 12])
    whole, decoder = np.concatenate([by_pyav(part) for part in parts]), VideoDecoder((64, 64, 3))
    assert not table.back[first_row].any()
    for row in range(25):
        found, _ = frame_by_itself(data, videos, first_row, table, row, decoder)
        np.testing.assert_array_equal(found, whole[row])


def test_an_episode_that_lies_before_another_one_lends_it_no_frames():
    """Where an episode's packets lie does not follow from its number."""
    data = clip("groups of 2", 9)
    table = mp4_table_of(data)
    back = np.concatenate([table.back, table.back])
    videos = Videos((stream_in(data),), np.zeros(2, np.uint32), back)
    offset = np.concatenate([table.offset + np.uint64(len(data)), table.offset])
    runs = list(videos.runs(np.array([0, 9]), offset, np.arange(18)))
    assert all((run.rows < 9).all() or (run.rows >= 9).all() for run in runs)


def clip_of(data, order=None):
    """All packets of a video, their steps exchanged as `order` has it."""
    table = mp4_table_of(data)
    order = np.arange(len(table.back)) if order is None else order
    rows = np.argsort(table.offset).tolist()
    packets = [
        (int(order[row]), table.back[row] == 0, data[int(table.offset[row]) :][: table.size[row]]) for row in rows
    ]
    return clip_of_packets(stream_in(data), Fraction(30), packets)


def test_they_are_joined_by_packet_copy_as_others_are(tmp_path):
    parts = [clip("groups of 2", 9), clip("groups of 2", 12)]
    assert write_mp4(tmp_path / "a.mp4", [clip_of(part) for part in parts], "clip") == [0.0, 9 / 30]
    data = (tmp_path / "a.mp4").read_bytes()
    np.testing.assert_array_equal(by_pyav(data), np.concatenate([by_pyav(part) for part in parts]))
    assert rows_of(mp4_table_of(data)) == demuxed(data)


def test_frames_that_are_shown_before_the_key_frame_before_are_refused(tmp_path):
    """No decoder could be given what they need."""
    data, order = clip("groups of 8"), np.arange(30)
    order[[7, 15]] = 15, 7  # the first ones that lie behind the second and behind the third key frame
    write_mp4(tmp_path / "a.mp4", [clip_of(data, order)], "clip")
    with pytest.raises(FormatError, match="clip: open groups of pictures"):
        mp4_table_of((tmp_path / "a.mp4").read_bytes())
