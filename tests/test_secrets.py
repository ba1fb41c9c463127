"""Nothing that epistream says, keeps or shows has a signature, a password or a value of storage_options in it."""

import base64
import json
import logging
import os
import pickle
import re
import shutil
import signal
import socket
import traceback
import urllib.request
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from web.guarded_server import guarded

import epistream as es
from epistream.commands import cli
from epistream.errors import EpistreamError
from epistream.shown_errors import clearly

SIGNATURE, PASSWORD, KEY = "SIG53CRET", "PASSW0RDX", "OPTI0NKEY"
BASIC = base64.b64encode(f"somebody:{PASSWORD}".encode()).decode()
SECRET = re.compile(f"{SIGNATURE}|{PASSWORD}|{KEY}|{BASIC}")
WAYS = ("signature", "user", "options")


@pytest.fixture
def server(tmp_path, aloha_shards, aloha_files, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    root = tmp_path / "www"
    shutil.copytree(aloha_shards, root / "ds")
    shutil.copy(aloha_files[0], root / "episode_0.hdf5")
    with guarded(root) as server:
        yield server


def opened_by(server, way, path):
    """Guard the server in one way; the URL and arguments that open a path there."""
    server.queries, server.user, server.header = {}, None, None
    if way == "signature":
        server.queries = {"*": f"sig={SIGNATURE}&b='({SIGNATURE})'"}
        return f"http://{server.host}/{path}?{server.queries['*']}", {}
    if way == "user":
        server.user = f"somebody:{PASSWORD}"
        return f"http://{server.user}@{server.host}/{path}", {}
    server.header = ("Authorization", KEY)
    return f"http://{server.host}/{path}", {"storage_options": {"http": {"headers": {"Authorization": KEY}}}}


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def texts_of(value, seen):
    """The `repr` of an object and of all that it has, as a debugger or an error tracker shows them."""
    if id(value) in seen or isinstance(value, str | bytes | int | float | np.ndarray | type | None.__class__):
        return
    seen[id(value)] = value
    yield repr(value)
    yield str(value)
    module = type(value).__module__
    if isinstance(value, Mapping) and type(value) is dict:
        inner = [*value.keys(), *value.values()]
    elif isinstance(value, list | tuple | set | frozenset):
        inner = list(value)
    elif module.startswith("epistream") and type(value).__name__ != "Access":
        inner = list(getattr(value, "__dict__", {}).values())
    else:
        inner = []
    for one in inner:
        yield from texts_of(one, seen)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("path", ["ds", "episode_0.hdf5"])
def test_stream_that_works_shows_no_secret_anywhere(server, way, path, tmp_path, caplog):
    caplog.set_level(logging.DEBUG, logger="epistream")
    url, more = opened_by(server, way, path)
    cache = es.CacheOptions(directory=str(tmp_path / "shm"), mode="shm")
    stream = es.EpisodeStream(url, batch_size=4, features=["action"], cache=cache, **more)
    said = []
    monitor = es.MonitorOptions(metrics_port=free_port(), log_every_s=0.001)
    with es.StreamingLoader(stream, num_workers=0, monitor=monitor) as loader:
        assert sum(len(batch["action"]) for batch in loader) > 0
        said += [
            str(loader.report()),
            json.dumps(loader.report().to_json()),
            json.dumps(loader.state_dict(), default=str),
        ]
        said += [json.dumps(loader.stats().to_json()), *texts_of(loader, {}), *texts_of(stream.job, {})]
        for record in caplog.records:
            if found := re.search(r"http://[\d.]+:\d+/metrics", record.getMessage()):
                said.append(urllib.request.urlopen(found[0], timeout=20).read().decode())
        listed = CliRunner().invoke(cli, ["cache", "ls", "--directory", str(tmp_path / "shm")])
        said.append(listed.output)
        kept = [file for folder in (tmp_path / "shm", tmp_path / "xdg") for file in folder.rglob("*")]
        said += [str(file) for file in kept]
        said += [file.read_bytes().decode("latin1") for file in kept if file.is_file()]
    said += [repr(pickle.loads(pickle.dumps(stream.job))), str(stream.locate(0)), *map(str, caplog.records)]
    said += [record.getMessage() for record in caplog.records]
    assert len(said) > 50
    assert [text for text in said if SECRET.search(text)] == []


FAILURES = (404, 403, 500, "torn", "wrong", "closed", "missing", "refused", "killed")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("failure", FAILURES)
def test_failure_shows_no_secret_in_its_message_its_traceback_or_the_log(server, way, failure, caplog, tmp_path):
    caplog.set_level(logging.DEBUG, logger="epistream")
    caught = []
    for path in ("ds", "episode_0.hdf5"):
        url, more = opened_by(server, way, path)
        if failure == "missing":
            url = url.replace(path, "nothing/" + path)
        elif failure == "refused":
            server.queries, server.user, server.header = {"*": "other"}, "other", ("Authorization", "other")
        cache = es.CacheOptions(mode="off", attempts=2, fetch_timeout_s=20)
        try:
            server.failure = "" if path == "ds" else failure
            stream = es.EpisodeStream(url, batch_size=4, features=["action"], cache=cache, **more)
            server.failure = failure
            if failure == "killed":
                _kill_worker(stream)
            for _ in es.StreamingLoader(stream, num_workers=0):
                pass
        except EpistreamError as error:
            caught.append(error)
        finally:
            server.failure = ""
    assert caught or failure == "wrong"  # HDF5 has no checksums
    said = [record.getMessage() for record in caplog.records]
    for error in caught:
        chain = error
        while chain is not None:
            said += [repr(chain), str(chain), str(chain.args), str(vars(chain))]
            chain = chain.__cause__ or chain.__context__
        said += traceback.format_exception(error)
    assert [text for text in said if SECRET.search(text)] == []


def _kill_worker(stream):
    with es.StreamingLoader(stream, num_workers=1, timeout_s=60) as loader:
        batches = iter(loader)
        next(batches)
        os.kill(loader.worker_pids[0], signal.SIGKILL)
        for _ in batches:
            pass


def test_worker_that_fails_tells_of_it_without_secrets(server, aloha_shards):
    url, more = opened_by(server, "signature", "ds")
    stream = es.EpisodeStream(
        url, batch_size=4, features=["action"], cache=es.CacheOptions(mode="off", attempts=1), **more
    )
    server.failure = 403
    with pytest.raises(EpistreamError) as caught, es.StreamingLoader(stream, num_workers=1) as loader:
        list(loader)
    assert "sign the URL again" in str(caught.value)
    assert SECRET.search("".join(traceback.format_exception(caught.value))) is None


COMMANDS = {
    "inspect": ["inspect", "{url}"],
    "inspect json": ["inspect", "{url}", "--json"],
    "verify": ["verify", "{url}"],
    "plan": ["plan", "{url}", "--json"],
    "warm": ["cache", "warm", "{url}", "--directory", "{folder}/shm"],
    "index": ["index", "{url}", "--overwrite"],
    "bench": ["bench", "{url}", "--rounds", "1", "--seconds", "0.01", "--parallel", "1", "--no-once", "--cache", "off"],
    "tune": ["tune", "{url}", "--seconds", "0.01", "--set", "source={url}"],
    "pack": ["pack", "{episode}", "{url}"],
    "layouts detect": ["layouts", "detect", "{url}"],
    "layouts draft": ["layouts", "draft", "{url}", "-o", "{folder}/draft.yaml", "--overwrite"],
    "config": ["config", "show", "--set", "source={url}", "--set", "stream.storage_options={options}"],
}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("is_let_in", [True, False])
def test_commands_show_no_secret_and_take_options_of_a_file(
    server, name, is_let_in, tmp_path, aloha_files, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    said = []
    for way in ("signature", "options")[: 1 if name in ("bench", "tune") else 2]:  # these take seconds
        path = "episode_0.hdf5" if name.startswith("layouts") else "new" if name == "pack" else "ds"
        url, more = opened_by(server, way, path)
        options = json.dumps(more.get("storage_options", {}))
        file = tmp_path / "options.json"
        file.write_text(options)
        if not is_let_in:
            server.queries, server.header = {"*": "other"}, ("Authorization", "other")
        words = [
            word.format(url=url, folder=tmp_path, episode=aloha_files[0], options=options) for word in COMMANDS[name]
        ]
        words += ["--storage-options", f"@{file}"] if name != "config" else []
        done = CliRunner().invoke(cli, words)
        reads_only = name not in ("index", "pack")  # the server lets nobody write
        if reads_only and (is_let_in or name == "config"):
            assert done.exit_code == 0, (done.output, done.exception)
        else:
            assert isinstance(done.exception, EpistreamError), (done.output, done.exception)
        said += [done.output, str(done.exception), *traceback.format_exception(done.exception)]
    assert [text for text in said if SECRET.search(text)] == []


@pytest.mark.parametrize(
    "change", [f"stream.storage_options={{key: {KEY}", f"http://h/x?{SIGNATURE}", f"stream.storage_options={KEY}"]
)
@pytest.mark.parametrize("command", [["config", "show"], ["tune", "/none"]])
def test_change_of_a_key_that_is_none_is_not_shown(change, command):
    done = CliRunner().invoke(cli, [*command, "--set", change])
    assert done.exit_code != 0
    said = [done.output, str(done.exception), *traceback.format_exception(done.exception)]
    assert [text for text in said if SECRET.search(text)] == []


@pytest.mark.parametrize("form", [[], ["--yaml"], ["--json"]])
def test_configuration_that_is_shown_has_no_secret(tmp_path, form):
    file = tmp_path / "run.yaml"
    options = f"{{s3: {{key: {KEY}}}}}"
    file.write_text(f"source: 'http://u:{PASSWORD}@h/x?{SIGNATURE}'\nstream: {{storage_options: {options}}}\n")
    done = CliRunner().invoke(cli, ["config", "show", str(file), *form])
    assert done.exit_code == 0
    assert "http://h/x" in done.output
    assert SECRET.search(done.output) is None


BAD_OPTIONS = {
    f'{{"key": "{KEY}"': "no JSON|Expecting",
    f'["{KEY}"]': "a list, wanted a JSON map",
    f'"{KEY}"': "a str, wanted a JSON map",
    KEY: "Expecting value",
    "[" * 100_000 + KEY: "no JSON",
}


@pytest.mark.parametrize("text", BAD_OPTIONS, ids=range(len(BAD_OPTIONS)))
@pytest.mark.parametrize("is_file", [True, False])
def test_options_that_are_no_json_map_are_refused_without_being_shown(tmp_path, text, is_file):
    file = tmp_path / "options.json"
    file.write_text(text)
    done = CliRunner().invoke(cli, ["inspect", "s3://b/x", "--storage-options", f"@{file}" if is_file else text])
    assert isinstance(done.exception, EpistreamError)
    assert re.search(BAD_OPTIONS[text], str(done.exception))
    assert (str(file) in str(done.exception)) == is_file
    assert SECRET.search("".join(traceback.format_exception(done.exception))) is None


@pytest.mark.parametrize("name", ["missing.json", "."])
def test_file_of_options_that_cannot_be_read_is_named(tmp_path, name):
    done = CliRunner().invoke(cli, ["inspect", "s3://b/x", "--storage-options", f"@{tmp_path / name}"])
    assert isinstance(done.exception, EpistreamError)
    assert re.search("No such file|Is a directory", str(done.exception))


def test_packed_dataset_has_no_secret_of_where_it_went(tmp_path, aloha_files):
    import fsspec

    memory = fsspec.filesystem("memory")
    try:
        report = es.pack(aloha_files[:1], "memory://packed", storage_options={"memory": {}, "s3": {"key": KEY}})
        said = [
            str(report),
            repr(report),
            *(memory.cat(name).decode("latin1") for name in memory.ls("/packed", detail=False)),
        ]
    finally:
        memory.rm("/packed", recursive=True)
    assert [text for text in said if SECRET.search(text)] == []


class Foreign(ConnectionError):
    """As a client of somebody's raises it."""

    def __init__(self, url):
        super().__init__(url, {"headers": KEY})
        self.url, self.status, self.headers = url, 503, {"Retry-After": "7", "Location": url}


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(f"http://h/x?{SIGNATURE}"),
        PermissionError(13, f"no entry for {KEY}", f"http://u:{PASSWORD}@h/x"),
        Foreign(f"http://h/x?{SIGNATURE}"),
        UnicodeDecodeError("utf-8", KEY.encode(), 0, 1, f"at http://h/x?{SIGNATURE}"),
        KeyError(KEY),
    ],
    ids=lambda error: type(error).__name__,
)
def test_error_of_a_file_system_stays_what_it_is_without_its_secrets(error):
    def fail():
        try:
            raise ValueError(f"http://h/x?{SIGNATURE}")
        except ValueError as cause:
            raise error from cause

    found = None
    try:
        clearly(fail, {"key": KEY})
    except Exception as seen:
        found = seen
    assert type(found).__name__ == type(error).__name__
    assert isinstance(found, OSError) == isinstance(error, OSError)
    assert getattr(found, "status", None) == getattr(error, "status", None)
    if isinstance(error, Foreign):
        assert found.headers == {"Retry-After": "7"}
    assert isinstance(found.__cause__, ValueError)
    said = [repr(found), str(found), str(vars(found)), *traceback.format_exception(found)]
    assert [text for text in said if SECRET.search(text)] == []


def test_error_without_secrets_is_raised_as_it_is():
    error = OSError(2, "No such file", "/data/x")

    def fail():
        raise error

    with pytest.raises(OSError, match="No such file") as caught:
        clearly(fail, {"key": KEY})
    assert caught.value is error
    assert Path(error.filename) == Path("/data/x")
