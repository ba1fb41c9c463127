"""Uploads to the hub: what goes where in which order, what is refused, and errors with the next step."""

import http.server
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from epistream.errors import DatasetExistsError, OptionError, SourceError
from epistream.sharding.lerobot_out.hub import HubPlace, check_hub, upload_to_hub

PLACE = HubPlace("me/robot")


class FakeHub:
    """What the hub's own class does, in memory."""

    def __init__(self, there: tuple[str, ...] = (), tags: tuple[str, ...] = ()) -> None:
        self.there, self.tags, self.done = set(there), set(tags), []

    def __getattr__(self, name: str) -> Any:
        if name == "upload_large_folder":
            raise AttributeError(name)

        def call(*arguments: object, **named: Any) -> Any:
            self.done.append((name, arguments, named))
            known = type(self).__dict__.get(f"_{name}")
            return known(self, *arguments, **named) if known else None

        return call

    def _list_repo_files(self, name: str, **named: Any) -> list[str]:
        return sorted(self.there)

    def _list_repo_refs(self, name: str, **named: Any) -> Any:
        return SimpleNamespace(tags=[SimpleNamespace(name=tag) for tag in self.tags])

    def _upload_folder(self, *, folder_path: str, ignore_patterns: list[str], **named: Any) -> None:
        from huggingface_hub.utils import filter_repo_objects

        files = [str(file.relative_to(folder_path)) for file in Path(folder_path).rglob("*") if file.is_file()]
        self.there |= set(filter_repo_objects(files, ignore_patterns=ignore_patterns))

    def _upload_file(self, *, path_in_repo: str, **named: Any) -> None:
        self.there.add(path_in_repo)

    def _create_tag(self, name: str, *, tag: str, **named: Any) -> None:
        assert tag not in self.tags
        assert "meta/info.json" in self.there
        self.tags.add(tag)

    def _delete_tag(self, name: str, *, tag: str, **named: Any) -> None:
        self.tags.remove(tag)


@pytest.fixture
def folder(tmp_path):
    for name in ("meta/info.json", "meta/tasks.jsonl", "data/chunk-000/episode_000000.parquet", ".export/lock"):
        path = tmp_path / "out" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"codebase_version": "v2.1"}))
    return tmp_path / "out"


@pytest.mark.parametrize("tags", [(), ("v2.1",), ("v3.0",)])
def test_upload_puts_the_description_and_then_the_tag_last(folder, tags):
    hub = FakeHub(tags=tags)
    upload_to_hub(folder, PLACE, hub, private=True)
    assert hub.there == {
        "README.md",
        "data/chunk-000/episode_000000.parquet",
        "meta/info.json",
        "meta/tasks.jsonl",
    }
    assert hub.tags == {*tags, "v2.1"}
    asked = [name for name, _, _ in hub.done if not name.startswith(("list", "delete"))]
    assert asked == ["create_repo", "upload_folder", "upload_file", "upload_file", "create_tag"]
    assert hub.done[0][1:] == (("me/robot",), {"repo_type": "dataset", "private": True, "exist_ok": True})
    assert all(named["repo_type"] == "dataset" for _, _, named in hub.done)
    card = hub.done[3][2]["path_or_fileobj"].decode()
    assert "- LeRobot" in card
    assert "data_files: data/*/*.parquet" in card


def test_upload_to_a_branch_makes_it_and_tags_it(folder):
    hub = FakeHub()
    upload_to_hub(folder, HubPlace.of("hf://datasets/me/robot@second"), hub)
    assert ("create_branch", ("me/robot",), {"branch": "second", "repo_type": "dataset", "exist_ok": True}) in hub.done
    assert {named["revision"] for name, _, named in hub.done if name.startswith(("upload", "create_tag"))} == {"second"}


def test_upload_again_after_an_interruption_goes_on(folder):
    hub = FakeHub(there=("data/chunk-000/episode_000000.parquet", "README.md", ".gitattributes"))
    upload_to_hub(folder, PLACE, hub)
    assert "meta/info.json" in hub.there
    assert [named["path_in_repo"] for name, _, named in hub.done if name == "upload_file"] == ["meta/info.json"]


def test_upload_over_another_set_is_refused(folder):
    hub = FakeHub(there=("data/chunk-000/file-000.parquet",))
    with pytest.raises(DatasetExistsError, match=r"hf://datasets/me/robot: holds data/chunk-000/file-000\.parquet"):
        upload_to_hub(folder, PLACE, hub)
    assert not hub.tags
    assert len(hub.there) == 1


def test_upload_of_a_folder_that_is_not_complete_is_refused(folder):
    (folder / "meta" / "info.json").unlink()
    with pytest.raises(SourceError, match=r"no complete LeRobot data set .* wanted meta/info\.json\. Export it first"):
        upload_to_hub(folder, PLACE, FakeHub())


@pytest.mark.parametrize(
    "url", ["hf://me/robot", "hf://datasets/robot", "s3://a/b", "hf://datasets/a/b/c", "hf://datasets/a/b@"]
)
def test_url_that_is_no_place_on_the_hub_is_refused(url):  # fmt: skip
    with pytest.raises(OptionError, match=r"wanted hf://datasets/OWNER/NAME\[@BRANCH\]"):
        HubPlace.of(url)


def test_url_of_a_place_is_read():
    assert HubPlace.of("hf://datasets/me/my.robot-1@v/1") == HubPlace("me/my.robot-1", "v/1")
    assert HubPlace.of("hf://datasets/me/robot/") == PLACE
    assert str(HubPlace("me/robot", "x")) == "hf://datasets/me/robot@x"


@pytest.fixture
def refusing(request) -> Iterator[str]:
    """A stand-in for the hub that refuses everything with one status."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(request.param)
            self.end_headers()

        do_POST = do_GET

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("refusing", "advice"),
    [(401, "Log in with 'hf auth login'"), (403, "may write to me/robot")],
    indirect=["refusing"],
)
def test_hub_that_refuses_is_an_error_with_the_next_step(folder, refusing, advice):
    hub = pytest.importorskip("huggingface_hub").HfApi(endpoint=refusing, token="hf_none")
    with pytest.raises(SourceError, match=advice):
        check_hub(PLACE, hub)
    with pytest.raises(SourceError, match=advice):
        upload_to_hub(folder, PLACE, hub)


def test_hub_without_a_token_says_how_to_log_in(monkeypatch, tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr("huggingface_hub.utils._headers.get_token", lambda: None)
    with pytest.raises(SourceError, match="HF_TOKEN"):
        check_hub(PLACE, hub.HfApi(endpoint="http://127.0.0.1:9"))


def test_hub_that_is_not_there_is_an_error_that_says_so(folder):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        hub = pytest.importorskip("huggingface_hub").HfApi(endpoint=url, token="hf_none")
        with pytest.raises(SourceError, match="Check the network, and run the same again"):
            upload_to_hub(folder, PLACE, hub)
