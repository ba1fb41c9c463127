"""Files of servers that know no ranges: brought whole, once a process, so that their parts can be read."""

import atexit
import functools
import logging
import os
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import IO, Any

from epistream.bodies import RetryOptions, copy_all
from epistream.errors import EpistreamError, FetchError
from epistream.file_systems import open_file_system
from epistream.lru import Lru

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
        return os.fstat(self._copy().fileno()).st_size

    def read(self, start: int, stop: int) -> bytes:
        """Bytes [start, stop), or fewer where the copy ends before.

        Raises:
            EpistreamError: It cannot be brought.
        """
        return os.pread(self._copy().fileno(), stop - start, start)

    def _copy(self) -> IO[bytes]:
        return _copies_of_this_process().take(self)


class _Copies:
    """Temporary files without names, of which nothing is left when the process ends, however it ends."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._mutex = threading.Lock()
        self._files: Lru[tuple[str, str], IO[bytes]] = Lru(_MOST_FILES)

    def close(self) -> None:
        """Close all of them, at the end of a process: nobody reads any more."""
        for file in self._files.values():
            file.close()

    def take(self, wanted: WholeFile) -> IO[bytes]:
        key = wanted.url, wanted.version
        with self._mutex:
            file = self._files.get(key)
            if file is None:
                _log.warning("%s: the server knows no ranges; the whole file is brought, once a process.", wanted.url)
                self._files.make_room()
                file = _bring(wanted)
                self._files.put(key, file)
            return file


def _bring(wanted: WholeFile) -> IO[bytes]:
    file_system, path = open_file_system(wanted.url, wanted.storage_options)
    most = _MOST_BYTES if wanted.num_bytes is None else wanted.num_bytes
    try:
        file = tempfile.TemporaryFile(prefix="epistream-")  # noqa: SIM115, it is kept
        wanted.retries.run(functools.partial(copy_all, file_system, path, file, most), wanted.num_bytes or 0)
    except EpistreamError:
        raise
    except Exception as error:  # each file system of fsspec has errors of its own
        raise FetchError(
            f"{wanted.url}: {type(error).__name__}: {error}, wanted the whole file, as the server knows no ranges. "
            "Check the server and the room for temporary files (TMPDIR), or copy the file here."
        ) from error
    return file


_copies = _Copies()
atexit.register(_copies.close)


def _copies_of_this_process() -> _Copies:
    global _copies
    if _copies.pid != os.getpid():  # a forked child reads copies of its own, and waits for no lock of its parent's
        _copies = _Copies()
    return _copies
