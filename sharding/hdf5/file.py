"""HDF5 files as sources of a stream, local or remote: opening them, and what tells one version from another."""

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import h5py
from fsspec.spec import AbstractBufferedFile

from epistream.access import placed_link, without_secrets
from epistream.bodies import persist, retries_of
from epistream.errors import EpistreamError, LayoutError, SourceChangedError, SourceError
from epistream.file_systems import advice_on, ask, local_path, open_file_system, refusal_in, version_facts
from epistream.lru import Lru
from epistream.plain_files import not_a_plain_file, refuse_other_than_plain, version_of_file
from epistream.sharding.files.foreign import HDF5_SIGNATURE, Foreign, foreign_bytes
from epistream.sharding.files.names import HDF5_SUFFIXES
from epistream.sharding.files.storage import Options
from epistream.sharding.layouts.reading import open_source
from epistream.sharding.opening.file_objects import open_through
from epistream.sharding.opening.other_files import other_files
from epistream.sharding.opening.source_bytes import BlocksOfFile, SourceBytes
from epistream.sharding.opening.walking import meant
from epistream.shown_errors import clearly
from epistream.whole_files import PartsOfFile, WholeFile, whole_file

T = TypeVar("T")

# Over a network h5py reads metadata in pieces of a few hundred bytes; a block of this size spares it most of them.
_REMOTE_BLOCK_BYTES = 1 << 20
_MAX_BLOCKS = 16


def version_and_bytes(url: str, options: Options = None) -> tuple[str, int]:
    """The version of the file at `url` as it is now, and its size.

    Of a server that tells no size the file is brought whole, once a process.

    Raises:
        SourceError: If it is not there.
        FetchError: If it cannot be brought.
    """
    path = local_path(url)
    try:
        if path is not None:
            refuse_other_than_plain(path)
            status = path.stat()
            return version_of_file(status), status.st_size
        version, size = _ask_version(*open_file_system(url, options), options)
    except Exception as error:  # each file system of fsspec has errors of its own
        refused = refusal_in(error) or error
        reason = refused.strerror if isinstance(refused, OSError) and refused.strerror else str(refused)
        if isinstance(refused, FileNotFoundError) and not refused.strerror:
            reason = "no such file"  # some file systems have nothing but the URL to say
        advice = advice_on(error, url, options, "Check the path or pattern.")
        raise SourceError(f"{url}: {reason}, wanted an HDF5 file. {advice}") from error
    return version, whole_file(url, options, version=version).size() if size is None else size


def _ask_version(file_system: Any, target: str, options: Options) -> tuple[str, int | None]:
    """What tells one content of a remote file from another, and its size, if the server tells it."""
    info = persist(retries_of(options), lambda limit_s: ask(file_system, "info", target, limit_s=limit_s))
    size = info.get("size")
    return ";".join([f"bytes={size}", *version_facts(info)]), None if size is None else int(size)


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


def open_remote(url: str, options: Options = None) -> Any:
    """A file object over a remote file, for h5py."""
    file_system, target = open_file_system(url, options)
    if not getattr(file_system, "async_impl", False):
        return clearly(lambda: file_system.open(target, "rb", block_size=_REMOTE_BLOCK_BYTES), options)
    version, size = _ask_version(file_system, target, options)
    if size is None:
        whole = whole_file(url, options, version=version)
        return _RemoteFile(file_system, target, whole, whole.size())
    return _RemoteFile(file_system, target, PartsOfFile(url, options, size, version), size)


_waiting = [0, False]  # how many do, and whether garbage was collected before the first of them
_waiting_mutex = threading.Lock()


@contextmanager
def _collecting_nothing() -> Iterator[None]:
    """Let no thread collect garbage while h5py, which holds its lock then, waits for the network.

    What is collected may be an object of h5py's, which takes that lock to die: the thread that does the network's work
    would wait for this one, which waits for it.
    """
    with _waiting_mutex:
        if not _waiting[0]:
            _waiting[1] = gc.isenabled()
            gc.disable()
        _waiting[0] += 1
    try:
        yield
    finally:
        with _waiting_mutex:
            _waiting[0] -= 1
            if not _waiting[0] and _waiting[1]:
                gc.enable()


class _RemoteFile(AbstractBufferedFile):  # type: ignore[misc]  # fsspec has no types
    """Bytes of a remote file, each request tried again, with a deadline: fsspec's own file objects wait for ever.

    In blocks, of which the last ones stay at hand; larger reads go straight to the server. HDF5 goes to and fro between
    headers, and with the one block that fsspec keeps it would bring the same megabyte for each of them.

    Attributes:
        failure: why bytes could not be had, of the last that could not.
    """

    def __init__(self, file_system: Any, path: str, parts: PartsOfFile | WholeFile, size: int) -> None:
        self._parts = parts
        self.failure: Exception | None = None
        self._blocks: Lru[int, bytes] = Lru(_MAX_BLOCKS)
        super().__init__(file_system, path, block_size=_REMOTE_BLOCK_BYTES, cache_type="none", size=size)

    def __repr__(self) -> str:  # which h5py takes for the file's name
        return f"<{without_secrets(self.path)}>"

    def _fetch_range(self, start: int, end: int) -> bytes:
        end = min(end, self.size)
        if end - start >= _REMOTE_BLOCK_BYTES:
            return self._bring(start, end)
        first, last = start // _REMOTE_BLOCK_BYTES, (end - 1) // _REMOTE_BLOCK_BYTES
        data = b"".join(map(self._block, range(first, last + 1)))
        return data[start - first * _REMOTE_BLOCK_BYTES : end - first * _REMOTE_BLOCK_BYTES]

    def _block(self, number: int) -> bytes:
        block = self._blocks.get(number)
        if block is None:
            start = number * _REMOTE_BLOCK_BYTES
            block = self._bring(start, min(start + _REMOTE_BLOCK_BYTES, self.size))
            self._blocks.put(number, block)
        return block

    def _bring(self, start: int, end: int) -> bytes:
        try:
            with _collecting_nothing():
                data = self._parts.read(start, end)
            if len(data) != end - start:
                raise SourceChangedError(
                    f"{without_secrets(self.path)}: ends at byte {start + len(data)}, wanted {self.size} bytes: it was "
                    "replaced since it was looked at. Open the dataset again."
                )
        except Exception as error:
            self.failure = error
            raise
        return data


def shard_name_of(url: str) -> str:
    """What messages call a file."""
    name = Path(placed_link(url)[1]).name or "file"
    readable = "".join(sign if sign.isprintable() else "_" for sign in name)
    return readable if readable.endswith(HDF5_SUFFIXES) else f"{readable}.hdf5"
