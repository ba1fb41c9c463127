"""Indexes of HDF5 files, made once for each user and version of a file, and kept where caches are kept."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import xxhash

from epistream.errors import FormatError
from epistream.file_systems import local_path
from epistream.sharding.files.pruning import mark_used
from epistream.sharding.files.storage import Options
from epistream.sharding.files.user_cache import DEADLINE_S, default_folder, make_once
from epistream.sharding.files.versioned_files import version_and_bytes
from epistream.sharding.hdf5.index import RECIPE, Hdf5Index
from epistream.sharding.hdf5.scan import SHARD_BYTES, index_hdf5
from epistream.sharding.layouts.mapping import MappingLayout
from epistream.sharding.layouts.registry import is_still_made_by

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class KeptIndex:
    """An index, the file that it is kept in, and what that holds."""

    index: Hdf5Index
    path: str
    data: bytes


def keep_indexes(
    url: str,
    options: Options = None,
    deadline_s: float = DEADLINE_S,
    folder: Path | None = None,
    layout: str | MappingLayout | None = None,
    *,
    allow_outside: bool = False,
) -> list[KeptIndex]:
    """The indexes of one HDF5 file, one a shard; made now if this version of the file has none.

    Args:
        url: The file, an absolute path or a URL.
        options: For fsspec.
        deadline_s: How long to wait for another process that indexes the same file.
        folder: Where to keep the indexes; ``$XDG_CACHE_HOME/epistream/indexes`` unless given. Where that cannot be
            used, they are in one for temporary files.
        layout: Insist on this layout instead of finding it.
        allow_outside: Whether it may read from files outside of its folder.

    Raises:
        SourceError, LayoutError: As `index_hdf5`.
        SourceChangedError: If the file is written to while it is indexed.
        CacheError: If no folder can be written.
        DeadlineError: If another process holds the lock for too long.
    """
    folder = folder or default_folder()
    version, _ = version_and_bytes(url, options)
    described = json.dumps(layout.plain()) if isinstance(layout, MappingLayout) else layout or ""
    name = xxhash.xxh3_128_hexdigest(f"hdf5\0{RECIPE}\0{url}\0{version}\0{SHARD_BYTES}\0{described}".encode())
    first = f"{name}.0.index"
    indexed: set[str] = set()

    def make() -> list[tuple[str, bytes]]:
        _log.info("indexing %s", url)
        made = index_hdf5(url, options, layout=layout, allow_outside=allow_outside)
        indexed.update(index.extents.version for index in made)
        # The first one last: where it is, the others are.
        return [(f"{name}.{number}.index", made[number].to_bytes()) for number in reversed(range(len(made)))]

    return make_once(
        folder / f"{name}.lock",
        lambda place: _read(place / first, version, allow_outside, is_local=local_path(url) is not None),
        make,
        url,
        # Also not while it was read: an older file may have been put back since.
        is_unchanged=lambda: {*indexed, version_and_bytes(url, options)[0]} == {version},
        deadline_s=deadline_s,
    )


def _read(first: Path, version: str, allow_outside: bool, *, is_local: bool) -> list[KeptIndex] | None:
    """Kept indexes that are whole; anything else is made again."""
    kept: list[KeptIndex] = []
    path = first
    try:
        while not kept or len(kept) < kept[0].index.num_shards:
            path = first.with_name(first.name.replace(".0.index", f".{len(kept)}.index"))
            data = path.read_bytes()
            kept.append(KeptIndex(Hdf5Index.parse(data, str(path)), str(path), data))
        mark_used(first)  # while it is there, so are the others
    except FileNotFoundError:
        return None
    except (OSError, FormatError) as error:
        _log.info("making %s again: %s", path, error)
        return None
    first_one = kept[0].index
    if not is_still_made_by(first_one.rows.episodes[0].layout, first_one.made_by):
        return None
    is_as_wanted = all(
        one.index.extents.version == version and _may_be_read(one, allow_outside, is_local=is_local) for one in kept
    )
    return kept if is_as_wanted else None


def _may_be_read(kept: KeptIndex, allow_outside: bool, *, is_local: bool) -> bool:
    """Whether the other files that an index was made with are what HDF5 would read today, and may be read."""
    if is_local and kept.index.needs_h5py and not kept.index.knows_others:
        return False  # by an earlier release, which asked for no other files
    return all(other.is_current() and (allow_outside or not other.is_outside) for other in kept.index.extents.others)
