"""HTTP servers on loopback that answer requests for ranges otherwise than asked, each in its own way."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler

from web.serving import LoopbackServer, running

# How a request for a range is answered; one for the whole file has the whole file.
KINDS = (
    "whole file",
    "whole file of no length",
    "whole file as a part",
    "other part",
    "part that is not named",
    "part of endless numbers",
    "shorter part",
    "refused",
)
_MOST = 100


@dataclass
class OddServer:
    """Files by path, and the Range header of each GET ("" for none)."""

    kind: str
    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)


class _Handler(BaseHTTPRequestHandler):
    state: OddServer

    def log_message(self, *arguments: object) -> None:
        pass

    def do_HEAD(self) -> None:
        if self.state.kind == "whole file of no length":
            self.send_error(405)
            return
        data = self.state.files.get(self.path)
        self.send_response(404 if data is None else 200)
        self.send_header("Content-Length", str(len(data or b"")))
        self.end_headers()

    def do_GET(self) -> None:
        kind, data, asked = self.state.kind, self.state.files.get(self.path), self.headers.get("Range", "")
        if data is None:
            self.send_error(404)
            return
        self.state.asked.append(asked)
        first, _, last = asked.removeprefix("bytes=").partition("-")
        start, stop = (int(first), min(len(data), int(last) + 1)) if asked else (0, len(data))
        status, said = 206, f"bytes {start}-{stop - 1}/{len(data)}"
        if not asked or kind in ("whole file", "whole file of no length"):
            start, stop, status = 0, len(data), 200
        elif kind == "whole file as a part":
            start, stop, said = 0, len(data), f"bytes 0-{len(data) - 1}/{len(data)}"
        elif kind == "other part":
            start, stop = 0, stop - start
            said = f"bytes 0-{stop - 1}/{len(data)}"
        elif kind == "part that is not named":
            start, stop, said = 0, stop - start, ""
        elif kind == "part of endless numbers":
            start, stop, said = 0, stop - start, f"bytes 0-{'9' * 5000}/*"
        elif kind == "shorter part":
            stop = min(stop, start + _MOST)
            said = f"bytes {start}-{stop - 1}/{len(data)}"
        elif kind == "refused":
            start, stop, status = 0, 0, 416
        self.send_response(status)
        if status == 206 and said:
            self.send_header("Content-Range", said)
        if kind != "whole file of no length":
            self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        try:
            self.wfile.write(data[start:stop])
        except OSError:  # the other side has had enough
            self.close_connection = True


@contextmanager
def serve_oddly(kind: str) -> Iterator[OddServer]:
    """Run a server in threads of this process, until the block ends."""
    state = OddServer(kind)
    with running(LoopbackServer(type("Handler", (_Handler,), {"state": state}))) as state.url:
        yield state
