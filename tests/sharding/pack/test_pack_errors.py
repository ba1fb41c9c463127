"""Bad input and full disks: named errors, and nothing that looks finished."""

import contextlib
import json
import os
import resource
import subprocess
from pathlib import Path

import h5py
import numpy as np
import pytest
from hdf5_files import aloha_jpeg, aloha_raw, contents, episodes, manifest, robomimic, shards, tables

from epistream.errors import DatasetExistsError, OptionError, PackError, SourceChangedError, SourceError
from epistream.sharding.dataset import open_dataset
from epistream.sharding.manifest import manifest_writing
from epistream.sharding.pack.pack import pack
from epistream.sharding.pack.report import PackProgress
from epistream.sharding.pack.workspace import JOB_FILE, LOCK_FILE


def good_and_bad(folder):
    """Three good episodes, and one file for every way to be bad."""
    for number in range(3):
        aloha_jpeg(folder / f"good_{number}.hdf5", 3, number)
    aloha_jpeg(folder / "one_camera.hdf5", 3, cameras=("top",))
    (folder / "text.hdf5").write_text("not HDF5")
    (folder / "torn.hdf5").write_bytes((folder / "good_0.hdf5").read_bytes()[:5000])
    aloha_raw(folder / "empty.hdf5", 0)
    with h5py.File(folder / "strange.hdf5", "w") as file:
        file["x"] = np.zeros(3)
    with h5py.File(aloha_jpeg(folder / "ragged.hdf5", 3), "r+") as file:
        del file["action"]
        file["action"] = np.zeros((4, 14), np.float32)
    with h5py.File(aloha_jpeg(folder / "cut_frame.hdf5", 3), "r+") as file:
        # Only seen when the frames are read.
        file["observations/images/top"][2, 300:] = 0
    return ("one_camera", "text", "torn", "empty", "strange", "ragged", "cut_frame")


def test_pack_reports_every_bad_file_and_publishes_nothing(tmp_path):
    bad = good_and_bad(tmp_path / "in")
    (tmp_path / "in" / "cut_frame.hdf5").unlink()
    with pytest.raises(PackError) as caught:
        pack([tmp_path / "in", tmp_path / "in" / "missing.hdf5"], tmp_path / "out")
    lines = str(caught.value).splitlines()
    assert lines[0] == "7 faults in the sources, nothing was published:"
    for name in (*bad[:-1], "missing"):
        assert sum(f"/{name}.hdf5: " in line for line in lines) == 1
    assert lines[-1].endswith("--skip-bad.")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_pack_frames_found_bad_while_packing_are_reported_and_nothing_is_left(tmp_path, workers):
    for number in range(3):
        with h5py.File(aloha_jpeg(tmp_path / "in" / f"e_{number}.hdf5", 30, number), "r+") as file:
            if number != 1:
                file["observations/images/top"][7, 300:] = 0
    (tmp_path / "out").mkdir()
    with pytest.raises(PackError) as caught:
        pack(tmp_path / "in", tmp_path / "out", shard_size="64KiB", workers=workers)
    for number in (0, 2):
        assert f"{tmp_path}/in/e_{number}.hdf5: /observations/images/top, step 7: " in str(caught.value)
    assert "no JPEG end marker" in str(caught.value)
    assert list((tmp_path / "out").iterdir()) == []


def test_pack_skip_bad_leaves_out_and_lists(tmp_path):
    bad = good_and_bad(tmp_path / "in")
    report = pack(tmp_path / "in", tmp_path / "out", skip_bad=True)
    assert report.num_episodes == 3
    assert len(report.faults) == len(bad)
    without_folder = [fault.removeprefix(f"{tmp_path}/in/") for fault in report.faults]
    assert manifest(tmp_path / "out")["provenance"]["left_out"] == without_folder
    assert manifest(tmp_path / "out")["num_episodes"] == 3
    sources = [json.loads(fields["meta.json"])["source"] for fields in episodes(tmp_path / "out").values()]
    assert sources == ["good_0.hdf5", "good_1.hdf5", "good_2.hdf5"]


