"""HTTP servers on loopback, in threads of the test's own process."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class LoopbackServer(ThreadingHTTPServer):
    """Takes requests at a free port, each in a thread of its own that ends with the process."""

    daemon_threads = True
    request_queue_size = 64  # the default of five drops others, which come again a second later

    def __init__(self, handler) -> None:
        super().__init__(("127.0.0.1", 0), handler)


class Answering(BaseHTTPRequestHandler):
    """Says nothing of its own; gives whole answers, of which a HEAD is the part before the bytes."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def running(server: ThreadingHTTPServer) -> Iterator[str]:
    """Let a server run until the block ends; its URL, without a slash at the end."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
