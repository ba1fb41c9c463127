"""The folder or URL that a job writes shards to, as its tasks see it: shards, and small files beside them."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from epistream.errors import EpistreamError, PackError
from epistream.file_systems import ask, limit_of, local_path, open_file_system
from epistream.sharding.files.storage import Options, join, read_bytes, write_atomic, write_local
from epistream.sharding.format.checksums import checksum, hash_file


@dataclass(frozen=True)
class Stored:
    """A file that a task has written: what tells it from another one. No time is known of a remote file."""

    num_bytes: int
    checksum: str
    mtime_ns: int = 0


class Store:
    """Where a job writes.

    Args:
        url: A folder or URL, without what opens it.
        options: For fsspec.
    """

    def __init__(self, url: str, options: Options = None) -> None:
        self.url, self._options = url, options
        self._folder = local_path(url)

    def keep(self, name: str, data: bytes, *, must: bool = False) -> None:
        """Put a small file in place whole. Not synchronised with a disk: what is missing or torn is made again.

        Args:
            name: Of the file.
            data: All of it.
            must: Whether somebody waits for it; else it is left out where it cannot be written.

        Raises:
            PackError: If it cannot be written.
        """
        try:
            if self._folder is not None:
                write_local(self._folder / name, data, sync=False)
            else:
                write_atomic(join(self.url, name), data, self._options)
        except OSError as error:  # `SourceError` is one
            if must:
                said = error.strerror or error
                raise PackError(
                    f"{join(self.url, name)}: cannot be written ({said}), wanted {len(data):,} bytes there. Make room, "
                    "or check permissions."
                ) from error

    def read(self, name: str) -> bytes:
        """A small file.

        Raises:
            OSError: If there is none, or it cannot be read.
        """
        if self._folder is not None:
            return (self._folder / name).read_bytes()
        data = read_bytes(join(self.url, name), self._options)
        if data is None:
            raise FileNotFoundError(name)
        return data

    def mtime_ns(self, name: str) -> int:
        """When a file was written; 0 of a remote one.

        Raises:
            OSError: If it is not there.
        """
        return 0 if self._folder is None else (self._folder / name).stat().st_mtime_ns

    def holds(self, name: str, wanted: Stored) -> bool:
        """Whether a file is there and still what a task has written. No byte of it is read, unless its time differs.

        Two attempts of a task write the same bytes at two times. Of a remote file the size has to do.

        Raises:
            OSError: If it cannot be read.
        """
        if self._folder is None:
            return self._sizes.get(name) == wanted.num_bytes
        path = self._folder / name
        status = path.stat()
        if status.st_size != wanted.num_bytes:
            return False
        return status.st_mtime_ns == wanted.mtime_ns or _checksum_of(path) == wanted.checksum

    @cached_property
    def _sizes(self) -> Mapping[str, int]:
        """Of the files in a remote folder, which is listed once."""
        with contextlib.suppress(Exception):  # each file system of fsspec has errors of its own
            file_system, target = open_file_system(self.url, self._options)
            file_system.invalidate_cache()
            listed: list[dict[str, Any]] = ask(file_system, "ls", target, detail=True)
            return {str(one["name"]).rsplit("/", 1)[-1]: int(one["size"]) for one in listed if one.get("size")}
        return {}


def _checksum_of(path: Path) -> str:
    return hash_file(path).checksum if path.suffix == ".tar" else checksum(path.read_bytes())


def upload(path: Path, url: str, storage_options: Options) -> None:
    """Copy a finished file into the folder `url`; object stores show it when it is whole.

    Raises:
        PackError: If it cannot be written.
    """
    target = join(url, path.name)
    try:
        file_system, remote = open_file_system(target, storage_options)
        ask(file_system, "makedirs", remote.rsplit("/", 1)[0], exist_ok=True)
        ask(file_system, "put_file", str(path), remote, limit_s=limit_of(path.stat().st_size))
    except EpistreamError:
        raise
    except Exception as error:  # each file system of fsspec has errors of its own
        raise PackError(
            f"{target}: {type(error).__name__}: {error}, wanted to upload {path.stat().st_size:,} bytes. "
            "Check access and storage_options."
        ) from error
