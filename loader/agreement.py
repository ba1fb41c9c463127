"""Ranks make sure that they compute the same order before the first of them reads a batch.

Two ranks with different seeds, windows or copies of the dataset would stream without complaint, some windows twice
and others never.
"""

import json
from typing import Any

from torch import distributed

from epistream.errors import OptionError
from epistream.loader.reading.job import Job


def check_agreement(job: Job) -> None:
    """Compare this rank's plan with that of the first rank that came here, through the process group's store.

    No rank waits for another: a collective would hang when one rank alone makes a stream. Streams are matched in the
    order in which each rank first iterates them; a stream with a `World` of its own is not compared.

    Raises:
        OptionError: the ranks differ; names the option and both values.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return
    if job.world.size != distributed.get_world_size() or job.world.size == 1:
        return
    store = distributed.distributed_c10d._get_default_store()
    number = store.add(f"epistream/streams/{job.world.rank}", 1)
    ours = {**job.identity, "batch_size": job.batch_size, "remainder": job.remainder, "world": job.world.layout}
    # An empty expectation sets the value if there is none, and returns what stands there.
    first = json.loads(store.compare_set(f"epistream/plan/{number}", "", json.dumps(ours, sort_keys=True)))
    different = [name for name in ours if ours[name] != first.get(name)]
    if different:
        raise OptionError(_explain(job, number, different[0], ours, first))


def _explain(job: Job, number: int, name: str, ours: dict[str, Any], first: dict[str, Any]) -> str:
    return (
        f"stream {number} of rank {job.world.rank}: {name} is {ours[name]!r}, another rank has {first.get(name)!r}. "
        "Give every rank the same arguments; a stream for one rank alone takes world=World()."
    )
