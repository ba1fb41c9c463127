"""Servers that answer whatever they like: opening and reading a remote dataset ends in time, with named errors."""

import gzip
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler

import numpy as np
import pytest
from fuzzing import fuzzed, only_named_errors
from hdf5_files import aloha_raw
from hypothesis import given, settings
from hypothesis import strategies as st
from web.serving import LoopbackServer, running

import epistream as es

STATUS = st.sampled_from(
    [200, 200, 200, 204, 206, 206, 301, 302, 304, 307, 400, 401, 403, 404, 410, 416, 418, 429, 500, 503]
)
HEADERS = st.lists(
    st.sampled_from(
        [
            *(("Content-Range", text) for text in ("bytes 0-0/1", "bytes 5-3/2", "bytes */9", "junk", "bytes 0-99/10")),
            *(("Retry-After", text) for text in ("0", "-1", "1e9", "soon", "Wed, 21 Oct 2015 07:28:00 GMT")),
            *(("Content-Encoding", text) for text in ("gzip", "deflate", "br", "junk")),
            *(("Location", text) for text in ("/ds/dataset.json", "/loop", "http://127.0.0.1:1/x", "//", "ftp://h/x")),
            *(("ETag", text) for text in ('"a"', "", "é".encode().decode("latin-1"))),
            *(("Accept-Ranges", text) for text in ("none", "bytes")),
        ]
    ),
    max_size=3,
)
LENGTHS = st.sampled_from(["true", "true", "true", "none", "0", "-1", "99999999999999", "junk", "short"])
BODIES = st.sampled_from(["true", "true", "range", "damaged", "gzip", "bomb", "empty", "html"])
ANSWERS = st.lists(st.tuples(STATUS, HEADERS, LENGTHS, BODIES), min_size=1, max_size=4)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 5

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        server = self.server
        with server.mutex:
            answer = server.answers[server.num_requests] if server.num_requests < len(server.answers) else None
            server.num_requests += 1
        body = server.files.get(self.path.partition("?")[0])
        status, headers, length, what = answer or (404 if body is None else 200, [], "true", "range")
        body = body or b""
        if what == "range" and (asked := self.headers.get("Range", "").removeprefix("bytes=")):
            first, _, last = asked.partition("-")
            status = 206 if answer is None else status
            headers = [*headers, ("Content-Range", f"bytes {first}-{last}/{len(body)}")]
            body = body[int(first or 0) : int(last or len(body)) + 1]
        body = {
            "damaged": lambda: server.damage(body),
            "gzip": lambda: gzip.compress(body),
            "bomb": lambda: server.bomb,
            "empty": lambda: b"",
            "html": lambda: b"<html>not here</html>",
        }.get(what, lambda: body)()
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        if what in ("gzip", "bomb"):
            self.send_header("Content-Encoding", "gzip")
        if length != "none":
            said = {"true": len(body), "short": len(body) // 2}.get(length, length)
            self.send_header("Content-Length", str(said))
        self.end_headers()
        self.close_connection = length != "true"
        if self.command == "GET":
            try:
                self.wfile.write(body)
            except OSError:
                self.close_connection = True


@contextmanager
def answering(files):
    server = LoopbackServer(_Handler)
    server.mutex, server.files, server.answers, server.num_requests = threading.Lock(), files, [], 0
    server.bomb = gzip.compress(bytes(320 << 20), 1)
    with running(server):
        yield server


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    top = tmp_path_factory.mktemp("served")
    aloha_raw(top / "in" / "episode_0.hdf5", cameras=("top",))
    es.pack(top / "in", top / "ds")
    files = {f"/ds/{path.name}": path.read_bytes() for path in (top / "ds").iterdir()}
    files["/episode_0.hdf5"] = (top / "in" / "episode_0.hdf5").read_bytes()
    with answering(files) as server:
        yield server


@settings(fuzzed, max_examples=fuzzed.max_examples // 3)  # each waits for what never comes
@given(data=st.data())
def test_any_answers_give_named_errors_in_time(data, served, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / str(served.num_requests)))
    turns = data.draw(st.integers(0, 2**32))
    served.damage = lambda body: bytes(np.frombuffer(body, np.uint8) ^ (turns & 255)) if body else body
    served.answers, served.num_requests = [*([None] * data.draw(st.integers(0, 5))), *data.draw(ANSWERS)], 0
    source = data.draw(st.sampled_from(["/ds", "/ds/shard-000000.tar", "/episode_0.hdf5"]))
    cache = es.CacheOptions(
        mode=data.draw(st.sampled_from(["off", "shm"])),
        directory=tmp_path / "shm",
        fetch_timeout_s=3,
        request_timeout_s=1,
        attempts=2,
    )
    with only_named_errors():
        url = f"http://127.0.0.1:{served.server_address[1]}{source}"
        for batch in es.EpisodeStream(url, batch_size=5, cache=cache, shuffle=False):
            np.testing.assert_array_equal(np.asarray(batch["step_index"]), np.arange(5))
