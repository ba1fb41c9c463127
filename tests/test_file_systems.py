"""Remote file systems where processes fork, and where servers say nothing."""

import gc
import multiprocessing
import socket

import pytest
from faulty_server import serve

from epistream.errors import OptionError
from epistream.file_systems import ask, open_file_system


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


def test_unknown_scheme_is_an_error_of_the_user_that_names_the_url():
    with pytest.raises(OptionError, match="nosuch://a/b"):
        open_file_system("nosuch://a/b")
