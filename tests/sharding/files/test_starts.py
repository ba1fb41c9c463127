"""First bytes of many files at once: whatever a server answers, they are of one version of the file, or left out."""

import numpy as np
import pytest
from web.faulty_server import serve
from web.odd_ranges import KINDS, serve_oddly

from epistream.access import Access, RetryOptions
from epistream.sharding.files.starts import Start, read_starts
from epistream.sharding.files.versioned_files import version_and_bytes

DATA = np.random.default_rng(0).integers(0, 256, 5000, np.uint8).tobytes()


@pytest.fixture
def server():
    with serve() as state:
        state.files |= {f"/{name}": DATA for name in "abc"}
        yield state


def end(data, num_bytes):
    """What is wanted after the first bytes: the last ten."""
    return num_bytes - 10, num_bytes


def test_first_bytes_come_with_the_version_and_size_that_a_look_tells(server):
    urls = [f"{server.url}/{name}" for name in "abc"]
    found = read_starts({url: (100, None) for url in urls})
    assert server.heads == []
    assert sorted(server.requests) == [(f"/{name}", "bytes=0-99") for name in "abc"]
    for url in urls:
        version, num_bytes = version_and_bytes(url)
        assert found[url] == Start(version, num_bytes, ((0, DATA[:100]),))


def test_what_is_wanted_then_comes_with_a_second_request(server):
    url = f"{server.url}/a"
    start = read_starts({url: (100, end)})[url]
    assert start.parts == ((0, DATA[:100]), (4990, DATA[-10:]))
    assert [asked for _, asked in server.requests] == ["bytes=0-99", "bytes=4990-4999"]


@pytest.mark.parametrize("size", [len(DATA), len(DATA) + 1, 1 << 20])
def test_short_file_comes_whole(server, size):
    url = f"{server.url}/a"
    assert read_starts({url: (size, None)})[url].parts == ((0, DATA),)


def test_file_that_is_replaced_before_the_second_request_has_its_first_bytes_alone(server):
    def replace(path, number):
        if number == 1:
            server.files[path] = bytes(len(DATA))

    url = f"{server.url}/a"
    version, _ = version_and_bytes(url)
    server.plan = replace
    assert read_starts({url: (100, end)})[url] == Start(version, len(DATA), ((0, DATA[:100]),))


@pytest.mark.parametrize("fault", ["503", "404", "429", "drop", "cut", "short", "stall"])
def test_file_that_does_not_come_is_left_out_and_the_others_are_not(server, fault):
    server.plan = lambda path, number: fault if path == "/b" else None
    options = Access.of(None).trying(RetryOptions(request_timeout_s=1.0))
    urls = [f"{server.url}/{name}" for name in ("a", "b", "c", "missing")]
    found = read_starts({url: (100, None) for url in urls}, options)
    assert sorted(url[-1] for url in found) == ["a", "c"]
    # None is asked for again, but by aiohttp itself where the server drops a line.
    assert len(server.requests) - (fault == "drop") == 4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1000, len(DATA)])
def test_server_that_answers_otherwise_is_believed_only_where_it_says_what_it_sends(kind, size):
    with serve_oddly(kind) as server:
        server.files["/a"] = DATA
        url = f"{server.url}/a"
        found = read_starts({url: (size, None)})
        if kind == "whole file" and size < len(DATA):
            wanted = Start("bytes=5000", 5000, ())  # no more of it was read
        elif kind in ("whole file", "other part") or (kind == "whole file as a part" and size == len(DATA)):
            wanted = Start("bytes=5000", 5000, ((0, DATA[:size]),))  # the part that begins with the first byte
        else:
            wanted = None
        assert found.get(url) == wanted


def test_file_of_no_bytes_is_left_to_who_looks_at_it(server):
    server.files["/empty"] = b""
    url = f"{server.url}/empty"
    assert read_starts({url: (100, None)}).get(url, Start("", 0, ())).parts == ()


def test_local_files_and_no_files_are_left_out(tmp_path):
    (tmp_path / "a").write_bytes(DATA)
    assert read_starts({str(tmp_path / "a"): (100, None)}) == {}
    assert read_starts({}) == {}
