"""Serves a folder on loopback, as HTTP and as much of S3 as a reader needs, over a link of given speed; counts bytes.

    python -m remote.server FOLDER --rate 100e6 --latency 0.02

Prints its port. An S3 client with this endpoint and path-style addresses reads the folder's sub-folders as buckets; it
signs its requests, which nobody checks. `GET /-/count` tells the bytes of file contents and the requests so far.
"""

import argparse
import functools
import http.server
import json
from pathlib import Path

from served import Handler, Network


class S3Handler(Handler):
    """Adds what S3 clients want to see, and the counters."""

    def do_GET(self) -> None:  # noqa: N802
        network: Network = self.server.network  # type: ignore[attr-defined]
        if self.path == "/-/count":
            body = json.dumps({"bytes": network.num_bytes, "requests": network.num_requests}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            return
        super().do_GET()

    def end_headers(self) -> None:
        path = Path(self.translate_path(self.path))
        if path.is_file():
            found = path.stat()
            self.send_header("ETag", f'"{found.st_size:x}-{found.st_mtime_ns:x}"')
            self.send_header("Last-Modified", self.date_time_string(found.st_mtime))
        super().end_headers()

    def handle(self) -> None:
        try:
            super().handle()
        except ConnectionError:  # a reader that was killed
            self.close_connection = True


class Server(http.server.ThreadingHTTPServer):
    """One thread a connection."""

    daemon_threads = True
    request_queue_size = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rate", type=float, default=100e6, help="bytes a second over all connections")
    parser.add_argument("--latency", type=float, default=0.02, help="seconds before each answer")
    arguments = parser.parse_args()
    handler = functools.partial(S3Handler, directory=str(arguments.folder))
    with Server(("127.0.0.1", 0), handler) as server:
        server.network = Network(arguments.rate, arguments.latency)  # type: ignore[attr-defined]
        print(server.server_port, flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
