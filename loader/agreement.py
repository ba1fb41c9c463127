"""The check that all ranks of a job mean the same order."""

import json
from collections.abc import Iterator
from itertools import count
from typing import Any
from weakref import WeakKeyDictionary

from torch import distributed

from epistream.errors import OptionError
from epistream.loader.order.launchers import num_restarts
from epistream.loader.reading.job import ReadJob

# The process groups of this process, numbered, and their streams. Counted here, not in the group's store, which may be
# older than the process.
_GROUPS = count()
_STREAMS: "WeakKeyDictionary[Any, tuple[int, Iterator[int]]]" = WeakKeyDictionary()


def check_agreement(job: ReadJob) -> None:
    """Compare this rank's plan with that of the first rank that came here, through the process group's store.

    Two ranks with different seeds, windows or copies of the dataset would stream without complaint, some windows twice
    and others never.

    No rank waits for another: a collective would hang when one rank alone makes a stream. Streams are matched in the
    order in which each rank first iterates them; a stream with a `World` of its own is not compared, one with a world
    of a device mesh is.

    Raises:
        OptionError: the ranks differ; names the option and both values.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return
    size = distributed.get_world_size()
    if job.world.all_processes.size != size or size == 1:
        return
    store, group = distributed.distributed_c10d._get_default_store(), distributed.group.WORLD
    if group not in _STREAMS:
        _STREAMS[group] = next(_GROUPS), count(1)
    group_number, number = _STREAMS[group][0], next(_STREAMS[group][1])
    # A store that torchrun keeps over restarts still holds what was said in groups that are gone by now.
    key = f"epistream/plan/{size}/{num_restarts()}/{group_number}/{number}"
    # An order by windows does not say so, and its rank would have nothing to compare with that of one by blocks.
    ours = {"by": "windows", **job.identity, "batch_size": job.batch_size, "remainder": job.remainder}
    ours["world"] = job.world.layout
    # An empty expectation sets the value if there is none, and returns what stands there.
    first = json.loads(store.compare_set(key, "", json.dumps(ours, sort_keys=True)))
    for name, value in ours.items():
        if value != first.get(name):
            raise OptionError(
                f"stream {number} of rank {job.world.all_processes.rank}: {name} is {value!r}, another rank has "
                f"{first.get(name)!r}. Give every rank the same arguments; a stream for one rank alone takes "
                "world=World()."
            )
