"""Which of how many processes this is, and on which of how many nodes."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from epistream.errors import OptionError
from epistream.loader.order.launchers import detect_fields, is_untold, lacks_rank, mesh_fields, process_group


@dataclass(frozen=True)
class World:
    """A rank's place in the job. By hand: ``World.of(rank, size, local_size)``.

    In model-parallel jobs ranks that must see the same batch take equal worlds: see `of_mesh`.

    Attributes:
        rank: this process among all, in [0, size).
        size: number of processes that share an epoch.
        local_rank: this process among those of its node, in [0, local_size).
        local_size: number of processes on this node.
        node: this node, in [0, num_nodes).
        num_nodes: number of nodes.
        uneven: the nodes hold different numbers of ranks, or nobody told which rank is on which node. Then
            every rank counts as a node of its own when windows are dealt. Must be equal on all ranks.
        job: the world of all processes, where several of them take one place in this one; None where they are the
            same.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    node: int = 0
    num_nodes: int = 1
    uneven: bool = False
    job: "World | None" = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        wanted: dict[str, type] = {each.name: int for each in fields(self)}
        wanted |= {"uneven": bool, "job": type(None) if self.job is None else World}
        for name, kind in wanted.items():
            value = getattr(self, name)
            if type(value) is not kind:
                raise OptionError(f"World.{name}: {value!r}, wanted {kind.__name__}.")
        for name, bound in (("rank", "size"), ("local_rank", "local_size"), ("node", "num_nodes")):
            count, position = getattr(self, bound), getattr(self, name)
            if count < 1:
                raise OptionError(f"World.{bound}: {count}, wanted at least 1.")
            if not 0 <= position < count:
                raise OptionError(f"World.{name}: {position}, wanted 0 to {count - 1} ({bound}={count}).")
        if not self.uneven and self.num_nodes * self.local_size != self.size:
            raise OptionError(
                f"World: {self.num_nodes} nodes of {self.local_size} ranks are {self.num_nodes * self.local_size}, "
                f"size says {self.size}. Use World.of(rank={self.rank}, size={self.size}, local_size=...) for equal "
                "nodes numbered one after the other, or uneven=True on every rank."
            )
        if self.uneven and (self.local_size > self.size or self.num_nodes > self.size):
            raise OptionError(
                f"World: {self.num_nodes} nodes and {self.local_size} ranks on this one, but only {self.size} ranks "
                "in all. Correct the counts."
            )

    @classmethod
    def of(cls, rank: int, size: int, local_size: int | None = None) -> "World":
        """A world of equal nodes whose ranks are numbered node after node.

        Args:
            rank: this process among all.
            size: number of processes.
            local_size: processes on every node; one node holds all of them when left out.

        Raises:
            OptionError: if `size` is not a multiple of `local_size`, or `rank` lies outside.
        """
        local_size = size if local_size is None else local_size
        if size < 1 or local_size < 1 or size % local_size:
            fitting = max((n for n in range(1, max(local_size, 1) + 1) if size % n == 0), default=1)
            raise OptionError(
                f"World.of: {size} ranks do not make whole nodes of {local_size}. "
                f"Use local_size={fitting}, or World(..., uneven=True) if nodes differ."
            )
        return cls(rank, size, rank % local_size, local_size, rank // local_size, size // local_size)

    @classmethod
    def detect(cls, environ: Mapping[str, str] | None = None) -> "World":
        """The world as torch.distributed tells it if initialised, else the launcher's variables, else one process.

        Looked at in this order: torch.distributed (only if already imported), torchrun and whatever sets RANK
        and WORLD_SIZE (Accelerate, Ray Train, Lightning), Slurm inside an ``srun`` step, Open MPI.

        Args:
            environ: the variables to read, ``os.environ`` if left out.

        Raises:
            OptionError: if the launcher's variables contradict each other; the message names them.
        """
        return cls(*detect_fields(os.environ if environ is None else environ))

    @classmethod
    def of_mesh(cls, mesh: Any, *names: str) -> "World":
        """The world of a job that is parallel in other dimensions, too: tensors, pipelines, contexts.

        Ranks that differ in those alone take equal worlds, and get the same batches.

        Args:
            mesh: a ``torch.distributed.device_mesh.DeviceMesh`` with names.
            names: its data-parallel dimensions, as they are nested: ``"dp"``, or ``"replicate", "shard"``.

        Raises:
            OptionError: the mesh has no such dimensions, or does not hold this process.
        """
        job = cls.detect()
        return cls(*mesh_fields(mesh, names, job), job=job)

    @classmethod
    def is_to_come(cls) -> bool:
        """Whether the launcher says that there are several ranks, and which this is will be known later."""
        return process_group() is None and lacks_rank(os.environ)

    @classmethod
    def of_process_group(cls, otherwise: "World") -> "World":
        """The world of the process group; `otherwise` where there is none, or it says the same. Cheap."""
        found = process_group()
        return otherwise if found is None or found == (otherwise.rank, otherwise.size) else cls.detect()

    @property
    def is_untold(self) -> bool:
        """Whether this is the world of a process that another one started, and that nobody told its rank."""
        return self.size == 1 and is_untold(os.environ)

    @property
    def all_processes(self) -> "World":
        """The world of all processes of the job: who shares the node's memory and cores with this one."""
        return self.job or self

    @property
    def num_groups(self) -> int:
        """How many groups the positions of an epoch are dealt to: nodes, or ranks if nodes differ."""
        return self.size if self.uneven else self.num_nodes

    @property
    def group(self) -> int:
        """The group that this rank belongs to, in [0, num_groups)."""
        return self.rank if self.uneven else self.node

    @property
    def group_size(self) -> int:
        """Ranks that share a group's positions."""
        return 1 if self.uneven else self.local_size

    @property
    def group_rank(self) -> int:
        """This rank among those of its group."""
        return 0 if self.uneven else self.local_rank

    @property
    def layout(self) -> str:
        """What must be equal on all ranks, as text, for example ``4 ranks, dealt over 2 x 2``."""
        return f"{self.size} ranks, dealt over {self.num_groups} x {self.group_size}"
