"""Ranks that torch.multiprocessing starts, as notebooks do: streams made before and after the process group.

One start goes through all ways; each rank notes what it was given as ``windows-WAY-RANK.json``, and what was logged.
"""

import json
import logging
import sys
from collections.abc import Callable
from functools import partial
from itertools import islice

import torch.distributed as dist
import torch.multiprocessing as mp
from common import Job, make_stream, read_job, windows_of
from torch.utils.data import DataLoader

import epistream as es

METHODS = ("spawn", "fork")
# Where the stream is made: by each rank after or before it joins the group, before it and looked into, before it and
# iterated already, or by the parent, which hands the same one to all ranks.
MADE = ("after", "before", "counted-before", "iterated-before", "by-the-parent", "by-hand", "untold", "alone")
# The same, under a stock DataLoader whose worker stays over the epochs.
STOCK = "by-the-parent-stock"


class Kept(logging.Handler):
    """Keeps the warnings of epistream."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def make_loader(stream: es.EpisodeStream) -> es.StreamingLoader:
    return es.StreamingLoader(stream, num_workers=1)


def loader_of(
    made: str, handed: dict[str, es.EpisodeStream], join: Callable[[], None], job: Job, rank: int
) -> es.StreamingLoader:
    """A loader at its beginning, in a process that has joined the group where the way wants it."""
    if made == "untold":
        return make_loader(make_stream(job))
    if made == "alone":
        return make_loader(make_stream(job, world=es.World()))
    if made == "by-hand":  # a rank that reads another's share on purpose
        loader = make_loader(make_stream(job, world=es.World.of(job.ranks - 1 - rank, job.ranks)))
        join()
        return loader
    if made == "after":
        join()
        return make_loader(make_stream(job))
    if made in handed:
        join()
        return make_loader(handed[made])
    loader = make_loader(make_stream(job))
    if made == "counted-before":
        assert loader.num_batches == len(loader) == 18
    if made == "iterated-before":
        assert len(list(islice(loader, 2))) == 2
    join()
    if made == "iterated-before":
        loader.set_epoch(0)
    return loader


def windows_given(made: str, loader: es.StreamingLoader) -> list[list[list[int]]]:
    stream = loader.stream
    if made == STOCK:
        stock = DataLoader(
            stream, batch_size=None, num_workers=1, persistent_workers=True, multiprocessing_context="fork"
        )
        given = []
        for epoch in range(3):
            stream.set_epoch(epoch)
            given += [windows_of(batch) for batch in stock]
        return given
    with loader:
        given = [windows_of(batch) for _ in range(2) for batch in loader]
    stream.set_epoch(2)
    return given + [windows_of(batch) for batch in stream]


def run_rank(rank: int, job: Job, method: str, handed: dict[str, es.EpisodeStream]) -> None:
    kept = Kept()
    logging.getLogger("epistream").addHandler(kept)
    for made in (*MADE, STOCK):
        way = f"{method}-{made}"
        print(f"{way}: rank {rank}", file=sys.stderr, flush=True)
        kept.messages.clear()
        rendezvous = f"file://{job.out}/rendezvous-{way}"
        join = partial(dist.init_process_group, "gloo", init_method=rendezvous, rank=rank, world_size=job.ranks)
        given = windows_given(made, loader_of(made, handed, join, job, rank))
        (job.out / f"{way}-{rank}.json").write_text(json.dumps({"windows": given, "warnings": kept.messages}))
        if dist.is_initialized():
            dist.barrier()
            dist.destroy_process_group()


def main() -> None:
    job = read_job()
    for method in METHODS:
        handed = {made: make_stream(job) for made in ("by-the-parent", STOCK)}
        mp.start_processes(run_rank, (job, method, handed), nprocs=job.ranks, start_method=method)


if __name__ == "__main__":
    main()
