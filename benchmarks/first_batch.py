"""Time to the first batch from a cold cache, over a network of given speed, with and without ranged reads.

    python benchmarks/first_batch.py FOLDER_OF_EPISODES [--copies 24] [--rate 100e6] [--latency 0.02]

Packs copies of the episodes into shards of 16 MiB, serves them on loopback by a server that sends at most `rate`
bytes a second over all connections and answers each request after `latency` seconds, and streams from it.
"""

import argparse
import functools
import http.server
import shutil
import statistics
import tempfile
import threading
import time
from pathlib import Path

import epistream as es
from epistream.loader import window_feed

_CHUNK = 64 << 10


class Network:
    """A link that everybody shares."""

    def __init__(self, rate: float, latency_s: float) -> None:
        self.rate, self.latency_s = rate, latency_s
        self._lock = threading.Lock()
        self._free_at = 0.0

    def send(self, num_bytes: int) -> None:
        """Return when the link has carried the bytes."""
        with self._lock:
            self._free_at = max(self._free_at, time.monotonic()) + num_bytes / self.rate
            until = self._free_at
        time.sleep(max(0.0, until - time.monotonic()))


class Handler(http.server.SimpleHTTPRequestHandler):
    """Files by ranges, over the network above."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(send_body=False)

    def do_GET(self) -> None:
        self._answer(send_body=True)

    def _answer(self, *, send_body: bool) -> None:
        network: Network = self.server.network  # type: ignore[attr-defined]
        time.sleep(network.latency_s)
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        size = path.stat().st_size
        start, stop, status = 0, size, 200
        if "Range" in self.headers:
            first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
            start, stop, status = int(first), min(int(last) + 1 if last else size, size), 206
        self.send_response(status)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(stop - start))
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        self.end_headers()
        if send_body:
            with path.open("rb") as file:
                file.seek(start)
                for position in range(start, stop, _CHUNK):
                    data = file.read(min(_CHUNK, stop - position))
                    network.send(len(data))
                    self.wfile.write(data)


def first_batch(url: str, batch_size: int, directory: Path, *, ranged: bool) -> tuple[float, float]:
    """Seconds from ``iter`` to the first batch, and to the tenth, with a cache that is empty."""
    window_feed._MOST_COLD_BATCHES = 16 if ranged else 0
    stream = es.EpisodeStream(
        url,
        batch_size=batch_size,
        window=es.Window(action=range(100)),
        cache=es.CacheOptions(directory=str(directory)),
    )
    with es.StreamingLoader(stream, num_workers=2) as loader:
        began = time.perf_counter()
        batches = iter(loader)
        next(batches)
        first_s = time.perf_counter() - began
        for _ in range(9):
            next(batches)
        return first_s, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("episodes", type=Path)
    parser.add_argument("--copies", type=int, default=24)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rate", type=float, default=100e6, help="bytes a second")
    parser.add_argument("--latency", type=float, default=0.02, help="seconds before each answer")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sources = Path(folder, "episodes")
        sources.mkdir()
        for number in range(args.copies):
            for file in sorted(args.episodes.glob("*.hdf5")):
                shutil.copy(file, sources / f"{number:03d}-{file.name}")
        shards = Path(folder, "served", "shards")
        es.pack(sources, shards, shard_size="16MiB")
        dataset = es.open_dataset(shards)
        handler = functools.partial(Handler, directory=str(shards.parent))
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            server.network = Network(args.rate, args.latency)  # type: ignore[attr-defined]
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, daemon=True).start()
            url = f"http://127.0.0.1:{server.server_port}/shards"
            times: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
            for number in range(args.rounds):
                for ranged, found in times.items():
                    directory = Path(f"/dev/shm/epistream-first-batch-{number}-{ranged}")
                    found.append(first_batch(url, args.batch_size, directory, ranged=ranged))
            server.shutdown()
        size = dataset.shard_bytes.sum() / 1e6
        print(f"{dataset.num_shards} shards, {size:,.0f} MB; {args.rate / 1e6:g} MB/s, {args.latency * 1000:g} ms;")
        print(f"batch {args.batch_size}, 2 cameras 480x640; medians of {args.rounds} rounds (first batch, ten batches)")
        for ranged, name in ((True, "ranged while shards stream in"), (False, "waiting for whole shards")):
            first, tenth = (statistics.median(column) for column in zip(*times[ranged], strict=True))
            print(f"{name:32s} {first:6.2f} s {tenth:6.2f} s")


if __name__ == "__main__":
    main()
