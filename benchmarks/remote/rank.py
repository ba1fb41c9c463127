"""One rank: reads epochs when told to on stdin, tells on stdout (a line of JSON each) what it got. See `job.py`."""

import argparse
import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from remote.readers import READERS, Place, windows_of


def tell(event: str, **found: Any) -> None:
    print("EVENT " + json.dumps({"event": event, **found}), flush=True)


def cache_of(loader: Any) -> dict[str, int]:
    """What epistream says of its own cache: bytes of whole shards, and of ranges read before these were there."""
    if not hasattr(loader, "stats"):
        return {}
    stats = loader.stats().cache
    return {"fill_bytes": stats.bytes_fetched, "range_bytes": stats.bytes_ranged}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("reader")
    parser.add_argument("place", help="JSON of `Place`")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    reader = READERS[arguments.reader]
    fields = json.loads(arguments.place)
    place = Place(**{**fields, **{name: Path(fields[name]) for name in ("cache", "shm", "folder")}})
    reader.load()
    torch.distributed.init_process_group("gloo")
    tell("ready")
    begin: Any = None
    for number, line in enumerate(sys.stdin):
        if line.strip() == "end":
            break
        began = time.perf_counter()
        if begin is None:
            begin = reader.start(place)
        windows: list[int] = []
        loader = begin()
        for batch in loader:
            if not windows:
                tell("first", epoch=number, seconds=time.perf_counter() - began)
            windows += windows_of(batch)
        tell("epoch", epoch=number, seconds=time.perf_counter() - began, windows=windows, **cache_of(loader))
    tell("end")


if __name__ == "__main__":
    main()
