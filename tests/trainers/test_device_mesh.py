"""Four ranks in a mesh of 2 x 2: tensor-parallel ranks get the same batches, data-parallel ones share the epoch."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter

import pytest
from rank_windows import windows_of_rank

import epistream as es

DEADLINE_S = 150

# What each rank is given with the world of the mesh, and without; and the weight of a sharded model, trained.
SCRIPT = """
import json, sys
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
import epistream as es
from epistream.errors import OptionError

def main(shards, out):
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    seen, world = {}, es.World.of_mesh(mesh, "dp")

    def loader(num_workers=0, seed=0, **given):
        stream = es.EpisodeStream(shards, batch_size=10, features=["action"], seed=seed, **given)
        return es.StreamingLoader(stream, num_workers=num_workers)

    def windows(batches):
        pairs = ((batch["episode_index"].tolist(), batch["step_index"].tolist()) for batch in batches)
        return [[list(pair) for pair in zip(*each)] for each in pairs]

    torch.manual_seed(0)
    model = fully_shard(torch.nn.Linear(14, 14), mesh=mesh["dp"])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen["mesh"] = []
    with loader(num_workers=1, world=world) as batches:
        for _ in range(2):
            for number, batch in enumerate(batches):
                seen["mesh"] += windows([batch])
                loss = ((model(batch["action"][:, 0]) - batch["action"][:, 0]) ** 2).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if number == 3:
                    break  # and goes on where it was
            state = batches.state_dict()
            if number == 3:
                batches.load_state_dict(state)
    seen["weight"] = model.weight.full_tensor().tolist()
    by_hand = es.World.of(mesh.get_local_rank("dp"), mesh["dp"].size())
    with loader(world=by_hand) as batches:
        seen["by hand"] = windows(batches)
    with loader() as batches:
        seen["no world"] = windows(batches)
    try:  # one rank of a tensor-parallel group has another seed
        with loader(world=world, seed=int(rank == 3)) as batches:
            next(iter(batches))
        seen["other seed"] = ""
    except OptionError as error:
        seen["other seed"] = str(error)
    dist.barrier()
    open(f"{out}/rank-{rank}.json", "w").write(json.dumps(seen))
    dist.destroy_process_group()

if __name__ == "__main__":
    main(*sys.argv[1:])
"""


@pytest.fixture(scope="module")
def ranks(aloha_shards, tmp_path_factory):
    """What each of the four ranks has seen."""
    out = tmp_path_factory.mktemp("mesh")
    (out / "script.py").write_text(SCRIPT)
    job = subprocess.Popen(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4"),
            *map(str, (out / "script.py", aloha_shards, out)),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    try:
        printed, _ = job.communicate(timeout=DEADLINE_S)
    except subprocess.TimeoutExpired:
        os.killpg(job.pid, signal.SIGKILL)
        raise
    assert job.returncode == 0, printed
    return [json.loads((out / f"rank-{rank}.json").read_text()) for rank in range(4)]


def test_ranks_of_a_tensor_parallel_group_get_the_same_batches_and_train_on(ranks, aloha_shards):
    for place in range(2):
        expected = windows_of_rank(aloha_shards, es.World.of(place, 2), 1, batch_size=10)
        for rank in (2 * place, 2 * place + 1):
            assert ranks[rank]["mesh"] == expected
            assert ranks[rank]["by hand"] == expected
    everything = Counter((e, t) for e, length in enumerate([80, 60]) for t in range(length))
    assert Counter(tuple(w) for rank in (0, 2) for batch in ranks[rank]["mesh"] for w in batch) == everything
    assert all(rank["weight"] == ranks[0]["weight"] for rank in ranks)


def test_mesh_of_which_the_stream_is_not_told_is_shared_by_all_ranks(ranks, aloha_shards):
    for rank in range(4):
        assert ranks[rank]["no world"] == windows_of_rank(aloha_shards, es.World.of(rank, 4), 1, batch_size=10)


def test_rank_of_a_mesh_with_another_seed_is_refused_by_name(ranks):
    told = [rank["other seed"] for rank in ranks if rank["other seed"]]
    assert told  # by the one that differs, or by those that came behind it
    assert all("seed is" in each and "another rank has" in each for each in told)
