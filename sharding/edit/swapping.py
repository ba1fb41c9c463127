"""Replacing a dataset's manifest only where it is still the one that was read: the moment an edit takes place."""

import contextlib
import json
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from epistream.errors import EditConflictError, EditError, EpistreamError
from epistream.file_systems import local_path, protocol_of
from epistream.sharding.edit.conditional import see_that_same, swap_if_same
from epistream.sharding.files.locks import locked
from epistream.sharding.files.storage import Options, join, read_bytes, remove_quietly, write_atomic, write_local
from epistream.sharding.manifest.manifest_file import FILE_NAME, MOST_BYTES

LOCK_FILE = ".edit.lock"
# Local locks are held for one read and one rename.
_WAIT_S = 30.0
# Where a store has no conditional writes: how long a lock object is one's own, and how long others get to show theirs.
_EXPIRES_S = 60.0
_SETTLE_S = 2.0
_READ_ONLY = ("http", "https", "hf", "github", "data")


def swap(
    url: str, old: bytes, new: bytes, options: Options = None, see_whole: Callable[[], None] = lambda: None
) -> None:
    """Replace ``dataset.json`` of the folder `url` by other contents, if it still has the old ones.

    On a local disk a lock is held meanwhile; on S3 the write has the condition that the object is the one that was
    read, and where a store does not keep to such conditions, as on other stores, a lock object with an owner and an
    expiry stands in its place.

    Args:
        url: The folder.
        old: What ``dataset.json`` held when it was read.
        new: What it is to hold.
        options: For fsspec.
        see_whole: Called last before that; raises if a file is missing that the new contents need.

    Raises:
        EditConflictError: If somebody else edited the dataset since it was read, or is about to.
        EditError: If the store cannot be written to.
        SourceError: If it cannot be read or written.
    """
    where = join(url, FILE_NAME)
    local = local_path(url)
    if local is not None:
        _swap_local(local, old, new, see_whole)
        return
    if protocol_of(url) in _READ_ONLY:
        raise EditError(
            f"{url}: {protocol_of(url)}:// can be read only, wanted a local folder or a store such as s3://. Copy the "
            "dataset there and edit that."
        )
    if protocol_of(url) in ("s3", "s3a"):
        _refuse_if_held(url, options, time.time())  # a prune: with conditions, edits need no lock of each other
        see_whole()
        if swap_if_same(url, old, new, options):
            return
    with _lock_object(url, options):
        see_that_same(read_bytes(where, options, MOST_BYTES), old, url)
        see_whole()
        write_atomic(where, new, options)


@contextlib.contextmanager
def held(url: str, options: Options = None) -> Iterator[Callable[[], None]]:
    """Let no edit of the folder `url` take place meanwhile; what it gives is to be called now and then.

    Raises:
        EditConflictError: If somebody holds it, or takes it at the same moment.
        SourceError: If it cannot be read or written.
    """
    local = local_path(url)
    if local is None:
        with _lock_object(url, options) as renew:
            yield renew
        return
    with _held_local(local):
        yield lambda: None


@contextlib.contextmanager
def _held_local(folder: Path) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(folder / LOCK_FILE, _WAIT_S))
        except TimeoutError as error:
            raise EditConflictError(
                f"{folder}: another edit has held {LOCK_FILE} for {_WAIT_S:.0f} s, wanted it to end. Try again."
            ) from error
        yield


def _swap_local(folder: Path, old: bytes, new: bytes, see_whole: Callable[[], None]) -> None:
    path = folder / FILE_NAME
    try:
        with _held_local(folder):
            see_that_same(path.read_bytes() if path.exists() else None, old, str(folder))
            see_whole()
            write_local(path, new, sync=True)
    except OSError as error:
        if isinstance(error, EpistreamError):
            raise
        raise EditError(
            f"{folder}: {error.strerror or error}, wanted to write {FILE_NAME}. Check room and rights."
        ) from error


@contextlib.contextmanager
def _lock_object(url: str, options: Options, now: Callable[[], float] = time.time) -> Iterator[Callable[[], None]]:
    """Hold the lock object of a folder: the last of those who write it while it is free has it.

    Whoever finds none, or one that has expired, writes his own at once, waits until all who found the same must have
    written theirs, and has it if it is still his. Who needs it for long calls what this gives, which puts its expiry
    off.
    """
    where, mine = join(url, LOCK_FILE), f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    looked_s = time.monotonic()
    _refuse_if_held(url, options, now())
    lock = _lock_of(mine, now())
    write_atomic(where, lock, options)
    if time.monotonic() - looked_s > _SETTLE_S / 2:
        remove_quietly(where, options)
        raise EditConflictError(f"{url}: too slow to lock it safely ({_SETTLE_S / 2:g} s). Try again.")
    time.sleep(_SETTLE_S)
    if read_bytes(where, options) != lock:
        raise EditConflictError(f"{url}: somebody else began to edit it at the same moment. Try again.")
    renewed_s = [time.monotonic()]

    def renew() -> None:
        if time.monotonic() - renewed_s[0] > _EXPIRES_S / 3:
            renewed_s[0] = time.monotonic()
            write_atomic(where, _lock_of(mine, now()), options)

    try:
        yield renew
    finally:
        remove_quietly(where, options)


def _lock_of(owner: str, now_s: float) -> bytes:
    return json.dumps({"owner": owner, "expires": now_s + _EXPIRES_S}).encode()


def _refuse_if_held(url: str, options: Options, now_s: float) -> None:
    held_by = _owner(read_bytes(join(url, LOCK_FILE), options), now_s)
    if held_by:
        raise EditConflictError(
            f"{url}: {held_by} is editing it, wanted nobody. Try again in {_EXPIRES_S:.0f} s, when {LOCK_FILE} expires."
        )


def _owner(data: bytes | None, now_s: float) -> str:
    """Who holds a lock object; empty if nobody does any more."""
    with contextlib.suppress(ValueError, AttributeError, TypeError):
        lock = json.loads(data or b"{}")
        if float(lock.get("expires", 0)) > now_s:
            return str(lock.get("owner", "somebody"))
    return ""
