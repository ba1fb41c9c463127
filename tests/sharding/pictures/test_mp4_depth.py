"""Depth maps as LeRobot 0.6 records them: codes of 12 bits in HEVC become the millimetres that its reader returns."""

import io
import math

import av
import numpy as np
import pytest
from video.clips import encoded
from video.mp4s import Reading, mp4_table_of, rows_of, stream_in

from epistream.errors import FormatError
from epistream.sharding.format.features import Feature, feature_from_dict
from epistream.sharding.format.videos import Videos, streams_from
from epistream.sharding.pictures.depth import Depth, depth_of_lerobot
from epistream.sharding.pictures.mp4_table import stream_of
from epistream.sharding.pictures.video import VideoDecoder, VideoStream

HEIGHT, WIDTH = 48, 86
SHAPE = (HEIGHT, WIDTH, 1)
DEPTHS = [
    Depth(),
    Depth(is_log=False),
    Depth(0.1, 4.0, 0.5),
    Depth(0.0, 65.0, 1.0),
    Depth(0.3, 20, 0.0),
    Depth(0.2, 2.0, -9.0, is_log=False),
    Depth(0, 100.0, 0.001),
]


def codes_of(step):
    """(H, W) codes: all 4,096 of them, another way at each step."""
    return ((np.arange(HEIGHT * WIDTH) * 5 + 37 * step) % 4096).astype(np.uint16).reshape(HEIGHT, WIDTH)


def recorded(num_frames=9, pixels="gray12le", options=(("x265-params", "lossless=1"),), codec="hevc"):
    """An MP4 as LeRobot has PyAV write it: groups of 2, x265 by its defaults but for what is said."""
    target = io.BytesIO()
    with av.open(target, "w", format="mp4") as container:
        quiet = {"x265-params": f"{dict(options).get('x265-params', 'bframes=3')}:log-level=none:pools=none"}
        stream = container.add_stream(codec, 30, options={"g": "2", "crf": "30", **quiet})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, pixels
        for step in range(num_frames):
            frame = av.VideoFrame.from_ndarray(codes_of(step), format="gray12le")
            container.mux(stream.encode(frame.reformat(format=pixels) if pixels != "gray12le" else frame))
        container.mux(stream.encode())
    return target.getvalue()


@pytest.fixture(scope="module")
def clip():
    return recorded()


def expected(codes, depth):
    """Metres by the formula of LeRobot's quantiser, inverted, in double precision."""
    share = codes.astype(np.float64) / 4095
    if depth.is_log:
        near, far = math.log(depth.near_m + depth.shift_m), math.log(depth.far_m + depth.shift_m)
        return np.exp(near + share * (far - near)) - depth.shift_m
    return depth.near_m + share * (depth.far_m - depth.near_m)


def decoded(data, depth, shape=SHAPE, **options):
    """(T, H, W, 1) by our decoder, each frame by itself."""
    table = mp4_table_of(data)
    stream = stream_of(table, Reading(data), "clip", depth)
    videos = Videos((stream,), np.zeros(1, np.uint32), table.back)
    decoder, frames = VideoDecoder(shape, **options), []
    for row in range(len(table.back)):
        [run] = videos.runs(np.array([0]), table.offset, np.array([row]))
        packets = ((at, data[int(table.offset[at]) :][: int(table.size[at])]) for at in run.rows.tolist())
        frames += [frame.copy() for _, frame in decoder.pictures(stream, packets, {row}, "a run")]
    return np.stack(frames)


@pytest.mark.parametrize("depth", DEPTHS, ids=str)
def test_codes_become_millimetres(clip, depth):
    found = decoded(clip, depth)
    assert (found.shape, found.dtype) == ((9, *SHAPE), np.uint16)
    for step in range(9):
        metres = expected(codes_of(step), depth)
        wanted = np.clip(np.rint(np.clip(metres, depth.near_m, depth.far_m) * 1000), 0, 65535)
        off = np.abs(found[step, :, :, 0].astype(np.int64) - wanted)
        assert off.max() <= 1  # where single precision rounds to the other side of a half
        assert (off > 0).mean() < 0.01


