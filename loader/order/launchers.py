"""What launchers say about a process: torch.distributed, torchrun, Slurm, Open MPI, read into the fields of a World.

Which rank sits on which node must come out the same on all ranks: where a launcher does not say it, the world
is ``uneven`` (every rank counts as a node), which is always correct and at worst fetches more.

Source: the variables are those of torchrun's and Open MPI's documentation and of srun(1), 'OUTPUT ENVIRONMENT
    VARIABLES'.
"""

import multiprocessing
import os
import re
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

from epistream.errors import OptionError

# Step ids from here up are Slurm's own (batch script, interactive shell, extern): not steps that srun started.
_FIRST_RESERVED_STEP = 0xFFFFFFF0


class WorldFields(NamedTuple):
    """The arguments of a World."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    node: int
    num_nodes: int
    uneven: bool = False


def detect_fields(environ: Mapping[str, str]) -> WorldFields:
    """The world of this process; one process alone if nobody says otherwise.

    Raises:
        OptionError: if variables are no integers or contradict each other.
    """
    initialised = process_group()
    if initialised is not None:
        rank, size = initialised
        # A launcher's idea of nodes holds only if it speaks of the same ranks (a user may have regrouped them).
        for launcher in (_torchrun, _slurm, _open_mpi):
            found = launcher(environ)
            if found is not None and (found.rank, found.size) == (rank, size):
                return found
        return _nodes_unknown(rank, size)
    found = _torchrun(environ) or _slurm(environ) or _open_mpi(environ)
    if found is not None:
        return found
    if lacks_rank(environ):
        # Going on as one process alone would give every rank all the windows, without a word.
        raise OptionError(
            f"environment variables: WORLD_SIZE={environ['WORLD_SIZE']}, but no RANK. Use the stream after "
            "torch.distributed is initialised (with Lightning: in fit, or in train_dataloader), or pass world=World() "
            "if this process streams alone."
        )
    return _nodes_unknown(0, 1)


def is_untold(environ: Mapping[str, str]) -> bool:
    """Whether a process started by multiprocessing, as one of several mostly, was told its rank by nobody."""
    told = ("RANK", "WORLD_SIZE", "SLURM_STEP_ID", "OMPI_COMM_WORLD_SIZE")
    return (
        multiprocessing.parent_process() is not None
        and process_group() is None
        and not any(name in environ for name in told)
    )


def lacks_rank(environ: Mapping[str, str]) -> bool:
    """Whether there are several ranks, and nothing but torch.distributed could tell which this is.

    Lightning's own launcher does so until it initialises torch.distributed.
    """
    told = _torchrun(environ) or _slurm(environ) or _open_mpi(environ)
    return told is None and "WORLD_SIZE" in environ and _integer(environ, "WORLD_SIZE") > 1


def process_group() -> tuple[int, int] | None:
    """Rank and size of torch's process group, if it is initialised."""
    # Looking it up, not importing it: a process without torch.distributed has not initialised it.
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return None
    return distributed.get_rank(), distributed.get_world_size()


