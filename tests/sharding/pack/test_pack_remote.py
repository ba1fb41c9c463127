"""HDF5 files behind URLs: found by patterns and folders, copied one at a time, the same bytes as from a disk."""

import tempfile
from pathlib import Path

import fsspec
import h5py
import pytest
from hdf5_files import aloha_jpeg, aloha_raw, contents

from epistream.errors import OptionError, PackError, SourceChangedError, SourceError
from epistream.sharding.files import remote_hdf5
from epistream.sharding.files.remote_hdf5 import names_of_urls
from epistream.sharding.pack import source_reader
from epistream.sharding.pack.pack import pack

OPTIONS = {"codec": "raw", "shard_size": "96KiB"}


@pytest.fixture
def local(tmp_path):
    """Four files in two folders, whose natural order is another than that of their letters."""
    for number, name in enumerate(("a/e_2.hdf5", "a/e_10.hdf5", "b/e_1.hdf5", "b/e_3.hdf5")):
        aloha_raw(tmp_path / "in" / name, 20, number, cameras=("top",))
    (tmp_path / "in" / "notes.txt").write_text("no episode")
    return tmp_path / "in"


@pytest.fixture
def store(local):
    """The same in memory, by their names."""
    system = fsspec.filesystem("memory")
    for path in local.rglob("*"):
        if path.is_file():
            system.pipe_file(f"/packed-remote/{path.relative_to(local)}", path.read_bytes())
    yield system
    system.rm("/packed-remote", recursive=True)


URLS = [f"memory://packed-remote/{name}" for name in ("a/e_2.hdf5", "a/e_10.hdf5", "b/e_1.hdf5", "b/e_3.hdf5")]


@pytest.mark.parametrize(
    "given",
    [
        "memory://packed-remote",
        "memory://packed-remote/*/*.hdf5",
        URLS,
        "memory://packed-remote/{a/e_2,a/e_10,b/e_1,b/e_3}.hdf5",
    ],
    ids=["folder", "glob", "list", "braces"],
)
def test_remote_files_give_the_bytes_of_local_ones(tmp_path, local, store, given):
    pack(local, tmp_path / "whole", **OPTIONS)
    pack(given, tmp_path / "out", **OPTIONS)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_remote_files_are_copied_one_at_a_time_and_leave_nothing(tmp_path, store, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    copies, most = [], []

    class Counted(remote_hdf5.RemoteCopy):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            copies.append(self)
            most.append(len(copies))
            assert list((tmp_path / "tmp").iterdir()) == []

        def close(self):
            super().close()
            copies.remove(self)

    monkeypatch.setattr(source_reader, "RemoteCopy", Counted)
    monkeypatch.setattr(source_reader, "WHOLE_BYTES", 1000)  # all are too large for memory
    pack("memory://packed-remote", tmp_path / "out", **OPTIONS)
    assert most == [1, 1, 1, 1]


def test_remote_file_that_is_replaced_meanwhile_is_refused(tmp_path, store, monkeypatch):
    real = remote_hdf5.fetch_into

    def replaced(url, path, access):
        real(url, path, access)
        data = store.cat_file("/packed-remote/b/e_1.hdf5")
        store.pipe_file("/packed-remote/b/e_1.hdf5", data + b"more")

    monkeypatch.setattr(remote_hdf5, "fetch_into", replaced)
    with pytest.raises(SourceChangedError, match=r"b/e_1\.hdf5: changed since the job looked at it"):
        pack("memory://packed-remote/b/e_1.hdf5", tmp_path / "out", **OPTIONS)


def test_remote_file_that_is_bad_is_named_by_its_url(tmp_path, store):
    path = aloha_jpeg(tmp_path / "bad.hdf5", 30)
    with h5py.File(path, "r+") as file:
        file["observations/images/top"][5, 300:] = 0
    store.pipe_file("/packed-remote/bad.hdf5", path.read_bytes())
    store.pipe_file("/packed-remote/torn.hdf5", b"torn")
    with pytest.raises(PackError, match=r"memory://packed-remote/torn\.hdf5: cannot be read as HDF5"):
        pack("memory://packed-remote/torn.hdf5", tmp_path / "out")
    with pytest.raises(PackError, match=r"memory://packed-remote/bad\.hdf5: .*step 5") as caught:
        pack("memory://packed-remote/bad.hdf5", tmp_path / "out")
    assert "/proc/" not in str(caught.value)


def test_remote_scans_are_kept_for_the_tasks_of_an_array(tmp_path, store, local, monkeypatch):
    from epistream.sharding.pack import scan

    opened, real = [], scan.open_hdf5
    monkeypatch.setattr(scan, "open_hdf5", lambda url, access: opened.append(url) or real(url, access))
    for index in (1, 0):
        pack("memory://packed-remote", tmp_path / "out", task_index=index, num_tasks=2, **OPTIONS)
    pack("memory://packed-remote", tmp_path / "out", publish=True, **OPTIONS)
    assert len(opened) == 4
    pack(local, tmp_path / "whole", **OPTIONS)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_remote_sources_without_files_or_given_twice_are_refused(tmp_path, store):
    with pytest.raises(SourceError, match=r"memory://packed-remote/c/\*: no HDF5 file there"):
        pack("memory://packed-remote/c/*", tmp_path / "out")
    with pytest.raises(OptionError, match=r"b/e_1\.hdf5: given twice"):
        pack([*URLS, "memory://packed-remote/b/*.hdf5"], tmp_path / "out")


def test_names_of_urls_are_paths_below_what_they_have_in_common(tmp_path):
    assert names_of_urls(["s3://bucket/a/x/1.hdf5", "s3://bucket/a/2.hdf5"]) == ["x/1.hdf5", "2.hdf5"]
    assert names_of_urls(["https://one.org/d/1.hdf5"]) == ["1.hdf5"]
    assert names_of_urls(["s3://one/1.hdf5", "s3://two/1.hdf5"]) == ["one/1.hdf5", "two/1.hdf5"]
    mixed = names_of_urls([str(tmp_path / "1.hdf5"), "s3://one/1.hdf5"])
    assert mixed == [f"{str(tmp_path)[1:]}/1.hdf5", "s3/one/1.hdf5"]


def test_remote_files_in_a_bucket_give_the_bytes_of_local_ones(tmp_path, local):
    pytest.importorskip("moto")
    from web.bucket import s3_bucket

    pack(local, tmp_path / "whole", **OPTIONS)
    with s3_bucket("packed-hdf5") as (system, access):
        for path in local.rglob("*.hdf5"):
            system.pipe_file(f"packed-hdf5/{path.relative_to(local)}", path.read_bytes())
        for index in (1, 0, 1):  # into the bucket too, by the tasks of an array
            options = {"task_index": index, "num_tasks": 2, "workers": 2, "storage_options": access, **OPTIONS}
            pack("s3://packed-hdf5/*/*.hdf5", "s3://packed-hdf5/out", **options)
        assert system.exists("packed-hdf5/out/.shard-000001.result")
        pack("s3://packed-hdf5/*/*.hdf5", "s3://packed-hdf5/out", publish=True, storage_options=access, **OPTIONS)
        names = [Path(name).name for name in system.ls("packed-hdf5/out", detail=False, refresh=True)]
        found = {name: system.cat_file(f"packed-hdf5/out/{name}") for name in names}
    assert found == contents(tmp_path / "whole")
