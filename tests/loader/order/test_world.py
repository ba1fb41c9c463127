"""The world: what is refused, and what is made of each launcher's variables."""

import sys
from math import prod
from types import SimpleNamespace

import pytest
import torch

from epistream.errors import OptionError
from epistream.loader.order.world import World

TORCHRUN = {
    "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4",
    "GROUP_RANK": "1", "GROUP_WORLD_SIZE": "2", "MASTER_ADDR": "node0", "MASTER_PORT": "29500",
}  # fmt: skip
# A batch script of 8 tasks on 2 nodes, before and inside srun.
SBATCH = {
    "SLURM_JOB_ID": "200505", "SLURM_NTASKS": "8", "SLURM_NPROCS": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0", "SLURM_NNODES": "2", "SLURM_TASKS_PER_NODE": "4(x2)", "SLURM_TASK_PID": "16360",
}  # fmt: skip
SRUN = {
    **SBATCH, "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)", "SLURM_PROCID": "6", "SLURM_LOCALID": "2", "SLURM_NODEID": "1",
}  # fmt: skip
MPIRUN = {
    "OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "3", "OMPI_COMM_WORLD_LOCAL_SIZE": "4", "OMPI_COMM_WORLD_NODE_RANK": "3",
}  # fmt: skip


@pytest.fixture
def distributed(monkeypatch):
    """Set what torch.distributed would say; not initialised at first."""

    def initialise(rank, size):
        module = SimpleNamespace(
            is_available=lambda: True,
            is_initialized=lambda: size > 0,
            get_rank=lambda: rank,
            get_world_size=lambda: size,
        )
        monkeypatch.setitem(sys.modules, "torch.distributed", module)

    initialise(0, 0)
    return initialise


pytestmark = pytest.mark.usefixtures("distributed")


def test_world_without_a_launcher_is_one_process():
    assert World.detect({}) == World() == World(0, 1, 0, 1, 0, 1)


def test_world_of_torchrun_is_read_from_its_variables():
    assert World.detect(TORCHRUN) == World(5, 8, 1, 4, 1, 2)


def test_world_of_torchrun_wins_over_slurm_that_started_it():
    assert World.detect({**SRUN, **TORCHRUN}) == World(5, 8, 1, 4, 1, 2)


def test_world_of_one_node_needs_no_node_variable():
    environ = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    assert World.detect(environ) == World(1, 2, 1, 2, 0, 1)


def test_world_of_ray_train_takes_the_node_from_node_rank():
    environ = {key: value for key, value in TORCHRUN.items() if not key.startswith("GROUP")}
    assert World.detect({**environ, "NODE_RANK": "1"}) == World(5, 8, 1, 4, 1, 2)


def test_world_with_unknown_nodes_counts_every_rank_as_a_node():
    world = World.detect({"RANK": "5", "WORLD_SIZE": "8"})
    assert (world.rank, world.size, world.uneven) == (5, 8, True)
    assert (world.group, world.num_groups, world.group_rank, world.group_size) == (5, 8, 0, 1)


def test_world_of_torchrun_with_nodes_of_one_two_and_three_ranks_is_uneven_on_each():
    rank = 0
    for node, local_size in enumerate((1, 2, 3)):
        for local_rank in range(local_size):
            environ = {"RANK": rank, "WORLD_SIZE": 6, "LOCAL_RANK": local_rank, "LOCAL_WORLD_SIZE": local_size,
                       "GROUP_RANK": node, "GROUP_WORLD_SIZE": 3}  # fmt: skip
            world = World.detect({key: str(value) for key, value in environ.items()})
            assert world.uneven, environ
            assert world.layout == "6 ranks, dealt over 6 x 1"
            rank += 1


def test_world_of_an_srun_step_is_read_from_the_step():
    assert World.detect(SRUN) == World(6, 8, 2, 4, 1, 2)


