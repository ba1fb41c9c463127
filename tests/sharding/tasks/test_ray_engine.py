"""How Ray is found, or started for a job."""

import contextlib
import socket
import subprocess
import sys

import pytest
from engines import tasks_of_tests as tasks
from engines.ray_session import environment_of_ray

from epistream.errors import OptionError
from epistream.sharding.tasks.engine import EngineOptions, make_engine


def test_ray_engine_without_ray_says_what_to_install(monkeypatch):
    with contextlib.suppress(KeyError):
        monkeypatch.delitem(sys.modules, "ray")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(OptionError, match=r"^engine ray: .* wanted Ray.* Run: pip install 'epistream\[ray\]'\.$"):
        make_engine(EngineOptions("ray"), "job")


def test_ray_engine_without_a_cluster_at_the_address_says_so():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]  # nobody listens
        for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
            words = rf"^address {address}: no Ray cluster there \(ConnectionRefusedError.*'ray start --head'"
            options = EngineOptions("ray", address)
            with make_engine(options, "job") as running, pytest.raises(OptionError, match=words):
                list(running.map(tasks.kept, [1, 2]))


OWN = """
import signal, sys
from engines import tasks_of_tests as tasks
from epistream.sharding.tasks.engine import EngineOptions, make_engine
import ray

before = signal.getsignal(signal.SIGTERM)
with make_engine(EngineOptions("ray", workers=2), "job", {"given": 1}) as running:
    print(sum(count for _, _, count in running.map(tasks.kept, range(3))), int(ray.cluster_resources()["CPU"]))
print(ray.is_initialized(), signal.getsignal(signal.SIGTERM) is before)
"""


@pytest.mark.soak
def test_ray_engine_without_an_address_starts_ray_and_ends_it():
    with environment_of_ray():
        done = subprocess.run([sys.executable, "-c", OWN], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() in (["4", "2", "False", "True"], ["6", "2", "False", "True"])
