"""Files that are read where they lie, local or remote: what tells one version from another, and remote file objects."""

import gc
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from fsspec.spec import AbstractBufferedFile

from epistream.access import without_secrets
from epistream.bodies import persist, read_all_told, retries_of
from epistream.errors import SourceChangedError, SourceError
from epistream.file_systems import advice_on, ask, local_path, open_file_system, refusal_in, version_facts
from epistream.lru import Lru
from epistream.plain_files import refuse_other_than_plain, version_of_file
from epistream.sharding.files.storage import Options, errors_of
from epistream.shown_errors import clearly
from epistream.whole_files import PartsOfFile, WholeFile, whole_file

# Over a network headers and tables are read in pieces of a few hundred bytes; a block of this size spares most of them.
_REMOTE_BLOCK_BYTES = 1 << 20
_MAX_BLOCKS = 16


def version_and_bytes(
    url: str, options: Options = None, what: str = "an HDF5 file", advice: str = "Check the path or pattern."
) -> tuple[str, int]:
    """The version of the file at `url` as it is now, and its size; `what` it should be, for messages, with `advice`.

    Of a server that tells no size the file is brought whole, once a process.

    Raises:
        SourceError: If it is not there.
        FetchError: If it cannot be brought.
    """
    try:
        version, size = version_and_told_bytes(url, options)
    except Exception as error:  # each file system of fsspec has errors of its own
        refused = refusal_in(error) or error
        reason = refused.strerror if isinstance(refused, OSError) and refused.strerror else str(refused)
        if isinstance(refused, FileNotFoundError) and not refused.strerror:
            reason = "no such file"  # some file systems have nothing but the URL to say
        raise SourceError(f"{url}: {reason}, wanted {what}. {advice_on(error, url, options, advice)}") from error
    return version, whole_file(url, options, version=version).size() if size is None else size


def version_and_told_bytes(url: str, options: Options) -> tuple[str, int | None]:
    """The version of a file as it is now, and its size if that is told; errors are those of its file system."""
    path = local_path(url)
    if path is not None:
        refuse_other_than_plain(path)
        status = path.stat()
        return version_of_file(status), status.st_size
    return _ask_version(*open_file_system(url, options), options)


def _ask_version(file_system: Any, target: str, options: Options) -> tuple[str, int | None]:
    return told_version(persist(retries_of(options), lambda limit_s: ask(file_system, "info", target, limit_s=limit_s)))


def read_versioned(url: str, options: Options, most: int = 1 << 30) -> tuple[bytes, str] | None:
    """All bytes of a small file of a web server, with the version that the same answer tells; None if there is none.

    Raises:
        OptionError, SourceError: As `storage.read_bytes`.
    """
    with errors_of(url, "wanted to read it.", options):
        try:
            file_system, target = open_file_system(url, options)
            found = persist(retries_of(options), partial(read_all_told, file_system, target, most))
        except FileNotFoundError:
            return None
    return found.data, told_version(found.info)[0]


def told_version(info: Mapping[str, Any]) -> tuple[str, int | None]:
    """What tells one content of a remote file from another, and its size, of what its file system says of it."""
    size = info.get("size")
    return ";".join([f"bytes={size}", *version_facts(info)]), None if size is None else int(size)


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
