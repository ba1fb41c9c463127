"""A job shared by the tasks of an array: the same bytes in any order, told what is missing, and published once."""

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest
from hdf5_files import aloha_jpeg, aloha_raw, contents

from epistream.errors import DatasetExistsError, OptionError, PackError
from epistream.sharding.files.locks import shared_lock
from epistream.sharding.pack.making import share_of, task_of
from epistream.sharding.pack.options import PackOptions
from epistream.sharding.pack.pack import pack
from epistream.sharding.pack.workspace import LOCK_FILE

OPTIONS = {"codec": "raw", "shard_size": "96KiB", "val_fraction": 0.3}
DEADLINE_S = 120


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Nine episodes, of which each is a shard."""
    folder = tmp_path_factory.mktemp("in")
    for seed in range(9):
        aloha_raw(folder / f"e_{seed}.hdf5", 20, seed, cameras=("top",))
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory, sources):
    """What one process makes of them."""
    out = tmp_path_factory.mktemp("whole") / "out"
    pack(sources, out, **{**OPTIONS, "shard_size": "64KiB"})
    assert len(list(out.glob("*.tar"))) == 9
    return contents(out)


def run_task(sources, out, index, number=5, **more):
    return pack(sources, out, task_index=index, num_tasks=number, **{**OPTIONS, "shard_size": "64KiB", **more})


def publish(sources, out, **more):
    return pack(sources, out, publish=True, **{**OPTIONS, "shard_size": "64KiB", **more})


def in_memory(url):
    system = fsspec.filesystem("memory")
    return {Path(name).name: system.cat_file(name) for name in system.ls(url.removeprefix("memory:/"), detail=False)}


def test_array_in_any_order_with_a_task_run_twice_gives_the_bytes_of_one_process(tmp_path, sources, whole):
    reports = [run_task(sources, tmp_path / "out", index) for index in (3, 0, 4, 3, 2, 1)]
    assert [report.num_shards for report in reports] == [2, 1, 2, 2, 2, 2]
    assert [report.num_resumed for report in reports] == [0, 0, 0, 2, 0, 0]
    assert {report.is_published for report in reports} == {False}
    assert not (tmp_path / "out" / "dataset.json").exists()
    report = publish(sources, tmp_path / "out")
    assert (report.num_shards, report.num_resumed, report.is_published) == (9, 9, True)
    assert contents(tmp_path / "out") == whole


def test_array_whose_tasks_run_at_once_and_twice_gives_the_same_bytes(tmp_path, sources, whole):
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda index: run_task(sources, tmp_path / "out", index, 2), (0, 0, 1, 1)))
    publish(sources, tmp_path / "out")
    assert contents(tmp_path / "out") == whole


def test_array_in_an_object_store_gives_the_same_bytes(sources, whole):
    for index in (1, 0):
        run_task(sources, "memory://array", index, 2)
    assert {".pack-job.json", ".shard-000008.result"} <= set(in_memory("memory://array"))
    publish(sources, "memory://array")
    assert in_memory("memory://array") == whole


def test_array_published_too_early_names_the_tasks_that_are_missing(tmp_path, sources, whole):
    out = tmp_path / "out"
    with pytest.raises(PackError, match="no task of a packing job was there"):
        publish(sources, out)
    for index in (0, 2, 3):
        run_task(sources, out, index)
    words = "4 of 9 shards are not there.*--num-tasks 5 and --task-index 1, 4;"
    with pytest.raises(PackError, match=words):
        publish(sources, out)
    (out / "shard-000006.tar").write_bytes(b"torn")
    (out / ".shard-000005.statistics").write_bytes(b"torn")
    for index in (1, 4):
        run_task(sources, out, index)
    with pytest.raises(PackError, match=r"1 of 9 shards.*--task-index 3;"):
        publish(sources, out)
    run_task(sources, out, 3)
    publish(sources, out)
    assert contents(out) == whole


def test_array_is_finished_by_one_process_that_resumes(tmp_path, sources, whole):
    run_task(sources, tmp_path / "out", 1)
    report = pack(sources, tmp_path / "out", resume=True, **{**OPTIONS, "shard_size": "64KiB"})
    assert (report.num_resumed, report.num_shards) == (2, 9)
    assert contents(tmp_path / "out") == whole


def test_array_task_with_other_options_or_another_number_is_refused(tmp_path, sources):
    run_task(sources, tmp_path / "out", 0)
    before = contents(tmp_path / "out")
    del before[LOCK_FILE]
    with pytest.raises(PackError, match="had other options"):
        run_task(sources, tmp_path / "out", 1, codec="png")
    with pytest.raises(PackError, match="is of 5 tasks, wanted --num-tasks 4"):
        run_task(sources, tmp_path / "out", 1, 4)
    with pytest.raises(DatasetExistsError, match="unfinished packing job"):
        pack(sources, tmp_path / "out", **OPTIONS)
    assert contents(tmp_path / "out") == before


def test_array_with_a_task_that_still_runs_is_not_published(tmp_path, sources):
    run_task(sources, tmp_path / "out", 0, 1)
    with shared_lock(tmp_path / "out" / LOCK_FILE), pytest.raises(PackError, match="another packing job writes there"):
        publish(sources, tmp_path / "out")
    publish(sources, tmp_path / "out")


def test_array_task_run_again_after_publishing_does_nothing(tmp_path, sources, whole):
    run_task(sources, tmp_path / "out", 0, 1)
    publish(sources, tmp_path / "out")
    report = run_task(sources, tmp_path / "out", 0, 1)
    assert (report.is_new, report.num_shards) == (False, 9)
    assert not publish(sources, tmp_path / "out").is_new
    assert contents(tmp_path / "out") == whole


def test_array_that_overwrites_leaves_the_old_dataset_whole_until_it_is_published(tmp_path, sources, whole):
    pack(sources / "e_0.hdf5", tmp_path / "out")
    old = (tmp_path / "out" / "dataset.json").read_bytes()
    for index in (1, 0):
        run_task(sources, tmp_path / "out", index, 2, overwrite=True)
    assert (tmp_path / "out" / "dataset.json").read_bytes() == old
    report = publish(sources, tmp_path / "out")
    assert (report.num_shards, report.num_episodes) == (9, 9)
    assert sorted(path.name for path in (tmp_path / "out").glob("*.tar"))[0] == "shard-r1-000000.tar"


@pytest.mark.parametrize("skip_bad", [True, False])
def test_array_with_bad_episodes_does_as_one_process_does(tmp_path, skip_bad):
    import h5py

    for number in range(4):
        aloha_jpeg(tmp_path / "in" / f"e_{number}.hdf5", 30, number)
    for number in (1, 2):
        with h5py.File(tmp_path / "in" / f"e_{number}.hdf5", "r+") as file:
            file["observations/images/top"][5, 300:] = 0
    options = {"shard_size": "64KiB", "skip_bad": skip_bad}

    def task(index):
        return pack(tmp_path / "in", tmp_path / "out", task_index=index, num_tasks=2, **options)

    if not skip_bad:
        with pytest.raises(PackError, match="1 fault in the sources"):
            task(0)
        with pytest.raises(PackError, match=r"e_2\.hdf5"):
            task(1)
        with pytest.raises(PackError, match="2 faults in the sources"):
            pack(tmp_path / "in", tmp_path / "out", publish=True, **options)
        return
    assert [len(task(index).faults) for index in (0, 1)] == [1, 1]
    report = pack(tmp_path / "in", tmp_path / "out", publish=True, **options)
    first = pack(tmp_path / "in", tmp_path / "whole", **options)
    assert report.faults == first.faults
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


KILLED = """
import os, signal, sys
from epistream.sharding.pack import shard_task
from epistream.sharding.pack.pack import pack

