"""Packing LeRobot data sets that are bad in part, options that cannot work, and jobs that are broken off."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hdf5_files import aloha_raw, contents, manifest, shards

import epistream as es
from epistream.errors import FormatError, OptionError, PackError, SourceChangedError, SourceError
from epistream.sharding.pack import shard_task
from epistream.sharding.pack.pack import pack
from epistream.sharding.pack.report import PackProgress
from epistream.sharding.pictures.video_copy import CopiedVideo

SETS = Path(__file__).resolve().parent.parent / "lerobot" / "sets"
TOP = "observation.images.top"


def copied(name, tmp_path):
    return Path(shutil.copytree(SETS / name, tmp_path / name))


def episode_file(source, number, key=None):
    """A data file or video of v2.1."""
    if key is None:
        return source / f"data/chunk-000/episode_{number:06d}.parquet"
    return source / f"videos/chunk-000/{key}/episode_{number:06d}.mp4"


def actions(url):
    stream = es.EpisodeStream(
        str(url), features=["action"], shuffle=False, remainder="uneven", split=None, batch_size=64, cache="off"
    )
    return np.concatenate([batch["action"].numpy() for batch in stream])


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def without_a_row(path):
    rows = pq.read_table(path)
    pq.write_table(rows.slice(0, len(rows) - 1), path)


@pytest.mark.parametrize(
    ("harm", "key", "said"),
    [
        (os.remove, TOP, r"episode 1: .*episode_000001\.mp4: .*[Nn]o such file"),
        (cut, TOP, r"episode 1: .*episode_000001\.mp4"),
        (lambda path: path.write_bytes(b""), TOP, r"episode 1: .*episode_000001\.mp4"),
        (os.remove, None, r"episode_000001\.parquet: episode 1: .*[Nn]o such file"),
        (cut, None, r"episode_000001\.parquet: episode 1: "),
        (without_a_row, None, r"episode_000001\.parquet: episode 1: \d+ rows, wanted"),
    ],
)
def test_bad_episode_is_told_with_its_place_or_left_out(tmp_path, harm, key, said):
    source = copied("images_v21", tmp_path)
    lengths = [json.loads(line)["length"] for line in (source / "meta/episodes.jsonl").read_text("utf-8").splitlines()]
    harm(episode_file(source, 1, key))
    with pytest.raises(PackError, match=f"1 fault in the sources.*\n.*{said}"):
        pack(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    report = pack(source, tmp_path / "out", skip_bad=True)
    assert (report.num_episodes, len(report.faults)) == (2, 1)
    np.testing.assert_array_equal(
        actions(tmp_path / "out"), np.delete(actions(SETS / "images_v21"), np.s_[lengths[0] : sum(lengths[:2])], axis=0)
    )
    [told] = manifest(tmp_path / "out")["provenance"]["left_out"]
    assert told.startswith("data/chunk-000/episode_000001.parquet: episode 1: ")
    assert str(tmp_path) not in told


def test_only_the_episodes_of_a_torn_video_are_left_out(tmp_path):
    source = copied("files_v30", tmp_path)
    cut(source / f"videos/{TOP}/chunk-000/file-000.mp4")
    report = pack(source, tmp_path / "out", skip_bad=True)
    assert 0 < report.num_episodes < 8
    assert report.num_episodes + len(report.faults) == 8


def test_set_without_a_good_episode_is_refused(tmp_path):
    source = copied("groups_v30", tmp_path)
    shutil.rmtree(source / "videos")
    with pytest.raises(PackError, match=r"3 faults in the sources.*(\n.*)*No episode is left"):
        pack(source, tmp_path / "out", skip_bad=True)


def test_torn_metadata_are_told_before_anything_is_made(tmp_path):
    source = copied("groups_v30", tmp_path)
    (source / "meta" / "info.json").write_text("{")
    with pytest.raises(FormatError, match=r"meta/info\.json: no JSON"):
        pack(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"fps": 20.0}, r"fps: 20, but .*meta/info\.json says 24, at which"),
        ({"layout": "aloha"}, "layout: aloha, which is of HDF5 files, but .* is a LeRobot data set"),
        ({"color_order": "bgr"}, "color_order: bgr, which is of HDF5 files"),
        ({"allow_outside_files": True}, "allow_outside_files: True, which is of HDF5 files"),
        ({"quality": 80}, "quality: 80, but no camera is encoded as JPEG"),
        ({"crf": 30}, "crf: 30, which is of H.264, and the codec is not given"),
        ({"drop": ["nothing"]}, "drop 'nothing': no feature is called so"),
        ({"codec": "av1"}, "codec: 'av1', wanted"),
    ],
)
def test_option_that_cannot_work_is_refused(tmp_path, options, said):
    with pytest.raises(OptionError, match=said):
        pack(SETS / "groups_v30", tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_the_set_s_own_rate_may_be_said(tmp_path):
    assert pack(SETS / "groups_v30", tmp_path / "out", fps=24.0).num_episodes == 3


def test_camera_that_is_not_there_is_told(tmp_path):
    with pytest.raises(PackError, match="no camera 'wrist': found top"):
        pack(SETS / "groups_v30", tmp_path / "out", cameras=["wrist"])


def test_hdf5_beside_a_set_and_a_set_twice_are_refused(tmp_path):
    file = aloha_raw(tmp_path / "a.hdf5", 5)
    with pytest.raises(SourceError, match=r"a\.hdf5: beside the LeRobot data set .*groups_v30, wanted sources of one"):
        pack([SETS / "groups_v30", file], tmp_path / "out")
    with pytest.raises(OptionError, match="given twice"):
        pack([SETS / "groups_v30", SETS / "groups_v30" / "meta" / ".."], tmp_path / "out")


def test_sets_of_unlike_features_are_told_apart(tmp_path):
    with pytest.raises(PackError, match=r"numbers_v30/data/.*: episode 0: lacks observation\.images\.top"):
        pack([SETS / "groups_v30", SETS / "numbers_v30"], tmp_path / "out")


@pytest.mark.parametrize("key", [TOP, None])
def test_file_that_changes_while_it_is_packed_ends_the_job(tmp_path, monkeypatch, key):
    source = copied("groups_v21", tmp_path)
    real = shard_task.read_episode

    def touched(file, planned, *others):
        found = real(file, planned, *others)
        if planned.group == "episode 2":
            path = episode_file(source, 2, key)
            os.utime(path, ns=(0, path.stat().st_mtime_ns + 1_000_000))
        return found

    monkeypatch.setattr(shard_task, "read_episode", touched)
    with pytest.raises(SourceChangedError, match="changed since the job looked at it"):
        pack(source, tmp_path / "out", skip_bad=True)
    assert not (tmp_path / "out").exists()


def test_file_that_changed_before_it_is_read_ends_the_job(tmp_path, monkeypatch):
    source = copied("groups_v30", tmp_path)
    real = shard_task.read_episode

    def touched(*arguments):
        path = source / f"videos/{TOP}/chunk-000/file-000.mp4"
        os.utime(path, ns=(0, path.stat().st_mtime_ns + 1_000_000))
        return real(*arguments)

    monkeypatch.setattr(shard_task, "read_episode", touched)
    with pytest.raises(SourceChangedError, match=r"file-000\.mp4: changed since"):
        pack(source, tmp_path / "out", skip_bad=True)


def test_a_job_that_was_interrupted_resumes_to_the_same_bytes(tmp_path, example_data, monkeypatch):
    source = Path(shutil.copytree(example_data / "lerobot" / "aloha", tmp_path / "in"))

    def stop(progress: PackProgress):
        if progress.stage == "packing" and shards(tmp_path / "out"):
            raise KeyboardInterrupt

    monkeypatch.setattr("epistream.sharding.tasks.pool._TICK_S", 0.0)
    with pytest.raises(KeyboardInterrupt):
        pack(source, tmp_path / "out", progress=stop, shard_size="64KiB")
    assert not (tmp_path / "out" / "dataset.json").exists()
    with pytest.raises(PackError, match="had other options"):
        pack(source, tmp_path / "out", resume=True, shard_size="64KiB", codec="jpeg")
    report = pack(source, tmp_path / "out", resume=True, shard_size="64KiB")
    assert (report.num_resumed, report.num_shards) == (1, 2)
    pack(source, tmp_path / "whole", shard_size="64KiB")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    again = pack(source, tmp_path / "out", resume=True, shard_size="64KiB")
    assert not again.is_new


@pytest.mark.parametrize("name", ["meta/info.json", "videos/observation.images.top/chunk-000/file-000.mp4"])
def test_a_set_that_changed_is_another_job(tmp_path, monkeypatch, name):
    source = copied("groups_v30", tmp_path)

    def refuse(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("epistream.sharding.pack.pack.write_manifest", refuse)
        with pytest.raises(KeyboardInterrupt):
            pack(source, tmp_path / "out")
    if name.endswith("json"):
        said = json.loads((source / name).read_text())
        (source / name).write_text(json.dumps({**said, "splits": {"train": "0:2", "val": "2:3"}}))
    else:
        os.utime(source / name, ns=(0, (source / name).stat().st_mtime_ns + 1_000_000))
    with pytest.raises(PackError, match="had other sources"):
        pack(source, tmp_path / "out", resume=True)


def test_a_job_is_stopped_within_an_episode(tmp_path, monkeypatch):
    """Each piece of a video that is copied is reported: no worker is taken for dead, or works in vain."""
    monkeypatch.setattr("epistream.sharding.pictures.video_copy._PIECE_BYTES", 500)
    reports = []

    class Stopped(shard_task.Pulse):
        def add(self, episodes=0, num_bytes=0):
            reports.append(num_bytes)
            if len(reports) == 9:
                self._stopped[0] = 1
            super().add(episodes, num_bytes)

    monkeypatch.setattr("epistream.sharding.tasks.pool.Pulse", Stopped)
    with pytest.raises(PackError, match="stopped because another part of the job failed"):
        pack(SETS / "groups_v21", tmp_path / "out")
    assert len(reports) == 9
    assert not list((tmp_path / "out").glob("*.tar*"))


def test_pieces_of_any_size_give_the_same_bytes(tmp_path, monkeypatch):
    pack(SETS / "groups_v30", tmp_path / "whole")
    monkeypatch.setattr("epistream.sharding.pictures.video_copy._PIECE_BYTES", 77)
    pack(SETS / "groups_v30", tmp_path / "pieces")
    assert contents(tmp_path / "whole") == contents(tmp_path / "pieces")


def test_video_that_is_cut_off_while_it_is_read_is_a_fault(tmp_path, monkeypatch):
    real = CopiedVideo.pieces

    def pieces(self):
        object.__setattr__(self, "read", lambda offset, size: b"")
        yield from real(self)

    monkeypatch.setattr(CopiedVideo, "pieces", pieces)
    with pytest.raises(PackError, match=r"episode 0, observation\.images\.top: 0 bytes, wanted .*cut off"):
        pack(SETS / "groups_v21", tmp_path / "out")
