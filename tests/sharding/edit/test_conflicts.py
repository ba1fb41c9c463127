"""Two edits at once, on a local disk, on S3, and on stores that keep to no conditions: one wins, the other says so."""

import json
import threading

import pytest
from web.bucket import s3_bucket

import epistream as es
from epistream.errors import EditConflictError, EditError
from epistream.sharding.edit import conditional, operations, swapping
from epistream.sharding.edit.conditional import _Objects

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


@pytest.fixture(scope="module")
def bucket():
    """A bucket "sets" for datasets, its file system, and how to reach it."""
    pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    with s3_bucket("sets") as given:
        yield given


@pytest.fixture
def remote(bucket, packed_once, request):
    """The ten recordings on S3: their URL, the file system, and its options."""
    files, options = bucket
    folder = f"sets/{request.node.name.partition('[')[0]}-{id(request)}"
    files.put(packed_once, folder, recursive=True)
    yield f"s3://{folder}", files, options
    files.rm(folder, recursive=True)


def meet(monkeypatch, meanwhile):
    """Let the next edit of an operation with statistics find that `meanwhile` was done before it publishes."""
    real = operations.with_statistics

    def first(*arguments, **options):
        monkeypatch.setattr(operations, "with_statistics", real)
        made = real(*arguments, **options)
        meanwhile()
        return made

    monkeypatch.setattr(operations, "with_statistics", first)


def test_edit_of_what_was_edited_meanwhile_is_refused_and_loses_nothing(url, monkeypatch):
    meet(monkeypatch, lambda: es.edit.tasks(url, "stack"))
    with pytest.raises(EditConflictError, match="edited by somebody else since it was read"):
        es.edit.remove(url, "0")
    assert [edit.command for edit in es.edit.log(url)] == ["", "tasks stack"]
    assert es.open_dataset(url).num_episodes == 10
    assert es.edit.remove(url, "0").num_episodes == 9  # run again it takes place


def test_many_edits_at_once_take_place_one_after_the_other_or_are_refused(url):
    refused, done = [], []

    def relabel(number):
        try:
            done.append(es.edit.tasks(url, f"task {number}", str(number)).fingerprint)
        except EditConflictError as error:
            refused.append(error)

    threads = [threading.Thread(target=relabel, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) + len(refused) == 4
    assert done
    assert sorted(edit.fingerprint for edit in es.edit.log(url)[1:]) == sorted(done)


def test_edit_on_s3_writes_on_the_condition_that_nobody_else_did(remote, monkeypatch):
    url, files, options = remote
    report = es.edit.tasks(url, "lift", storage_options=options)
    assert es.open_dataset(url, options).fingerprint == report.fingerprint
    assert es.open_dataset(f"{url}@{report.before[:8]}", options).tasks == []
    meet(monkeypatch, lambda: es.edit.tasks(url, "stack", storage_options=options))
    with pytest.raises(EditConflictError, match="edited by somebody else"):
        es.edit.remove(url, "0", storage_options=options)
    assert list(es.open_dataset(url, options).tasks) == ["stack"]
    assert not [name for name in files.ls(url.removeprefix("s3://"), detail=False) if "probe" in name or "lock" in name]


@pytest.mark.parametrize("kind", ["ignores conditions", "refuses to know them"])
def test_store_without_conditions_is_locked_by_an_object(remote, monkeypatch, kind):
    url, files, options = remote
    real = _Objects.put

    def put(self, name, body, tag=""):
        if tag and kind == "refuses to know them":
            return "NotImplemented"
        return real(self, name, body)

    monkeypatch.setattr(_Objects, "put", put)
    monkeypatch.setattr(swapping, "_SETTLE_S", 0.2)
    report = es.edit.tasks(url, "lift", storage_options=options)
    assert es.open_dataset(url, options).fingerprint == report.fingerprint
    lock = f"{url.removeprefix('s3://')}/.edit.lock"
    assert not files.exists(lock)
    files.pipe_file(lock, json.dumps({"owner": "another-machine-7", "expires": 4_000_000_000}).encode())
    with pytest.raises(EditConflictError, match="another-machine-7 is editing it, wanted nobody"):
        es.edit.tasks(url, "stack", storage_options=options)
    files.pipe_file(lock, json.dumps({"owner": "killed", "expires": 1}).encode())  # it has run out
    assert es.edit.tasks(url, "stack", storage_options=options).num_episodes == 10
    assert not files.exists(lock)


def test_lock_that_another_wrote_over_is_not_held(remote, monkeypatch):
    url, _, options = remote
    monkeypatch.setattr(conditional._Objects, "put", lambda self, name, body, tag="": "NotImplemented" if tag else None)
    monkeypatch.setattr(swapping, "_SETTLE_S", 0.2)
    real = swapping.time.sleep

    def another(seconds):
        files = remote[1]
        files.pipe_file(f"{url.removeprefix('s3://')}/.edit.lock", b'{"owner": "other", "expires": 4000000000}')
        real(seconds)

    monkeypatch.setattr(swapping.time, "sleep", another)
    before = es.open_dataset(url, options).fingerprint
    with pytest.raises(EditConflictError, match="somebody else began to edit it"):
        es.edit.tasks(url, "lift", storage_options=options)
    assert es.open_dataset(url, options).fingerprint == before


@pytest.mark.parametrize("scheme", ["https", "hf"])
def test_what_can_be_read_only_is_refused_by_its_protocol(packed_once, scheme):
    with pytest.raises(EditError, match=rf"{scheme}:// can be read only, wanted a local folder or a store"):
        swapping.swap(f"{scheme}://somewhere/set", b"", b"")
