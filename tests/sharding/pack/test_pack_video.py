"""Packing as H.264: no frame is shifted, the bytes depend on frames and options alone, and what it costs is told."""

import json
import os
import sys
import tarfile

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from hdf5_files import aloha_jpeg, aloha_raw, contents, jpeg, manifest, shards
from video.clips import by_pyav, number_of
from video.episodes import CAMERAS, counted_folder, counted_hdf5, first_number

from epistream.commands import cli
from epistream.errors import OptionError, PackError
from epistream.sharding.dataset import open_dataset
from epistream.sharding.pack import shard_task
from epistream.sharding.pack.options import PackOptions
from epistream.sharding.pack.pack import pack
from epistream.sharding.pack.report import PackProgress
from epistream.sharding.pictures.video_encoder import library_versions
from epistream.sharding.tar.tar_writer import TarWriter

TOP = "observation.images.top"
LENGTHS = (20, 7, 33)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    return counted_folder(tmp_path_factory.mktemp("sources"), LENGTHS)


def videos(folder):
    """Member -> frames of each MP4, by tarfile and PyAV."""
    found = {}
    for shard in shards(folder):
        with tarfile.open(shard) as tar:
            for member in tar:
                if member.name.endswith(".mp4"):
                    found[member.name] = by_pyav(tar.extractfile(member).read())
    return found


@pytest.mark.parametrize("as_jpeg", [False, True])
@pytest.mark.parametrize("gop", [1, 8, 30])
def test_each_frame_stands_where_it_was(tmp_path, as_jpeg, gop):
    source = counted_folder(tmp_path / "in", LENGTHS, as_jpeg=as_jpeg)
    report = pack(source, tmp_path / "out", codec="h264", gop=gop)
    numbers = {name: [number_of(frame) for frame in frames] for name, frames in videos(tmp_path / "out").items()}
    assert numbers == {
        f"ep-{episode:09d}.{camera}.mp4": list(range(first := first_number(episode, camera), first + length))
        for episode, length in enumerate(LENGTHS)
        for camera in CAMERAS
    }
    feature = report.features[TOP]
    assert (feature.codec, feature.group_steps, feature.jpeg_channels) == ("h264", gop, None)


def test_red_and_blue_stay_what_they_are(tmp_path):
    """A JPEG of ALOHA has them swapped for whoever decodes it without knowing; a video has them right."""
    with h5py.File(aloha_jpeg(tmp_path / "a.hdf5", 3), "r+") as file:
        red = np.zeros((24, 32, 3), np.uint8)
        red[..., 0] = 230
        for camera in ("top", "angle"):
            row = np.frombuffer(jpeg(red, 95), np.uint8)
            padded = file[f"observations/images/{camera}"]
            padded[:] = 0
            padded[:, : len(row)] = row
        file["compress_len"][:] = len(row)
    pack(tmp_path / "a.hdf5", tmp_path / "out", codec="h264", crf=4)
    [frame, *_] = videos(tmp_path / "out")[f"ep-000000000.{TOP}.mp4"]
    np.testing.assert_allclose(frame.reshape(-1, 3).mean(axis=0), [230, 0, 0], atol=6)


def test_bytes_are_the_same_for_any_number_of_workers_and_again(tmp_path, sources):
    for name, workers in (("one", 1), ("two", 2), ("again", 1)):
        pack(sources, tmp_path / name, codec="h264", shard_size="64KiB", crf=4, workers=workers)
    one = contents(tmp_path / "one")
    assert contents(tmp_path / "two") == contents(tmp_path / "again") == one


def test_a_job_that_was_interrupted_resumes_to_the_same_bytes(tmp_path):
    source = counted_folder(tmp_path / "in", (60, 60, 60))
    options = {"codec": "h264", "shard_size": "64KiB", "crf": 0}

    def stop(progress: PackProgress):
        if progress.stage == "packing" and shards(tmp_path / "out"):
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("epistream.sharding.tasks.pool._TICK_S", 0.0)
        with pytest.raises(KeyboardInterrupt):
            pack(source, tmp_path / "out", progress=stop, **options)
    assert not (tmp_path / "out" / "dataset.json").exists()
    report = pack(source, tmp_path / "out", resume=True, **options)
    assert 1 <= report.num_resumed < report.num_shards
    pack(source, tmp_path / "whole", **options)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize("changes", [{"crf": 20}, {"gop": 9}, {"preset": "fast"}])
