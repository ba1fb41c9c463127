"""Signed URLs stream, however they are given, and a URL that is signed again is the same file."""

import json
import shutil

import numpy as np
import pytest
from web.guarded_server import guarded

import epistream as es
from epistream.access import Access
from epistream.errors import OptionError, SourceError
from epistream.sharding.files.sources import Tars, resolve, resolve_access
from epistream.sharding.files.storage import join, parent_and_name

# All that aiohttp would write anew: %2F, +, %20, %3D, letters of either case, and signs that need no quoting.
SIGNATURE = "X-Amz-Credential=A%2Fb+c%20d&X-Amz-Signature=Zm9v%3d%3D&se=2026-01-01T00%3A00%3A00Z&x=~'()*!$,;:@/?[]|{&e="


@pytest.fixture
def server(tmp_path, aloha_shards, aloha_files, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    root = tmp_path / "www"
    shutil.copytree(aloha_shards, root / "ds")
    for file in aloha_files:
        shutil.copy(file, root)
    with guarded(root) as server:
        yield server


def names(server, *suffixes):
    return sorted(path.name for path in (server.root / "ds").iterdir() if path.name.endswith(suffixes))


def stream(source, **options):
    return es.EpisodeStream(source, batch_size=5, features=["action"], cache="off", shuffle=False, **options)


def actions(source, **options):
    return np.concatenate([batch["action"] for batch in stream(source, **options)])


@pytest.fixture(scope="module")
def expected(aloha_shards):
    return actions(str(aloha_shards))


@pytest.mark.parametrize("form", ["folder", "slash", "manifest", "braces", "list", "query in braces", "chained"])
def test_one_signature_for_a_dataset_streams_and_reaches_the_server_as_it_was_given(server, expected, form):
    base, tars = f"http://{server.host}/ds", names(server, ".tar")
    assert len(tars) > 1
    signature = SIGNATURE.replace("{", "") if form == "query in braces" else SIGNATURE
    server.queries = {"*": signature}
    source = {
        "folder": f"{base}?{signature}",
        "slash": f"{base}/?{signature}",
        "manifest": f"{base}/dataset.json?{signature}",
        "braces": f"{base}/shard-{{000000..{len(tars) - 1:06}}}.tar?{signature}",
        "list": [f"{base}/{name}?{signature}" for name in tars],
        "query in braces": f"{base}/{{{','.join(f'{name}?sig=ok' for name in tars)}}}",
        "chained": f"simplecache::{base}?sig=ok",
    }[form]
    if form in ("query in braces", "chained"):
        server.queries = {"*": "sig=ok"}
    np.testing.assert_array_equal(actions(source), expected)
    assert {target.partition("?")[2] for target in server.seen} == {server.queries["*"]}


def test_files_that_are_signed_one_by_one_stream_from_a_list_of_all(server, expected):
    files = names(server, ".tar", ".index", "dataset.json", ".tables")
    server.queries = {f"/ds/{name}": f"sig={number}" for number, name in enumerate(files)}
    urls = [f"http://{server.host}{path}?{query}" for path, query in server.queries.items()]
    np.testing.assert_array_equal(actions(urls), expected)


def test_hdf5_files_behind_signatures_stream(server, expected):
    server.queries = {f"/episode_{number}.hdf5": f"sig={number}" for number in range(2)}
    urls = [f"http://{server.host}/episode_{number}.hdf5?sig={number}" for number in range(2)]
    np.testing.assert_array_equal(actions(urls), expected)
    server.queries = {"*": SIGNATURE}
    np.testing.assert_array_equal(actions(f"http://{server.host}/episode_{{0..1}}.hdf5?{SIGNATURE}"), expected)


def test_user_and_password_in_a_url_open_a_dataset(server, expected):
    server.user = "some body:pass/w@rd"
    np.testing.assert_array_equal(actions(f"http://some%20body:pass%2Fw%40rd@{server.host}/ds"), expected)


def test_signature_is_of_its_own_folder_alone(server, expected):
    shutil.copytree(server.root / "ds", server.root / "public")
    for name in names(server, ".tar", ".index", "dataset.json", ".tables"):
        server.queries[f"/ds/{name}"] = "sig=ok"
    base = f"http://{server.host}"
    both = stream([f"{base}/ds?sig=ok", f"{base}/public"])
    assert both.num_windows == 2 * len(expected)
    assert sum(len(batch["action"]) for batch in both) == 2 * len(expected)
    mixed = es.Mixture([stream(f"{base}/ds?sig=ok"), stream(f"{base}/public")], weights=[1, 1])
    assert sum(len(batch["action"]) for batch in mixed) > len(expected)


def test_url_that_is_signed_again_names_the_same_shard(server, tmp_path):
    seen = []
    for signature in ("sig=first", "sig=second&more=1"):
        server.queries = {"*": signature}
        made = stream([f"http://{server.host}/ds?{signature}", f"http://{server.host}/episode_0.hdf5?{signature}"])
        with es.StreamingLoader(made, num_workers=0) as loader:
            for _, _batch in zip(range(2), loader, strict=False):
                pass
            state = loader.state_dict()
            loader.load_state_dict(seen[0][1] if seen else state)
        dataset = made.job.dataset
        seen.append((dataset.fingerprint, state, list(dataset.shard_url), list(dataset.index_url), dataset.url))
    assert seen[0] == seen[1]
    assert seen[0][2][0] == f"http://{server.host}/ds/shard-000000.tar"
    assert "sig=" not in json.dumps(seen, default=str)
    kept = list((tmp_path / "xdg").rglob("*.index"))
    assert len(kept) == 1  # of the HDF5 file, which was indexed once
    assert b"sig=" not in kept[0].read_bytes()


def test_question_mark_in_a_local_name_stays_a_part_of_it(tmp_path, aloha_files):
    for name in ("what?.hdf5", "a?sig=1.hdf5"):
        shutil.copy(aloha_files[0], tmp_path / name)
        assert es.open_dataset(tmp_path / name).shard_url[0] == str(tmp_path / name)
        es.pack(tmp_path / name, tmp_path / name.replace("hdf5", "out"))
        assert es.open_dataset(f"file://{tmp_path}/{name.replace('hdf5', 'out')}").num_episodes == 1


def test_names_are_told_from_what_opens_them():
    parts, access = resolve_access("https://u:p@h/ds/shard-{000000..000001}.tar?a=b{c", {"http": {"x": 1}})
    assert parts == [Tars("https://h/ds", ("shard-000000.tar", "shard-000001.tar"))]
    assert access.opened("https://h/ds/dataset.json") == "https://u:p@h/ds/dataset.json?a=b{c"
    assert access.opened("https://h/other/dataset.json") == "https://h/other/dataset.json"
    assert access.options_for("https://h/ds/dataset.json") == {"x": 1}
    assert "p@" not in repr(access) + repr(parts) + str(vars(access))
    for same in ("s3://b/k?versionId=1", "hf://datasets/u/n@main", "abfs://box@account/x", "github://o:r@sha/x"):
        assert resolve(same)[0].url == same


def test_folder_of_a_url_is_that_of_the_link_that_has_one():
    assert join("simplecache::https://h/ds", "x.tar") == "simplecache::https://h/ds/x.tar"
    assert parent_and_name("simplecache::https://h/ds/x.tar") == ("simplecache::https://h/ds", "x.tar")
    assert join("zip://in::https://h/a.zip", "x.tar") == "zip://in/x.tar::https://h/a.zip"
    assert join("http://[::1]:80/ds", "x.tar") == "http://[::1]:80/ds/x.tar"


OPTIONS = {
    "s3://b/x": ({"s3": {"key": "k"}, "http": {"y": 1}}, {"key": "k"}),
    "s3a://b/x": ({"s3": {"key": "k"}}, {"key": "k"}),
    "https://h/x": ({"http": {"y": 1}, "s3": {"key": "k"}}, {"y": 1}),
    "http://h/x": ({"http": {"y": 1}, "https": {"y": 2}}, {"y": 1}),
    "gs://h/x": ({"http": {"y": 1}}, {}),
    "memory://x": ({"anon": True, "client_kwargs": {"a": 1}}, {"anon": True, "client_kwargs": {"a": 1}}),
    "simplecache::s3://b/x": ({"s3": {"key": "k"}, "same_names": True}, {"s3": {"key": "k"}, "same_names": True}),
}


@pytest.mark.parametrize("url", OPTIONS)
def test_options_of_a_protocol_go_to_its_urls(url):
    given, wanted = OPTIONS[url]
    assert Access.of(given).options_for(url) == wanted


def test_options_of_several_protocols_open_any_mix(server, expected, tmp_path):
    import fsspec

    server.header = ("X-Key", "ok")
    memory = fsspec.filesystem("memory")
    memory.put(str(server.root / "ds"), "/mix", recursive=True)
    sources = [f"http://{server.host}/ds", "memory://mix", str(server.root / "ds")]
    options = {"http": {"headers": {"X-Key": "ok"}}, "memory": {}, "s3": {"key": "unused"}}
    try:
        assert len(actions(sources, storage_options=options)) == 3 * len(expected)
        mixture = es.Mixture([stream(source, storage_options=options) for source in sources], weights=[1, 1, 1])
        assert sum(len(batch["action"]) for batch in mixture) > 0
        flat = {"headers": {"X-Key": "ok"}}
        np.testing.assert_array_equal(actions(sources[0], storage_options=flat), expected)
        alone = [stream(sources[0], storage_options=flat), stream(sources[1])]
        assert sum(len(batch["action"]) for batch in es.Mixture(alone, weights=[1, 1])) > 0
        with pytest.raises(OptionError, match=r"headers for URLs of http and memory.*Give them by protocol") as caught:
            es.open_dataset(sources, flat)
        assert "X-Key" not in str(caught.value)
    finally:
        memory.rm("/mix", recursive=True)


@pytest.mark.parametrize("options", ["KEY53", ["KEY53"], {1: "KEY53"}])
def test_options_that_are_none_are_refused_without_being_shown(options):
    with pytest.raises(OptionError, match=r"storage_options: .*wanted a mapping") as caught:
        es.open_dataset("s3://bucket/x", options)
    assert "KEY53" not in str(caught.value)


def test_flat_options_of_one_stream_are_for_its_protocol(aloha_shards):
    assert Access.of({"key": "k"}).by_protocol(["s3://b/x", str(aloha_shards)]) == {"s3": {"key": "k"}}
    assert Access.of({"key": "k"}).by_protocol([str(aloha_shards)]) == {"key": "k"}
    assert Access.of({"y": 1}).by_protocol(["http://h/x", "https://h/y"]) == {"http": {"y": 1}}


def test_pattern_that_is_no_pattern_is_still_told():
    with pytest.raises(OptionError, match="a glob on something remote"):
        resolve("http://h/*.tar?sig=1")
    with pytest.raises((OptionError, SourceError)) as caught:
        resolve("http://h/x-{0..1.tar?sig=S3C")
    assert "S3C" not in str(caught.value)
