"""Videos in tars, our own after their indexes were lost and those of others, become frames that can be read."""

import io
import json
import shutil
import tarfile

import numpy as np
import pytest
from handmade import npy, places, write_tar
from hdf5_files import contents
from video.clips import OPEN, by_pyav, decoded, encoded, number_of, turned
from video.episodes import CAMERAS, counted_folder, first_number, foreign_pairs, foreign_tar

from epistream.errors import FormatError, OptionError
from epistream.sharding.check.inspect import EpisodeFrames
from epistream.sharding.dataset import open_dataset
from epistream.sharding.format.index import ShardIndex
from epistream.sharding.pack.pack import pack
from epistream.sharding.pictures.video import VideoDecoder
from epistream.sharding.tar.index_tar import index_tar
from epistream.sharding.tar.reindex import reindex
from epistream.sharding.tar.step_mapping import read_step_mapping
from epistream.sharding.tar.tar_reader import Member, MemberFile

TOP = "observation.images.top"


def frames_of(path, index, camera=TOP):
    """All frames of a camera, read as training reads them: by runs of the index from the bytes of the tar."""
    data = path.read_bytes()
    offset, size = index.frame_offset[camera], index.frame_size[camera]
    decoder, found = VideoDecoder(index.features[camera].shape), {}
    for run in index.runs(camera, np.arange(index.num_rows)):
        packets = [(row, data[int(offset[row]) :][: int(size[row])]) for row in run.rows.tolist()]
        found |= {
            row: frame.copy() for row, frame in decoder.pictures(run.stream, packets, set(run.wanted.tolist()), "")
        }
    return [found[row] for row in range(index.num_rows)]


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Episodes of 20, 7, 33 and 200 steps, the last one in a shard of its own, groups of 8."""
    folder = tmp_path_factory.mktemp("packed")
    pack(counted_folder(folder / "in", (20, 7, 33, 200)), folder / "out", codec="h264", gop=8, shard_size="64KiB")
    return folder / "out"


def test_lost_indexes_and_manifest_are_made_again_to_the_same_bytes(packed, tmp_path):
    folder = shutil.copytree(packed, tmp_path / "ds")
    before = {name: data for name, data in contents(folder).items() if name.endswith((".index", ".tar"))}
    assert len(before) >= 4
    features, fingerprint = open_dataset(folder).features, open_dataset(folder).fingerprint
    for path in folder.iterdir():
        if path.suffix != ".tar":
            path.unlink()
    reindex(str(folder))
    assert {name: contents(folder)[name] for name in before} == before
    assert (open_dataset(folder).features, open_dataset(folder).fingerprint) == (features, fingerprint)
    assert features[TOP].group_steps == 8
    assert features[TOP].codec == "h264"


def test_a_member_is_an_mp4_that_any_program_plays(packed):
    with tarfile.open(packed / "shard-000000.tar") as tar:
        for camera in CAMERAS:
            found = by_pyav(tar.extractfile(f"ep-000000000.{camera}.mp4").read())
            first = first_number(0, camera)
            assert [number_of(frame) for frame in found] == list(range(first, first + 20))


def test_an_index_points_at_the_bytes_of_each_packet(packed):
    """Bytes of the tar at each place are those that FFmpeg's own reader of the MP4 gives."""
    import av

    path = packed / "shard-000000.tar"
    index = ShardIndex.parse(path.with_suffix(".index").read_bytes(), path.name)
    data = path.read_bytes()
    start, size = places(path)[f"ep-000000000.{TOP}.mp4"]
    with av.open(io.BytesIO(data[start : start + size])) as container:
        wanted = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    ranges = [index.frame_range(TOP, row) for row in range(20)]
    assert [data[at : at + num_bytes] for at, num_bytes in ranges] == wanted
    assert index.videos[TOP].back[:20].tolist() == [step % 8 for step in range(20)]


