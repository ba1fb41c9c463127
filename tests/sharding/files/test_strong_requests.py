"""Requests for manifests, indexes, parts and whole files are tried as hard as those for shards, and as options say."""

import numpy as np
import pytest
from hdf5_files import aloha_raw
from web.faulty_server import serve

import epistream as es
from epistream.access import Access, RetryOptions
from epistream.errors import SourceError
from epistream.sharding.files.storage import local_copy, read_bytes, read_range, read_start
from epistream.sharding.files.versioned_files import open_remote

DATA = np.random.default_rng(0).integers(0, 256, 3000, np.uint8).tobytes()


@pytest.fixture
def pauses(monkeypatch):
    slept = []
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda seconds: slept.append(seconds) if seconds else None)
    return slept


@pytest.fixture
def server():
    with serve() as state:
        state.files["/file"] = DATA
        yield state


def copied(url, options=None):
    with local_copy(url, options) as path:
        return path.read_bytes()


def through_hdf5(url, options=None):
    with open_remote(url, options) as file:
        return file.read()


READS = {
    "whole": read_bytes,
    "part": lambda url, options=None: read_range(url, 0, 3000, options),
    "start": lambda url, options=None: read_start(url, 3000, options),
    "copy": copied,
    "HDF5": through_hdf5,
}


@pytest.mark.parametrize("read", READS)
def test_busy_server_is_asked_six_times_and_left_alone_as_long_as_it_asks_for(server, pauses, read):
    server.plan = lambda path, number: "503" if number < 5 else None
    server.retry_after = "3"
    assert READS[read](f"{server.url}/file") == DATA
    assert len(server.requests) == 6
    assert len(pauses) == 5
    assert min(pauses) >= 3


@pytest.mark.parametrize("read", READS)
def test_tries_and_times_are_those_that_come_with_what_opens_a_url(server, pauses, read):
    options = Access().trying(RetryOptions(attempts=2))
    server.plan = lambda path, number: "503"
    with pytest.raises(Exception, match="503"):
        READS[read](f"{server.url}/file", options)
    assert len(server.requests) == 2
    server.retry_after = "30"
    with pytest.raises(Exception, match="503"):
        READS[read](f"{server.url}/file", Access().trying(RetryOptions(timeout_s=5.0)))
    assert len(server.requests) == 3, "30 s are beyond the deadline"
    assert len(pauses) == 1


@pytest.fixture
def dataset(server, tmp_path):
    es.pack(str(aloha_raw(tmp_path / "in" / "episode_0.hdf5", 8)), str(tmp_path / "out"), codec="raw", workers=1)
    server.files |= {f"/ds/{path.name}": path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()}
    return f"{server.url}/ds"


@pytest.mark.parametrize("name", ["dataset.json", ".tables"])
def test_stream_tries_the_manifest_as_its_cache_options_say(server, dataset, pauses, name):
    def asked():
        return sum(path.endswith(name) for path, _ in server.requests)

    server.plan = lambda path, number: "503" if path.endswith(name) else None
    with pytest.raises(
        SourceError, match=r"503.*allow more time and tries with CacheOptions\(fetch_timeout_s, attempts\)"
    ):
        es.EpisodeStream(dataset, batch_size=2, cache=es.CacheOptions(attempts=3))
    assert asked() == 3
    server.retry_after = "60"
    with pytest.raises(SourceError, match="503"):
        es.EpisodeStream(dataset, batch_size=2, cache=es.CacheOptions(fetch_timeout_s=30))
    assert asked() == 4
    server.plan = lambda path, number: "503" if path.endswith(name) and number < 9 else None
    assert es.EpisodeStream(dataset, batch_size=2, cache=es.CacheOptions(attempts=7)).num_windows == 8


def test_stream_gives_a_silent_request_for_the_manifest_up_after_the_time_of_its_cache_options(server, dataset):
    server.plan = lambda path, number: "stall"
    with pytest.raises(SourceError, match=r"no answer within 0\.1 s"):
        es.EpisodeStream(dataset, batch_size=2, cache=es.CacheOptions(attempts=1, request_timeout_s=0.1))


def test_tries_go_with_access_through_pickles_lists_and_signatures(dataset):
    import pickle

    retries = RetryOptions(attempts=9)
    access = Access({"http": {}}).trying(retries)
    assert pickle.loads(pickle.dumps(access)).retries == retries
    assert access.by_protocol(["http://a/b"]).having({"http://a": None}).retries == retries
    stream = es.EpisodeStream([dataset], batch_size=2, cache=es.CacheOptions(attempts=4))
    assert stream.job.dataset.storage_options.retries.attempts == 4
