"""What info.json of a LeRobot data set says: columns as features, paths by patterns, and nothing that cannot be."""

import json

import pytest
from robots.lerobot_meta import MadeSet, numbers, video

from epistream.errors import FormatError, VersionError
from epistream.sharding.lerobot_meta.features import codec_of, features_of
from epistream.sharding.lerobot_meta.info import Column, parse_info


def info_of(features=None, version="v3.0", **changes):
    made = MadeSet(version, **({"features": features} if features else {}))
    said = {**made.plain_info(), **changes}
    return parse_info(json.dumps({k: v for k, v in said.items() if v is not ...}).encode(), "set/meta/info.json")


def refused(**changes):
    with pytest.raises(FormatError) as error:
        info_of(**changes)
    assert str(error.value).startswith("set/meta/info.json: ")
    return str(error.value)


def test_features_are_ours_in_our_order_with_the_axis_of_single_numbers_taken_off():
    image = {"dtype": "image", "shape": [3, 84, 96], "names": ["channels", "height", "width"]}
    info = info_of(
        {
            "next.reward": numbers(1),
            "next.done": numbers(1, "bool"),
            "action": numbers(7, "float64"),
            "observation.state": numbers(6),
            "observation.grid": {"dtype": "int16", "shape": [2, 3], "names": None},
            "observation.image": image,
            "observation.images.top": video(480, 640, "libsvtav1"),
        }
    )
    features, left_out = features_of(info, {"observation.images.top": 30})
    assert left_out == []
    assert [(one.name, one.kind, one.dtype, one.shape, one.codec, one.group_steps) for one in features.values()] == [
        ("observation.image", "frames", "uint8", (84, 96, 3), "png", None),
        ("observation.images.top", "frames", "uint8", (480, 640, 3), "av1", 30),
        ("observation.state", "array", "float32", (6,), "npy", None),
        ("observation.grid", "array", "int16", (2, 3), "npy", None),
        ("action", "array", "float64", (7,), "npy", None),
        ("next.done", "array", "bool", (), "npy", None),
        ("next.reward", "array", "float32", (), "npy", None),
    ]
    assert {one.fps for one in features.values()} == {50.0}


def test_what_cannot_be_a_feature_is_left_out_with_the_reason():
    depth = video()
    depth["info"] = {"video.codec": "hevc", "is_depth_map": True}
    language = {"dtype": "language", "shape": [1], "names": None}
    info = info_of(
        {
            "action": numbers(2),
            "note": {"dtype": "string", "shape": [1], "names": None},
            "language_persistent": language,
            "observation.images.depth": depth,
            "observation.images.odd": video(codec="vp9"),
            "deep": {"dtype": "float32", "shape": [1, 1, 1, 1, 2], "names": None},
            "sound": {"dtype": "audio", "shape": [16000], "names": None},
        },
        version="v3.1",
    )
    features, left_out = features_of(info)
    assert list(features) == ["action"]
    reasons = dict(one.split(" (", 1) for one in left_out)
    assert reasons.keys() == {
        *("note", "language_persistent", "observation.images.depth", "observation.images.odd", "deep", "sound")
    }
    assert "text" in reasons["note"]
    assert "1 channel" in reasons["observation.images.depth"]
    assert "vp9" in reasons["observation.images.odd"]


def test_keys_that_no_feature_can_be_called_by_are_changed_and_kept_beside_it():
    info = info_of({"Observation State": numbers(2), "action": numbers(2), "Action": numbers(2), "meta": numbers(1)})
    features, left_out = features_of(info)
    assert {one.source_path: one.name for one in features.values()} == {
        "Observation State": "observation_state",
        "action": "action",
        "meta": "key_meta",
    }
    assert left_out == ["Action (called action like action)"]


@pytest.mark.parametrize(
    ("said", "codec"),
    [
        *(("libsvtav1", "av1"), ("av01", "av1"), ("AV1", "av1"), ("libaom-av1", "av1"), ("h264", "h264")),
        *(("avc1", "h264"), ("libx264", "h264"), ("h264_nvenc", "h264"), ("hevc", "hevc"), ("h265", "hevc")),
        *(("libx265", "hevc"), ("hvc1", "hevc"), ("hevc_videotoolbox", "hevc"), ("mpeg4", "mpeg4"), (7, None)),
    ],
)
def test_codecs_are_known_by_every_name_in_use(said, codec):
    assert codec_of(Column("top", "video", (4, 4, 3), None, {"video.codec": said})) == codec


def test_codec_of_v20_stands_in_video_info():
    feature = {"dtype": "video", "shape": [4, 6, 3], "names": ["height", "width", "channel"]}
    info = info_of({"observation.images.top": {**feature, "video_info": {"video.codec": "h264"}}}, version="v2.0")
    assert features_of(info)[0]["observation.images.top"].codec == "h264"