@pytest.mark.parametrize("episode", [0, 2])
@pytest.mark.parametrize("step", [0, 7, 8, 6, 19])
def test_single_frames_of_an_episode_are_read(packed, episode, step):
    dataset = open_dataset(packed)
    frame = EpisodeFrames(dataset, episode).read(dataset.features[TOP], step)
    assert number_of(frame) == first_number(episode, TOP) + step


@pytest.mark.parametrize("name", ["h264", "h264 b", "hevc", "av1"])
def test_tars_of_others_with_videos_are_episodes(tmp_path, name):
    path = foreign_tar(tmp_path / "a.tar", [foreign_pairs("ep0", 20, name), foreign_pairs("ep1", 9, name)])
    index = index_tar(path)
    feature = index.features[TOP]
    codec = name.partition(" ")[0]
    assert (feature.codec, feature.shape, feature.dtype, feature.group_steps) == (codec, (64, 64, 3), "uint8", 8)
    assert index.length.tolist() == [20, 9]
    assert [number_of(frame) for frame in frames_of(path, index)] == [*range(20), *range(9)]
    assert len(index.videos[TOP].streams) == 1
    again = ShardIndex.parse(index.to_bytes(), "a.index")
    assert again.videos[TOP].streams == index.videos[TOP].streams
    assert again.to_bytes() == index.to_bytes()


def test_groups_of_a_dataset_are_as_long_as_the_longest_of_any_shard(tmp_path):
    """Group lengths of others differ, even from episode to episode."""

    def pairs(key, gop):
        options = {"x264-params": f"keyint={gop}:min-keyint={gop}:scenecut=0:bframes=0"}
        return foreign_pairs(key, 20, ("libx264", options))

    foreign_tar(tmp_path / "a.tar", [pairs("ep0", 4), pairs("ep1", 11), pairs("ep2", 2)])
    foreign_tar(tmp_path / "b.tar", [pairs("ep3", 5)])
    foreign_tar(tmp_path / "c.tar", [pairs("ep4", 15)])
    assert index_tar(tmp_path / "a.tar").features[TOP].group_steps == 11
    assert open_dataset(str(tmp_path / "*.tar")).features[TOP].group_steps == 15
    assert open_dataset(str(tmp_path / "{c,b}.tar")).features[TOP].group_steps == 15
    reindex(str(tmp_path))
    dataset = open_dataset(tmp_path)
    assert dataset.features[TOP].group_steps == 15
    for episode, length in enumerate([20] * 5):
        frame = EpisodeFrames(dataset, episode).read(dataset.features[TOP], length - 1)
        assert number_of(frame) == length - 1


def test_datasets_of_other_group_lengths_are_streamed_as_one(tmp_path):
    for gop in (4, 9):
        source = counted_folder(tmp_path / f"in{gop}", (12,))
        pack(source, tmp_path / f"out{gop}", codec="h264", gop=gop)
    for order in ((4, 9), (9, 4)):
        assert open_dataset([str(tmp_path / f"out{gop}") for gop in order]).features[TOP].group_steps == 9


def test_streams_of_other_parameters_are_kept_apart(tmp_path):
    other = ("libx264", {"x264-params": "keyint=8:ref=1:cabac=0:bframes=0"})
    path = foreign_tar(
        tmp_path / "a.tar", [foreign_pairs("ep0", 9), foreign_pairs("ep1", 9, other), foreign_pairs("ep2", 9)]
    )
    index = index_tar(path)
    assert index.videos[TOP].stream_of.tolist() == [0, 1, 0]
    assert [number_of(frame) for frame in frames_of(path, index)] == [*range(9)] * 3


@pytest.mark.parametrize(
    ("name", "camera"), [("ep0.mp4", "image"), ("ep0.top.mp4", "top"), ("ep0.Images.Top.MP4", "images.top")]
)
def test_names_say_which_camera_it_is(tmp_path, name, camera):
    rows = np.zeros((9, 3), np.float32)
    path = write_tar(tmp_path / "a.tar", [("ep0.action.npy", npy(rows)), (name, encoded(num_frames=9))])
    assert list(index_tar(path).features) == sorted(["action", camera])