@pytest.mark.parametrize("depth", DEPTHS, ids=str)
def test_millimetres_are_those_that_torch_reckons_in_single_precision(clip, depth):
    """As LeRobot's reader has it; the last bit of torch's exponential may differ between machines."""
    torch = pytest.importorskip("torch")
    codes = torch.from_numpy(codes_of(0).astype(np.float32))
    near, far = depth.near_m, depth.far_m
    if depth.is_log:
        near, far = math.log(near + depth.shift_m), math.log(far + depth.shift_m)
    metres = codes * ((far - near) / 4095) + near
    metres = torch.exp(metres) - depth.shift_m if depth.is_log else metres
    wanted = (metres.clamp(depth.near_m, depth.far_m) * 1000).round().clamp(0, 65535).numpy()
    off = np.abs(decoded(clip, depth)[0, :, :, 0].astype(np.int64) - wanted)
    assert off.max() <= 1
    assert (off > 0).sum() <= 8


def test_the_defaults_are_those_of_lerobot(clip):
    """As its own function gave them; for the last four, double precision gives 1 mm more or less."""
    assert decoded(clip, Depth()).min() == 10
    assert decoded(clip, Depth()).max() == 10_000
    table = np.zeros(4096, np.int64)
    table[codes_of(0)] = decoded(clip, Depth())[0, :, :, 0]
    assert table[[0, 1, 2, 1000, 2048, 4094, 4095]].tolist() == [10, 11, 12, 1377, 3385, 9996, 10_000]
    assert table[[1579, 2459, 3464, 3604]].tolist() == [2400, 4382, 7470, 7987]


def test_a_lossy_recording_is_as_pyav_decodes_it():
    data = recorded(options=(("x265-params", "aq-mode=0"),))
    with av.open(io.BytesIO(data)) as container:
        codes = [frame.to_ndarray(format="gray12le") for frame in container.decode(video=0)]
    depth = Depth(0.1, 4.0, 0.5)
    assert not np.array_equal(codes[0], codes_of(0))
    for code, found in zip(codes, decoded(data, depth), strict=True):
        wanted = np.rint(np.clip(expected(code, depth), depth.near_m, depth.far_m) * 1000)
        assert np.abs(found[:, :, 0].astype(np.int64) - wanted).max() <= 1


def test_the_padding_of_odd_sides_is_left_out(clip):
    np.testing.assert_array_equal(
        decoded(clip, Depth(), (HEIGHT - 1, WIDTH - 1, 1)), decoded(clip, Depth())[:, :-1, :-1]
    )


def test_the_frames_lie_in_open_groups_of_two(clip):
    table = mp4_table_of(clip)
    assert table.group_steps == 2
    assert (np.diff(rows_of(table), axis=0)[:, 1] < 0).any()


@pytest.mark.parametrize("pixels", ["gray10le", "gray"])
def test_other_pixels_are_no_depth(pixels):
    data = recorded(9, pixels)
    with pytest.raises(FormatError, match=f"clip: a video of pixels '{pixels}', wanted one of gray12le"):
        stream_of(mp4_table_of(data), Reading(data), "clip", Depth())


def test_depth_is_no_picture_unless_it_is_described(clip):
    with pytest.raises(FormatError, match="clip: a video of pixels 'gray12le', wanted one of gray, "):
        stream_in(clip)


def test_depth_and_colours_are_not_taken_for_each_other(clip):
    with pytest.raises(FormatError, match=r"a run: a video of depth, wanted frames of \(48, 86, 3\)"):
        decoded(clip, Depth(), (HEIGHT, WIDTH, 3))
    with pytest.raises(FormatError, match=r"a run: a video of colours, wanted frames of \(64, 64, 1\)"):
        decoded(encoded("h264", 2), None, (64, 64, 1))
    with pytest.raises(FormatError, match="a run: pixels as gray12le, wanted yuv420p to be kept as planes"):
        decoded(clip, Depth(), as_planes=True)


def stream_with(depth):
    return VideoStream("hevc", b"parameters", WIDTH, HEIGHT, "gray12le" if depth else "yuv420p", depth=depth)


def test_a_description_travels_with_the_stream_and_others_stay_as_they_were():
    plain = stream_with(None).to_dict()
    assert list(plain) == ["codec", "extradata", "width", "height", "pixel_format", "matrix", "is_full_range"]
    assert VideoStream.from_dict(plain) == stream_with(None)
    values = stream_with(Depth(0.1, 4.0, 0.5)).to_dict()
    assert values["depth"] == {"near_m": 0.1, "far_m": 4.0, "shift_m": 0.5, "is_log": True}
    assert streams_from([values]) == (stream_with(Depth(0.1, 4.0, 0.5)),)
    assert stream_with(Depth()) != stream_with(Depth(is_log=False))
    assert len({stream_with(Depth()), stream_with(Depth())}) == 1


