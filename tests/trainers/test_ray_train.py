"""Ray Train: a worker that dies costs no window, a run of its name goes on, and Ray's own loader wrapper is exact."""

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from rank_windows import windows_of_rank

import epistream as es

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
BATCHES_AN_EPOCH = {1: 14, 2: 7}  # 140 windows, 10 in a batch of each rank
DEADLINE_S = 150

# One Ray for all jobs of a module: it starts in seconds. It ends when its standard input does.
SESSION = """
import sys, ray
ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100 << 20, _temp_dir=sys.argv[1], log_to_driver=False)
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
ray.shutdown()
"""

# Runs the example; a worker of the first start dies when it is given its batch of a number.
DYING = """
import json, os, sys
import bc_ray_train

options = json.loads(sys.argv[3])
dying = options.pop("dying", None)

def train(config):
    import os, signal
    from pathlib import Path
    import bc_ray_train, ray.train

    noted, count, died = bc_ray_train.windows_of, iter(range(1 << 30)), Path(config["out"], "died")

    def windows_of(batch):
        if [ray.train.get_context().get_world_rank(), next(count)] == dying and not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return noted(batch)

    bc_ray_train.windows_of = windows_of
    bc_ray_train.train(config)

bc_ray_train.main(*sys.argv[1:3], loop=train, **options)
"""

# Two ways to bring Ray's wrapper to a stream; batches hold what it can move to a device, and a list of instructions.
PREPARED = """
import json, sys
import ray.train
from pathlib import Path
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, prepare_data_loader
from torch.utils.data import DataLoader

def train(config):
    import epistream as es

    def windows(batch):
        return [list(pair) for pair in zip(batch["episode_index"].tolist(), batch["step_index"].tolist())]

    def stream():
        return es.EpisodeStream(config["shards"], batch_size=10, features=["action"], seed=0)

    stock, ours = stream(), stream()
    seen = {"stock": [], "ours": []}
    loader = prepare_data_loader(DataLoader(stock, batch_size=None, num_workers=1))
    for epoch in range(2):
        stock.set_epoch(epoch)
        seen["stock"] += [windows(batch) for batch in loader]
    with es.StreamingLoader(ours, num_workers=1) as own:
        loader = prepare_data_loader(own)
        for epoch in range(2):
            seen["ours"] += [windows(batch) for batch in loader]
    Path(config["out"], f"rank-{ray.train.get_context().get_world_rank()}.json").write_text(json.dumps(seen))

shards, out = sys.argv[1:]
TorchTrainer(
    train,
    train_loop_config={"shards": shards, "out": out},
    scaling_config=ScalingConfig(num_workers=2, use_gpu=False),
    run_config=RunConfig(name="prepared", storage_path=out),
).fit()
"""


@pytest.fixture(scope="module")
def ray_environment():
    """The environment of a job of the module's Ray."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        # Not pytest's own: names of sockets are made of it, and may have 107 bytes.
        yield from run_session(Path(folder))


def run_session(folder):
    environment = {
        **os.environ,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # it adds to every start and end
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(EXAMPLES),
    }
    log = (folder / "log").open("w+")
    session = subprocess.Popen(
        [sys.executable, "-c", SESSION, str(folder / "ray")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        env=environment,
        start_new_session=True,
    )
    try:
        address = session.stdout.readline().strip()
        assert address, (folder / "log").read_text()
        yield {**environment, "RAY_ADDRESS": address}
        session.communicate(timeout=60)
        assert session.returncode == 0, (folder / "log").read_text()
    finally:
        if session.poll() is None:
            os.killpg(session.pid, signal.SIGKILL)
            session.wait()
        log.close()


@pytest.fixture
def run(ray_environment, tmp_path):
    """Run a script in the module's Ray to its end."""

    def job(script, *arguments):
        (tmp_path / "script.py").write_text(script)
        ended = subprocess.run(
            [sys.executable, str(tmp_path / "script.py"), *map(str, arguments)],
            env=ray_environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr

    return job


def assert_uninterrupted(out, shards, num_ranks, num_epochs):
    for rank in range(num_ranks):
        lines = [json.loads(line) for line in (out / f"rank-{rank}.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == list(range(num_epochs * BATCHES_AN_EPOCH[num_ranks]))
        expected = windows_of_rank(shards, es.World.of(rank, num_ranks), num_epochs, batch_size=10)
        assert [line["windows"] for line in lines] == expected


# The grid has stops that are wanted; here a worker dies. Rank 0 reports the checkpoints.
@pytest.mark.parametrize(
    ("num_ranks", "num_workers", "dying"),
    [
        pytest.param(2, 2, [1, 10], id="2 ranks of 2 workers"),
        pytest.param(1, 0, [0, 16], id="1 rank with threads", marks=pytest.mark.soak),
        pytest.param(2, 0, [0, 10], id="2 ranks with threads", marks=pytest.mark.soak),
        pytest.param(1, 2, [0, 16], id="1 rank of 2 workers", marks=pytest.mark.soak),
    ],
)
def test_worker_killed_in_mid_epoch_costs_no_window(run, aloha_shards, tmp_path, num_ranks, num_workers, dying):
    options = {"num_ranks": num_ranks, "num_workers": num_workers, "num_epochs": 2, "dying": dying}
    run(DYING, aloha_shards, tmp_path, json.dumps(options))
    assert (tmp_path / "died").exists()
    assert_uninterrupted(tmp_path, aloha_shards, num_ranks, 2)


@pytest.mark.soak  # the grid breaks off and goes on, too
def test_run_of_the_same_name_goes_on_from_its_checkpoint_in_mid_epoch(run, aloha_shards, tmp_path):
    # The last checkpoint of one epoch is that of step 6 of 7: the next run begins with the epoch's last batch.
    run(DYING, aloha_shards, tmp_path, json.dumps({"num_workers": 1, "num_epochs": 1}))
    assert_uninterrupted(tmp_path, aloha_shards, 2, 1)
    run(DYING, aloha_shards, tmp_path, json.dumps({"num_workers": 1, "num_epochs": 2}))
    assert_uninterrupted(tmp_path, aloha_shards, 2, 2)


def test_loaders_given_to_rays_prepare_data_loader_give_every_window_once(run, aloha_shards, tmp_path):
    run(PREPARED, aloha_shards, tmp_path)
    for rank in range(2):
        seen = json.loads((tmp_path / f"rank-{rank}.json").read_text())
        expected = windows_of_rank(aloha_shards, es.World.of(rank, 2), 2, batch_size=10)
        assert seen["stock"] == expected
        assert seen["ours"] == expected