@pytest.mark.parametrize(
    ("names", "cameras"),
    [
        (["{0}/action.npy", "{0}/top.mp4", "{0}/wrist.mp4"], ["top", "wrist"]),
        (["{0}/action.npy", "{0}/videos/top.mp4"], ["videos.top"]),
        (["{0}.action.npy", "{0}/top.mp4"], ["top"]),
        (["data/{0}/action.npy", "data/{0}/observation.images.top.mp4"], ["observation.images.top"]),
    ],
)
def test_videos_in_folders_are_cameras_of_the_episode_there(tmp_path, names, cameras):
    video, rows = encoded(num_frames=9), npy(np.zeros((9, 3), np.float32))
    pairs = [(name.format(key), rows if "npy" in name else video) for key in ("ep0", "ep1") for name in names]
    index = index_tar(write_tar(tmp_path / "a.tar", pairs))
    assert (list(index.features), index.length.tolist()) == (sorted(["action", *cameras]), [9, 9])
    assert [key.rpartition("/")[2] for key in index.keys] == ["ep0", "ep1"]


def test_a_tar_that_is_one_episode_takes_its_name(tmp_path):
    pairs = [("action.npy", npy(np.zeros((9, 3), np.float32))), ("top.mp4", encoded(num_frames=9))]
    index = index_tar(write_tar(tmp_path / "demo_7.tar", pairs))
    assert (list(index.keys), list(index.features)) == (["demo_7"], ["action", "top"])


def test_videos_in_a_folder_of_no_episode_are_episodes_each(tmp_path):
    video = encoded(num_frames=9)
    pairs = [(f"clips/{name}", video if "mp4" in name else b"pick") for name in ("a.mp4", "a.txt", "b.mp4", "b.txt")]
    index = index_tar(write_tar(tmp_path / "a.tar", pairs))
    assert (list(index.keys), list(index.features)) == (["clips/a", "clips/b"], ["image"])


def test_an_episode_may_be_a_video_alone(tmp_path):
    path = write_tar(tmp_path / "a.tar", [("ep0.mp4", encoded(num_frames=9)), ("ep0.txt", b"pick it up")])
    index = index_tar(path)
    assert (list(index.features), index.length.tolist()) == (["image"], [9])
    assert index.episodes[0].tasks == ("pick it up",)
    assert [number_of(frame) for frame in frames_of(path, index, "image")] == list(range(9))


def test_samples_named_as_steps_but_with_videos_are_episodes(tmp_path):
    pairs = [foreign_pairs(f"ep0_{number}", 9) for number in range(3)]
    assert index_tar(foreign_tar(tmp_path / "a.tar", pairs)).length.tolist() == [9] * 3


def test_a_thumbnail_beside_a_video_is_left_out(tmp_path, caplog):
    pairs = [*foreign_pairs("ep0", 9), ("ep0.jpg", b"no matter")]
    assert set(index_tar(write_tar(tmp_path / "a.tar", pairs)).features) == {"action", TOP}
    assert "left out, as neither rows nor frames of an episode: ep0.jpg" in caplog.text


ROWS = ("ep0.action.npy", npy(np.zeros((9, 3), np.float32)))


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (
            [ROWS, (f"ep0.{TOP}.mp4", encoded(num_frames=8))],
            f"a.tar, ep0: {TOP} has 8 steps, wanted 9, the episode's length",
        ),
        (
            [*foreign_pairs("ep0", 9), *foreign_pairs("ep1", 9, "av1")],
            f"a.tar: ep1: {TOP}: codec av1 instead of h264, wanted the features of ep0",
        ),
        (
            [*foreign_pairs("ep0", 9), *foreign_pairs("ep1", 9, size=(64, 80))],
            f"a.tar: ep1: {TOP}: width x height 80x64 instead of 64x64",
        ),
        ([ROWS, ("ep0.top.mp4", b"none")], "a.tar, ep0.top.mp4: no MP4 that FFmpeg reads"),
        ([ROWS, ("ep0.top.mp4", encoded(OPEN, 20))], "a.tar, ep0.top.mp4: open groups of pictures"),
        ([ROWS, ("ep0.top.mp4", turned(encoded(num_frames=9)))], "a.tar, ep0.top.mp4: pictures to be turned"),
        ([*foreign_pairs("ep0", 9), *foreign_pairs("ep0", 9)[1:]], "this field twice in one sample"),
        (
            [*foreign_pairs("ep0", 9, camera="top"), ("ep0.top.npy", npy(np.zeros((9, 64, 64, 3), np.uint8)))],
            "a.tar, ep0: top as a video and by other members, wanted it once",
        ),
        ([ROWS, ("ep0.top.000000.mp4", encoded(num_frames=9))], "feature 'top.000000': this name cannot be used"),
        ([("ep0.mp4", encoded(num_frames=1))], "a.tar, ep0: image of length 1: this may be one step"),
    ],
)
def test_videos_that_fit_no_episode_are_refused_by_name(tmp_path, pairs, message):
    with pytest.raises(FormatError) as refused:
        index_tar(write_tar(tmp_path / "a.tar", pairs))
    assert message in str(refused.value)


