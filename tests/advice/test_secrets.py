"""What messages about access advise works when it is done."""

import json
import re
import shutil

import pytest
from click.testing import CliRunner
from web.guarded_server import guarded

import epistream as es
from epistream.commands import cli
from epistream.errors import EpistreamError, OptionError, SourceError


@pytest.fixture
def server(tmp_path, aloha_shards, aloha_files, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    root = tmp_path / "www"
    shutil.copytree(aloha_shards, root / "ds")
    shutil.copy(aloha_files[0], root / "episode_0.hdf5")
    with guarded(root) as server:
        yield server


def num_read(source, **more):
    stream = es.EpisodeStream(
        source, batch_size=4, features=["action"], cache=es.CacheOptions(mode="off", attempts=1), **more
    )
    return sum(len(batch["action"]) for batch in stream)


@pytest.mark.parametrize("path", ["ds", "ds/shard-{000000..000001}.tar", "episode_0.hdf5"])
def test_expired_signature_is_signed_again(server, path):
    server.queries = {"*": "sig=new"}
    with pytest.raises(SourceError, match=r"has expired.*sign the URL again") as caught:
        num_read(f"http://{server.host}/{path}?sig=old")
    assert "403" in str(caught.value)
    assert num_read(f"http://{server.host}/{path}?sig=new") > 0


def test_state_of_an_expired_signature_goes_on_with_the_next(server):
    server.queries = {"*": "sig=old"}
    options = {"batch_size": 4, "features": ["action"], "cache": es.CacheOptions(mode="off", attempts=1)}
    loader = es.StreamingLoader(es.EpisodeStream(f"http://{server.host}/ds?sig=old", **options), num_workers=0)
    batches = iter(loader)
    seen = [next(batches)["step_index"].tolist() for _ in range(3)]
    state = loader.state_dict()
    loader.close()
    server.queries = {"*": "sig=new"}
    with pytest.raises(EpistreamError, match="states that were saved stay good"):
        es.EpisodeStream(f"http://{server.host}/ds?sig=old", **options)
    again = es.EpisodeStream(f"http://{server.host}/ds?sig=new", **options)
    with es.StreamingLoader(again, num_workers=0) as loader:
        loader.load_state_dict(state)
        rest = [batch["step_index"].tolist() for batch in loader]
    fresh = es.EpisodeStream(f"http://{server.host}/ds?sig=new", **options)
    with es.StreamingLoader(fresh, num_workers=0) as loader:
        assert seen + rest == [batch["step_index"].tolist() for batch in loader]


@pytest.mark.parametrize("refusal", [403, 404])
def test_files_signed_one_by_one_are_all_put_into_the_list(server, refusal):
    server.refusal = refusal
    folder = server.root / "ds"
    wanted = sorted(file.name for pattern in ("shard-*.tar", "dataset.json") for file in folder.glob(pattern))
    more = sorted(file.name for pattern in ("dataset-*.tables", "shard-*.index") for file in folder.glob(pattern))
    server.queries = {f"/ds/{name}": f"sig={number}" for number, name in enumerate([*wanted, *more])}
    urls = [f"http://{server.host}{path}?{query}" for path, query in server.queries.items()]
    tars = [url for url in urls if ".tar?" in url]
    with pytest.raises(
        SourceError, match=r"no signature.*put the signed URLs of all its files into the list"
    ) as caught:
        num_read(tars)
    named = re.findall(r"[\w*-]+\.(?:json|tables|index|tar)\b", str(caught.value).partition("into the list")[2])
    assert named == ["dataset.json", "dataset-*.tables", "shard-*.index", "shard-*.tar"]
    assert (
        num_read([url for url in urls if any(file.name in url for name in named for file in folder.glob(name))]) == 140
    )


def test_flat_options_for_several_protocols_are_given_by_protocol(server):
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(str(server.root / "ds"), "/advised", recursive=True)
    server.header = ("X-Key", "ok")
    sources, flat = [f"http://{server.host}/ds", "memory://advised"], {"headers": {"X-Key": "ok"}}
    try:
        with pytest.raises(OptionError, match="Give them by protocol") as caught:
            num_read(sources, storage_options=flat)
        protocols = re.findall(r'"(\w+)": \{', str(caught.value))
        assert protocols == ["http", "memory"]
        assert num_read(sources, storage_options={protocols[0]: flat, protocols[1]: {}}) == 280
    finally:
        memory.rm("/advised", recursive=True)


def test_options_that_are_no_mapping_are_given_as_one(server):
    server.header = ("X-Key", "ok")
    with pytest.raises(OptionError, match=r"wanted a mapping of names to values.*or by protocol"):
        num_read(f"http://{server.host}/ds", storage_options=[("headers", {"X-Key": "ok"})])
    assert num_read(f"http://{server.host}/ds", storage_options={"headers": {"X-Key": "ok"}}) == 140
    assert num_read(f"http://{server.host}/ds", storage_options={"http": {"headers": {"X-Key": "ok"}}}) == 140


def test_options_of_a_command_are_given_as_json_or_as_a_file(server, tmp_path):
    server.header = ("X-Key", "ok")
    words, options = (
        ["inspect", f"http://{server.host}/ds", "--storage-options"],
        {"http": {"headers": {"X-Key": "ok"}}},
    )
    done = CliRunner().invoke(cli, [*words, "headers=ok"])
    assert re.search(r"""wanted JSON such as '\{"anon": true\}', or @FILE""", str(done.exception))
    assert CliRunner().invoke(cli, [*words, json.dumps(options)]).exit_code == 0
    file = tmp_path / "options.json"
    done = CliRunner().invoke(cli, [*words, f"@{file}"])
    assert "wanted a file with JSON, readable by you" in str(done.exception)
    file.write_text(json.dumps(options))
    assert CliRunner().invoke(cli, [*words, f"@{file}"]).exit_code == 0