def test_an_index_with_depth_is_the_same_after_its_bytes():
    feature = Feature("observation.images.depth", "frames", "uint16", SHAPE, codec="hevc", units="mm", group_steps=2)
    videos = Videos((stream_with(Depth(0.1, 4.0, 0.5)),), np.zeros(1, np.uint32), np.array([0, 1, 0], np.uint32))
    assert list(videos.problems(feature, np.array([0]), np.array([3]))) == []
    assert feature_from_dict(feature.to_dict(), "here") == feature
    colours = Videos((stream_with(None),), videos.stream_of, videos.back)
    assert list(colours.problems(feature, np.array([0]), np.array([3]))) == [
        "observation.images.depth: frames of (48, 86, 1), wanted 1 channel of depth and 3 of colours"
    ]


@pytest.mark.parametrize(("codec", "is_one"), [("hevc", True), ("av1", True), ("h264", False)])
def test_frames_of_depth_are_a_feature_of_codecs_that_can_hold_them(codec, is_one):
    def feature():
        return Feature("a", "frames", "uint16", SHAPE, codec=codec, units="mm", group_steps=2)

    if is_one:
        assert feature().step_bytes == HEIGHT * WIDTH * 2
    else:
        with pytest.raises(FormatError, match=r"uint16 \(48, 86, 1\) as video, wanted uint8 with 3 channels"):
            feature()


def test_other_frames_as_video_are_refused_with_what_can_be():
    with pytest.raises(FormatError, match="as video, wanted uint16 with 1 channel or uint8 with 3 channels"):
        Feature("a", "frames", "uint8", SHAPE, codec="hevc", group_steps=2)


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {"near_m": 0.1},
        {"near_m": 5.0, "far_m": 4.0},
        {"near_m": -1.0},
        {"near_m": float("nan")},
        {"far_m": float("inf")},
        {"far_m": 10**400},
        {"far_m": True},
        {"near_m": "0.1"},
        {"near_m": 0.0, "shift_m": 0.0},
        {"is_log": 1},
        {"scale": 2},
        {1: 2},
    ],
)
def test_descriptions_that_cannot_be_are_refused(value):
    if value == {"near_m": 0.1}:
        assert Depth.from_dict(value) == Depth(0.1)
    else:
        with pytest.raises(FormatError):
            Depth.from_dict(value)


@pytest.mark.parametrize("depth", [0, [], "log", {"far_m": -1.0}])
def test_streams_with_other_descriptions_are_refused(depth):
    values = {**stream_with(Depth()).to_dict(), "depth": depth}
    with pytest.raises(FormatError):
        VideoStream.from_dict(values)
    with pytest.raises(FormatError):
        stream_with(depth or 0.5)


# What LeRobot 0.6 writes into info.json, and what earlier releases wrote.
NEW = {"video.codec": "hevc", "video.pix_fmt": "gray12le", "video.depth_min": 0.1, "video.depth_max": 4.0}
NEW |= {"video.shift": 0.5, "video.use_log": False, "depth_unit": "mm", "is_depth_map": True}


@pytest.mark.parametrize(
    ("feature", "depth"),
    [
        ({"dtype": "video", "info": NEW}, Depth(0.1, 4.0, 0.5, is_log=False)),
        ({"info": {"is_depth_map": True}}, Depth(0.01, 10.0, 3.5, is_log=True)),
        ({"info": {"is_depth_map": True, "video.depth_max": 5, "video.shift": None}}, Depth(far_m=5)),
        ({"info": {"video.is_depth_map": True}}, Depth()),
        ({"video_info": {"video.is_depth_map": True}}, Depth()),
        ({"info": {**NEW, "is_depth_map": False}}, None),
        ({"info": {"video.is_depth_map": False}}, None),
        ({"info": None}, None),
        ({"info": [], "video_info": "x"}, None),
        ({}, None),
    ],
)
def test_what_lerobot_says_of_a_feature_is_understood(feature, depth):
    assert depth_of_lerobot(feature) == depth


def test_what_lerobot_could_not_mean_is_refused():
    with pytest.raises(FormatError, match=r"depth from 5.0 m to 4.0 m, wanted two that ascend from 0 or more"):
        depth_of_lerobot({"info": {**NEW, "video.depth_min": 5.0}})