def said(**changes):
    feature = {"name": TOP, "kind": "frames", "dtype": "uint8", "shape": [64, 64, 3], "codec": "h264"}
    action = {"name": "action", "kind": "array", "dtype": "float32", "shape": [3], "codec": "npy"}
    features = [{**feature, "group_steps": 8, **changes}, action]
    return ("ep0.meta.json", json.dumps({"length": 20, "features": features}).encode())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codec": "hevc"}, "h264 of (64, 64, 3) in groups of up to 8, its meta.json says hevc of (64, 64, 3)"),
        ({"shape": [62, 64, 3]}, "its meta.json says h264 of (62, 64, 3)"),
        ({"shape": [65, 64, 3]}, "its meta.json says h264 of (65, 64, 3)"),
        ({"group_steps": 7}, "its meta.json says h264 of (64, 64, 3) in groups of up to 7"),
        ({"group_steps": None}, "group_steps None, wanted the steps of a group"),
        ({"codec": "png"}, "group_steps 8, wanted none: these are single pictures"),
    ],
)
def test_a_video_that_its_meta_json_does_not_describe_is_refused(tmp_path, changes, message):
    with pytest.raises(FormatError) as refused:
        index_tar(write_tar(tmp_path / "a.tar", [said(**changes), *foreign_pairs("ep0", 20)]))
    assert message in str(refused.value)


def test_a_meta_json_may_say_more_than_the_video(tmp_path):
    """Sides that the video rounds up, and groups as long as those of other episodes."""
    path = write_tar(tmp_path / "a.tar", [said(shape=[63, 63, 3], group_steps=30), *foreign_pairs("ep0", 20)])
    index = index_tar(path)
    assert (index.features[TOP].shape, index.features[TOP].group_steps) == ((63, 63, 3), 30)
    np.testing.assert_array_equal(frames_of(path, index)[3], decoded(encoded(num_frames=20))[3][:63, :63])


def test_a_mapping_of_steps_has_no_videos(tmp_path):
    path = tmp_path / "steps.yaml"
    path.write_text(f"key: ep{{episode}}_{{step}}\nfeatures:\n  {TOP}: top.mp4\n")
    with pytest.raises(OptionError, match=r"'top.mp4', wanted .npy, JSON, jpg"):
        read_step_mapping(path)


def test_a_member_is_a_file_of_its_own(tmp_path):
    path = write_tar(tmp_path / "a.tar", [("a.bin", b"x" * 600), ("b.bin", bytes(range(200)))])
    start, size = places(path)["b.bin"]
    with path.open("rb") as tar:
        file = io.BufferedReader(MemberFile(tar, Member("b.bin", start, size, 0)))
        assert file.read() == bytes(range(200))
        assert (file.seek(-10, 2), file.read(), file.read()) == (190, bytes(range(190, 200)), b"")
        assert (file.seek(5), file.read(3), file.seek(2, 1), file.read(1)) == (5, b"\5\6\7", 10, b"\n")
        assert (file.seek(500), file.read(1)) == (500, b"")
