"""What this machine has: cores, memory and its limits, shared memory, graphics cards."""

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

from epistream.cache.store import places
from epistream.cache.store.memory import available_bytes, cgroup_free_bytes
from epistream.cgroups import System
from epistream.loader.workers.cores import num_usable_cores
from epistream.units import size_text


@dataclass(frozen=True)
class Machine:
    """Found by `look`.

    Attributes:
        num_cores: cores that this process may use.
        load: processes that wanted a core over the last minute, this one included.
        memory_bytes: memory of the machine.
        free_bytes: what may still be used, control groups included.
        cgroup_free_bytes: what the control groups leave; None without limits.
        shm_free_bytes: room in /dev/shm; 0 if there is none.
        gpus: names of the CUDA devices.
    """

    num_cores: int
    load: float
    memory_bytes: int
    free_bytes: int
    cgroup_free_bytes: int | None
    shm_free_bytes: int
    gpus: tuple[str, ...] = ()

    @classmethod
    def look(cls) -> "Machine":
        """This machine, now."""
        system = System()
        in_group = cgroup_free_bytes(system)
        free = available_bytes(system)
        free = psutil.virtual_memory().available if free is None else free
        return cls(
            num_cores=num_usable_cores(),
            load=os.getloadavg()[0],
            memory_bytes=psutil.virtual_memory().total,
            free_bytes=max(0, min(free, in_group) if in_group is not None else free),
            cgroup_free_bytes=in_group,
            shm_free_bytes=_free(places.SHM_PARENT),
            gpus=_gpus(),
        )

    def __str__(self) -> str:
        left = self.cgroup_free_bytes
        group = "" if left is None else f", {size_text(left)} left by the control group"
        gpus = f", {len(self.gpus)} x {self.gpus[0]}" if self.gpus else ", no GPU"
        return (
            f"{self.num_cores} cores (load {self.load:.1f}), "
            f"{size_text(self.free_bytes)} of {size_text(self.memory_bytes)} memory free{group}, "
            f"{size_text(self.shm_free_bytes)} of /dev/shm free{gpus}"
        )


def _free(path: Path) -> int:
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return 0


def _gpus() -> tuple[str, ...]:
    # Asking torch starts CUDA in this process; nobody should pay for that who has no torch loaded.
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return ()
    return tuple(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
