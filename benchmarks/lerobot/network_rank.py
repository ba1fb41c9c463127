"""One rank of `network.py`: opens a data set, reads the first batch, then perhaps the epoch; tells lines of JSON."""

import json
import os
import sys
import time
from typing import Any

BATCH_SIZE, NUM_WORKERS = 32, 2


def processor_s() -> float:
    """Of this process and its living children."""
    import psutil

    me = psutil.Process()
    return sum(sum(one.cpu_times()[:2]) for one in (me, *me.children(recursive=True)))


def main(source: str, rank: int, num_ranks: int, directory: str, has_epoch: bool) -> None:
    import torch

    import epistream as es

    torch.set_num_threads(1)
    es.StreamingLoader  # noqa: B018 - loads what a training program has loaded anyway
    if num_ranks > 1:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{directory}/rendezvous", rank=rank, world_size=num_ranks
        )
        os.environ |= {"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(num_ranks)}
        torch.distributed.barrier()
    imported, busy = time.monotonic(), processor_s()
    stream = es.EpisodeStream(
        source,
        batch_size=BATCH_SIZE,
        window=es.Window(action=range(100)),
        cache=es.CacheOptions(directory=f"{directory}/cache"),
    )
    opened = time.monotonic()
    windows = 0
    with es.StreamingLoader(stream, num_workers=NUM_WORKERS) as loader:
        batches = iter(loader)
        windows += _windows(next(batches))
        first = time.monotonic()
        found = {"imported": imported, "open": opened - imported, "first": first - opened, "ready": first - imported}
        print(json.dumps({**found, "cpu": processor_s() - busy}), flush=True)
        if num_ranks > 1:
            torch.distributed.barrier()
        if has_epoch:
            windows += sum(map(_windows, batches))
    print(json.dumps({"windows": windows}), flush=True)
    if num_ranks > 1:
        torch.distributed.destroy_process_group()


def _windows(batch: Any) -> int:
    return len(batch["episode_index"])


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5] == "1")
