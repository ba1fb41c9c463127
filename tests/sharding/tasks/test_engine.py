"""What every engine must do: the same tests for processes of this machine and for Ray."""

import os
import re
import shutil

import pytest
from engines import tasks_of_tests as tasks
from engines.ray_session import ray_of_tests
from hdf5_files import aloha_raw, contents

from epistream.errors import OptionError, PackError, WorkerError
from epistream.loader.exporting.lerobot import export_lerobot
from epistream.sharding.check.verify import verify
from epistream.sharding.check.verify_shard import VerifyOptions
from epistream.sharding.dataset import open_dataset
from epistream.sharding.pack.pack import pack
from epistream.sharding.tasks.engine import EngineOptions, make_engine

ENGINES = ["local", "ray"]


@pytest.fixture(scope="module")
def ray_session():
    """Two CPUs of Ray, which engines without an address use as well: this process is connected."""
    with ray_of_tests(num_cpus=2):
        yield


@pytest.fixture(params=ENGINES)
def engine(request):
    if request.param == "ray":
        request.getfixturevalue("ray_session")
    return request.param


def made(engine, **kept):
    return make_engine(EngineOptions(engine, workers=2), "job", kept)


def test_engine_tasks_that_end_in_another_order_give_results_in_their_own(engine, tmp_path):
    with made(engine) as running:
        ticks = []
        every = [(tmp_path, number) for number in range(5)]
        assert list(running.map(tasks.last_one_first, every, lambda *totals: ticks.append(totals))) == [0, 1, 2, 3, 4]
        assert ticks[-1] == (5, 100)
        again = []
        assert list(running.map(tasks.last_one_first, every[1:3], lambda *totals: again.append(totals))) == [1, 2]
        assert again[-1] == (2, 30)


def test_engine_tells_of_tasks_that_still_run(engine, tmp_path):
    def look(num_episodes, num_bytes):
        if (num_episodes, num_bytes) == (2, 14):
            (tmp_path / "seen").touch()

    with made(engine) as running:
        assert list(running.map(tasks.report_then_wait, [tmp_path, tmp_path], look)) == ["done", "done"]


def test_engine_processes_keep_what_they_were_given_from_task_to_task(engine):
    with made(engine, given="of the job") as running:
        found = list(running.map(tasks.kept, range(8)))
    assert {given for given, _, _ in found} == {"of the job"}
    assert os.getpid() not in {pid for _, pid, _ in found}
    for one in {pid for _, pid, _ in found}:
        counts = [count for _, pid, count in found if pid == one]
        assert counts == list(range(1, len(counts) + 1))


def test_engine_runs_few_tasks_in_this_process(engine):
    with made(engine, given=1) as running:
        assert list(running.map(tasks.kept, ["a", "b"], min_parallel=3)) == [(1, os.getpid(), 1), (1, os.getpid(), 2)]
        assert list(running.map(tasks.kept, [])) == []


@pytest.mark.parametrize(
    ("task", "error", "words", "cause"),
    [
        ("ours", PackError, "^e_1.hdf5: torn$", "(?s)in a packing process.*: Traceback.*in fail"),
        ("unreadable", WorkerError, "^UnreadableError: both$", "in fail"),
        ("unsendable", Exception, "pickle", "ForkingPickler"),
    ],
)
def test_engine_task_that_fails_is_told_as_it_failed(engine, task, error, words, cause):
    with made(engine) as running, pytest.raises(error, match=words) as caught:
        list(running.map(tasks.fail, [task, task]))
    assert re.search(cause, str(caught.value.__cause__))


DIED = "^job: a packing process .*use fewer --workers; 'pack --resume' keeps"


@pytest.mark.soak  # four attempts, each of a process of its own
@pytest.mark.parametrize("task", ["dies", "exits"])
def test_engine_task_that_ends_its_process_is_told_as_that(engine, task):
    words = DIED if task == "dies" or engine == "ray" else "^job: a packing process exited with code 3"
    with made(engine) as running, pytest.raises(WorkerError, match=words):
        list(running.map(tasks.fail, [task, task]))


@pytest.mark.alone  # tasks that have not ended after some seconds are killed
def test_engine_interrupted_ends_its_tasks_before_it_is_left(engine, tmp_path):
    def interrupt(num_episodes, num_bytes):
        if all((tmp_path / f"{number}-began").exists() for number in range(2)):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), made(engine) as running:
        list(running.map(tasks.hang, [(tmp_path, 0), (tmp_path, 1)], interrupt))
    assert sorted(path.name for path in tmp_path.glob("*-ended")) == ["0-ended", "1-ended"]
    running.stop()


def test_ray_engine_begins_tasks_again_whose_process_was_killed(ray_session, tmp_path):
    with made("ray") as running:
        ticks = []
        every = [(tmp_path, number) for number in range(6)]
        assert list(running.map(tasks.die_once, every, lambda *totals: ticks.append(totals))) == [0, 1, 2, 3, 4, 5]
    assert ticks[-1] == (6, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1-tried", "3-tried", "5-tried"]


def test_ray_engine_packs_the_bytes_of_one_process(ray_session, tmp_path):
    for seed in range(6):
        aloha_raw(tmp_path / "in" / f"e_{seed}.hdf5", 20, seed, cameras=("top",))
    told, options = [], {"codec": "raw", "shard_size": "64KiB"}
    pack(tmp_path / "in", tmp_path / "whole", **options)
    report = pack(tmp_path / "in", tmp_path / "out", engine="ray", progress=told.append, **options)
    assert report.num_shards == 6
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    last = [now for now in told if now.stage == "packing"][-1]
    assert (last.num_done, last.num_total, last.bytes_done) == (6, 6, last.bytes_total)


def test_ray_engine_verifies_as_this_process_does(ray_session, aloha_shards, tmp_path):
    shutil.copytree(aloha_shards, tmp_path / "bad")
    tar = next((tmp_path / "bad").glob("*1.tar"))
    data = bytearray(tar.read_bytes())
    data[len(data) // 2] ^= 1
    tar.write_bytes(data)
    for folder in (aloha_shards, tmp_path / "bad"):
        dataset, told = open_dataset(folder), []
        here = verify(dataset, VerifyOptions(statistics=True))
        there = verify(dataset, VerifyOptions(statistics=True, engine="ray"), advance=told.append)
        assert there == here
        assert sum(told) == dataset.shard_bytes.sum()
    assert len(there.faults) > 0


def test_ray_engine_exports_the_bytes_of_one_process(ray_session, aloha_shards, tmp_path):
    for name, options in {"here": {"workers": 1}, "there": {"engine": "ray"}}.items():
        export_lerobot(aloha_shards, tmp_path / name, pictures="image", version="2.1", **options)
    files = [path.relative_to(tmp_path / "here") for path in sorted((tmp_path / "here").rglob("*")) if path.is_file()]
    assert len(files) > 4
    for file in files:
        assert (tmp_path / "there" / file).read_bytes() == (tmp_path / "here" / file).read_bytes()


def test_engine_options_that_cannot_work_are_refused():
    with pytest.raises(OptionError, match=r"^engine: 'slurm', wanted one of local, ray"):
        EngineOptions("slurm")
    with pytest.raises(OptionError, match=r"^address: 'auto', which is of Ray's cluster"):
        EngineOptions(address="auto")
    with pytest.raises(OptionError, match=r"^address: empty"):
        EngineOptions("ray", address="")
