"""A stream beside others who want memory: it gives back what it can make again, and goes on with right data."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from machines import GIB, Machine

import epistream as es
from epistream.cache import routes, stores
from epistream.cache.store import places, pressure
from epistream.cache.store.budget import Limits
from epistream.loader.workers import worker

MIB = 1 << 20
DEADLINE_S = 120.0
HELPER = Path(__file__).resolve().parent.parent / "helpers" / "crowded.py"
CONTROLLER = Path("/sys/fs/cgroup/memory")
# 16 episodes of 80 and 60 steps, at 240 x 320 x 3.
DECODED_BYTES = 8 * (80 + 60) * 240 * 320 * 3

pytestmark = pytest.mark.alone


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, aloha_files: list[Path]) -> Path:
    """The two real episodes, eight times each."""
    path = tmp_path_factory.mktemp("crowded")
    files = [path / f"episode_{number}.hdf5" for number in range(16)]
    for number, file in enumerate(files):
        shutil.copy(aloha_files[number % 2], file)
    es.pack(files, path / "shards")
    return path / "shards"


@pytest.fixture
def directory() -> Iterator[Path]:
    """Where a cache directory in memory may be made."""
    path = Path(tempfile.mkdtemp(prefix="cache-test-", dir="/dev/shm"))
    yield path / "cache"
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group of one's own (version 1)."""
    path = CONTROLLER / f"epistream-test-{os.getpid()}"
    try:
        path.mkdir()
    except OSError as error:
        pytest.skip(f"{path}: {error.strerror}, wanted a control group of version 1 to limit memory in")
    try:
        if not (path / "memory.limit_in_bytes").exists():
            pytest.skip(f"{path}: limits no memory, wanted a control group of version 1")
        yield path
    finally:
        path.rmdir()


