"""Servers that accept a connection and never say a word: every transfer ends, and tells what it waited for."""

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from web.faulty_server import serve

from epistream import file_systems
from epistream.errors import EpistreamError, PackError, SourceError
from epistream.sharding.files.storage import local_copy, read_bytes, read_range, write_atomic
from epistream.sharding.hdf5.file import open_hdf5
from epistream.sharding.tar.shard_store import upload


@pytest.fixture(autouse=True)
def short_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_systems, "_REQUEST_S", 0.1)
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda seconds: None)


@pytest.fixture
def silent() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def copy(url: str) -> None:
    with local_copy(url):
        pass


def open_and_close(url: str) -> None:
    with open_hdf5(url):
        pass


@pytest.mark.parametrize(
    ("transfer", "wanted"),
    [
        (read_bytes, "wanted to read it"),
        (lambda url: read_range(url, 3, 9), "wanted 9 bytes"),
        (lambda url: write_atomic(url, b"seven"), "wanted to write 5 bytes"),
        (copy, "wanted to fetch it"),
        (open_and_close, "cannot be read as HDF5"),
    ],
)
def test_transfer_with_a_silent_server_ends_with_an_error(
    silent: str, transfer: Callable[[str], object], wanted: str
) -> None:
    with pytest.raises(SourceError, match=f"{silent}/file.*no answer within 0.1 s.*") as caught:
        transfer(f"{silent}/file")
    assert wanted in str(caught.value)


def test_upload_to_a_silent_server_ends_with_an_error(silent: str, tmp_path: Path) -> None:
    file = tmp_path / "shard-000000.tar"
    file.write_bytes(b"seven")
    with pytest.raises(PackError, match=r"no answer within 0\.1 s, wanted to upload 5 bytes"):
        upload(file, silent, None)


@pytest.mark.parametrize("transfer", [copy, open_and_close])
def test_transfer_that_stalls_half_way_ends_with_an_error(transfer: Callable[[str], object]) -> None:
    with serve() as server:
        server.files["/file"] = bytes(1000)
        server.plan = lambda path, number: "stall"
        with pytest.raises(EpistreamError, match=f"{server.url}/file.*no answer within"):
            transfer(f"{server.url}/file")
