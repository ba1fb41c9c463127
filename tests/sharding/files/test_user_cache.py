"""What is kept for a user: made once, by one process, of one version; and never waited for without a deadline."""

import errno
import fcntl
import gc
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from epistream.errors import CacheError, DeadlineError, SourceChangedError
from epistream.sharding.files.locks import locked
from epistream.sharding.files.user_cache import claim, make_once

DEADLINE_S = 30
HOLDER = """
import pathlib, sys
from epistream.sharding.files.locks import locked
with locked(pathlib.Path(sys.argv[1]), 0.0):
    print("held", flush=True)
    input()
"""


def keep(folder, data=b"made", claimed=None, **options):
    """Keep `data` as folder/value, and give what is there."""
    path = folder / "value"
    return make_once(
        claimed or folder / "value.lock",
        lambda place: path.read_bytes() if path.exists() else None,
        lambda: [(path.name, data)],
        "a.tar",
        **options,
    )


def test_lock_of_a_killed_process_is_free(tmp_path):
    command = [sys.executable, "-c", HOLDER, tmp_path / "lock"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(TimeoutError), locked(tmp_path / "lock", 0.0):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait(DEADLINE_S)
        with locked(tmp_path / "lock", 0.0), pytest.raises(TimeoutError), locked(tmp_path / "lock", 0.0):
            pass


@pytest.mark.filterwarnings("ignore:flock not supported")
def test_file_system_without_locks_is_warned_of_and_no_marker_bars_the_next(tmp_path, monkeypatch, caplog):
    def missing(descriptor, how):
        raise OSError(errno.ENOSYS, "Function not implemented")

    gc.collect()  # what other tests left would let its locks go meanwhile
    monkeypatch.setattr(fcntl, "flock", missing)
    for _ in range(2):
        with locked(tmp_path / "lock", 0.0):
            pass
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [
        "this file system has no locks; see to it that no other process writes there"
    ] * 2


def test_what_is_kept_is_made_once_by_many_threads(tmp_path):
    made, found = [], []
    path = tmp_path / "value"

    def make():
        made.append(threading.get_ident())
        return [("value", b"made")]

    def ask():
        read = lambda place: path.read_bytes() if path.exists() else None  # noqa: E731
        found.append(make_once(tmp_path / "lock", read, make, "a.tar", deadline_s=DEADLINE_S))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert found == [b"made"] * 8
    assert len(made) == 1


def test_source_that_changed_meanwhile_is_not_kept(tmp_path):
    with pytest.raises(SourceChangedError, match=r"a\.tar: changed while it was indexed"):
        keep(tmp_path, is_unchanged=lambda: False)
    assert not (tmp_path / "value").exists()
    assert keep(tmp_path) == b"made"


def test_wait_for_another_process_ends_at_its_deadline(tmp_path):
    wanted = r"held by another process for 0\.1 s, wanted it to index a\.tar"
    with locked(tmp_path / "value.lock", 0.0), pytest.raises(DeadlineError, match=wanted):
        keep(tmp_path, deadline_s=0.1)
    assert keep(tmp_path, deadline_s=0.1) == b"made"


def test_what_cannot_be_read_back_is_an_error(tmp_path):
    with pytest.raises(CacheError, match=r"cannot be read back.*an index of a\.tar in one of these"):
        make_once(tmp_path / "lock", lambda place: None, lambda: [("value", b"made")], "a.tar")


def test_files_have_the_time_that_they_are_as_of(tmp_path):
    seen_ns = 1_700_000_000_123_456_000
    assert keep(tmp_path, as_of_ns=lambda: seen_ns) == b"made"
    assert (tmp_path / "value").stat().st_mtime_ns == seen_ns


def test_who_claims_makes_and_others_wait_for_him(tmp_path):
    claimed = claim(tmp_path / "value.lock")
    assert claimed is not None
    assert claim(tmp_path / "value.lock") is None
    with pytest.raises(DeadlineError, match="held by another process"):
        keep(tmp_path, b"others", deadline_s=0.1)
    assert keep(tmp_path, b"mine", claimed=claimed) == b"mine"
    assert keep(tmp_path, b"others", deadline_s=0.1) == b"mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".pruned", "value"]


def test_claim_that_is_given_up_is_another_s(tmp_path):
    claimed = claim(tmp_path / "value.lock")
    claimed.held.close()
    claimed.held.close()
    assert list(tmp_path.iterdir()) == []
    again = claim(tmp_path / "value.lock")
    assert again is not None
    again.held.close()


def test_claim_is_given_up_where_making_fails(tmp_path):
    claimed = claim(tmp_path / "value.lock")
    with pytest.raises(SourceChangedError):
        keep(tmp_path, claimed=claimed, is_unchanged=lambda: False)
    assert keep(tmp_path, deadline_s=0.1) == b"made"


def test_claim_in_a_folder_that_cannot_be_is_none(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    assert claim(tmp_path / "file" / "value.lock") is None
    monkeypatch.chdir(tmp_path)
    assert claim(Path("value.lock")) is None
