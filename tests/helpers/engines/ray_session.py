"""Ray on this machine, for the tests of a module."""

import contextlib
import tempfile
from pathlib import Path

import pytest

# No file in the user's home, no report to anybody, and processes find the helpers of tests.
ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(Path(__file__).resolve().parent.parent),
}


@contextlib.contextmanager
def environment_of_ray():
    """The environment in which tests start Ray, and a folder for it whose path is short enough for sockets."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        patch.setenv("RAY_TMPDIR", folder)
        yield folder


@contextlib.contextmanager
def ray_of_tests(num_cpus):
    """Ray with this process connected."""
    import ray

    with environment_of_ray():
        ray.init(
            address="local",
            num_cpus=num_cpus,
            include_dashboard=False,
            object_store_memory=100 << 20,
            log_to_driver=False,
        )
        try:
            yield
        finally:
            ray.shutdown()
