"""Parts of remote files, by ranges; and whole files of servers that know none, brought once a process."""

import functools
import logging
import os
import tempfile
import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from epistream.access import RetryOptions
from epistream.bodies import (
    MORE_ROOM,
    NoSpaceError,
    TooLongError,
    WholeBodyError,
    copy_all,
    persist,
    read_part,
    retries_of,
)
from epistream.errors import EpistreamError, FetchError
from epistream.file_systems import open_file_system
from epistream.lru import Lru
from epistream.units import distinct_sizes

_log = logging.getLogger(__name__)

# Files that a process keeps: they lie on its disk, and without them the network brings all of it again.
_MOST_FILES = 16
# No file of unknown size that is larger is brought.
_MOST_BYTES = 1 << 40


@dataclass(frozen=True)
class WholeFile:
    """A remote file, as it is read from a copy.

    Args:
        url: The file.
        storage_options: For fsspec.
        num_bytes: Its size; None if it is not known.
        version: What differs between two contents of it.
        retries: How hard to try to bring it.
    """

    url: str
    storage_options: Mapping[str, Any] = field(default_factory=dict)
    num_bytes: int | None = None
    version: str = ""
    retries: RetryOptions = field(default_factory=RetryOptions)

    def size(self) -> int:
        """Bytes of the copy.

        Raises:
            EpistreamError: It cannot be brought.
        """
        copy = self._copy()
        return os.fstat(copy.fd).st_size

    def read(self, start: int, stop: int) -> bytes:
        """Bytes [start, stop), or fewer where the copy ends before.

        Raises:
            EpistreamError: It cannot be brought.
        """
        copy = self._copy()
        return os.pread(copy.fd, stop - start, start)

    def _copy(self) -> "_Copy":
        return _copies_of_this_process().take(self)


def whole_file(
    url: str, storage_options: Mapping[str, Any] | None, num_bytes: int | None = None, version: str = ""
) -> WholeFile:
    """A file as it is read from a copy, with the tries of what opens it."""
    return WholeFile(url, storage_options or {}, num_bytes, version, retries_of(storage_options))


class PartsOfFile:
    """A remote file that is read in parts: by ranges, until its server turns out to know none, then from a copy.

    Args:
        url: The file.
        storage_options: For fsspec, and how hard to try.
        num_bytes: Its size; None if it is not known.
        version: What differs between two contents of it.
    """

    def __init__(
        self, url: str, storage_options: Mapping[str, Any] | None, num_bytes: int | None = None, version: str = ""
    ) -> None:
        self._url = url
        self._options = storage_options
        self._num_bytes = num_bytes
        self._whole = whole_file(url, storage_options, num_bytes, version)
        self._is_whole = False

    def read(self, start: int, stop: int) -> bytes:
        """Bytes [start, stop), or fewer where the file ends before.

        Raises:
            EpistreamError: They cannot be had, or the file has another size than it should.
            Exception: Whatever the file system raises.
        """
        if not self._is_whole:
            file_system, path = open_file_system(self._url, self._options)
            size, version = self._num_bytes, self._whole.version
            part = functools.partial(read_part, file_system, path, start, stop, size=size, version=version)
            try:
                return persist(self._whole.retries, lambda limit_s: part(limit_s=limit_s), stop - start)
            except WholeBodyError:
                self._is_whole = True
        return self._whole.read(start, stop)


class _Copy:
    """A file without a name, of which nothing is left when the process ends, however it ends.

    Open until nobody keeps it: while one thread reads, another may bring a file for which it leaves.
    """

    def __init__(self) -> None:
        with tempfile.TemporaryFile(prefix="epistream-") as file:
            self.fd = os.dup(file.fileno())
        self.close = weakref.finalize(self, os.close, self.fd)


class _Copies:
    """Those that a process keeps."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._mutex = threading.Lock()
        self._files: Lru[tuple[str, str], _Copy] = Lru(_MOST_FILES)

    def take(self, wanted: WholeFile) -> _Copy:
        """The copy, brought now if it is not kept."""
        key = wanted.url, wanted.version
        with self._mutex:
            file = self._files.get(key)
            if file is None:
                _log.warning("%s: the server knows no ranges; the whole file is brought, once a process.", wanted.url)
                self._files.make_room()
                file = _bring(wanted)
                self._files.put(key, file)
            return file


def _bring(wanted: WholeFile) -> _Copy:
    file_system, path = open_file_system(wanted.url, wanted.storage_options)
    most = _MOST_BYTES if wanted.num_bytes is None else wanted.num_bytes
    file = _Copy()
    try:
        space = os.fstatvfs(file.fd)
        room = space.f_bavail * space.f_frsize
        if wanted.num_bytes is not None and wanted.num_bytes > room:
            found, asked = distinct_sizes(room, wanted.num_bytes)
            raise NoSpaceError(
                f"{wanted.url}: the server knows no ranges; {found} of room in {tempfile.gettempdir()}, wanted {asked} "
                f"for a copy of the whole file. {MORE_ROOM}"
            )
        copy = functools.partial(copy_all, file_system, path, file.fd, min(most, room), version=wanted.version)
        persist(wanted.retries, copy, wanted.num_bytes)
    except BaseException as error:
        file.close()
        if isinstance(error, TooLongError) and room < most:
            raise NoSpaceError(
                f"{error} The server knows no ranges, and there is no more room in {tempfile.gettempdir()} for a copy. "
                f"{MORE_ROOM}"
            ) from error
        if isinstance(error, EpistreamError) or not isinstance(error, Exception):
            raise
        raise FetchError(  # each file system of fsspec has errors of its own
            f"{wanted.url}: {type(error).__name__}: {error}, wanted the whole file, as the server knows no ranges. "
            "Check the server, allow more with fetch_timeout_s, or copy the file here."
        ) from error
    return file


_copies = _Copies()


def _copies_of_this_process() -> _Copies:
    global _copies
    if _copies.pid != os.getpid():  # a forked child reads copies of its own, and waits for no lock of its parent's
        _copies = _Copies()
    return _copies
