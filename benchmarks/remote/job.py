"""A training job's ranks as processes on this node: start them, step them through epochs, measure and end them."""

import json
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from peers.memory import own_bytes, shared_bytes
from remote.readers import READERS, Place

HERE = Path(__file__).resolve().parent.parent
NUM_RANKS = 4
_SAMPLE_S = 0.25


@dataclass(frozen=True)
class Served:
    """A running server."""

    endpoint: str

    def count(self) -> tuple[int, int]:
        """Bytes and requests so far."""
        with urllib.request.urlopen(f"{self.endpoint}/-/count", timeout=30) as answer:
            found = json.load(answer)
        return found["bytes"], found["requests"]


@contextmanager
def serving(bucket: Path, rate: float, latency_s: float) -> Iterator[Served]:
    """A server of its own process over the forms' folders."""
    command = [sys.executable, "-m", "remote.server", str(bucket.parent), "--rate", str(rate)]
    command += ["--latency", str(latency_s)]
    with subprocess.Popen(command, cwd=HERE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield Served(f"http://127.0.0.1:{int(process.stdout.readline())}")
        finally:
            process.kill()


def place_of(name: str, served: Served, bucket: Path, scratch: Path) -> Place:
    """Where a reader's ranks read and keep."""
    form = READERS[name].form
    return Place(
        endpoint=served.endpoint,
        store=form,
        cache=scratch / "cache",
        shm=Path("/dev/shm") / f"bench-remote-{scratch.name}",
        folder=bucket / form,
    )


class Job:
    """The ranks of one start.

    Each rank is the leader of a process group, so that it can be killed with its workers and downloaders at once.
    """

    def __init__(self, name: str, place: Place, scratch: Path) -> None:
        self._events: queue.Queue[tuple[int, dict[str, Any]]] = queue.Queue()
        # What each rank said last of each event, until somebody waits for it.
        self._said: list[dict[str, dict[str, Any]]] = [{} for _ in range(NUM_RANKS)]
        for folder in (place.cache, place.shm, scratch / "tmp", scratch / "home"):
            folder.mkdir(parents=True, exist_ok=True)
        fields = {key: str(value) for key, value in asdict(place).items()}
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.ranks = []
        self.errors = [(scratch / f"rank{n}.stderr").open("w+") for n in range(NUM_RANKS)]
        for rank in range(NUM_RANKS):
            process = subprocess.Popen(
                [sys.executable, "-m", "remote.rank", name, json.dumps(fields)],
                cwd=HERE,
                env={**os.environ, **_environment(rank, port, scratch)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.errors[rank],
                text=True,
                start_new_session=True,
            )
            self.ranks.append(process)
            threading.Thread(target=self._listen, args=(rank, process), daemon=True).start()

    def _listen(self, rank: int, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("EVENT "):
                self._events.put((rank, json.loads(line.removeprefix("EVENT "))))
        self._events.put((rank, {"event": "gone", "code": process.wait()}))

    def tell(self, word: str) -> None:
        """Say "go" or "end" to every rank."""
        for process in self.ranks:
            assert process.stdin is not None
            with suppress(BrokenPipeError):
                process.stdin.write(word + "\n")
                process.stdin.flush()

    def wait(self, event: str, timeout_s: float, ranks: set[int] | None = None) -> dict[int, dict[str, Any]]:
        """What each rank said with that event; a rank that went away, or said nothing in time, is left out."""
        wanted = set(range(NUM_RANKS)) if ranks is None else ranks
        found: dict[int, dict[str, Any]] = {}
        deadline = time.monotonic() + timeout_s
        while True:
            for rank in wanted - set(found):
                if event in self._said[rank]:
                    found[rank] = self._said[rank].pop(event)
            missing = {rank for rank in wanted - set(found) if "gone" not in self._said[rank]}
            if not missing or (left := deadline - time.monotonic()) <= 0:
                return found
            with suppress(queue.Empty):
                rank, said = self._events.get(timeout=left)
                self._said[rank][said["event"]] = said

    def processes(self) -> list[psutil.Process]:
        """The ranks and everything that they started, orphans included."""
        groups = {process.pid for process in self.ranks}
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, ProcessLookupError):
                if os.getsid(process.pid) in groups and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def last_words(self, rank: int) -> str:
        """The last line of a rank's stderr that names an error, else its last line."""
        self.errors[rank].seek(0)
        lines = [line for line in self.errors[rank].read().splitlines() if line.strip()]
        named = [line for line in lines if re.match(r"(\[rank\d\]: )?[\w.]*(Error|Exception)\b", line)]
        return (named or lines or [""])[-1][:200]

    def end(self) -> None:
        """Kill whatever is left."""
        for process in self.processes():
            with suppress(psutil.Error):
                process.kill()
        for process in self.ranks:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)


def _environment(rank: int, port: int, scratch: Path) -> dict[str, str]:
    """As torchrun sets it, and a home and a folder for temporary files of the job's own, to see what is left there."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(NUM_RANKS),
        "LOCAL_WORLD_SIZE": str(NUM_RANKS),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "TMPDIR": str(scratch / "tmp"),
        "HOME": str(scratch / "home"),
        "AWS_ACCESS_KEY_ID": "none",
        "AWS_SECRET_ACCESS_KEY": "none",
        "AWS_DEFAULT_REGION": "us-east-1",
        "LITDATA_DISABLE_VERSION_CHECK": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }


class Memory:
    """Samples a job's memory: private and file pages of its processes, and the machine's shared memory."""

    def __init__(self, job: Job) -> None:
        self.peak_bytes = self.peak_shared_bytes = 0
        self._job, self._stop = job, threading.Event()
        self._shared_before = shared_bytes()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(_SAMPLE_S):
            self._sample()

    def _sample(self) -> None:
        shared = shared_bytes() - self._shared_before
        private = sum(own_bytes(process.pid) for process in self._job.processes())
        self.peak_shared_bytes = max(self.peak_shared_bytes, shared)
        self.peak_bytes = max(self.peak_bytes, private + shared)

    def stop(self) -> None:
        """A last sample, and no more."""
        self._stop.set()
        self._thread.join()
        self._sample()


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def dataset_bytes(bucket: Path, form: str) -> int:
    """Bytes that a loader of that form has to fetch for everything."""
    files = [path for path in (bucket / form).rglob("*") if path.is_file()]
    return sum(path.stat().st_size for path in files if "hdf5" not in path.parts and path.name != "COMPLETE.json")