class Talker:
    """A process that talks in lines of JSON."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(HELPER), *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def tell(self, line: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def hear(self) -> dict:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"ended with {self.process.wait(DEADLINE_S)}"
        return json.loads(line)

    def do(self, line: object) -> dict:
        self.tell(line)
        return self.hear()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


def number_in(file: Path, name: str = "") -> int:
    for line in file.read_text().splitlines():
        if not name or line.startswith(name + " "):
            return int(line.split()[-1])
    raise AssertionError(f"{file}: no {name}")


def test_process_that_takes_half_of_a_group_while_a_stream_runs_is_not_killed(
    group: Path, shards: Path, directory: Path
) -> None:
    running = Talker("stream", str(group), str(shards), str(directory))
    taker = None

    def read() -> dict:
        heard = running.do("next")
        assert heard["is_right"]
        return heard

    try:
        running.hear()
        (group / "memory.force_empty").write_text("0")  # page cache that is charged to it
        limit = number_in(group / "memory.usage_in_bytes") + int(2.3 * DECODED_BYTES)
        (group / "memory.limit_in_bytes").write_text(str(limit))
        running.tell("go")
        heard = read()
        while heard["held"] < 0.9 * DECODED_BYTES:
            assert heard["epoch"] < 30, "everything is kept as long as nobody else wants the memory"
            heard = read()
        assert heard["given"] == 0

        taker = Talker("take", str(group))
        taken = taker.hear()["taken"]
        while taken < limit // 2:
            taken = taker.do(40)["taken"]
            heard = read()
            while heard["held"] > heard["budget"] * 1.05:
                heard = read()
        epoch = heard["epoch"]
        while heard["epoch"] < epoch + 2:
            heard = read()
        assert heard["given"] > 0
        assert heard["held"] <= heard["budget"] * 1.05
        assert heard["held"] <= DECODED_BYTES / 2
        running.tell("end")
        running.process.communicate(timeout=DEADLINE_S)
        assert running.process.returncode == 0
        assert taker.do(0)["taken"] == taken, "it lives"
        assert number_in(group / "memory.oom_control", "oom_kill") == 0
    finally:
        running.end()
        if taker is not None:
            taker.end()


def test_stream_on_a_machine_that_others_fill_gives_back_and_goes_on_with_right_data(
    shards: Path, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(tmp_path)
    monkeypatch.setattr(stores, "Limits", lambda **terms: Limits(**terms, system=machine.system))
    monkeypatch.setattr(pressure, "_LOOK_EVERY_S", (0.0, 0.0))
    camera = "observation.images.top"
    options = {"batch_size": 8, "features": [camera], "image_size": (30, 40), "shuffle": False}
    whole = 8 * (80 + 60) * 30 * 40 * 3
    wanted = [batch[camera].numpy().copy() for batch in es.EpisodeStream(shards, decode="per_read", **options)]

    free, total = 3 * whole, 4 * whole
    machine.have(free, total)
    stream = es.EpisodeStream(shards, decode="once", cache=es.CacheOptions(directory=directory), **options)

    def held() -> int:
        return sum(file.stat().st_size for file in directory.glob("*.shard"))

    def read_epoch(taken_per_batch: int = 0) -> None:
        nonlocal free
        batches = iter(stream)
        for want in wanted:
            free -= taken_per_batch
            machine.have(free - held(), total)
            np.testing.assert_array_equal(next(batches)[camera].numpy(), want)

    def keep_all() -> None:
        for _ in range(30):  # by and by: it may take a share of the time only
            read_epoch()
            if held() >= whole:
                break
        assert whole <= held() <= 1.01 * whole  # with a byte for each frame

    keep_all()
    assert stream.job.cache.stats().bytes_given_back == 0
    largest = max(file.stat().st_size for file in directory.glob("*.shard"))
    read_epoch(2 * whole // len(wanted))
    read_epoch()
    assert 0 < held() <= 1.05 * free / 2, "half of what others left"
    stats = stream.job.cache.stats()
    # What is made anew between two looks makes room for itself: that counts as an eviction.
    assert stats.bytes_given_back > 0
    assert stats.bytes_given_back + largest * stats.evictions >= whole - held()
    assert stats.made_paused == 0, "there was less memory, and no want of it"
    free, total = whole, GIB  # less than a twentieth
    read_epoch()
    assert held() <= 0.55 * free
    assert stream.job.cache.stats().made_paused > 0

    free, total = 3 * whole, 4 * whole  # the others have ended, a minute ago
    monkeypatch.setattr(pressure.time, "monotonic", lambda now=pressure.time.monotonic: now() + 60)
    keep_all()
    stream.job.cache.close()


def test_loader_whose_training_loop_pauses_gives_back_what_others_take(
    shards: Path, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(tmp_path)
    machine.have(2 * GIB, 4 * GIB)
    monkeypatch.setattr(stores, "Limits", lambda **terms: Limits(**terms, system=machine.system))
    monkeypatch.setattr(worker, "_REST_S", 0.05)
    monkeypatch.setattr(worker, "_LOOK_S", 0.05)
    camera = "observation.images.top"
    options = {"batch_size": 8, "features": [camera], "image_size": (60, 80), "shuffle": False}

    def held() -> int:
        return sum(file.stat().st_size for file in directory.glob("*.shard"))

    stream = es.EpisodeStream(shards, decode="once", cache=es.CacheOptions(directory=directory), **options)
    with es.StreamingLoader(stream, num_workers=0, num_threads=1) as loader:
        for _ in range(20):
            wanted = [batch[camera].numpy().copy() for batch in loader]
            if held() > 8 * MIB:
                break
        batches = iter(loader)
        next(batches)
        assert held() > 8 * MIB
        machine.have(MIB, 4 * GIB)
        deadline = time.monotonic() + DEADLINE_S
        while held() > 2 * MIB:
            assert time.monotonic() < deadline, "nobody looks while the loop pauses"
            time.sleep(0.02)
        for batch, want in zip(batches, wanted[1:], strict=True):
            np.testing.assert_array_equal(batch[camera].numpy(), want)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small tmpfs")
def test_stream_where_shared_memory_has_64_mib_works_and_says_why_it_keeps_nothing_there(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    small, disk = tmp_path / "shm", tmp_path / "disk"
    small.mkdir()
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", small], check=False).returncode:
        pytest.skip("mount is not permitted here")
    try:
        monkeypatch.setattr(places, "SHM_PARENT", small)
        monkeypatch.setattr(places, "DISK_PARENT", disk)
        real = routes.file_system_type
        monkeypatch.setattr(
            routes, "file_system_type", lambda path: "nfs4" if path.is_relative_to(shards) else real(path)
        )
        camera = "observation.images.top"
        options = {"batch_size": 8, "features": [camera], "image_size": (30, 40), "shuffle": False}
        wanted = [
            batch[camera].numpy().copy()
            for batch in es.EpisodeStream(shards, decode="per_read", cache="off", **options)
        ]
        with caplog.at_level("WARNING"):
            for decode in ("auto", "once"):
                stream = es.EpisodeStream(shards, decode=decode, **options)
                for _ in range(2):
                    for batch, want in zip(stream, wanted, strict=True):
                        np.testing.assert_array_equal(batch[camera].numpy(), want)
                assert stream.job.cache.stats().tier == "disk"
                stream.job.cache.close()
        messages = [record.getMessage() for record in caplog.records if "left aside" in record.getMessage()]
        assert len(messages) == 2, "once for each stream"
        assert "--shm-size" in messages[0]
        assert "64 MiB at least, is left to others" in messages[0]
    finally:
        subprocess.run(["umount", "-l", small], check=True)
