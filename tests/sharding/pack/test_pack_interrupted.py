"""Packing that is interrupted or killed: nothing that looks finished, and the same bytes when it is resumed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import psutil
import pytest
from hdf5_files import aloha_jpeg, aloha_raw, contents, manifest, robomimic, shards

from epistream.errors import DatasetExistsError, PackError
from epistream.sharding.pack import shard_task as jobs
from epistream.sharding.pack.pack import pack
from epistream.sharding.pack.report import PackProgress
from epistream.sharding.pack.workspace import JOB_FILE, LOCK_FILE

DEADLINE_S = 60


def interrupted(tmp_path, number=6):
    """A folder in which a job was interrupted after its third shard."""
    for seed in range(number):
        aloha_raw(tmp_path / "in" / f"e_{seed}.hdf5", 20, seed)

    def stop(progress: PackProgress):
        if progress.stage == "packing" and len(shards(tmp_path / "out")) == 3:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("epistream.sharding.tasks.pool._TICK_S", 0.0)
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


def test_pack_resume_of_a_complete_dataset_tells_features_and_files_apart_as_before(tmp_path):
    for name in ("a", "b"):
        robomimic(tmp_path / "in" / f"{name}.hdf5", {"demo_0": 3})
        with h5py.File(tmp_path / "in" / f"{name}.hdf5", "r+") as file:
            file["data/demo_0/obs/complex"] = np.zeros(3, complex)
    (tmp_path / "in" / "c.hdf5").write_bytes(b"torn")
    first, again = (pack(tmp_path / "in", tmp_path / "out", resume=True, skip_bad=True) for _ in range(2))
    assert not again.is_new
    assert any("complex" in path for path in first.left_out)
    assert again.left_out == first.left_out
    assert (len(first.faults), len(again.faults)) == (1, 1), again.faults


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
    wait_until(lambda: list((tmp_path / "out").glob(".shard-*.tar.*.tmp")), process)
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
