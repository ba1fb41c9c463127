"""The same bytes whoever runs the tasks; on a cluster also when processes and nodes are lost."""

import contextlib
import os
import signal
import threading
import time
from pathlib import Path

import fsspec
import psutil
import pytest
from engines.ray_session import environment_of_ray
from hdf5_files import aloha_raw, contents

from epistream.sharding.pack.pack import pack

OPTIONS = {"codec": "raw", "shard_size": "64KiB", "val_fraction": 0.3}
DEADLINE_S = 120


def make_sources(folder, number, steps=20):
    for seed in range(number):
        aloha_raw(folder / f"e_{seed:02d}.hdf5", steps, seed, cameras=("top",))
    return folder


def wait_until(condition):
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "deadline"
        time.sleep(0.02)


@pytest.mark.soak
def test_pack_on_two_nodes_of_which_one_is_removed_and_a_process_killed_gives_the_same_bytes(tmp_path):
    import ray
    from ray.cluster_utils import Cluster

    sources = make_sources(tmp_path / "in", 12, steps=600)
    options = {**OPTIONS, "codec": "png"}
    pack(sources, tmp_path / "whole", workers=2, **options)
    with environment_of_ray():
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        other = cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, log_to_driver=False)
        killed = []

        def disturb():
            wait_until(lambda: list((tmp_path / "out").glob(".shard-*.tar.*.tmp")))
            workers = [
                process
                for process in psutil.process_iter(["cmdline"])
                if process.info["cmdline"] and "ray::run_on_node" in process.info["cmdline"][0]
            ]
            killed.append(workers[0].pid)
            os.kill(workers[0].pid, signal.SIGKILL)
            wait_until(lambda: len(list((tmp_path / "out").glob("shard-*.tar"))) >= 3)
            cluster.remove_node(other, allow_graceful=False)
            killed.append("node")

        try:
            thread = threading.Thread(target=disturb)
            thread.start()
            report = pack(sources, tmp_path / "out", engine="ray", **options)
            thread.join()
        finally:
            ray.shutdown()
            cluster.shutdown()
    assert len(killed) == 2
    assert report.num_shards == 12
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def in_memory(url):
    system = fsspec.filesystem("memory")
    with contextlib.suppress(FileNotFoundError):
        names = system.ls(url.removeprefix("memory:/"), detail=False)
        return {Path(name).name: system.cat_file(name) for name in names}
    return {}


def test_pack_into_a_store_that_was_interrupted_goes_on_from_complete_shards(tmp_path):
    sources, url = make_sources(tmp_path / "in", 6), "memory://engines-resumed"
    pack(sources, tmp_path / "whole", **OPTIONS)

    def stop(progress):
        if sum(name.endswith(".tar") for name in in_memory(url)) >= 3:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("epistream.sharding.tasks.pool._TICK_S", 0.0)
        with pytest.raises(KeyboardInterrupt):
            pack(sources, url, progress=stop, **OPTIONS)
    assert "dataset.json" not in in_memory(url)
    assert {".pack-job.json", ".pack-scans"} <= set(in_memory(url))
    report = pack(sources, url, resume=True, **OPTIONS)
    assert (report.num_resumed, report.num_shards) == (3, 6)
    assert in_memory(url) == contents(tmp_path / "whole")


def test_pack_into_a_store_that_failed_leaves_nothing(tmp_path):
    sources, url = make_sources(tmp_path / "in", 3), "memory://engines-failed"

    def fail(progress):
        if sum(name.endswith(".tar") for name in in_memory(url)) >= 2:
            raise OSError("no")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("epistream.sharding.tasks.pool._TICK_S", 0.0)
        patch.setattr("epistream.sharding.pack.pack.can_be_resumed", lambda error: False)
        with pytest.raises(OSError, match="no"):
            pack(sources, url, progress=fail, **OPTIONS)
    assert in_memory(url) == {}
