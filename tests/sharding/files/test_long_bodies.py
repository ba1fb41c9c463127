"""A manifest's server that sends more than a manifest can be, packed or unpacked, or sends one round in circles."""

import gzip
from http.server import BaseHTTPRequestHandler
from typing import ClassVar

import pytest
from web.serving import LoopbackServer, running

from epistream.errors import SourceError
from epistream.sharding.files.storage import read_bytes
from epistream.sharding.manifest.manifest_file import read_manifest

BOMB = gzip.compress(bytes(80 << 20))


class Hostile(BaseHTTPRequestHandler):
    asked: ClassVar[list[str]] = []

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        self.asked.append(self.path)
        kind = self.path.split("/")[1]
        self.send_response(302 if kind == "circle" else 200)
        if kind == "circle":
            self.send_header("Location", self.path)
        if kind == "bomb":
            self.send_header("Content-Encoding", "gzip")
            self.send_header("Content-Length", str(len(BOMB)))
        if kind == "large":
            self.send_header("Content-Length", str(2 << 30))
        self.end_headers()
        try:
            while kind == "endless":
                self.wfile.write(bytes(1 << 20))
            if kind == "bomb":
                self.wfile.write(BOMB)
        except OSError:  # the other side has had enough
            return


@pytest.fixture(scope="module")
def url():
    with running(LoopbackServer(Hostile)) as url:
        yield url


@pytest.mark.parametrize(
    ("kind", "said"),
    [("bomb", "more than 64.0 MiB"), ("endless", "more than 64.0 MiB"), ("large", r"2\.0 GiB, wanted no more than")],
)
def test_manifest_longer_than_any_is_refused_after_one_request(url, kind, said):
    Hostile.asked.clear()
    with pytest.raises(SourceError, match=rf"{kind}/dataset\.json: {said}"):
        read_manifest(f"{url}/{kind}")
    assert len(Hostile.asked) == 1


def test_redirect_in_a_circle_is_not_tried_again(url):
    Hostile.asked.clear()
    with pytest.raises(SourceError, match=r"circle/dataset\.json: TooManyRedirects"):
        read_bytes(f"{url}/circle/dataset.json")
    assert len(Hostile.asked) == 10  # those that aiohttp follows
