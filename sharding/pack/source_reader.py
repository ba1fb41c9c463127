"""Reads each source file once, for its checksum and for its episodes."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import xxhash

from epistream.errors import FormatError, SourceChangedError, SourceError
from epistream.file_systems import local_path
from epistream.sharding.files.hdf5_sources import AnyPath, find_sources
from epistream.sharding.files.remote_hdf5 import RemoteCopy
from epistream.sharding.files.storage import Options
from epistream.sharding.opening.other_files import check_unchanged as check_others
from epistream.sharding.opening.source_bytes import BlocksOfFile, BytesInMemory, SourceBytes
from epistream.sharding.pack.plan import SourceFile
from epistream.sharding.tar.index_tar import index_tar
from epistream.sharding.tasks.pulse import Pulse

# A process holds one file of up to this size in memory. Longer ones, which nobody should need memory for, are read
# for their checksum first and through HDF5 right after, while the operating system still has them.
WHOLE_BYTES = 256 << 20
_READ_BYTES = 1 << 22


def find_hdf5(sources: AnyPath | Sequence[AnyPath]) -> list[Path]:
    """The files to pack, as `find_sources` finds them.

    Raises:
        OptionError, SourceError: As `find_sources`; also if one is a tar, whose steps or episodes stream as they are.
    """
    paths = find_sources(sources)
    tar = next((path for path in paths if path.suffix == ".tar" and path.is_file()), None)
    if tar is not None:
        advice = f"Stream it as it is: EpisodeStream({str(tar)!r})."
        try:
            index_tar(tar)
        except FormatError as error:
            advice = f"A stream says of it: {error}"
        raise SourceError(f"{tar}: a tar, wanted HDF5 files. {advice}")
    return paths


class SourceReader:
    """Holds the bytes of the file that a process read last, since most files are packed right after.

    Of a remote file, a copy: one at a time, without a name.

    Args:
        access: What opens remote files.
    """

    def __init__(self, access: Options = None) -> None:
        self._access = access
        self._path, self._checksum = "", ""
        self._content: BytesInMemory | None = None
        self._buffer = bytearray()  # kept from file to file: the system takes as long to give new memory as to read
        self._copy: RemoteCopy | None = None

    def bring(self, source: SourceFile, pulse: Pulse) -> tuple[Path, str]:
        """Where this process reads a remote file from, until it brings another, and its XXH3-128.

        Raises:
            SourceError: If it cannot be brought.
            SourceChangedError: If it is not the file that was scanned.
        """
        if self._copy is None or self._path != source.path:
            self._forget()
            self._copy = RemoteCopy(source.path, source.version, source.num_bytes, self._access)
            self._checksum = self._read(source, self._copy.path, pulse)
            self._path = source.path
        return self._copy.path, self._checksum

    def _forget(self) -> None:
        if self._copy is not None:
            self._copy.close()
        self._path, self._content, self._copy = "", None, None  # before there is memory for another

    def read(self, source: SourceFile, pulse: Pulse) -> str:
        """XXH3-128 of a local source file, whose bytes `content` then has, if it is small enough.

        Raises:
            SourceError: If it cannot be read.
            SourceChangedError: If it is not the file that was scanned.
        """
        self._forget()
        self._checksum = self._read(source, Path(source.path), pulse)
        return self._checksum

    def _read(self, source: SourceFile, path: Path, pulse: Pulse) -> str:
        is_whole = source.num_bytes <= WHOLE_BYTES
        room = source.num_bytes if is_whole else _READ_BYTES
        if len(self._buffer) < room:
            self._buffer = bytearray()  # before there is memory for another
            self._buffer = bytearray(room)
        view = memoryview(self._buffer)[:room]
        hasher = xxhash.xxh3_128()
        done = 0
        try:
            with path.open("rb", buffering=0) as file:
                while done < source.num_bytes:
                    piece = view[done if is_whole else 0 :]
                    count = file.readinto(piece[: source.num_bytes - done])
                    if not count:
                        break
                    hasher.update(piece[:count])
                    done += count
                    pulse.add()
        except OSError as error:
            raise SourceError(
                f"{source.path}: cannot be read ({error.strerror or error}), wanted its checksum."
            ) from error
        if local_path(source.path) is not None:
            check_unchanged(source, done)
        if is_whole and done == source.num_bytes:
            self._path, self._content = source.path, BytesInMemory(view)
        return hasher.hexdigest()

    def content(self, source: SourceFile) -> SourceBytes | None:
        """The bytes of `source`, if they are at hand; None also if HDF5 found other files named in them."""
        content: SourceBytes | None = self._content if self._path == source.path else None
        if content is None and self._copy is not None and self._path == source.path:
            return BlocksOfFile(self._copy.path)
        return None if content is None or content.names_others else content


def hash_source(source: SourceFile, pulse: Pulse) -> str:
    """XXH3-128 of a source file that nothing was packed from, for the manifest's provenance; empty of a remote one.

    Raises:
        SourceError, SourceChangedError: As `SourceReader.read`.
    """
    if local_path(source.path) is None:
        return ""
    return SourceReader().read(source, pulse)


def check_unchanged(source: SourceFile, bytes_read: int | None = None) -> None:
    """See that a source is the file that was scanned, and that all of it was read, if it was.

    Raises:
        SourceChangedError: If it is not, or a file that it reads from changed.
    """
    check_others(source.others, source.path)
    with contextlib.suppress(FileNotFoundError):
        status = Path(source.path).stat()
        is_same = (status.st_size, status.st_mtime_ns) == (source.num_bytes, source.mtime_ns)
        if is_same and bytes_read in (None, source.num_bytes):
            return
    raise SourceChangedError(
        f"{source.path}: changed since the job looked at it, wanted {source.num_bytes:,} bytes as then. "
        "Pack again when nothing writes to it."
    )
