"""HDF5 files as sources of a stream, local or remote: opened, with errors that name them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import h5py

from epistream.access import placed_link
from epistream.errors import EpistreamError, LayoutError, SourceError
from epistream.file_systems import advice_on, local_path
from epistream.plain_files import not_a_plain_file
from epistream.sharding.files.foreign import HDF5_SIGNATURE, Foreign, foreign_bytes
from epistream.sharding.files.names import HDF5_SUFFIXES
from epistream.sharding.files.storage import Options
from epistream.sharding.files.versioned_files import open_remote
from epistream.sharding.layouts.reading import open_source
from epistream.sharding.opening.file_objects import open_through
from epistream.sharding.opening.other_files import other_files
from epistream.sharding.opening.source_bytes import BlocksOfFile, SourceBytes
from epistream.sharding.opening.walking import meant

T = TypeVar("T")


def read_hdf5(url: str, options: Options, use: Callable[[h5py.File, Any], T], *, allow_outside: bool = False) -> T:
    """What `use` gives for an open file and its bytes as they are; of a local one these come in blocks.

    A file that names others (external links, virtual datasets) is read once more, and `use` called again; these must
    be in its folder or below unless `allow_outside`.

    Raises:
        SourceError, LayoutError: As `open_hdf5`.
    """
    path = local_path(url)
    if path is None:
        with open_hdf5(url, options, allow_outside=allow_outside) as (file, raw):
            return use(file, raw)
    blocks: SourceBytes | None = None
    try:
        if not not_a_plain_file(path):  # else `open_hdf5` says what it is
            with BlocksOfFile(path) as blocks, open_source(path, blocks, allow_outside=allow_outside) as file:
                result = use(file, blocks)
            if not blocks.names_others:
                return result
    except EpistreamError:
        if blocks is None or not blocks.names_others:
            raise
    with open_hdf5(url, options, allow_outside=allow_outside) as (file, raw):
        return use(file, raw)


@contextmanager
def open_hdf5(
    url: str, options: Options = None, *, allow_outside: bool = False
) -> Iterator[tuple[h5py.File, BinaryIO]]:
    """The file, and its bytes as they are. What h5py raises while it is open becomes an error that names it.

    Raises:
        SourceError: If it or a file that it names is missing or unreadable, also half way through.
        LayoutError: If the body raises it, or it names a file that may not be read; the path is put in front.
    """
    path = local_path(url)
    if path is not None:
        with open_source(path, allow_outside=allow_outside) as file, path.open("rb") as raw:
            yield file, raw
        return
    remote: Any = None
    try:
        with open_remote(url, options) as remote, open_through(remote, repr(remote)) as file:
            other_files(file, None, url, allow_outside=False)
            yield file, remote
            if failure := getattr(
                remote, "failure", None
            ):  # what looks into a file goes on without what it cannot open
                raise failure
    except Exception as error:
        failure = getattr(remote, "failure", None)
        said = failure or meant(error)
        if isinstance(said, LayoutError):
            raise LayoutError(f"{url}: {said}") from error
        if isinstance(said, EpistreamError):
            raise said from (None if said is error else error)
        foreign = None if failure else _foreign(url, options)
        if foreign:
            raise SourceError(f"{url}: {foreign.what}, wanted an HDF5 file. {foreign.advice}") from error
        raise SourceError(
            f"{url}: cannot be read as HDF5 ({said}). "
            + advice_on(error, url, options, "Check access and storage_options, or copy it again.")
        ) from error


def _foreign(url: str, options: Options) -> Foreign | None:
    """What a remote file is that is no HDF5, if it can be read at all."""
    try:
        with open_remote(url, options) as raw:
            head = raw.read(512)
    except Exception:  # only ever used to say more in a message
        return None
    return None if head.startswith(HDF5_SIGNATURE) else foreign_bytes(head, url)


def shard_name_of(url: str) -> str:
    """What messages call a file."""
    name = Path(placed_link(url)[1]).name or "file"
    readable = "".join(sign if sign.isprintable() else "_" for sign in name)
    return readable if readable.endswith(HDF5_SUFFIXES) else f"{readable}.hdf5"
