"""Which URLs are local, remote file systems where processes fork, servers that say nothing, and tries."""

import asyncio
import gc
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from web.faulty_server import serve

from epistream import bodies
from epistream.cache.source.remote import Remote, RetryOptions
from epistream.errors import FormatError, OptionError
from epistream.file_systems import (
    ask,
    local_path,
    may_pass,
    open_file_system,
    protocol_of,
    retry,
    run,
    version_facts,
)
from epistream.sharding.files.versioned_files import version_and_bytes

DEADLINE_S = 30.0


def read_in_child(url):
    gc.collect()  # what fsspec forgot at the fork dies now, as it would sooner or later
    file_system, path = open_file_system(url)
    assert ask(file_system, "cat_file", path, limit_s=20.0) == b"seven"


def test_parent_reads_on_after_a_forked_child_has_read_too():
    with serve() as server:
        server.files["/file"] = b"seven"
        file_system, path = open_file_system(f"{server.url}/file")
        assert ask(file_system, "cat_file", path, limit_s=20.0) == b"seven"
        del file_system
        child = multiprocessing.get_context("fork").Process(target=read_in_child, args=(f"{server.url}/file",))
        child.start()
        child.join(60.0)
        assert child.exitcode == 0
        file_system, path = open_file_system(f"{server.url}/file")
        # The parent's connection is still in its pool, and must still be heard.
        assert ask(file_system, "cat_file", path, limit_s=20.0) == b"seven"


def test_question_to_a_silent_server_ends_at_its_limit():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        file_system, path = open_file_system(f"http://127.0.0.1:{silent.getsockname()[1]}/file")
        with pytest.raises(TimeoutError, match=r"no answer within 0\.2 s"):
            ask(file_system, "cat_file", path, limit_s=0.2)


def test_request_of_somebody_who_is_interrupted_ends():
    ended, waiter = threading.Event(), threading.get_ident()

    async def for_ever():
        try:
            while sys._current_frames()[waiter].f_code.co_name != "wait":
                await asyncio.sleep(0)
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(DEADLINE_S)
        finally:
            ended.set()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # who runs the tests may ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            run(open_file_system("http://127.0.0.1/")[0], for_ever, DEADLINE_S)
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended.wait(DEADLINE_S / 2)


def test_copy_of_somebody_who_is_interrupted_writes_into_no_other_file(monkeypatch, tmp_path):
    left = []

    def interrupted(file_system, request_of, limit_s):
        left.append(request_of())
        raise KeyboardInterrupt

    with serve() as server:
        server.files["/a"] = b"z" * 1000
        file_system, path = open_file_system(f"{server.url}/a")
        monkeypatch.setattr(bodies, "run", interrupted)
        with tempfile.TemporaryFile() as copy:
            number = copy.fileno()
            with pytest.raises(KeyboardInterrupt):
                bodies.copy_all(file_system, path, number, 1000, DEADLINE_S)
        with (tmp_path / "other").open("w+b", buffering=0) as other:
            assert other.fileno() == number
            other.write(b"mine")
            run(file_system, left.pop, DEADLINE_S)
            other.seek(0)
            assert other.read() == b"mine"


def test_unknown_scheme_is_an_error_of_the_user_that_names_the_url():
    with pytest.raises(OptionError, match="nosuch://a/b"):
        open_file_system("nosuch://a/b")


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("/a/b.tar", "/a/b.tar"),
        ("rel/x", "rel/x"),
        ("./rel/x", "rel/x"),
        ("~/x", os.path.expanduser("~/x")),  # noqa: PTH111
        ("~no-such-user/x", "~no-such-user/x"),
        ("file:///a/b.tar", "/a/b.tar"),
        ("file:/a/b.tar", "/a/b.tar"),
        ("file://rel/x", "rel/x"),
        ("local:///a/b.tar", "/a/b.tar"),
        ("file:///a%20b.tar", "/a%20b.tar"),
        ("/a/file:b.tar", "/a/file:b.tar"),
        ("/a/http://b.tar", "/a/http:/b.tar"),
        ("/a/b::c.tar", "/a/b::c.tar"),
        ("http://h/b.tar", None),
        ("s3://bucket/b.tar", None),
        ("memory://b.tar", None),
        ("file::s3://b/x", None),
        ("simplecache::file:///a/b.tar", None),
        ("simplecache::/a/b.tar", None),
        ("zip://b.tar::/a/c.zip", None),
    ],
)
def test_local_path_is_that_of_files_only(url, path):
    assert local_path(url) == (None if path is None else Path(path))


@pytest.mark.parametrize("url", ["/a/b.tar", "file:///a/b.tar", "file:/a/b.tar", "file:///a%20b.tar", "~/x", "rel/x"])
def test_local_path_is_where_fsspec_would_look(url):
    assert str(local_path(url).absolute()) == open_file_system(url)[1]


@pytest.mark.parametrize(
    ("url", "protocol"),
    [
        ("/a/b", "file"),
        ("/a/s3://b", "file"),
        ("file:/a", "file"),
        ("s3://b/x", "s3"),
        ("simplecache::s3://b/x", "simplecache"),
        ("simplecache::/a/b", "simplecache"),
        ("arrow_hdfs://h/x", "arrow_hdfs"),
    ],
)
def test_protocol_is_that_of_the_first_link(url, protocol):
    assert protocol_of(url) == protocol


@pytest.mark.parametrize("name", ["ETag", "generation", "blob_id", "created", "last_modified"])
def test_version_that_a_store_tells_by_one_name_is_noticed_for_shards_and_for_hdf5_files(monkeypatch, name):
    class Store:
        def info(self, path):
            return {"size": 7, name: "second", "name": path}

    assert version_facts(Store().info("x")) == [f"{name}=second"]
    monkeypatch.setattr("epistream.file_systems.url_to_fs", lambda url, **options: (Store(), url))
    assert version_and_bytes("s3://b/x.hdf5") == (f"bytes=7;{name}=second", 7)
    assert Remote(None, RetryOptions()).version("s3://b/x.tar") == f"size=7;{name}=second"


class Answer(OSError):
    """An HTTP error as aiohttp raises it."""

    def __init__(self, status):
        super().__init__(f"HTTP {status}")
        self.status = status


@pytest.mark.parametrize("error", [ConnectionResetError(), TimeoutError(), Answer(429), Answer(503)])
def test_error_that_may_pass_is_tried_again_as_often_as_said(monkeypatch, error):
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda seconds: None)
    failed, noted = [], []

    def fail():
        failed.append(1)
        raise error

    assert may_pass(error)
    with pytest.raises(type(error)) as caught:
        retry(fail, attempts=3, deadline=time.monotonic() + 60.0, note=lambda error, number: noted.append(number))
    assert caught.value is error
    assert (len(failed), noted) == (3, [1, 2])


@pytest.mark.parametrize(
    "error",
    [
        *(FileNotFoundError(), PermissionError(), ImportError(), ValueError(), Answer(403), FormatError("x")),
        *(KeyboardInterrupt(), SystemExit()),
    ],
)
def test_error_that_lasts_is_raised_at_once(error):
    failed = []

    def fail():
        failed.append(1)
        raise error

    with pytest.raises(type(error)):
        retry(fail, attempts=3, deadline=time.monotonic() + 60.0)
    assert len(failed) == 1


def test_try_that_would_begin_after_the_deadline_is_not_made():
    failed = []

    def fail():
        failed.append(1)
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        retry(fail, attempts=3, deadline=time.monotonic())
    assert len(failed) == 1