def test_a_job_with_another_quality_is_another_job(tmp_path, sources, changes, monkeypatch):
    def refuse(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("epistream.sharding.pack.pack.write_manifest", refuse)
        with pytest.raises(KeyboardInterrupt):
            pack(sources, tmp_path / "out", codec="h264")
    with pytest.raises(PackError, match="had other options"):
        pack(sources, tmp_path / "out", codec="h264", resume=True, **changes)


def test_a_job_is_stopped_within_an_episode(tmp_path, sources, monkeypatch):
    """Each frame is reported, also of a video that is one member: no worker is taken for dead, or works in vain."""
    reports = []

    class Stopped(shard_task.Pulse):
        def add(self, episodes=0, num_bytes=0):
            reports.append(num_bytes)
            if len(reports) == 15:
                self._stopped[0] = 1
            super().add(episodes, num_bytes)

    monkeypatch.setattr("epistream.sharding.tasks.pool.Pulse", Stopped)
    with pytest.raises(PackError, match="stopped because another part of the job failed"):
        pack(sources, tmp_path / "out", codec="h264")
    assert len(reports) == 15
    assert not list((tmp_path / "out").glob("*.tar*"))


def test_quality_is_measured_on_what_was_decoded_again(tmp_path, sources):
    better, worse = (pack(sources, tmp_path / str(crf), codec="h264", crf=crf).fidelity for crf in (10, 40))
    for camera in CAMERAS:
        assert better[camera].num_frames == worse[camera].num_frames == 2 * len(LENGTHS)
        assert better[camera].mean_psnr_db > 30 > worse[camera].mean_psnr_db
        frames = videos(tmp_path / "10")
        errors = []
        for episode, length in enumerate(LENGTHS):
            with h5py.File(sources / f"episode_{episode}.hdf5") as file:
                source = file[f"observations/images/{camera.rpartition('.')[2]}"]
                for step in (0, length // 2):
                    found = frames[f"ep-{episode:09d}.{camera}.mp4"][step].astype(float)
                    errors.append(np.mean((found - source[step]) ** 2))
        wanted = 10 * np.log10(255**2 / np.mean(errors))
        assert better[camera].mean_psnr_db == pytest.approx(wanted, abs=0.01)


def test_command_says_what_it_cost(tmp_path, sources):
    words = ["pack", sources, tmp_path / "out", "--codec", "h264", "--crf", 30, "--gop", 8, "--preset", "fast"]
    done = CliRunner().invoke(cli, [*map(str, words), "--workers", "1"], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    assert f"{TOP}: 64x64x3 h264, groups of 8, encoded: PSNR " in done.output
    assert "(6 frames)" in done.output


def test_provenance_names_the_libraries_of_video_only_where_there_is_video(tmp_path, sources):
    pack(sources, tmp_path / "video", codec="h264")
    pack(sources, tmp_path / "jpeg")
    known = [json.dumps(manifest(tmp_path / name)["provenance"]) for name in ("video", "jpeg")]
    for name, version in library_versions().items():
        assert f'"{name}": "{version}"' in known[0]
        assert f'"{name}"' not in known[1]
    assert '"crf": 18' in known[0]
    assert '"crf"' not in known[1]


def test_depth_and_masks_stay_exact(tmp_path):
    path = aloha_raw(tmp_path / "a.hdf5", 4)
    with h5py.File(path, "r+") as file:
        file["observations/images/depth"] = np.arange(4 * 24 * 32, dtype=np.uint16).reshape(4, 24, 32, 1)
        file["observations/images/grey"] = np.arange(4 * 24 * 32, dtype=np.uint8).reshape(4, 24, 32, 1)
        file["observations/images/top_mask"] = np.zeros((4, 24, 32, 3), np.uint8)
    report = pack(path, tmp_path / "out", codec="h264")
    codecs = {name.rpartition(".")[2]: one.codec for name, one in report.features.items() if one.kind == "frames"}
    assert codecs == {"top": "h264", "angle": "h264", "depth": "png", "grey": "png", "top_mask": "png"}
    assert set(report.fidelity) == {TOP, "observation.images.angle"}


def test_jpeg_stays_as_it_is_unless_video_is_asked_for(tmp_path):
    source = counted_hdf5(tmp_path / "in" / "a.hdf5", 5, as_jpeg=True)
    report = pack(source, tmp_path / "out")
    assert {one.codec for one in report.features.values() if one.kind == "frames"} == {"jpeg"}
    assert report.fidelity == {}


def test_pictures_are_resized_before_they_are_encoded(tmp_path, sources):
    report = pack(sources, tmp_path / "out", codec="h264", image_size=(33, 49), crf=4)
    assert report.features[TOP].shape == (49, 33, 3)
    [frame, *_] = videos(tmp_path / "out")[f"ep-000000000.{TOP}.mp4"]
    assert frame.shape == (50, 34, 3)  # whole colour blocks; the last row and column are copies
    assert open_dataset(tmp_path / "out").features[TOP].shape == (49, 33, 3)


def test_a_bad_episode_is_left_out_and_leaves_nothing(tmp_path):
    source = counted_folder(tmp_path / "in", LENGTHS, as_jpeg=True)
    with h5py.File(source / "episode_1.hdf5", "r+") as file:
        file["observations/images/top"][3] = 0  # no JPEG, after the other camera's video is whole
    with pytest.raises(PackError, match=r"episode_1\.hdf5.*step 3"):
        pack(source, tmp_path / "out", codec="h264", gop=8)
    report = pack(source, tmp_path / "out", codec="h264", gop=8, skip_bad=True)
    assert (report.num_episodes, len(report.faults)) == (2, 1)
    assert len(videos(tmp_path / "out")) == 4
    (source / "episode_1.hdf5").unlink()
    pack(source, tmp_path / "without", codec="h264", gop=8)
    with (
        tarfile.open(tmp_path / "out" / "shard-000000.tar") as tar,
        tarfile.open(tmp_path / "without" / "shard-000000.tar") as other,
    ):
        for number, again in ((0, 0), (2, 1)):
            names = [f"ep-{at:09d}.{TOP}.mp4" for at in (number, again)]
            assert tar.extractfile(names[0]).read() == other.extractfile(names[1]).read()


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path, sources, monkeypatch):
    def begin(self, name, size):
        if name.endswith(".mp4"):
            raise OSError(28, os.strerror(28))
        return real(self, name, size)

    real = TarWriter.begin
    monkeypatch.setattr(TarWriter, "begin", begin)
    with pytest.raises((PackError, OSError), match="No space left on device"):
        pack(sources, tmp_path / "out", codec="h264")
    assert not list((tmp_path / "out").glob("*.tar*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crf": 20}, "crf: 20, which is of H.264, and the codec is not given"),
        ({"gop": 8, "codec": "png"}, "gop: 8, which is of H.264, and the codec is png"),
        ({"preset": "fast", "codec": "jpeg"}, "preset: fast, which is of H.264, and the codec is jpeg"),
        ({"quality": 80, "codec": "h264"}, "quality: 80, which is of JPEG, and h264 has crf"),
        ({"codec": "hevc"}, "codec: 'hevc', wanted jpeg, png, raw, webp or h264"),
        ({"codec": "h264", "crf": 52}, "crf: 52, wanted 0 to 51"),
    ],
)
def test_options_without_effect_are_refused(tmp_path, sources, options, message):
    with pytest.raises(OptionError) as refused:
        pack(sources, tmp_path / "out", **options)
    assert message in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_quality_of_video_without_a_camera_for_it_is_refused(tmp_path):
    path = aloha_raw(tmp_path / "a.hdf5", 4)
    with h5py.File(path, "r+") as file:
        for camera in ("top", "angle"):
            del file[f"observations/images/{camera}"]
            file[f"observations/images/{camera}"] = np.zeros((4, 24, 32, 1), np.uint16)
    with pytest.raises(OptionError, match=r"gop: 8, which is of H\.264, and no camera has pictures of bytes in colour"):
        pack(path, tmp_path / "out", codec="h264", gop=8)


def test_without_pyav_only_video_is_refused(tmp_path, sources, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(OptionError, match=r"wanted PyAV.* Run: pip install 'epistream\[video\]'"):
        pack(sources, tmp_path / "out", codec="h264")
    assert not (tmp_path / "out").exists()
    assert pack(sources, tmp_path / "out").num_episodes == 3
    assert open_dataset(tmp_path / "out").num_steps == sum(LENGTHS)


def test_options_of_video_decide_the_result_only_for_video():
    """Jobs of earlier releases, which knew none of these, go on as the same jobs."""
    assert {"crf", "gop", "preset"}.isdisjoint(PackOptions().deciding())
    assert {"crf", "gop", "preset"} <= set(PackOptions(codec="h264").deciding())
