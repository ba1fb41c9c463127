"""A resumed job does only what is left, and gives the same bytes wherever it was killed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hdf5_files import aloha_raw, contents, robomimic, shards

from epistream.errors import PackError
from epistream.sharding.pack import scan, shard_task, source_reader
from epistream.sharding.pack.pack import pack
from epistream.sharding.pack.report import PackProgress
from epistream.sharding.tar.shard_store import Store

OPTIONS = {"codec": "raw", "shard_size": "96KiB"}
DEADLINE_S = 300


def interrupted(out, sources, after, **options):
    """A folder as a job leaves it that is killed after some shards: what it had written, and no cleaning up."""

    def stop(progress: PackProgress):
        if progress.stage == "packing" and len(shards(out)) >= after:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("epistream.sharding.tasks.pool._TICK_S", 0.0)
        with pytest.raises(KeyboardInterrupt):
            pack(sources, out, progress=stop, **{**OPTIONS, **options})


@pytest.fixture
def sources(tmp_path):
    """Twenty episodes of which each is a shard; 2,400 steps, more than a summary keeps as they are."""
    for seed in range(20):
        aloha_raw(tmp_path / "in" / f"e_{seed:02d}.hdf5", 120, seed, cameras=("top",))
    return tmp_path / "in"


@pytest.fixture
def whole(tmp_path, sources):
    pack(sources, tmp_path / "whole", **OPTIONS)
    return contents(tmp_path / "whole")


def count(monkeypatch, module, name):
    """The first arguments of all calls of a function from now on."""
    calls, real = [], getattr(module, name)

    def counted(first, *others, **options):
        calls.append(first)
        return real(first, *others, **options)

    monkeypatch.setattr(module, name, counted)
    return calls


def test_resumed_job_reads_only_the_sources_of_what_is_left(tmp_path, sources, whole, monkeypatch):
    interrupted(tmp_path / "out", sources, 19)
    opened = count(monkeypatch, shard_task, "open_source")
    scanned = count(monkeypatch, scan, "scan_source")
    hashed = []
    real = source_reader.SourceReader.read
    monkeypatch.setattr(
        source_reader.SourceReader,
        "read",
        lambda self, source, pulse: hashed.append(source.name) or real(self, source, pulse),
    )
    report = pack(sources, tmp_path / "out", resume=True, **OPTIONS)
    assert (report.num_resumed, report.num_shards) == (19, 20)
    assert (scanned, hashed) == ([], ["e_19.hdf5"])
    assert [Path(path).name for path in opened] == ["e_19.hdf5"]
    assert contents(tmp_path / "out") == whole


def test_resumed_job_reads_statistics_of_most_shards_in_one_piece(tmp_path, sources, whole, monkeypatch):
    interrupted(tmp_path / "out", sources, 19)
    read, real = [], Store.read
    monkeypatch.setattr(Store, "read", lambda self, name: read.append(name) or real(self, name))
    pack(sources, tmp_path / "out", resume=True, **OPTIONS)
    statistics = [name for name in read if name.endswith("statistics")]
    assert statistics == [".pack-statistics", ".shard-000018.statistics"]
    assert contents(tmp_path / "out") == whole


def test_resumed_job_reports_what_an_uninterrupted_one_does(tmp_path):
    for seed in range(6):
        aloha_raw(tmp_path / "in" / f"e_{seed}.hdf5", 20, seed)
    options = {"codec": "jpeg", "shard_size": "64KiB"}
    first = pack(tmp_path / "in", tmp_path / "whole", **options)
    interrupted(tmp_path / "out", tmp_path / "in", 2, **options)
    report = pack(tmp_path / "in", tmp_path / "out", resume=True, **options)
    assert report.num_resumed >= 2
    for name in ("fidelity", "source_bytes", "features", "splits", "left_out", "num_steps", "fingerprint"):
        assert getattr(report, name) == getattr(first, name)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


KEPT = (".shard-000003.result", ".shard-000003.statistics", ".pack-statistics", ".pack-scans")


@pytest.mark.parametrize("damage", ["gone", "cut", "flipped", "empty", "other"])
@pytest.mark.parametrize("name", KEPT)
def test_resumed_job_does_again_what_it_has_no_whole_result_of(tmp_path, name, damage):
    for seed in range(6):
        aloha_raw(tmp_path / "in" / f"e_{seed}.hdf5", 20, seed)
    interrupted(tmp_path / "out", tmp_path / "in", 5)
    path = tmp_path / "out" / name
    data = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    elif damage == "other":
        path.write_bytes((tmp_path / "out" / ".shard-000002.result").read_bytes())
    else:
        data[len(data) // 2] ^= 1
        path.write_bytes({"cut": data[: len(data) // 2], "flipped": data, "empty": b""}[damage])
    report = pack(tmp_path / "in", tmp_path / "out", resume=True, **OPTIONS)
    assert report.num_resumed == (4 if "result" in name else 5) or "shard" in name
    pack(tmp_path / "in", tmp_path / "whole", **OPTIONS)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_resumed_job_packs_a_source_again_that_was_replaced_by_one_that_looks_the_same(tmp_path):
    for seed in range(4):
        aloha_raw(tmp_path / "in" / f"e_{seed}.hdf5", 20, seed)
    interrupted(tmp_path / "out", tmp_path / "in", 3)
    path = tmp_path / "in" / "e_1.hdf5"
    status = path.stat()
    other = aloha_raw(tmp_path / "other.hdf5", 20, 77)
    assert other.stat().st_size == status.st_size
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(path)
    report = pack(tmp_path / "in", tmp_path / "out", resume=True, **OPTIONS)
    assert report.num_resumed == 2
    pack(tmp_path / "in", tmp_path / "whole", **OPTIONS)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_resumed_job_refuses_a_source_that_changed(tmp_path):
    for seed in range(4):
        aloha_raw(tmp_path / "in" / f"e_{seed}.hdf5", 20, seed)
    interrupted(tmp_path / "out", tmp_path / "in", 3)
    os.utime(tmp_path / "in" / "e_1.hdf5", ns=(1, 1))
    with pytest.raises(PackError, match="had other sources"):
        pack(tmp_path / "in", tmp_path / "out", resume=True, **OPTIONS)


def test_resumed_job_of_a_file_in_several_shards_has_its_checksum(tmp_path):
    robomimic(tmp_path / "in" / "a.hdf5", {f"demo_{number}": 12 for number in range(8)})
    pack(tmp_path / "in", tmp_path / "whole", **OPTIONS)
    assert len(shards(tmp_path / "whole")) > 2
    for after in range(1, len(shards(tmp_path / "whole"))):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        interrupted(tmp_path / "out", tmp_path / "in", after)
        pack(tmp_path / "in", tmp_path / "out", resume=True, **OPTIONS)
        assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_folder_of_an_interrupted_job_is_described_as_one(tmp_path):
    from epistream.sharding.files.folder_hint import describe_folder

    for seed in range(3):
        aloha_raw(tmp_path / "in" / f"e_{seed}.hdf5", 20, seed)
    interrupted(tmp_path / "out", tmp_path / "in", 2)
    assert "other files" not in describe_folder(str(tmp_path / "out"))
    assert "files of an unfinished packing job, 2 shard indexes, 2 tars" in describe_folder(str(tmp_path / "out"))
    assert "--resume" in describe_folder(str(tmp_path / "out"))


def test_remote_job_keeps_nothing_beside_its_shards(tmp_path):
    aloha_raw(tmp_path / "in" / "a.hdf5", 20)
    pack(tmp_path / "in", "memory://kept-nothing", **OPTIONS)
    import fsspec

    names = sorted(Path(name).name for name in fsspec.filesystem("memory").ls("/kept-nothing", detail=False))
    assert [name for name in names if name.startswith(".")] == []


# Forks a job for each of its steps in the folder it writes to, kills it just before the step, and resumes it.
KILLER = """
import os, shutil, signal, sys
from pathlib import Path
from epistream.sharding.pack.pack import pack
import h5py, natsort, simplejpeg

