"""LeRobot data sets as sources: folders, globs, URLs of several protocols, and a hub with its revisions."""

import functools
import http.server
import json
import os
from pathlib import Path

import fsspec
import numpy as np
import pytest
from hdf5_files import aloha_raw
from robots.lerobot_meta import MadeSet, numbers
from web.hub import hub_on_loopback
from web.serving import LoopbackServer, running

import epistream as es
from epistream.access import Access
from epistream.errors import EpistreamError, FormatError, SourceError
from epistream.sharding.dataset import open_dataset
from epistream.sharding.files.sources import Folder, Hdf5Files, LeRobotSet, resolve, resolve_access
from epistream.sharding.lerobot_meta.hub import is_pinned, pinned
from epistream.sharding.lerobot_meta.metadata import keep_metadata
from epistream.sharding.lerobot_meta.statistics import statistics_of

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:huggingface_hub")

FEATURES = {"action": numbers(2), "observation.state": numbers(3)}
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache-home"))
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")


def made(root, version="v3.0", lengths=(5, 1, 7), **changes):
    """A set of which nothing but the metadata is needed to open it."""
    return MadeSet(version, lengths, FEATURES, **changes).write(root)


def uploaded(root, url):
    """Its files in memory:// at a URL."""
    for file in root.rglob("*"):
        if file.is_file():
            fsspec.filesystem("memory").pipe_file(f"{url}/{file.relative_to(root).as_posix()}", file.read_bytes())
    return url


def test_local_folder_and_its_info_are_a_set(tmp_path, monkeypatch):
    root = made(tmp_path / "set")
    for given in (root, f"{root}/", root / "meta" / "info.json", f"file://{root}"):
        (part,) = resolve(given)
        assert isinstance(part, LeRobotSet)
        assert open_dataset(given).episode_length.tolist() == [5, 1, 7]
    monkeypatch.chdir(root)
    assert open_dataset(".").num_episodes == open_dataset("meta/info.json").num_episodes == 3
    assert open_dataset(str(root)).url == str(root)


def test_set_is_recognised_without_a_look_at_its_other_files(tmp_path, monkeypatch):
    root = made(tmp_path / "set")
    monkeypatch.setattr(os, "walk", None)
    assert resolve(root) == [LeRobotSet(str(root))]


def test_globs_braces_and_lists_mix_sets_with_others(tmp_path):
    first, second = made(tmp_path / "sets" / "a"), made(tmp_path / "sets" / "b", "v2.1", (4,))
    assert resolve(f"{tmp_path}/sets/*") == [LeRobotSet(str(first)), LeRobotSet(str(second))]
    assert resolve(f"{tmp_path}/sets/{{b,a}}") == [LeRobotSet(str(second)), LeRobotSet(str(first))]
    assert open_dataset(f"{tmp_path}/sets/*").episode_length.tolist() == [5, 1, 7, 4]
    recording = aloha_raw(tmp_path / "e.hdf5", 6)
    es.pack(recording, tmp_path / "shards")
    kinds = [type(part) for part in resolve([first, recording, tmp_path / "shards", second])]
    assert kinds == [LeRobotSet, Hdf5Files, Folder, LeRobotSet]
    mixed = open_dataset([str(first), str(recording), str(tmp_path / "shards")], features=["action_of_nobody*"])
    assert mixed.episode_length.tolist() == [5, 1, 7, 6, 6]


def test_other_folders_with_a_file_of_that_name_stay_what_they_are(tmp_path):
    aloha_raw(tmp_path / "recordings" / "e.hdf5", 5)
    (tmp_path / "recordings" / "meta").mkdir()
    (tmp_path / "recordings" / "meta" / "info.json").write_text('{"robot": "aloha"}')
    assert open_dataset(tmp_path / "recordings").episode_length.tolist() == [5]
    es.pack(tmp_path / "recordings" / "e.hdf5", tmp_path / "shards")
    made(tmp_path / "aside")
    (tmp_path / "aside" / "meta").rename(tmp_path / "shards" / "meta")
    assert resolve(tmp_path / "shards") == [Folder(str(tmp_path / "shards"))]


@pytest.mark.parametrize(
    ("data", "what"),
    [(LFS, "git lfs pull"), (b"", "no JSON"), (b'{"codebase_version": "v3.0"', "no JSON"), (b"{}", "codebase_version")],
)
def test_torn_info_is_named_and_left_out_where_that_is_asked_for(tmp_path, data, what):
    good, bad = made(tmp_path / "good"), made(tmp_path / "bad")
    (bad / "meta" / "info.json").write_bytes(data)
    with pytest.raises(FormatError, match=what) as error:
        open_dataset(bad)
    assert f"{bad}/meta/info.json" in str(error.value)
    both = open_dataset([str(bad), str(good)], on_bad="skip")
    assert both.episode_length.tolist() == [5, 1, 7]
    assert what in both.skipped[str(bad)]