def test_world_of_a_step_of_fewer_tasks_than_the_job_is_the_step():
    step = {**SRUN, "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_TASKS_PER_NODE": "1",
            "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}  # fmt: skip
    assert World.detect(step) == World()


@pytest.mark.parametrize("step", ["4294967290", "4294967291"])
def test_world_of_a_batch_script_or_shell_is_one_process_whatever_the_job_has(step):
    assert World.detect(SBATCH) == World()
    assert World.detect({**SBATCH, "SLURM_STEP_ID": step, "SLURM_STEP_NUM_TASKS": "8"}) == World()


def test_world_of_a_step_on_unequal_nodes_is_uneven():
    world = World.detect({**SRUN, "SLURM_STEP_TASKS_PER_NODE": "2(x2),4", "SLURM_NODEID": "2", "SLURM_LOCALID": "3"})
    assert world == World(6, 8, 3, 4, 2, 3, uneven=True)


def test_world_of_open_mpi_on_one_node_is_read_from_its_variables():
    assert World.detect(MPIRUN) == World(3, 4, 3, 4, 0, 1)


def test_world_of_open_mpi_on_several_nodes_counts_every_rank_as_a_node():
    world = World.detect({**MPIRUN, "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1"})
    assert (world.rank, world.size, world.local_rank, world.local_size, world.uneven) == (3, 4, 1, 2, True)


def test_world_of_initialised_torch_distributed_wins_over_variables(distributed):
    distributed(3, 4)
    world = World.detect(TORCHRUN)
    assert (world.rank, world.size, world.uneven) == (3, 4, True)


def test_world_of_initialised_torch_distributed_takes_nodes_from_a_launcher_that_agrees(distributed):
    distributed(5, 8)
    assert World.detect(TORCHRUN) == World(5, 8, 1, 4, 1, 2)
    distributed(6, 8)
    assert World.detect(SRUN) == World(6, 8, 2, 4, 1, 2)


def test_detect_reads_the_environment_of_the_process(monkeypatch):
    for name in (*TORCHRUN, *SRUN, *MPIRUN):
        monkeypatch.delenv(name, raising=False)
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    assert World.detect().rank == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"RANK": "five"}, "environment variable RANK: 'five', wanted an integer"),
        ({"RANK": "8"}, r"RANK=8 does not fit WORLD_SIZE \(8\)"),
        ({"WORLD_SIZE": "0"}, r"RANK=5 does not fit WORLD_SIZE \(0\)"),
        ({"LOCAL_RANK": "4"}, r"LOCAL_RANK=4 does not fit LOCAL_WORLD_SIZE \(4\)"),
    ],
)
def test_variables_that_contradict_each_other_are_refused_by_name(change, message):
    with pytest.raises(OptionError, match=message):
        World.detect({**TORCHRUN, **change})


def test_world_of_ranks_that_are_not_numbered_yet_is_refused_with_the_cure():
    with pytest.raises(OptionError, match=r"WORLD_SIZE=2, but no RANK.*train_dataloader.*world=World\(\)"):
        World.detect({"WORLD_SIZE": "2", "LOCAL_RANK": "1", "NODE_RANK": "0"})
    assert World.detect({"WORLD_SIZE": "1"}) == World()
    assert World.detect({**SRUN, "WORLD_SIZE": "2"}).size == 8


def test_world_by_hand_numbers_ranks_node_after_node():
    assert World.of(5, 8, 4) == World(5, 8, 1, 4, 1, 2)
    assert World.of(1, 2) == World(1, 2, 1, 2, 0, 1)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: World(size=0), "World.size: 0, wanted at least 1"),
        (lambda: World(rank=2, size=2, local_size=2), "World.rank: 2, wanted 0 to 1"),
        (lambda: World(local_rank=-1), "World.local_rank: -1"),
        (lambda: World(rank="0"), "World.rank: '0', wanted int"),
        (lambda: World(rank=True), "World.rank: True, wanted int"),
        (lambda: World(rank=1, size=4), "1 nodes of 1 ranks are 1, size says 4. Use World.of"),
        (lambda: World(0, 6, 0, 2, 0, 2), "2 nodes of 2 ranks are 4, size says 6"),
        (lambda: World(0, 2, 0, 3, 0, 2, uneven=True), "only 2 ranks in all"),
        (lambda: World.of(0, 8, 3), "8 ranks do not make whole nodes of 3. Use local_size=2"),
        (lambda: World.of(0, 0), "0 ranks do not make whole nodes"),
        (lambda: World.of(4, 4), "World.rank: 4, wanted 0 to 3"),
    ],
)
def test_world_that_cannot_be_is_refused(build, message):
    with pytest.raises(OptionError, match=message):
        build()


DEEPSPEED = {
    "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_SIZE": "4", "CROSS_RANK": "1", "CROSS_SIZE": "2",
}  # fmt: skip


