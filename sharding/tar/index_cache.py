"""Indexes of local tars that have none, made once for each user and kept where caches are kept."""

import logging
import shlex
from collections.abc import Sequence
from pathlib import Path

import xxhash

from epistream.errors import FormatError, SourceError
from epistream.plain_files import refuse_other_than_plain
from epistream.sharding.files.pruning import mark_used
from epistream.sharding.files.user_cache import DEADLINE_S, default_folder, make_once
from epistream.sharding.format.index import ShardIndex
from epistream.sharding.manifest.manifest import Manifest
from epistream.sharding.manifest.manifest_builder import ManifestBuilder
from epistream.sharding.tar.index_tar import index_tar

_log = logging.getLogger(__name__)

# Raised when `index_tar` would make another index of the same tar.
_RECIPE = 2


def index_local_tars(paths: Sequence[str], deadline_s: float = DEADLINE_S) -> tuple[Manifest, tuple[str, ...]]:
    """A manifest of some tars of one folder, and where the index of each of its shards is.

    Args:
        paths: Local tars with different file names.
        deadline_s: How long to wait for another process that indexes the same tar.

    Raises:
        SourceError: If a tar is missing.
        FormatError: If one holds no episodes, or features differ.
        CacheError: If no folder can be written.
        DeadlineError: If another process holds the lock for too long.
    """
    folder = default_folder()
    kept: dict[str, str] = {}
    builder = ManifestBuilder()
    for path in map(Path, paths):
        index, data, kept[path.name] = _index(path, folder, deadline_s)
        builder.add_shard(index, data)
    manifest = builder.build(renumber=True)
    return manifest, tuple(kept[name] for name in manifest.columns.names)


def _index(path: Path, folder: Path, deadline_s: float) -> tuple[ShardIndex, bytes, str]:
    """The index of one tar, its bytes, and the file they are kept in."""
    version = _version(path)
    name = xxhash.xxh3_128_hexdigest(f"{_RECIPE}\0{path}\0{version}".encode())
    kept = f"{name}.index"

    def make() -> list[tuple[str, bytes]]:
        _log.info("indexing %s", path)
        return [(kept, index_tar(path).to_bytes())]

    return make_once(
        folder / f"{name}.lock",
        lambda place: _read(place / kept, path),
        make,
        str(path),
        is_unchanged=lambda: _version(path) == version,
        deadline_s=deadline_s,
        otherwise=f", or write indexes for good: epistream index {shlex.quote(str(path.parent))}",
    )


def _version(path: Path) -> tuple[int, int, int, int]:
    try:
        refuse_other_than_plain(path)
        status = path.stat()
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror}, wanted a tar. Check the path or pattern.") from error
    return status.st_size, status.st_mtime_ns, status.st_ino, status.st_dev


def _read(kept: Path, tar: Path) -> tuple[ShardIndex, bytes, str] | None:
    """A kept index that is whole; anything else is made again."""
    try:
        data = kept.read_bytes()
        mark_used(kept)
        index = ShardIndex.parse(data, str(kept))
    except FileNotFoundError:
        return None
    except (OSError, FormatError) as error:
        _log.info("making %s again: %s", kept, error)
        return None
    return (index, data, str(kept)) if index.shard_name == tar.name else None
