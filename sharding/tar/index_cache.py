"""Indexes of local tars that have none, made once for each user and kept where caches are kept."""

import contextlib
import fcntl
import logging
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import xxhash

from epistream.errors import CacheError, DeadlineError, FormatError, SourceChangedError, SourceError
from epistream.sharding.files.storage import write_atomic
from epistream.sharding.format.index import ShardIndex
from epistream.sharding.format.manifest import Manifest, ManifestBuilder
from epistream.sharding.tar.index_tar import index_tar

_log = logging.getLogger(__name__)

# Raised when `index_tar` would make another index of the same tar.
_RECIPE = 1
_POLL_S = 0.05
# How long to wait for another process that indexes the same file: terabytes of HDF5 take their time.
DEADLINE_S = 1800.0


def index_local_tars(paths: Sequence[str], deadline_s: float = DEADLINE_S) -> tuple[Manifest, tuple[str, ...]]:
    """A manifest of some tars of one folder, and where the index of each of its shards is.

    Args:
        paths: Local tars with different file names.
        deadline_s: How long to wait for another process that indexes the same tar.

    Raises:
        SourceError: If a tar is missing.
        FormatError: If one holds no episodes, or features differ.
        CacheError: If the folder cannot be written.
        DeadlineError: If another process holds the lock for too long.
    """
    folder = default_folder()
    kept: dict[str, str] = {}
    builder: ManifestBuilder | None = None
    for path in map(Path, paths):
        index, data, kept[path.name] = _index(path, folder, deadline_s)
        builder = builder or ManifestBuilder(index.features, None)
        builder.add_shard(index, data)
    if builder is None:
        raise SourceError("no tars, wanted at least one.")
    manifest = builder.build(renumber=True)
    return manifest, tuple(kept[name] for name in manifest.columns.names)


def default_folder() -> Path:
    """Where indexes of this user are kept."""
    # The one place where users say that their home has no room; what is kept here changes no result.
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "epistream" / "indexes"


def _index(path: Path, folder: Path, deadline_s: float) -> tuple[ShardIndex, bytes, str]:
    """The index of one tar, its bytes, and the file they are kept in."""
    before = _stat(path)
    name = xxhash.xxh3_128_hexdigest(f"{_RECIPE}\0{path}\0{before}".encode())
    kept = folder / f"{name}.index"
    index = _read(kept, path)
    if index:
        return index
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        remedy = f"or write indexes for good: epistream index {path.parent}"
        with locked(folder / f"{name}.lock", deadline_s, str(path), remedy):
            index = _read(kept, path)  # somebody else may have made it meanwhile
            if index:
                return index
            _log.info("indexing %s", path)
            data = index_tar(path).to_bytes()
            if _stat(path) != before:
                raise SourceChangedError(f"{path}: changed while it was indexed. Try again when it is complete.")
            write_atomic(str(kept), data)
    except (PermissionError, NotADirectoryError) as error:
        raise CacheError(
            f"{folder}: {error}, wanted to keep an index there. Set XDG_CACHE_HOME to a folder that can be written, "
            f"or write indexes for good: epistream index {path.parent}"
        ) from error
    return ShardIndex.parse(data, str(kept)), data, str(kept)


def _stat(path: Path) -> tuple[int, int, int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror}, wanted a tar. Check the path or pattern.") from error
    return status.st_size, status.st_mtime_ns, status.st_ino, status.st_dev


def _read(kept: Path, tar: Path) -> tuple[ShardIndex, bytes, str] | None:
    """A kept index that is whole; anything else is made again."""
    try:
        data = kept.read_bytes()
        index = ShardIndex.parse(data, str(kept))
    except FileNotFoundError:
        return None
    except (OSError, FormatError) as error:
        _log.info("making %s again: %s", kept, error)
        return None
    return (index, data, str(kept)) if index.shard_name == tar.name else None


@contextlib.contextmanager
def locked(path: Path, deadline_s: float, source: str, remedy: str) -> Iterator[None]:
    """Held by one process of this machine; the kernel lets go when the process ends, however it ends.

    Args:
        path: The lock's file.
        deadline_s: How long to wait for it.
        source: What is indexed under it, for messages.
        remedy: What else to do than to end the other process; ends the message.

    Raises:
        DeadlineError: If another process holds it for too long.
    """
    end = time.monotonic() + deadline_s
    with path.open("ab") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= end:
                    raise DeadlineError(
                        f"{path}: held by another process for {deadline_s:g} s, wanted it to index {source}. End that "
                        f"process, {remedy}"
                    ) from None
                time.sleep(_POLL_S)
        yield
