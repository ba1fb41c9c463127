"""An HTTP server on loopback that knows ranges and can be told to misbehave."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler

import numpy as np
from numpy.typing import NDArray
from web.serving import LoopbackServer, running

# Given (path, number of this request to that path from 0), the fault to show, or None.
FaultPlan = Callable[[str, int], str | None]


@dataclass
class FaultyServer:
    """Files by path, and what was asked of it."""

    files: dict[str, bytes] = field(default_factory=dict)
    plan: FaultPlan = lambda path, number: None
    ranges: bool = True
    etags: bool = True
    head_etag: str = "{}"
    retry_after: str = ""
    latency_s: float = 0.0
    bytes_per_s: float = 0.0
    url: str = ""
    requests: list[tuple[str, str]] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    num_bytes: int = 0
    mutex: threading.Lock = field(default_factory=threading.Lock)
    release: threading.Event = field(default_factory=threading.Event)

    def count(self, path: str, asked: str) -> int:
        with self.mutex:
            number = sum(1 for each, _ in self.requests if each == path)
            self.requests.append((path, asked))
            return number


def put_folder(server, root, name: str = "set", only: str = "") -> str:
    """Put the files of a folder on a server, those whose path has `only` in it; the folder's URL."""
    paths = {f"/{file.relative_to(root).as_posix()}": file for file in root.rglob("*") if file.is_file()}
    server.files |= {f"/{name}{path}": file.read_bytes() for path, file in paths.items() if only in path}
    return f"{server.url}/{name}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: FaultyServer

    def log_message(self, *arguments: object) -> None:
        pass

    def do_HEAD(self) -> None:
        data = self.state.files.get(self.path)
        with self.state.mutex:
            self.state.heads.append(self.path)
        if data is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        if self.state.ranges:
            self.send_header("Accept-Ranges", "bytes")
        if self.state.etags and (tag := self.state.head_etag.format(f'"{hash(data)}"')):
            self.send_header("ETag", tag)
        self.end_headers()

    def do_GET(self) -> None:
        state = self.state
        asked = self.headers.get("Range", "")
        fault = state.plan(self.path, state.count(self.path, asked))
        time.sleep(state.latency_s)
        data = state.files.get(self.path)
        if data is None:
            self.send_error(404)
            return
        status, body, extra = 200, data, {"ETag": f'"{hash(data)}"'} if state.etags else {}
        if asked and state.ranges:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, stop = int(first), min(len(data), int(last) + 1 if last else len(data))
            status, body = 206, data[start:stop]
            extra["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
        self._answer(fault, status, body, extra)

    def _answer(self, fault: str | None, status: int, body: bytes, extra: dict[str, str]) -> None:
        if fault is not None and fault.isdecimal():
            self.send_response(int(fault))
            if self.state.retry_after:
                self.send_header("Retry-After", self.state.retry_after)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if fault == "drop":
            self.close_connection = True
            self.connection.close()
            return
        if fault == "wrong":
            body = bytes([body[0] ^ 255]) + body[1:]
        if fault == "short":  # a shorter body that claims to be whole
            body = body[: len(body) // 2]
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in extra.items():
            self.send_header(name, value)
        self.end_headers()
        if fault in ("cut", "stall"):
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            if fault == "stall":
                self.state.release.wait(60)
            self.close_connection = True
            self.connection.close()
            return
        self._send(body, trickle=fault == "trickle")

    def _send(self, body: bytes, *, trickle: bool) -> None:
        state = self.state
        step = max(1, len(body) // 10) if trickle else 1 << 18
        for start in range(0, len(body), step):
            piece = body[start : start + step]
            if trickle:
                time.sleep(0.02)
            elif state.bytes_per_s:
                time.sleep(len(piece) / state.bytes_per_s)
            try:
                self.wfile.write(piece)
            except OSError:  # the other side gave up
                self.close_connection = True
                return
            with state.mutex:
                state.num_bytes += len(piece)


def asked_bytes(server: FaultyServer) -> int:
    """What all requests asked for; counted when they arrive, where the bytes sent are counted after they were read."""
    total = 0
    for path, asked in list(server.requests):
        first, _, last = asked.removeprefix("bytes=").partition("-")
        total += int(last) + 1 - int(first) if asked else len(server.files[path])
    return total


def times_asked(server: FaultyServer, path: str) -> NDArray[np.int64]:
    """(bytes of a file,) how often each was asked for."""
    count = np.zeros(len(server.files[path]), np.int64)
    for asked in [asked for each, asked in list(server.requests) if each == path]:
        first, _, last = asked.removeprefix("bytes=").partition("-")
        count[int(first or 0) : int(last) + 1 if last else None] += 1
    return count


@contextmanager
def serve() -> Iterator[FaultyServer]:
    """Run a server in threads of this process, until the block ends."""
    state = FaultyServer()
    with running(LoopbackServer(type("Handler", (_Handler,), {"state": state}))) as state.url:
        try:
            yield state
        finally:
            state.release.set()