source, out, options = sys.argv[1], Path(sys.argv[2]), dict(codec="raw", shard_size="96KiB")
left = None

def hook(event, arguments):
    global left
    if left is None or event not in ("open", "os.rename", "os.remove", "os.mkdir", "os.truncate", "os.rmdir"):
        return
    if event == "open" and not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR):
        return
    if str(arguments[0]).startswith(str(out)):
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

def contents():
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}

def child(step, **more):
    global left
    process = os.fork()
    if process == 0:
        left = step
        code = 1
        try:
            pack(source, out, **options, **more)
            code = 0
        finally:
            os._exit(code)
    return os.waitpid(process, 0)[1]

sys.addaudithook(hook)
assert child(None) == 0
whole, step = contents(), 0
while True:
    shutil.rmtree(out)
    if child(step) == 0:
        break
    published = (out / "dataset.json").exists()
    tars = {path: path.stat().st_mtime_ns for path in out.glob("*.tar")} if out.exists() else {}
    assert child(step // 2 if step % 3 == 0 and not published else None, resume=True) in (0, signal.SIGKILL)
    assert child(None, resume=True) == 0, step
    assert contents() == whole, (step, sorted(contents()))
    if published:
        assert {path: path.stat().st_mtime_ns for path in tars} == tars, step
    step += 1
print(step, "steps")
"""


def test_job_killed_at_every_step_resumes_to_the_same_bytes(tmp_path):
    for seed in range(3):
        aloha_raw(tmp_path / "in" / f"e_{seed}.hdf5", 15, seed)
    done = subprocess.run(
        [sys.executable, "-c", KILLER, tmp_path / "in", tmp_path / "out"],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout.split()[0]) > 30