@pytest.mark.parametrize("odd", ["a FIFO", "a folder", "nowhere", "itself"])
def test_what_is_no_file_in_place_of_info_is_an_error_at_once(tmp_path, odd):
    root = made(tmp_path / "set")
    info = root / "meta" / "info.json"
    info.unlink()
    {
        "a FIFO": lambda: os.mkfifo(info),
        "a folder": info.mkdir,
        "nowhere": lambda: info.symlink_to("nowhere"),
        "itself": lambda: info.symlink_to("info.json"),
    }[odd]()
    with pytest.raises(EpistreamError):
        open_dataset(root)


def test_remote_folder_is_a_set_when_it_has_no_manifest(tmp_path):
    url = uploaded(made(tmp_path / "set"), "memory://lab/remote-set")
    assert resolve(url) == [Folder(url)]
    for given in (url, f"{url}/", f"{url}/meta/info.json"):
        assert open_dataset(given).episode_length.tolist() == [5, 1, 7]
    other = uploaded(made(tmp_path / "other", "v2.1", (4,)), "memory://lab/remote-other")
    assert open_dataset("memory://lab/remote-{set,other}").episode_length.tolist() == [5, 1, 7, 4]
    assert open_dataset([str(tmp_path / "set"), other]).episode_length.tolist() == [5, 1, 7, 4]
    assert resolve(f"{url}/meta/info.json") == [LeRobotSet(url)]
    with pytest.raises(SourceError, match=r"dataset\.json: no such file"):
        open_dataset("memory://lab/nothing")


class _Counting(http.server.SimpleHTTPRequestHandler):
    """Serves a folder as object stores do, without listings; notes what it is asked for."""

    asked: list[str]

    def log_message(self, *arguments: object) -> None:
        pass

    def list_directory(self, path):
        self.send_error(404)

    def send_head(self):
        self.asked.append(f"{self.command} {self.path}")
        return super().send_head()


@pytest.fixture
def served(tmp_path):
    """The URL of a folder on a web server, and the requests that it gets."""
    asked = []
    handler = type("Handler", (_Counting,), {"asked": asked})
    (tmp_path / "www").mkdir()
    with running(LoopbackServer(functools.partial(handler, directory=str(tmp_path / "www")))) as url:
        yield url, asked


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_web_server_is_asked_for_few_files_and_the_second_time_only_whether_they_changed(tmp_path, served, version):
    url, asked = served
    made(tmp_path / "www" / "set", version, [5] * 25, episodes_per_file=10)
    names = {
        "v2.1": ["episodes.jsonl", "tasks.jsonl"],
        "v3.0": [*(f"episodes/chunk-000/file-00{n}.parquet" for n in range(3)), "tasks.parquet"],
    }[version]
    assert keep_metadata(f"{url}/set", None, tmp_path / "kept").length.tolist() == [5] * 25
    # Each is read once, with its version, and all are looked at once when that is done.
    assert sorted(asked) == sorted(
        f"{how} /set/meta/{name}" for name in ["info.json", *names] for how in ("GET", "HEAD")
    )
    asked.clear()
    assert keep_metadata(f"{url}/set", None, tmp_path / "kept").length.tolist() == [5] * 25
    assert sorted(asked) == sorted(["GET /set/meta/info.json", *(f"HEAD /set/meta/{name}" for name in names)])
    (tmp_path / "www" / "set" / "meta" / names[0]).unlink()
    with pytest.raises((SourceError, FormatError)):
        keep_metadata(f"{url}/set", None, tmp_path / "kept")


def test_tables_that_a_web_server_lacks_are_named(tmp_path, served):
    url, _ = served
    made(tmp_path / "www" / "set", lengths=[5] * 25, episodes_per_file=10)
    (tmp_path / "www" / "set" / "meta/episodes/chunk-000/file-001.parquet").unlink()
    with pytest.raises(FormatError, match=r"10 episodes in its tables, but info\.json says total_episodes 25"):
        keep_metadata(f"{url}/set", None, tmp_path / "kept")