real = shard_task.read_array
calls = []
def read_array(*arguments):
    calls.append(1)
    if len(calls) == 9:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments)
shard_task.read_array = read_array
pack(*sys.argv[1:3], codec="raw", shard_size="64KiB", val_fraction=0.3, task_index=0, num_tasks=2)
"""


def test_array_task_that_was_killed_is_run_again(tmp_path, sources, whole):
    out = tmp_path / "out"
    done = subprocess.run([sys.executable, "-c", KILLED, sources, out], timeout=DEADLINE_S, check=False)
    assert done.returncode == -signal.SIGKILL
    assert [path.name for path in out.glob(".shard-*.tmp")] != []
    assert run_task(sources, out, 0, 2).num_resumed >= 1
    run_task(sources, out, 1, 2)
    publish(sources, out)
    assert contents(out) == whole


def test_array_shares_are_every_shard_once():
    for num_shards in (1, 2, 9, 10, 1000):
        for num_tasks in (1, 2, 5, 9, 12):
            shares = [share_of(task, num_tasks, num_shards) for task in range(num_tasks)]
            assert [shard for share in shares for shard in share] == list(range(num_shards))
            told = [task_of(shard, num_shards, num_tasks) for shard in range(num_shards)]
            assert told == [task for task, share in enumerate(shares) for _ in share]
            assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"task_index": 0}, "task_index: 0, num_tasks: None, wanted both"),
        ({"num_tasks": 2}, "task_index: None, num_tasks: 2, wanted both"),
        ({"task_index": 2, "num_tasks": 2}, "task_index: 2, wanted 0 to 1, of 2 tasks"),
        ({"publish": True, "resume": True}, "publish: with a task, resume or overwrite"),
        ({"publish": True, "task_index": 0, "num_tasks": 2}, "publish: with a task"),
        ({"engine": "local", "address": "auto"}, "address: 'auto', which is of Ray's cluster"),
    ],
)
def test_array_options_that_cannot_work_are_refused(options, words):
    with pytest.raises(OptionError, match=words):
        PackOptions(**options)