@pytest.mark.parametrize(
    ("shape", "names", "found"),
    [
        ([3, 48, 64], ["channels", "height", "width"], (48, 64, 3)),
        ([48, 64, 3], ["height", "width", "channel"], (48, 64, 3)),
        ([3, 48, 64], None, (48, 64, 3)),
        ([48, 64, 3], None, (48, 64, 3)),
        ([3, 48, 3], ["height", "width", "channels"], (3, 48, 3)),
    ],
)
def test_pictures_have_their_channels_last_whatever_their_axes_are_called(shape, names, found):
    assert Column("top", "video", tuple(shape), names, {}).picture_shape == found


def test_paths_follow_from_the_patterns_of_each_version():
    old, new = info_of(version="v2.1"), info_of(version="v3.0")
    assert old.data_file(1, 1234) == "data/chunk-001/episode_001234.parquet"
    assert (
        old.video_file("observation.images.top", 0, 7) == "videos/chunk-000/observation.images.top/episode_000007.mp4"
    )
    assert new.data_file(0, 12) == "data/chunk-000/file-012.parquet"
    assert new.video_file("observation.images.top", 1, 0) == "videos/observation.images.top/chunk-001/file-000.mp4"
    assert info_of(data_path=...).data_file(0, 1) == new.data_file(0, 1)
    assert info_of({"action": numbers(2)}, video_path=None).video_path is None


@pytest.mark.parametrize(
    "pattern",
    [
        "../data/file-{file_index}.parquet",
        "/etc/{file_index}",
        "data//{file_index}",
        "~/{file_index}",
        "s3://other/{file_index}",
        "zip::{file_index}",
        "data/{file_index}\n",
        "data/{file_index.__class__}",
        "data/{file_index!r}",
        "data/{file_index:9999999d}",
        "data/{file_index:>03}",
        "data/{nothing}/{file_index}",
        "data/{0}/{file_index}",
        "data/{file_index",
        "data/file.parquet",
        "data/{episode_index:06d}.parquet",
    ],
)
def test_patterns_that_are_none_or_lead_out_of_the_folder_are_refused(pattern):
    assert "data_path" in refused(data_path=pattern)
    assert "video_path" in refused(video_path=pattern)


@pytest.mark.parametrize("key", ["../../top", "..", "a/../../b", "top\x00", "x::memory://y"])
def test_keys_that_would_lead_videos_out_of_the_folder_are_refused(key):
    assert "leads to" in refused(features={key: video()})


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"fps": 0}, "fps 0"),
        ({"fps": "50"}, "fps '50'"),
        ({"fps": True}, "fps True"),
        ({"total_episodes": -1}, "total_episodes -1"),
        ({"total_episodes": 0}, "total_episodes 0"),
        ({"total_episodes": 1 << 60}, "total_episodes"),
        ({"total_frames": 1.5}, "total_frames 1.5"),
        ({"total_frames": ...}, "total_frames None"),
        ({"chunks_size": 0}, "chunks_size 0"),
        ({"splits": ["0:3"]}, "splits"),
        ({"features": {}}, "features"),
        ({"features": {"action": 3}}, "'action'"),
        ({"features": {"action": {"dtype": 3, "shape": [1]}}}, "'action'"),
        ({"features": {"action": {"dtype": "float32", "shape": [-1]}}}, "shape [-1]"),
        ({"features": {"action": {"dtype": "float32", "shape": "6"}}}, "shape '6'"),
        ({"data_path": 5}, "data_path 5"),
        ({"codebase_version": "newest"}, "codebase_version 'newest'"),
        ({"codebase_version": ...}, "codebase_version None"),
    ],
)
def test_what_cannot_be_is_named(changes, what):
    said = {key: value for key, value in {**MadeSet().plain_info(), **changes}.items() if value is not ...}
    with pytest.raises(FormatError, match=r"^set/meta/info\.json: ") as error:
        parse_info(json.dumps(said).encode(), "set/meta/info.json")
    assert what in str(error.value)


@pytest.mark.parametrize(("version", "cure"), [("v1.6", "Convert it"), ("v4.0", "Install a release"), ("v3.2", "v3.1")])
def test_versions_that_are_not_read_say_what_to_do(version, cure):
    with pytest.raises(VersionError, match=cure):
        info_of(codebase_version=version)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>404", "a web page"),
        (b"", "no JSON"),
        (b'{"codebase_version": "v3.0"', "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"[]", "a list"),
        (b"\xff\xfe", "no JSON"),
    ],
)
def test_what_is_no_info_is_named(data, what):
    with pytest.raises(FormatError, match=what):
        parse_info(data, "info.json")
