"""Copies of episodes, packed and served on loopback over a network of given speed."""

import functools
import http.server
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import epistream as es

_CHUNK = 64 << 10
_QUEUE_S = 0.01


class Network:
    """A link that everybody shares."""

    def __init__(self, rate: float, latency_s: float) -> None:
        self.rate, self.latency_s = rate, latency_s
        self.num_bytes = self.num_requests = 0
        self._lock = threading.Lock()
        self._free_at = 0.0
        self.num_bytes = 0  # that were carried

    def send(self, num_bytes: int) -> None:
        """Return when the link has carried the bytes."""
        with self._lock:
            self.num_bytes += num_bytes
            # Sleeps are a little too long; what was not sent by then is caught up with, as a router's queue does.
            self._free_at = max(self._free_at, time.monotonic() - _QUEUE_S) + num_bytes / self.rate
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
        network.num_requests += send_body
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


class Server(http.server.ThreadingHTTPServer):
    """Takes connections as a real one does: the default queue of five drops others, which come again a second later."""

    daemon_threads = True
    request_queue_size = 128


@contextmanager
def served(episodes: Path, copies: int, shard_size: str, network: Network) -> Iterator[tuple[str, es.Dataset]]:
    """Pack `copies` of a folder's episodes and serve them; gives the URL and the dataset, for as long as it is open."""
    with tempfile.TemporaryDirectory() as folder:
        sources = Path(folder, "episodes")
        sources.mkdir()
        for number in range(copies):
            for file in sorted(episodes.glob("*.hdf5")):
                shutil.copy(file, sources / f"{number:03d}-{file.name}")
        shards = Path(folder, "served", "shards")
        es.pack(sources, shards, shard_size=shard_size)
        handler = functools.partial(Handler, directory=str(shards.parent))
        with Server(("127.0.0.1", 0), handler) as server:
            server.network = network  # type: ignore[attr-defined]
            threading.Thread(target=server.serve_forever, daemon=True).start()
            try:
                yield f"http://127.0.0.1:{server.server_port}/shards", es.open_dataset(shards)
            finally:
                server.shutdown()
