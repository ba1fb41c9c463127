"""A Hugging Face hub on loopback, as far as reading a data set goes: branches, commits, listings, files by ranges.

Source: https://huggingface.co/docs/hub/api, and what huggingface_hub 2.4 asks for.
"""

import hashlib
import json
import re
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from web.serving import Answering, LoopbackServer, running

_API = re.compile(
    r"/api/datasets/(?P<id>[^/]+/[^/]+)(?:/(?P<what>revision|tree)/(?P<revision>[^/]+)(?:/(?P<path>.*))?)?"
)
_FILE = re.compile(r"/datasets/(?P<id>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")


@dataclass
class Hub:
    """One data set of it.

    `requests` are those that came in, as "GET /api/...".
    """

    repo: str = "lab/cubes"
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    token: str | None = None
    requests: list[str] = field(default_factory=list)
    url: str = ""

    def commit(self, files: Mapping[str, bytes] | Path, *refs: str) -> str:
        """Put files into a commit and let refs name it; its hexadecimal name."""
        if isinstance(files, Path):
            files = {
                file.relative_to(files).as_posix(): file.read_bytes() for file in files.rglob("*") if file.is_file()
            }
        digest = hashlib.sha1(usedforsecurity=False)
        for name in sorted(files):
            digest.update(name.encode() + files[name])
        sha = digest.hexdigest()
        self.commits[sha] = dict(files)
        self.refs |= dict.fromkeys(refs, sha)
        return sha

    @property
    def options(self) -> dict[str, object]:
        """``storage_options`` for it."""
        return {"hf": {"endpoint": self.url, "token": self.token or False}}


class _Handler(Answering):
    hub: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        # Split before it is unquoted: a revision with a slash comes as one piece.
        path = urllib.parse.urlsplit(self.path).path
        self.hub.requests.append(f"{self.command} {self.path}")
        found = _API.fullmatch(path) or _FILE.fullmatch(path)
        if self.hub.token and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            # To who says nothing of himself, private ones are not there.
            known = "Authorization" in self.headers
            refusal = {"X-Error-Message": "Invalid credentials"} if known else {"X-Error-Code": "RepoNotFound"}
            self.answer(401, b"{}", **refusal)
        elif found is None or found["id"] != self.hub.repo:
            self.answer(404, b"{}", X_Error_Code="RepoNotFound")
        else:
            revision = urllib.parse.unquote(found["revision"] or "main")
            sha = self.hub.refs.get(revision, revision)
            if sha not in self.hub.commits:
                self.answer(404, b"{}", X_Error_Code="RevisionNotFound")
            elif found.re is _FILE:
                self.answer_file(sha, urllib.parse.unquote(found["path"]))
            elif found["what"] == "tree":
                recursive = "recursive=true" in self.path.lower()
                self.answer_tree(sha, urllib.parse.unquote(found["path"] or ""), recursive=recursive)
            else:
                self.answer_json({"id": self.hub.repo, "sha": sha, "siblings": [], "private": False, "tags": []})

    def answer_json(self, found: object) -> None:
        self.answer(200, json.dumps(found).encode(), Content_Type="application/json")

    def answer_tree(self, sha: str, folder: str, *, recursive: bool) -> None:
        below = {}
        for name, data in self.hub.commits[sha].items():
            if folder and not name.startswith(f"{folder}/"):
                continue
            pieces = name[len(folder) + bool(folder) :].split("/")
            for depth in range(1, len(pieces)):
                inner = "/".join([*([folder] if folder else []), *pieces[:depth]])
                if recursive or depth == 1:
                    below[inner] = {"type": "directory", "path": inner, "size": 0, "oid": "0" * 40}
            if recursive or len(pieces) == 1:
                oid = hashlib.sha1(data, usedforsecurity=False).hexdigest()
                below[name] = {"type": "file", "path": name, "size": len(data), "oid": oid}
        if folder and not below:
            self.answer(404, b"{}", X_Error_Code="EntryNotFound")
        else:
            self.answer_json(list(below.values()))

    def answer_file(self, sha: str, name: str) -> None:
        data = self.hub.commits[sha].get(name)
        if data is None:
            self.answer(404, b"", X_Error_Code="EntryNotFound")
            return
        start, stop = 0, len(data)
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked:
            start, stop = int(asked[1]), min(len(data), int(asked[2] or len(data)) + 1)
        oid = hashlib.sha1(data, usedforsecurity=False).hexdigest()
        headers = {"ETag": f'"{oid}"', "X-Repo-Commit": sha, "Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}
        self.answer(206 if asked else 200, data[start:stop], **headers)


@contextmanager
def hub_on_loopback() -> Iterator[Hub]:
    """Serve until the block ends."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    with running(LoopbackServer(handler)) as hub.url:
        yield hub
