"""SIGKILL of a rank in mid-download: what the others do, what stays behind, what the next start does with it."""

import hashlib
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

from remote.job import Job, Served, dataset_bytes, place_of
from remote.readers import READERS, SCENARIO, Place

VICTIM = 1
_READY_S, OTHERS_S, _RESTART_S = 120, 45, 90
KILL_AT = 0.3  # of the dataset's bytes


def is_of_a_peer(name: str) -> bool:
    """Whether a name in /dev/shm is one that MosaicML Streaming or Python's shared memory make."""
    return re.match(r"\d{6}_|psm_|sem\.", name) is not None


def measure(name: str, served: Served, bucket: Path, scratch: Path, *, whom: str) -> dict[str, Any]:
    """Kill a rank with all that it started (`whom` "rank"), or its main process alone ("main"); then start anew.

    Returns:
        `others`: what became of the other ranks' epoch; `orphans`: processes of the killed rank that lived on; `left`
        and `left_after_restart`: files that are no whole copy of a served one; `restart`: of the same job.
    """
    place, size = place_of(name, served, bucket, scratch), dataset_bytes(bucket, READERS[name].form)
    shm_before = _shm_names()
    found: dict[str, Any] = {}
    job = Job(name, place, scratch)
    try:
        if len(job.wait("ready", _READY_S)) < len(job.ranks):
            return {"error": f"did not start: {job.last_words(0)}"}
        before = served.count()[0]
        job.tell("go")
        found["killed_at_share"] = _wait_for_bytes(served, before, size)
        _kill(job, whom)
        found["others"] = _others(job)
        victim = job.ranks[VICTIM].pid
        found["orphans"] = sum(os.getsid(process.pid) == victim for process in job.processes())
    finally:
        job.end()
    found["left"] = _left(place, scratch, bucket, shm_before)
    before = served.count()[0]
    found["restart"] = _restart(name, place, scratch)
    found["restart"]["fetched_share"] = (served.count()[0] - before) / size
    found["left_after_restart"] = _left(place, scratch, bucket, shm_before)
    return found


def _wait_for_bytes(served: Served, before: int, size: int) -> float:
    """Until a part of the dataset has been fetched; the part."""
    deadline = time.monotonic() + 60
    while (share := (served.count()[0] - before) / size) < KILL_AT and time.monotonic() < deadline:
        time.sleep(0.02)
    return share


def _kill(job: Job, whom: str) -> None:
    pid = job.ranks[VICTIM].pid
    if whom == "rank":
        os.killpg(pid, signal.SIGKILL)
    else:
        os.kill(pid, signal.SIGKILL)


def _others(job: Job) -> dict[str, Any]:
    """Whether the other ranks come to the end of their epoch, each of which needs no word from the killed one."""
    others = set(range(len(job.ranks))) - {VICTIM}
    began = time.monotonic()
    finished = job.wait("epoch", OTHERS_S, others)
    waiting = [rank for rank in others - set(finished) if job.ranks[rank].poll() is None]
    words = [job.last_words(rank) for rank in sorted(others - set(finished) - set(waiting))]
    return {
        "finished": len(finished),
        "still_waiting": len(waiting),
        "failed": len(words),
        "words": words[:1],
        "seconds": round(time.monotonic() - began, 1),
    }


def _restart(name: str, place: Place, scratch: Path) -> dict[str, Any]:
    """The same job on the same folders, one epoch."""
    job = Job(name, place, scratch)
    try:
        began = time.monotonic()
        job.wait("ready", _READY_S)
        job.tell("go")
        told = job.wait("epoch", _RESTART_S)
        windows = {window for said in told.values() for window in said["windows"]}
        found: dict[str, Any] = {"finished": len(told), "seconds": round(time.monotonic() - began, 1)}
        if len(told) == len(job.ranks):
            found["missing"] = SCENARIO.num_steps - len(windows)
            job.tell("end")
            job.wait("gone", 30)
        else:
            missing = next(rank for rank in range(len(job.ranks)) if rank not in told)
            found["words"] = job.last_words(missing)
        return found
    finally:
        job.end()


def _shm_names() -> set[str]:
    return {path.name for path in Path("/dev/shm").iterdir()}


def _left(place: Place, scratch: Path, bucket: Path, shm_before: set[str]) -> dict[str, Any]:
    """Files that nobody will use again, by where they lie; whole copies of served files are the cache's content."""
    files = [path for path in (bucket / place.store).rglob("*") if path.is_file() and "hdf5" not in path.parts]
    whole = {_digest(path) for path in files} | {_entry_digest(path) for path in files if path.suffix == ".tar"}
    served_names, torn, partial, other = {path.name for path in files}, [], [], []
    folders = {"cache": place.cache, "shm": place.shm, "tmp": scratch / "tmp", "home": scratch / "home"}
    for where, folder in folders.items():
        for path in sorted(folder.rglob("*")) if folder.exists() else ():
            if not path.is_file() or _digest(path) in whole:
                continue
            label, size = f"{where}/{path.relative_to(folder)}", path.stat().st_size
            if path.name in served_names or path.name.endswith(".shard"):
                torn.append(label)
            elif size >= 64 << 10 or re.search(r"\.(tmp|temp|part)", path.name):
                partial.append(label)
            else:
                other.append(label)
    shm = sorted(name for name in _shm_names() - shm_before if is_of_a_peer(name))
    return {"torn": torn, "partial": partial, "other": other, "shm_names": shm}


def _entry_digest(shard: Path) -> str:
    """Of epistream's copy of a shard: the shard, and its index from the next multiple of 64 bytes on."""
    found = hashlib.blake2b(shard.read_bytes())
    index = shard.with_suffix(".index")
    if index.exists():
        found.update(bytes(-shard.stat().st_size % 64) + index.read_bytes())
    return found.hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()