def test_pack_and_stream_leave_out_the_same_episodes_of_a_folder_for_the_same_reasons(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bad = good_and_bad(tmp_path / "in")
    with h5py.File(aloha_jpeg(tmp_path / "in" / "a_wide.hdf5", 9), "r+") as file:
        del file["observations/qpos"]
        file["observations/qpos"] = np.zeros((9, 16), np.float32)
    packed = pack(tmp_path / "in", tmp_path / "out", skip_bad=True)
    streamed = open_dataset(tmp_path / "in", on_bad="skip")
    # Packing names the episode too, which is the whole of such a file.
    faults = [fault.replace(": /: ", ": ") for fault in packed.faults]
    assert sorted(Path(path).stem for path in streamed.skipped) == sorted([*bad, "a_wide"])
    assert sorted(streamed.skipped.values()) == sorted(faults)
    assert [Path(url).name for url in streamed.shard_url] == ["good_0.hdf5", "good_1.hdf5", "good_2.hdf5"]
    assert streamed.episode_length.tolist() == open_dataset(tmp_path / "out").episode_length.tolist()


def test_pack_and_stream_ask_what_most_episodes_have_not_most_files(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    robomimic(tmp_path / "in" / "many.hdf5", {f"demo_{number}": 3 for number in range(3)})
    for name in ("a", "z"):
        robomimic(tmp_path / "in" / f"{name}.hdf5", {"demo_0": 4}, cameras=())
    packed = pack(tmp_path / "in", tmp_path / "out", skip_bad=True)
    streamed = open_dataset(tmp_path / "in", on_bad="skip")
    reason = "lacks observation.images.agentview, wanted the features that most episodes have."
    assert packed.faults == tuple(f"{tmp_path}/in/{name}.hdf5: /data/demo_0: {reason}" for name in "az")
    assert streamed.skipped == {f"{tmp_path}/in/{name}.hdf5": f"{tmp_path}/in/{name}.hdf5: {reason}" for name in "az"}
    assert packed.num_episodes == streamed.num_episodes == 3


def test_pack_skip_bad_writes_the_same_tar_as_without_the_bad_episode_before_it(tmp_path):
    for number in (0, 1):
        aloha_jpeg(tmp_path / "in" / f"e_{number}.hdf5", 4, number)
    with h5py.File(aloha_jpeg(tmp_path / "in" / "e_2.hdf5", 4, 2), "r+") as file:
        file["observations/images/top"][3, 200:] = 0
    pack(tmp_path / "in", tmp_path / "with", skip_bad=True)
    (tmp_path / "in" / "e_2.hdf5").unlink()
    pack(tmp_path / "in", tmp_path / "without")
    for name in ("shard-000000.tar", "shard-000000.index"):
        assert (tmp_path / "with" / name).read_bytes() == (tmp_path / "without" / name).read_bytes()


def test_pack_skip_bad_with_nothing_good_is_an_error(tmp_path):
    (tmp_path / "a.hdf5").write_text("no")
    with pytest.raises(PackError, match="cannot be read as HDF5"):
        pack(tmp_path / "a.hdf5", tmp_path / "out", skip_bad=True)
    with h5py.File(aloha_jpeg(tmp_path / "b.hdf5", 3), "r+") as file:
        file["observations/images/top"][2, 200:] = 0
    with pytest.raises(PackError, match="no JPEG end marker"):
        pack(tmp_path / "b.hdf5", tmp_path / "out", skip_bad=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("skip_bad", [False, True])
def test_pack_advises_to_skip_bad_files_only_where_others_are_left(tmp_path, skip_bad):
    torn = aloha_jpeg(tmp_path / "torn.hdf5", 3)
    torn.write_bytes(torn.read_bytes()[:5000])
    cut = aloha_jpeg(tmp_path / "cut.hdf5", 3)
    with h5py.File(cut, "r+") as file:
        file["observations/images/top"][2, 200:] = 0  # only seen when the frames are read
    for source in (torn, cut, [torn, cut] if skip_bad else torn):
        with pytest.raises(PackError, match=r"No episode is left\. Correct the files or the options\.$") as caught:
            pack(source, tmp_path / "out", skip_bad=skip_bad)
        assert "skip-bad" not in str(caught.value)
    with pytest.raises(PackError, match="found top") as caught:
        pack(aloha_jpeg(tmp_path / "good.hdf5", 3, cameras=("top",)), tmp_path / "out", cameras="wrist")
    assert "skip-bad" not in str(caught.value)


def test_pack_the_odd_one_out_is_bad_even_if_it_comes_first(tmp_path):
    aloha_jpeg(tmp_path / "in" / "a.hdf5", cameras=("top",))
    for name in "bc":
        aloha_jpeg(tmp_path / "in" / f"{name}.hdf5")
    report = pack(tmp_path / "in", tmp_path / "out", skip_bad=True)
    assert report.faults == (
        f"{tmp_path}/in/a.hdf5: /: lacks observation.images.angle, wanted the features that most episodes have.",
    )


def test_pack_a_frame_of_another_size_is_a_fault(tmp_path):
    path = aloha_jpeg(tmp_path / "a.hdf5", 3)
    other = aloha_jpeg(tmp_path / "b.hdf5", 3)
    from hdf5_files import jpeg, picture

    with h5py.File(other, "r+") as file:
        rows = file["observations/images/top"]
        data = jpeg(picture(0, height=16, width=16))
        rows[1] = np.frombuffer(data.ljust(rows.shape[1], b"\0"), np.uint8)
    with pytest.raises(PackError, match=r"b.hdf5: .*top, step 1: a JPEG of 16x16x3 .*, wanted 32x24x3 \(width x"):
        pack([path, other], tmp_path / "out")


@pytest.mark.parametrize(
    ("sources", "error", "words"),
    [
        ([], OptionError, "none, wanted at least one"),
        (["nothing_*.hdf5"], SourceError, "matches nothing"),
        (["."], SourceError, "a folder without HDF5 files"),
    ],
)
def test_pack_sources_that_give_no_files_are_an_error(tmp_path, monkeypatch, sources, error, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=words):
        pack(sources, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_pack_file_given_twice_is_refused(tmp_path):
    path = aloha_raw(tmp_path / "a.hdf5")
    with pytest.raises(OptionError, match="given twice"):
        pack([path, tmp_path / "*.hdf5"], tmp_path / "out")


def test_pack_source_that_changes_after_the_scan_is_noticed(tmp_path):
    path = aloha_raw(tmp_path / "a.hdf5")

    def touch(progress: PackProgress):
        if progress.stage == "scanning":
            os.utime(path, ns=(1, 1))

    with pytest.raises(SourceChangedError, match="changed since"):
        pack(path, tmp_path / "out", progress=touch)
    assert not (tmp_path / "out").exists()


def test_pack_refuses_a_folder_that_holds_a_dataset_and_leaves_it_alone(tmp_path):
    path = aloha_raw(tmp_path / "a.hdf5")
    pack(path, tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(DatasetExistsError, match="--overwrite"):
        pack(path, tmp_path / "out", codec="raw")
    assert contents(tmp_path / "out") == before


def test_pack_refuses_a_folder_with_shards_of_somebody_else(tmp_path):
    path = aloha_raw(tmp_path / "a.hdf5")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "shard-000000.tar").write_bytes(b"precious")
    for options in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(DatasetExistsError, match=r"holds shard-000000\.tar and no dataset\.json"):
            pack(path, tmp_path / "out", **options)
    assert contents(tmp_path / "out") == {"shard-000000.tar": b"precious"}


def test_pack_overwrite_replaces_and_cleans_up(tmp_path):
    path = aloha_raw(tmp_path / "a.hdf5")
    pack(path, tmp_path / "out")
    first = manifest(tmp_path / "out")["fingerprint"]
    (tmp_path / "out" / "notes.txt").write_text("mine")
    for options, name in (({"codec": "raw"}, "shard-r1-000000"), ({"codec": "png"}, "shard-000000")):
        pack(path, tmp_path / "out", overwrite=True, **options)
        kept = set(contents(tmp_path / "out"))
        assert kept == {f"{name}.tar", f"{name}.index", "dataset.json", "notes.txt"} | tables(tmp_path / "out")
    assert manifest(tmp_path / "out")["fingerprint"] != first


def test_pack_overwrite_that_fails_leaves_the_old_dataset(tmp_path):
    path = aloha_jpeg(tmp_path / "a.hdf5", 3)
    pack(path, tmp_path / "out")
    before = contents(tmp_path / "out")
    with h5py.File(path, "r+") as file:
        file["observations/images/top"][2, 200:] = 0
    with pytest.raises(PackError):
        pack(path, tmp_path / "out", overwrite=True)
    assert contents(tmp_path / "out") == before


def test_pack_two_jobs_at_once_in_one_folder_are_refused(tmp_path):
    path = aloha_raw(tmp_path / "a.hdf5")

    def again(progress: PackProgress):
        if progress.stage == "packing":
            with pytest.raises(PackError, match="another packing job writes there"):
                pack(path, tmp_path / "out", overwrite=True)

    pack(path, tmp_path / "out", progress=again)
    assert LOCK_FILE not in contents(tmp_path / "out")


@contextlib.contextmanager
def files_at_most(num_bytes):
    """As a disk quota does it: writing beyond raises OSError (EFBIG)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("limit", [100_000, 200_000, 300_000])
def test_pack_disk_full_is_an_error_and_leaves_a_clean_folder(tmp_path, limit):
    path = aloha_raw(tmp_path / "a.hdf5", 80)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with files_at_most(limit), pytest.raises(PackError, match=r"cannot write after .* bytes"):
        pack(path, tmp_path / "out", codec="raw")
    assert contents(tmp_path / "out") == {"notes.txt": b"mine"}


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system")
@pytest.mark.parametrize("workers", [1, 2])
def test_pack_on_a_full_file_system_is_an_error_and_leaves_a_clean_folder(tmp_path, workers):
    for number in range(6):
        aloha_raw(tmp_path / "in" / f"e_{number}.hdf5", 40, number)
    mount = tmp_path / "small"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "none", mount], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        with pytest.raises(PackError, match="No space left on device"):
            pack(tmp_path / "in", mount / "out", codec="raw", shard_size="128KiB", workers=workers)
        assert list(mount.iterdir()) == []
    finally:
        subprocess.run(["umount", mount], check=True)


def test_pack_error_of_the_manifest_leaves_a_clean_folder(tmp_path, monkeypatch):
    def fail(*_):
        raise SourceError("dataset.json: no room")

    monkeypatch.setattr("epistream.sharding.pack.pack.write_manifest", fail)
    with pytest.raises(SourceError, match="no room"):
        pack(aloha_raw(tmp_path / "a.hdf5"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_pack_error_between_tables_and_manifest_leaves_the_old_dataset_alone(tmp_path, monkeypatch):
    path = aloha_raw(tmp_path / "a.hdf5")
    pack(path, tmp_path / "out")
    before = contents(tmp_path / "out")
    real = manifest_writing.write_atomic

    def fail_at_the_end(url, data, options=None):
        if url.endswith("dataset.json"):
            raise SourceError("dataset.json: no room")
        real(url, data, options)

    monkeypatch.setattr(manifest_writing, "write_atomic", fail_at_the_end)
    with pytest.raises(SourceError, match="no room"):
        pack(path, tmp_path / "out", overwrite=True, codec="raw")
    assert contents(tmp_path / "out") == before


def test_pack_error_after_the_manifest_is_in_place_leaves_the_dataset_whole(tmp_path, monkeypatch):
    path = aloha_raw(tmp_path / "a.hdf5")
    real = manifest_writing.write_manifest

    def fail_after(*arguments):
        real(*arguments)
        raise SourceError("dataset.json: the folder cannot be synchronised")

    monkeypatch.setattr("epistream.sharding.pack.pack.write_manifest", fail_after)
    with pytest.raises(SourceError):
        pack(path, tmp_path / "out")
    (shard,) = shards(tmp_path / "out")
    assert manifest(tmp_path / "out")["num_episodes"] == 1
    monkeypatch.undo()
    report = pack(path, tmp_path / "out", resume=True)
    assert report.num_resumed == 1
    assert JOB_FILE not in contents(tmp_path / "out")
    assert shard.exists()


def test_pack_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PackError, match="wanted a folder"):
        pack(aloha_raw(tmp_path / "a.hdf5"), tmp_path / "file" / "out")
