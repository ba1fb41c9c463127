"""Opening LeRobot data sets, their first batch and a whole epoch, over a network of given speed or from a folder.

    python benchmarks/lerobot/network.py ROOT... [--rounds 5] [--rate 100e6] [--latency 0.02] [--local] [--ranks 1 2]

A ROOT is a data set, v2.1 or v3; each is served on loopback by a server that sends at most `rate` bytes a second over
all connections and answers each request after `latency` seconds, and streamed: batches of 32, two workers, all
features. Every rank is a program of its own, as a user starts one; those of a node begin at the same moment (gloo).
Each round streams twice: with nothing kept for the user, and again with what that left (the node's cache is new each
time). The server runs in this process, on the same processors. With `--local` the same from the folders themselves.

Printed per set, number of ranks and state of what is kept: seconds of importing, of opening, from then to the first
batch, both together (what is promised), processor seconds of the ranks and their workers until then; requests and
MB served until the first batch of the slowest rank; and with `--epoch` the bytes of the whole epoch over those of the
set, and by kind of file.
"""

import argparse
import functools
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import house  # noqa: F401
from network_rank import BATCH_SIZE, NUM_WORKERS
from remote.server import S3Handler, Server
from served import Network

HERE = Path(__file__).resolve().parent
_TIMEOUT_S = 300
_TIMES = ("import", "open", "first", "ready", "cpu")


class CountingHandler(S3Handler):
    """Counts by the first folder of a path, and whether bodies were asked for."""

    # As every real server does: Python's sends headers and body apart, and would keep the body back until the other
    # side has confirmed the headers, which takes it 40 ms: three times the latency that is asked for.
    disable_nagle_algorithm = True

    def _answer(self, *, send_body: bool) -> None:
        counted: Counted = self.server.counted  # type: ignore[attr-defined]
        path = Path(self.translate_path(self.path))
        size = path.stat().st_size if path.is_file() else 0
        first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        stop = min(int(last) + 1, size) if last else size
        counted.add(self.path, max(0, stop - int(first)) if send_body else 0, is_head=not send_body)
        super()._answer(send_body=send_body)


class Counted:
    """What was asked for, since it was last cleared."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.requests: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def add(self, path: str, num_bytes: int, *, is_head: bool) -> None:
        kind = "/".join(path.strip("/").split("/")[:1]) + (" HEAD" if is_head else "")
        with self._lock:
            self.requests[kind] += 1
            self.bytes[kind] += num_bytes

    def snapshot(self) -> dict[str, tuple[int, int]]:
        with self._lock:
            return {kind: (self.requests[kind], self.bytes[kind]) for kind in sorted(self.requests)}

    def clear(self) -> None:
        with self._lock:
            self.requests.clear()
            self.bytes.clear()


@contextmanager
def served(root: Path, arguments: argparse.Namespace) -> Iterator[tuple[str, Counted]]:
    """The URL of a folder, and what is asked for."""
    counted = Counted()
    with Server(("127.0.0.1", 0), functools.partial(CountingHandler, directory=str(root))) as server:
        server.network = Network(arguments.rate, arguments.latency)  # type: ignore[attr-defined]
        server.counted = counted  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", counted
        finally:
            server.shutdown()


def run(source: str, num_ranks: int, kept: Path, counted: Counted, arguments: argparse.Namespace) -> dict[str, Any]:
    """What the ranks of one node found, and what was served to them."""
    counted.clear()
    directory = Path(tempfile.mkdtemp(prefix="epistream-network-", dir="/dev/shm"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(kept)}
    ranks = []
    try:
        for rank in range(num_ranks):
            options = [source, str(rank), str(num_ranks), str(directory), str(int(arguments.epoch))]
            began = time.monotonic()
            ranks.append(
                (
                    began,
                    subprocess.Popen(
                        [sys.executable, str(HERE / "network_rank.py"), *options],
                        env=environment,
                        stdout=subprocess.PIPE,
                        text=True,
                        start_new_session=True,
                    ),
                )
            )
        found, at_first = [], {}
        watchdog = threading.Timer(_TIMEOUT_S, lambda: [stop(one) for _, one in ranks])
        watchdog.start()
        for began, process in ranks:
            line = json.loads(process.stdout.readline())  # the first batch is there
            found.append(line | {"import": line["imported"] - began})
        at_first = counted.snapshot()
        windows = 0
        for _, process in ranks:
            rest, _ = process.communicate()
            windows += json.loads(rest)["windows"]
        watchdog.cancel()
    finally:
        for _, process in ranks:
            stop(process)
        shutil.rmtree(directory, ignore_errors=True)
    times = {name: max(one[name] for one in found) for name in _TIMES if name in found[0]}
    return {
        **times,
        "cpu": sum(one["cpu"] for one in found),
        "at_first": at_first,
        "in_all": counted.snapshot(),
        "windows": windows,
    }


def stop(process: "subprocess.Popen[str]") -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def show(rounds: Sequence[dict[str, Any]], set_bytes: int, *, has_epoch: bool) -> None:
    last = rounds[-1]
    medians = "".join(f"{statistics.median(one[name] for one in rounds):8.2f}" for name in _TIMES)
    worst = max(one["ready"] for one in rounds)
    print(f"    {medians}{worst:8.2f}", end="")
    print(f"  {sum(n for n, _ in last['at_first'].values()):5d} requests", end="")
    print(f" {sum(n for _, n in last['at_first'].values()) / 1e6:7.1f} MB", end="")
    if has_epoch:
        in_all = sum(n for _, n in last["in_all"].values())
        print(f"  epoch {in_all / 1e6:7.1f} MB, {in_all / set_bytes:.3f} of the set", end="")
    print()
    for moment in ("at_first", "in_all") if has_epoch else ("at_first",):
        kinds = ", ".join(f"{kind} {n} ({size / 1e6:.2f} MB)" for kind, (n, size) in last[moment].items())
        print(f"      {moment.replace('_', ' ')}: {kinds}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("roots", type=Path, nargs="+", metavar="ROOT")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rate", type=float, default=100e6, help="bytes a second over all connections")
    parser.add_argument("--latency", type=float, default=0.02, help="seconds before each answer")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--local", action="store_true", help="read the folders themselves")
    parser.add_argument("--epoch", action="store_true", help="read a whole epoch, and count its bytes")
    arguments = parser.parse_args()
    print(f"batch {BATCH_SIZE}, {NUM_WORKERS} workers a rank; seconds, medians of {arguments.rounds} rounds")
    print("    " + "".join(f"{name:>8s}" for name in _TIMES) + "   worst")
    for root in arguments.roots:
        set_bytes = sum(file.stat().st_size for file in root.rglob("*") if file.is_file())
        for num_ranks in arguments.ranks:
            found: dict[str, list[dict[str, Any]]] = {"nothing kept": [], "kept": []}
            with served(root.resolve(), arguments) as (url, counted):
                source = str(root.resolve()) if arguments.local else url
                for _ in range(arguments.rounds):
                    with tempfile.TemporaryDirectory(prefix="epistream-kept-") as kept:
                        for rounds in found.values():
                            rounds.append(run(source, num_ranks, Path(kept), counted, arguments))
            for state, rounds in found.items():
                print(f"  {root.name} ({set_bytes / 1e6:.1f} MB), {num_ranks} ranks, {state}")
                show(rounds, set_bytes, has_epoch=arguments.epoch)
    print(
        "ready: open and first, as a user waits for it; worst: of its rounds; cpu: seconds of all processes until then"
    )


if __name__ == "__main__":
    main()
