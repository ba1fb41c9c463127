"""Bad input, full disks and death: named errors, and nothing that looks finished."""

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import psutil
import pytest
from hdf5_files import aloha_jpeg, aloha_raw, contents, episodes, manifest, robomimic, shards

from epistream.errors import DatasetExistsError, OptionError, PackError, SourceChangedError, SourceError
from epistream.sharding import jobs, manifest_file
from epistream.sharding.pack import pack
from epistream.sharding.pack_report import PackProgress
from epistream.sharding.workspace import JOB_FILE, LOCK_FILE

DEADLINE_S = 60


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
    with pytest.raises(PackError, match=r"b.hdf5: .*top, step 1: a JPEG of \(16, 16, 3\), wanted \(24, 32, 3\)"):
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
        tables = manifest(tmp_path / "out")["tables"]["file"]
        assert kept == {f"{name}.tar", f"{name}.index", "dataset.json", tables, "notes.txt"}
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

    monkeypatch.setattr("epistream.sharding.manifest.Manifest.write", fail)
    with pytest.raises(SourceError, match="no room"):
        pack(aloha_raw(tmp_path / "a.hdf5"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_pack_error_between_tables_and_manifest_leaves_the_old_dataset_alone(tmp_path, monkeypatch):
    path = aloha_raw(tmp_path / "a.hdf5")
    pack(path, tmp_path / "out")
    before = contents(tmp_path / "out")
    real = manifest_file.write_atomic

    def fail_at_the_end(url, data, options=None):
        if url.endswith("dataset.json"):
            raise SourceError("dataset.json: no room")
        real(url, data, options)

    monkeypatch.setattr(manifest_file, "write_atomic", fail_at_the_end)
    with pytest.raises(SourceError, match="no room"):
        pack(path, tmp_path / "out", overwrite=True, codec="raw")
    assert contents(tmp_path / "out") == before


def test_pack_error_after_the_manifest_is_in_place_leaves_the_dataset_whole(tmp_path, monkeypatch):
    path = aloha_raw(tmp_path / "a.hdf5")
    real = manifest_file.write_manifest

    def fail_after(*arguments):
        real(*arguments)
        raise SourceError("dataset.json: the folder cannot be synchronised")

    monkeypatch.setattr(manifest_file, "write_manifest", fail_after)
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


def interrupted(tmp_path, number=6):
    """A folder in which a job was interrupted after its third shard."""
    for seed in range(number):
        aloha_raw(tmp_path / "in" / f"e_{seed}.hdf5", 20, seed)

    def stop(progress: PackProgress):
        if progress.stage == "packing" and len(shards(tmp_path / "out")) == 3:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("epistream.sharding.crew._TICK_S", 0.0)
        with pytest.raises(KeyboardInterrupt):
            pack(tmp_path / "in", tmp_path / "out", progress=stop, codec="raw", shard_size="96KiB")


def test_pack_interrupted_looks_unfinished_and_resumes_to_the_same_bytes(tmp_path):
    interrupted(tmp_path)
    names = set(contents(tmp_path / "out"))
    assert {"dataset.json", LOCK_FILE}.isdisjoint(names)
    assert not [name for name in names if name.endswith(".tmp")]
    with pytest.raises(DatasetExistsError, match="unfinished packing job with 3 complete shards"):
        pack(tmp_path / "in", tmp_path / "out", codec="raw", shard_size="96KiB")
    before = {shard: shard.stat().st_mtime_ns for shard in shards(tmp_path / "out")}
    report = pack(tmp_path / "in", tmp_path / "out", resume=True, codec="raw", shard_size="96KiB", workers=2)
    assert (report.num_resumed, report.num_shards) == (3, 6)
    assert {shard: shard.stat().st_mtime_ns for shard in before} == before
    pack(tmp_path / "in", tmp_path / "whole", codec="raw", shard_size="96KiB")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize("damage", ["tar", "tar cut", "index", "index gone"])
def test_pack_resume_makes_damaged_shards_again(tmp_path, damage):
    interrupted(tmp_path)
    path = tmp_path / "out" / ("shard-000001.tar" if "tar" in damage else "shard-000001.index")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data if damage in ("tar", "index") else data[:5000])
    if damage == "index gone":
        path.unlink()
    report = pack(tmp_path / "in", tmp_path / "out", resume=True, codec="raw", shard_size="96KiB")
    assert report.num_resumed == 2
    pack(tmp_path / "in", tmp_path / "whole", codec="raw", shard_size="96KiB")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize("what", ["options", "sources"])
def test_pack_resume_with_other_options_or_sources_is_refused(tmp_path, what):
    interrupted(tmp_path)
    before = contents(tmp_path / "out")
    options = {"codec": "raw", "shard_size": "96KiB"}
    if what == "options":
        options["shard_size"] = "128KiB"
    else:
        aloha_raw(tmp_path / "in" / "e_0.hdf5", 21)
    with pytest.raises(PackError, match=f"had other {what}"):
        pack(tmp_path / "in", tmp_path / "out", resume=True, **options)
    assert contents(tmp_path / "out") == before
    pack(tmp_path / "in", tmp_path / "out", overwrite=True, **options)
    pack(tmp_path / "in", tmp_path / "whole", **options)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_pack_resume_without_anything_to_resume_begins_and_when_complete_does_nothing(tmp_path):
    path = robomimic(tmp_path / "a.hdf5", {"demo_0": 3})
    first = pack(path, tmp_path / "out", resume=True)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    again = pack(path, tmp_path / "out", resume=True)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before
    assert again.fingerprint == first.fingerprint
    with pytest.raises(DatasetExistsError, match="other sources or options"):
        pack(path, tmp_path / "out", resume=True, codec="raw")


def test_pack_resume_keeps_complete_shards_when_an_episode_is_bad(tmp_path):
    for number in range(3):
        aloha_jpeg(tmp_path / "in" / f"e_{number}.hdf5", 30, number)
    with h5py.File(tmp_path / "in" / "e_2.hdf5", "r+") as file:
        good = file["observations/images/top"][5]
        file["observations/images/top"][5, 300:] = 0
    with pytest.raises(PackError):
        pack(tmp_path / "in", tmp_path / "out", resume=True, shard_size="64KiB")
    assert len(shards(tmp_path / "out")) == 2
    assert good.any()
    report = pack(tmp_path / "in", tmp_path / "out", resume=True, skip_bad=True, shard_size="64KiB")
    assert (report.num_resumed, report.num_episodes) == (2, 2)


# A job that a shell put into the background ignores Ctrl-C, and so would the processes it starts.
PROGRAM = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from epistream.commands import main
main()
"""


def run_pack(*arguments, **options):
    command = [sys.executable, "-c", PROGRAM, "pack", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def wait_until(condition, process):
    """Poll `condition` while `process` runs."""
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, "deadline"
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)


def slow_sources(folder, number=10):
    for seed in range(number):
        aloha_raw(folder / f"e_{seed}.hdf5", 300, seed)


ARGUMENTS = ("--codec", "png", "--shard-size", "1MiB", "--workers", "2")


def test_pack_killed_leaves_no_dataset_and_no_process_and_resumes_to_the_same_bytes(tmp_path):
    slow_sources(tmp_path / "in")
    process = run_pack(tmp_path / "in", tmp_path / "out", *ARGUMENTS)
    wait_until((tmp_path / "out" / "shard-000001.tar").exists, process)
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate(timeout=DEADLINE_S)
    psutil.wait_procs(children, timeout=DEADLINE_S)
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    assert not (tmp_path / "out" / "dataset.json").exists()
    with pytest.raises(DatasetExistsError, match="unfinished"):
        pack(tmp_path / "in", tmp_path / "out", codec="png", shard_size="1MiB")
    process = run_pack(tmp_path / "in", tmp_path / "out", *ARGUMENTS, "--resume")
    out, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, err
    assert "resumed" in out
    pack(tmp_path / "in", tmp_path / "whole", codec="png", shard_size="1MiB")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_pack_worker_killed_is_a_named_error_and_resumes(tmp_path):
    slow_sources(tmp_path / "in")
    process = run_pack(tmp_path / "in", tmp_path / "out", *ARGUMENTS)
    wait_until(lambda: list((tmp_path / "out").glob(".shard-*.tar.tmp")), process)
    children = psutil.Process(process.pid).children(recursive=True)
    workers = [child for child in children if "spawn_main" in " ".join(child.cmdline())]
    workers[0].send_signal(signal.SIGKILL)
    _, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 1
    assert "a packing process was ended by SIGKILL" in err
    assert "Traceback" not in err
    assert not (tmp_path / "out" / "dataset.json").exists()
    assert not list((tmp_path / "out").glob(".*.tmp"))
    pack(tmp_path / "in", tmp_path / "out", codec="png", shard_size="1MiB", resume=True)
    assert manifest(tmp_path / "out")["num_episodes"] == 10


def test_pack_interrupted_from_the_keyboard_ends_quietly_and_can_be_resumed(tmp_path):
    slow_sources(tmp_path / "in", number=30)  # so many that the job cannot end before the signal arrives
    process = run_pack(tmp_path / "in", tmp_path / "out", *ARGUMENTS, start_new_session=True)
    wait_until((tmp_path / "out" / "shard-000000.tar").exists, process)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130, err
    assert err.splitlines() == [
        f"interrupted: nothing was published; complete shards stay in {tmp_path / 'out'} for --resume"
    ]
    names = set(contents(tmp_path / "out"))
    assert JOB_FILE in names
    assert not [name for name in names if name.endswith(".tmp")]


def test_pack_with_workers_in_a_script_without_a_main_guard_says_so(tmp_path):
    for seed in range(2):
        aloha_raw(tmp_path / "in" / f"e_{seed}.hdf5", 30, seed)
    script = tmp_path / "script.py"
    script.write_text(
        "import epistream as es\n"
        f"es.pack({str(tmp_path / 'in')!r}, {str(tmp_path / 'out')!r}, workers=2, codec='raw', shard_size='64KiB')\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert done.returncode == 1
    assert 'if __name__ == "__main__":' in done.stderr.splitlines()[-1]


def test_pack_stopped_task_leaves_no_file(tmp_path, monkeypatch):
    path = aloha_raw(tmp_path / "a.hdf5")

    def stop(*_, **__):
        raise PackError("packing: stopped")

    monkeypatch.setattr(jobs, "read_array", stop)
    with pytest.raises(PackError, match="stopped"):
        pack(path, tmp_path / "out")
    assert not Path(tmp_path / "out").exists()
