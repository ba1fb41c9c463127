"""A server on loopback that opens files to who has the right query, user or header, and fails as it is told."""

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from web.serving import running


class GuardedServer(ThreadingHTTPServer):
    """Serves a folder.

    Attributes:
        queries: what a path needs behind ``?``, as it goes over the wire; "*" stands for all paths that are not named.
            They are signatures of GET, as those of S3: HEAD is refused where there is one.
        refusal: the status of what is not signed rightly: some stores say that it is not there.
        user: ``name:password`` that is wanted, or None.
        header: ``(name, value)`` that is wanted, or None.
        failure: "" or what happens to shards: a status, "torn", "wrong" (bytes) or "closed".
        seen: targets of requests as they came.
    """

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = root
        self.queries: dict[str, str] = {}
        self.refusal = 403
        self.user: str | None = None
        self.header: tuple[str, str] | None = None
        self.failure: str | int = ""
        self.seen: list[str] = []

    @property
    def host(self) -> str:
        """Address and port."""
        return f"127.0.0.1:{self.server_port}"

    def handle_error(self, *_: object) -> None:
        """Clients go away; that is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: GuardedServer

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._answer(has_body=False)

    def do_GET(self) -> None:
        self._answer(has_body=True)

    def _stop(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _answer(self, has_body: bool) -> None:
        server = self.server
        server.seen.append(self.path)
        path, _, query = self.path.partition("?")
        signature = server.queries.get(path, server.queries.get("*", ""))
        if query != signature or (signature and not has_body):
            return self._stop(server.refusal)
        basic = server.user and "Basic " + base64.b64encode(server.user.encode()).decode()
        if basic and self.headers.get("Authorization") != basic:
            return self._stop(401)
        if server.header and self.headers.get(server.header[0]) != server.header[1]:
            return self._stop(401)
        failure = server.failure if path.endswith((".tar", ".hdf5")) else ""
        if isinstance(failure, int):
            return self._stop(failure)
        if failure == "closed":
            self.close_connection = True
            return self.connection.close()
        file = server.root / path.lstrip("/")
        if not file.is_file():
            return self._stop(404)
        data, status = file.read_bytes(), 200
        size = len(data)
        if failure == "wrong":
            data = bytes(len(data))
        wanted = self.headers.get("Range")
        if wanted:
            first, last = (int(part) for part in wanted.removeprefix("bytes=").split("-"))
            data, status = data[first : last + 1], 206
        self.send_response(status)
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{first + len(data) - 1}/{size}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", '"1"')
        self.end_headers()
        if not has_body:
            return None
        if failure == "torn":
            self.close_connection = True
            data = data[: len(data) // 2]
        self.wfile.write(data)
        return None


@contextmanager
def guarded(root: Path) -> Iterator[GuardedServer]:
    """A server that runs in a thread."""
    server = GuardedServer(root)
    with running(server):
        yield server
