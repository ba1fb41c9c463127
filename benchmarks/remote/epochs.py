"""Bytes, memory and first batch of a cold start: a job of several ranks over two epochs."""

from pathlib import Path
from typing import Any

from remote.job import Job, Memory, Served, dataset_bytes, folder_bytes, place_of
from remote.readers import READERS, SCENARIO

_READY_S, _EPOCH_S = 120, 120


def measure(name: str, served: Served, bucket: Path, scratch: Path, *, num_epochs: int = 2) -> dict[str, Any]:
    """Run the job once.

    Returns:
        `epochs`: for each, the bytes fetched as a share of the dataset's, requests, seconds, distinct windows and how
        many were given in all; `first_batch_s` until the last rank had it; peaks of memory in MiB; or `error`.
    """
    place = place_of(name, served, bucket, scratch)
    size = dataset_bytes(bucket, READERS[name].form)
    job = Job(name, place, scratch)
    try:
        if len(job.wait("ready", _READY_S)) < len(job.ranks):
            return {"error": f"did not start: {job.last_words(0)}"}
        memory = Memory(job)
        found: dict[str, Any] = {"epochs": [], "dataset_mib": size / 2**20}
        before = served.count()
        for number in range(num_epochs):
            job.tell("go")
            if number == 0 and name != "nothing":
                firsts = job.wait("first", _EPOCH_S)
                found["first_batch_s"] = max((said["seconds"] for said in firsts.values()), default=float("nan"))
            told = job.wait("epoch", _EPOCH_S)
            if len(told) < len(job.ranks):
                found["error"] = f"epoch {number}: {len(told)} ranks finished within {_EPOCH_S} s: {job.last_words(0)}"
                break
            after = served.count()
            windows = [window for said in told.values() for window in said["windows"]]
            found["epochs"].append(
                {
                    "fetched_share": (after[0] - before[0]) / size,
                    "requests": after[1] - before[1],
                    "seconds": max(said["seconds"] for said in told.values()),
                    "windows": len(windows),
                    "distinct": len(set(windows)),
                    "own_counts": {
                        key: sum(said.get(key, 0) for said in told.values()) / size
                        for key in ("fill_bytes", "range_bytes")
                    },
                    "ranks": [len(said["windows"]) for _, said in sorted(told.items())],
                }
            )
            before = after
        memory.stop()
        found["peak_mib"], found["peak_shared_mib"] = memory.peak_bytes / 2**20, memory.peak_shared_bytes / 2**20
        found["disk_mib"] = folder_bytes(scratch / "cache") / 2**20
        found["num_windows"] = SCENARIO.num_steps
        job.tell("end")
        job.wait("gone", 30)
        return found
    finally:
        job.end()