def test_shards_on_a_web_server_are_not_asked_whether_they_are_lerobot_s(tmp_path, served):
    url, asked = served
    es.pack(aloha_raw(tmp_path / "e.hdf5", 5), tmp_path / "www" / "shards")
    assert open_dataset(f"{url}/shards").num_episodes == 1
    assert [one.split("/")[-1].split("-")[0] for one in asked if one.startswith("GET")] == ["dataset.json", "dataset"]
    assert not any("info.json" in one for one in asked)


def test_set_of_a_web_server_is_found_without_a_listing(tmp_path, served):
    url, asked = served
    made(tmp_path / "www" / "set")
    assert open_dataset(f"{url}/set").episode_length.tolist() == [5, 1, 7]
    assert asked[0] == "GET /set/dataset.json"
    assert not any(one.endswith("/set/") for one in asked)


def test_signature_of_the_info_opens_the_folder():
    parts, access = resolve_access("https://host/sets/a/meta/info.json?sig=1")
    assert parts == [LeRobotSet("https://host/sets/a")]
    assert access.opened("https://host/sets/a/meta/tasks.parquet") == "https://host/sets/a/meta/tasks.parquet?sig=1"


@pytest.mark.parametrize("tail", [64, 1 << 20])
def test_of_a_large_remote_table_only_what_is_wanted_is_fetched(tmp_path, served, monkeypatch, tail):
    url = uploaded(made(tmp_path / "set", lengths=[5] * 900, rows_per_group=300), "memory://lab/large")
    size = (tmp_path / "set/meta/episodes/chunk-000/file-000.parquet").stat().st_size
    monkeypatch.setattr("epistream.sharding.lerobot_meta.parquet._WHOLE_BYTES", 1 << 14)
    monkeypatch.setattr("epistream.sharding.lerobot_meta.parquet_ranges._TAIL_BYTES", min(tail, size))
    monkeypatch.setattr("epistream.sharding.lerobot_meta.parquet_ranges._GAP_BYTES", 1 << 10)
    read = []
    from epistream.sharding.files import storage
    from epistream.sharding.lerobot_meta import parquet_ranges

    def counted(url, start, size, options, version):
        read.append(size)
        return storage.read_range(url, start, size, options, version)

    monkeypatch.setattr(parquet_ranges, "read_range", counted)
    meta = keep_metadata(url, None, tmp_path / "kept")
    assert meta.length.tolist() == [5] * 900
    assert meta.digest == keep_metadata(str(tmp_path / "set"), None, tmp_path / "kept").digest
    assert read
    if tail == 64:
        assert sum(read) < size / 3
    fsspec.filesystem("memory").pipe_file(
        f"{url}/meta/episodes/chunk-000/file-000.parquet",
        (tmp_path / "set/meta/episodes/chunk-000/file-000.parquet").read_bytes()[:-1],
    )
    with pytest.raises(FormatError, match=r"finalize\(\)"):
        keep_metadata(url, None, tmp_path / "kept")


@pytest.fixture
def hub():
    pytest.importorskip("huggingface_hub")
    with hub_on_loopback() as made_hub:
        yield made_hub


REVISIONS = {
    "": "main",
    "@develop": "develop",
    "@v3.0": "v3.0",
    "@feature%2Fgrippers": "feature/grippers",
    "@refs%2Fpr%2F7": "refs/pr/7",
    "@refs/pr/8": "refs/pr/8",
    "@refs/convert/parquet": "refs/convert/parquet",
    "@~parquet": "~parquet",
}


def test_every_way_to_write_a_revision_opens_its_commit(tmp_path, hub):
    fingerprints = set()
    for number, (given, ref) in enumerate(REVISIONS.items()):
        inner = "/sets/cubes" * (number % 3 == 1)
        made(tmp_path / f"{number}" / inner.strip("/"), lengths=(5, 1, 7 + number))
        commit = hub.commit(tmp_path / f"{number}", ref)
        url = f"hf://datasets/lab/cubes{given}{inner}"
        (part,), access = resolve_access(url, hub.options)
        assert part == Folder(url)
        assert pinned(url, access) == f"hf://datasets/lab/cubes@{commit}{inner}"
        dataset = open_dataset(f"{url}/meta/info.json" if number % 2 else url, hub.options)
        assert dataset.url == f"hf://datasets/lab/cubes@{commit}{inner}"
        assert dataset.episode_length.tolist() == [5, 1, 7 + number]
        assert dataset.shard_url[0].startswith(f"hf://datasets/lab/cubes@{commit}{inner}/data/")
        fingerprints.add(dataset.fingerprint)
    assert len(fingerprints) == len(REVISIONS)


