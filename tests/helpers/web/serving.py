"""HTTP servers on loopback, in threads of the test's own process."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer


class LoopbackServer(ThreadingHTTPServer):
    """Takes requests at a free port, each in a thread of its own that ends with the process."""

    daemon_threads = True
    request_queue_size = 64  # the default of five drops others, which come again a second later

    def __init__(self, handler) -> None:
        super().__init__(("127.0.0.1", 0), handler)


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
