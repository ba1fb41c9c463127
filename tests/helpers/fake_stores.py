"""Two object stores on loopback, as far as reading goes: Google Cloud Storage and a Hugging Face hub."""

import json
import re
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from web.serving import Answering, LoopbackServer, running

COMMIT = "c" * 40


@dataclass
class FakeStore:
    """Objects by their name in the bucket "episodes", or in the dataset repository "lab/episodes".

    `ranges` are those that were asked for, as "bytes=0-99".
    """

    objects: dict[str, bytes] = field(default_factory=dict)
    ranges: list[str] = field(default_factory=list)
    url: str = ""


class _Handler(Answering):
    store: FakeStore

    def answer_json(self, found: object) -> None:
        status = 404 if found is None else 200
        self.answer(status, json.dumps(found).encode(), Content_Type="application/json")

    def answer_object(self, name: str) -> None:
        data = self.store.objects.get(name)
        if data is None:
            self.answer(404, b"")
            return
        asked = self.headers.get("Range", "")
        self.store.ranges.append(asked)
        start, stop = 0, len(data)
        if asked:
            first, last = asked.removeprefix("bytes=").split("-")
            start, stop = int(first), min(len(data), int(last) + 1)
        self.answer(206 if asked else 200, data[start:stop], Content_Range=f"bytes {start}-{stop - 1}/{len(data)}")


class _CloudStorage(_Handler):
    """Source: https://cloud.google.com/storage/docs/json_api/v1/objects/get."""

    def do_GET(self) -> None:
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        download = re.fullmatch(r"/download/storage/v1/b/episodes/o/(.+)", path)
        if download:
            self.answer_object(download[1])
            return
        known = re.fullmatch(r"/storage/v1/b/episodes/o/(.+)", path)
        data = self.store.objects.get(known[1]) if known else None
        self.answer_json(
            data and known and {"name": known[1], "bucket": "episodes", "size": str(len(data)), "etag": str(hash(data))}
        )


class _Hub(_Handler):
    """Source: https://huggingface.co/docs/hub/api."""

    def do_GET(self) -> None:
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        resolved = re.fullmatch(r"/datasets/lab/episodes/resolve/main/(.+)", path)
        if resolved:
            self.answer_object(resolved[1])
        elif path == "/api/datasets/lab/episodes":
            self.answer_json({"id": "lab/episodes", "sha": COMMIT, "siblings": [], "private": False, "tags": []})
        elif path.startswith("/api/datasets/lab/episodes/tree/main/"):
            folder = path.removeprefix("/api/datasets/lab/episodes/tree/main/") + "/"
            self.answer_json(
                [
                    {"type": "file", "path": name, "size": len(data), "oid": f"{hash(data) & (1 << 64) - 1:040x}"}
                    for name, data in self.store.objects.items()
                    if name.startswith(folder)
                ]
            )
        else:
            self.answer_json(None)


@contextmanager
def fake_store(protocol: str) -> Iterator[FakeStore]:
    """Serve as "gs" or "hf" until the block ends."""
    store = FakeStore()
    handler = type("Handler", ({"gs": _CloudStorage, "hf": _Hub}[protocol],), {"store": store})
    with running(LoopbackServer(handler)) as store.url:
        yield store