def mesh_fields(mesh: Any, names: tuple[str, ...], job: Any) -> WorldFields:
    """The world of a rank of a device mesh, of which only some dimensions are data-parallel.

    Args:
        mesh: as `World.of_mesh` takes it.
        names: the data-parallel dimensions.
        job: the world of all processes of the job.

    Raises:
        OptionError: the mesh has no such dimensions, or does not hold this process.
    """
    known = tuple(mesh.mesh_dim_names or ())
    if not names:
        raise OptionError(f"World.of_mesh: no dimension, wanted the data-parallel ones of {known}.")
    try:
        data_parallel = mesh[names if len(names) > 1 else names[0]]
    except (KeyError, RuntimeError) as error:
        raise OptionError(
            f"World.of_mesh: dimensions {names} of a mesh that has {known or 'no names'}: {error}. Name those that are "
            "data-parallel; init_device_mesh(..., mesh_dim_names=...) gives names."
        ) from error
    ranks = data_parallel.mesh.flatten().tolist()
    if job.rank not in ranks:
        raise OptionError(
            f"World.of_mesh: rank {job.rank} is not in the mesh. Only ranks of the mesh stream by it; pass "
            "world=World() to stream alone."
        )
    rank, size = ranks.index(job.rank), len(ranks)
    if job.uneven:
        return _nodes_unknown(rank, size)
    nodes = [each // job.local_size for each in ranks]
    local_rank, local_size = nodes[:rank].count(job.node), nodes.count(job.node)
    # Positions are dealt to runs of ranks: each node must hold one, and all of one length.
    runs = [set(nodes[begin : begin + local_size]) for begin in range(0, size, local_size)]
    if len(runs) * local_size == size == local_size * len(set(nodes)) and all(len(run) == 1 for run in runs):
        return _even(rank, size, local_rank, local_size, rank // local_size)
    return _nodes_unknown(rank, size, local_rank, local_size)


def num_restarts() -> int:
    """How often torchrun has started the ranks of this node again; the process group's store may outlive a start."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def _torchrun(environ: Mapping[str, str]) -> WorldFields | None:
    """torchrun, and those who set the same names; Ray Train and Lightning call the node NODE_RANK.

    DeepSpeed's launcher has names of its own for all that concerns nodes.
    """
    if "RANK" not in environ or "WORLD_SIZE" not in environ:
        return None
    rank, size = _integer(environ, "RANK"), _integer(environ, "WORLD_SIZE")
    _check("RANK", rank, "WORLD_SIZE", size)
    node_variable, nodes_variable = "GROUP_RANK" if "GROUP_RANK" in environ else "NODE_RANK", "GROUP_WORLD_SIZE"
    local_variable = "LOCAL_WORLD_SIZE"
    if local_variable not in environ and "CROSS_SIZE" in environ:
        local_variable, node_variable, nodes_variable = "LOCAL_SIZE", "CROSS_RANK", "CROSS_SIZE"
    if "LOCAL_RANK" not in environ or local_variable not in environ:
        return _nodes_unknown(rank, size)
    local_rank, local_size = _integer(environ, "LOCAL_RANK"), _integer(environ, local_variable)
    _check("LOCAL_RANK", local_rank, local_variable, local_size)
    if local_size == size:
        return _even(rank, size, local_rank, local_size, 0)
    # These launchers number ranks node after node: any disagreement means nodes of different sizes. Where one node
    # cannot see it (2, 1 and 3 ranks look even from the first), ranks find out when they compare `World.layout`.
    node = _integer(environ, node_variable) if node_variable in environ else -1
    num_nodes = _integer(environ, nodes_variable) if nodes_variable in environ else size // local_size
    if num_nodes * local_size != size or rank != node * local_size + local_rank:
        return _nodes_unknown(rank, size, local_rank, local_size)
    return _even(rank, size, local_rank, local_size, node)


def _slurm(environ: Mapping[str, str]) -> WorldFields | None:
    """A task of an srun step. A batch script has SLURM_PROCID=0 and SLURM_NTASKS=8 too, and is one process."""
    needed = ("SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID")
    if any(name not in environ for name in needed):
        return None
    if _integer(environ, "SLURM_STEP_ID") >= _FIRST_RESERVED_STEP:
        return None
    rank, size = _integer(environ, "SLURM_PROCID"), _integer(environ, "SLURM_STEP_NUM_TASKS")
    _check("SLURM_PROCID", rank, "SLURM_STEP_NUM_TASKS", size)
    per_node = _tasks_per_node(environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    if "SLURM_LOCALID" not in environ or "SLURM_NODEID" not in environ or sum(per_node) != size:
        return _nodes_unknown(rank, size)
    local_rank, node = _integer(environ, "SLURM_LOCALID"), _integer(environ, "SLURM_NODEID")
    _check("SLURM_NODEID", node, "SLURM_STEP_TASKS_PER_NODE", len(per_node))
    _check("SLURM_LOCALID", local_rank, "SLURM_STEP_TASKS_PER_NODE", per_node[node])
    if len(set(per_node)) > 1:
        return WorldFields(rank, size, local_rank, per_node[node], node, len(per_node), uneven=True)
    return _even(rank, size, local_rank, per_node[node], node)


def _tasks_per_node(text: str) -> list[int]:
    """Expand Slurm's "2(x3),1" into [2, 2, 2, 1]; an empty list if it is anything else."""
    counts: list[int] = []
    for item in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", item.strip())
        if match is None:
            return []
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def _open_mpi(environ: Mapping[str, str]) -> WorldFields | None:
    """Open MPI numbers no nodes (OMPI_COMM_WORLD_NODE_RANK counts processes of one), so several are unknown."""
    if "OMPI_COMM_WORLD_RANK" not in environ or "OMPI_COMM_WORLD_SIZE" not in environ:
        return None
    rank, size = _integer(environ, "OMPI_COMM_WORLD_RANK"), _integer(environ, "OMPI_COMM_WORLD_SIZE")
    _check("OMPI_COMM_WORLD_RANK", rank, "OMPI_COMM_WORLD_SIZE", size)
    if "OMPI_COMM_WORLD_LOCAL_RANK" not in environ or "OMPI_COMM_WORLD_LOCAL_SIZE" not in environ:
        return _nodes_unknown(rank, size)
    local_rank = _integer(environ, "OMPI_COMM_WORLD_LOCAL_RANK")
    local_size = _integer(environ, "OMPI_COMM_WORLD_LOCAL_SIZE")
    _check("OMPI_COMM_WORLD_LOCAL_RANK", local_rank, "OMPI_COMM_WORLD_LOCAL_SIZE", local_size)
    if local_size == size:
        return _even(rank, size, local_rank, local_size, 0)
    return _nodes_unknown(rank, size, local_rank, local_size)


def _even(rank: int, size: int, local_rank: int, local_size: int, node: int) -> WorldFields:
    return WorldFields(rank, size, local_rank, local_size, node, size // local_size)


def _nodes_unknown(rank: int, size: int, local_rank: int = 0, local_size: int = 1) -> WorldFields:
    """Every rank counts as a node; what is known of the node itself is kept for devices and reports."""
    return WorldFields(rank, size, local_rank, local_size, rank, size, uneven=size > 1)


def _integer(environ: Mapping[str, str], name: str) -> int:
    try:
        return int(environ[name])
    except ValueError:
        raise OptionError(
            f"environment variable {name}: {environ[name]!r}, wanted an integer. "
            "Correct it, or pass world=World.of(rank, size, local_size)."
        ) from None


def _check(name: str, position: int, count_name: str, count: int) -> None:
    if count < 1 or not 0 <= position < count:
        raise OptionError(
            f"environment variables: {name}={position} does not fit {count_name} ({count}). "
            "Correct them, or pass world=World.of(rank, size, local_size)."
        )