def test_branch_that_moves_changes_nothing_that_is_open_and_is_followed_when_opened_again(tmp_path, hub):
    first = hub.commit(made(tmp_path / "a"), "main")
    access = Access.of(hub.options)
    url = pinned("hf://datasets/lab/cubes", access)
    assert is_pinned(url)
    assert keep_metadata(url, access, tmp_path / "kept").length.tolist() == [5, 1, 7]
    second = hub.commit(made(tmp_path / "b", lengths=(4, 4)), "main")
    assert keep_metadata(url, access, tmp_path / "kept").length.tolist() == [5, 1, 7]
    assert pinned(url, access) == url
    assert pinned("hf://datasets/lab/cubes", access) == f"hf://datasets/lab/cubes@{second}"
    assert first != second


def test_what_was_read_of_a_commit_needs_no_request(tmp_path, hub):
    hub.commit(made(tmp_path / "set", "v3.0", [5] * 25, episodes_per_file=10), "main")
    access = Access.of(hub.options)
    url = pinned("hf://datasets/lab/cubes", access)
    assert hub.requests == ["GET /api/datasets/lab/cubes?expand=sha"]
    hub.requests.clear()
    keep_metadata(url, access, tmp_path / "kept")
    # Whether the commit is there, one listing, and each of the five files once.
    assert len(hub.requests) == 7
    assert sum("/tree/" in one for one in hub.requests) == 1
    hub.requests.clear()
    assert keep_metadata(url, access, tmp_path / "kept").length.tolist() == [5] * 25
    assert hub.requests == []


@pytest.mark.parametrize("url", ["hf://datasets/lab/none", "hf://datasets/lab/cubes@none", "hf://datasets/lab/cubes@"])
def test_what_a_hub_does_not_have_is_named_with_what_to_do(tmp_path, hub, url):
    hub.commit(made(tmp_path / "set"), "main")
    with pytest.raises(SourceError, match=url):
        open_dataset(url, hub.options)
    if not url.endswith("@"):
        with pytest.raises(SourceError, match="Check its name and revision"):
            open_dataset(f"{url}/meta/info.json", hub.options)


def test_private_sets_open_with_their_token_and_say_that_they_want_one(tmp_path, hub):
    hub.commit(made(tmp_path / "set"), "main")
    hub.token = "hf_secretsecret"
    assert open_dataset("hf://datasets/lab/cubes", hub.options).num_episodes == 3
    with pytest.raises(SourceError, match="hf auth login"):
        open_dataset("hf://datasets/lab/cubes", {"hf": {"endpoint": hub.url, "token": False}})
    hub.requests.clear()
    with pytest.raises(SourceError, match="401") as error:
        open_dataset("hf://datasets/lab/cubes", {"hf": {"endpoint": hub.url, "token": "hf_wrongwrong"}})
    assert "hf_wrongwrong" not in str(error.value)
    assert len(hub.requests) == 1, "asked again it would say the same"


def test_repository_without_a_set_says_what_there_is(tmp_path, hub):
    hub.commit({"README.md": b"nothing here"}, "main")
    with pytest.raises(SourceError, match=r"hf://datasets/lab/cubes/dataset\.json: no such file"):
        open_dataset("hf://datasets/lab/cubes", hub.options)


def test_only_urls_of_hubs_are_pinned(tmp_path):
    for url in (str(tmp_path), "s3://bucket/set", "https://host/set", "hf://buckets/lab/cubes", "hf://lab/model"):
        assert pinned(url, None) == url


def test_statistics_of_a_remote_set_are_read_when_somebody_looks(tmp_path, served):
    url, asked = served
    root = made(tmp_path / "www" / "set")
    one = {"min": [0, 0], "max": [1, 1], "mean": [0.5, 0.5], "std": [0.1, 0.1], "count": [13]}
    (root / "meta" / "stats.json").write_text(json.dumps({"action": one}))
    meta = keep_metadata(f"{url}/set", None, tmp_path / "kept")
    features = open_dataset(str(root)).features
    found = statistics_of(meta, None, features, folder=tmp_path / "kept")
    assert not any("stats.json" in one for one in asked)
    assert found["action"]["mean"] == [0.5, 0.5]
    part = statistics_of(meta, None, features, np.array([True, False, True]), tmp_path / "kept")
    local = statistics_of(
        keep_metadata(str(root), None, tmp_path / "kept"),
        None,
        features,
        np.array([True, False, True]),
        tmp_path / "kept2",
    )
    assert dict(part) == dict(local)
    assert part["action"]["count"] == 12
    assert Path(root).exists()