def test_world_of_deepspeeds_launcher_takes_the_node_from_its_own_names():
    assert World.detect(DEEPSPEED) == World(5, 8, 1, 4, 1, 2)
    assert World.detect({**DEEPSPEED, "CROSS_SIZE": "3"}).uneven


class Mesh:
    """What `World.of_mesh` asks of a device mesh: the ranks of the slice that a rank is in."""

    def __init__(self, shape, names, rank):
        self.mesh_dim_names, self.rank = names, rank
        self.mesh = torch.arange(prod(shape)).view(shape)

    def __getitem__(self, names):
        names = (names,) if isinstance(names, str) else names
        if not set(names) <= set(self.mesh_dim_names):
            raise KeyError(f"Invalid mesh_dim_names {names}")
        place = (self.mesh == self.rank).nonzero()[0].tolist()
        index = tuple(slice(None) if n in names else at for n, at in zip(self.mesh_dim_names, place, strict=True))
        return SimpleNamespace(mesh=self.mesh[index])


@pytest.fixture
def of_mesh(distributed, monkeypatch):
    """The worlds of all ranks of a mesh over nodes of equal size."""

    def worlds(shape, names, data_parallel, local_size):
        size, found = prod(shape), []
        for rank in range(size):
            distributed(rank, size)
            for name, value in {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank % local_size,
                                "LOCAL_WORLD_SIZE": local_size, "GROUP_RANK": rank // local_size}.items():  # fmt: skip
                monkeypatch.setenv(name, str(value))
            world = World.of_mesh(Mesh(shape, names, rank), *data_parallel)
            assert (world.all_processes.rank, world.all_processes.local_size) == (rank, local_size)
            found.append(world)
        return found

    return worlds


def test_world_of_a_mesh_gives_ranks_of_one_tensor_parallel_group_equal_worlds(of_mesh):
    assert of_mesh((2, 2), ("dp", "tp"), ("dp",), 4) == [World.of(rank, 2) for rank in (0, 0, 1, 1)]


def test_world_of_a_mesh_over_nodes_keeps_data_parallel_ranks_with_their_node(of_mesh):
    found = of_mesh((4, 2), ("dp", "tp"), ("dp",), 4)
    assert found == [World.of(rank, 4, local_size=2) for rank in (0, 0, 1, 1, 2, 2, 3, 3)]


def test_world_of_a_mesh_whose_stages_lie_on_other_nodes_has_one_node_of_all_places(of_mesh):
    assert of_mesh((2, 4), ("pp", "dp"), ("dp",), 4) == [World.of(rank, 4) for rank in (0, 1, 2, 3) * 2]


def test_world_of_a_mesh_whose_tensors_are_split_over_nodes_counts_a_place_as_a_node(of_mesh):
    # Ranks 0 and 4 are the first place, on two nodes: each node holds every place.
    assert of_mesh((4, 2), ("tp", "dp"), ("dp",), 2) == [World.of(rank, 2) for rank in (0, 1) * 4]
    # Nodes of three cut through the pairs: their places are 0, 0, 1 and 1, 2, 2.
    assert [world.uneven for world in of_mesh((3, 2), ("dp", "tp"), ("dp",), 3)] == [True] * 6


def test_world_of_two_data_parallel_dimensions_counts_them_as_they_are_nested(of_mesh):
    found = of_mesh((2, 2, 2), ("replicate", "shard", "tp"), ("replicate", "shard"), 4)
    assert found == [World.of(rank, 4, local_size=2) for rank in (0, 0, 1, 1, 2, 2, 3, 3)]


def test_world_of_a_mesh_without_data_parallel_ranks_is_one_place_for_all(of_mesh):
    found = of_mesh((1, 4), ("dp", "tp"), ("dp",), 4)
    assert found == [World()] * 4
    assert found[0].all_processes.size == 4


def test_mesh_without_the_dimension_is_refused_with_those_it_has(distributed):
    distributed(0, 4)
    mesh = Mesh((2, 2), ("dp", "tp"), 0)
    with pytest.raises(OptionError, match=r"dimensions \('data',\) of a mesh that has \('dp', 'tp'\)"):
        World.of_mesh(mesh, "data")
    with pytest.raises(OptionError, match=r"no dimension, wanted the data-parallel ones of \('dp', 'tp'\)"):
        World.of_mesh(mesh)
    distributed(5, 6)
    with pytest.raises(OptionError, match=r"rank 5 is not in the mesh"):
        World.of_mesh(mesh, "dp")  # which tells of the slice of rank 0
