"""A kept file that is written and read bit by bit: chunks, each with its checksum, and a table of them at its end.

    chunk 0 | chunk 1 | ... | table (see `sharding.format.tables`) | bytes of the table, 8 bytes little endian

What a crash leaves torn is found out when it is read, chunk by chunk: nothing is synced when it is written.
"""

import contextlib
import os
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import xxhash
from numpy.typing import NDArray

from epistream.errors import FormatError
from epistream.sharding.files.pruning import mark_used
from epistream.sharding.format.tables import parse_tables, write_tables

T = TypeVar("T")
Int64 = NDArray[np.int64]
_REMEDY = "Remove this file; it is made again when the data set is read."


class TornError(FormatError):
    """A kept file that is not as it was written."""


class ChunkWriter:
    """Writes a file of chunks to `target`, which is at its beginning."""

    def __init__(self, target: BinaryIO) -> None:
        self._target = target
        self._sizes: list[int] = []
        self._sums: list[int] = []

    def add(self, chunk: bytes | memoryview) -> None:
        """The next chunk."""
        self._target.write(chunk)
        self._sizes.append(len(chunk))
        self._sums.append(xxhash.xxh3_64_intdigest(chunk))

    def finish(self, kind: str, meta: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        """The table of chunks, and whatever else is to be told of them: arrays not called "size" or "sum"."""
        told = {"size": np.array(self._sizes, np.int64), "sum": np.array(self._sums, np.uint64), **arrays}
        table = write_tables(kind, meta, told)
        self._target.write(table)
        self._target.write(len(table).to_bytes(8, "little"))


class ChunkedFile:
    """Reads a file of chunks. Threads may share it.

    It stays open until nobody has it: who removes the file does no harm.

    Args:
        path: The file, noted as used.
        kind: What it must say it is.

    Attributes:
        path: As given.
        meta: What was told of the chunks.
        arrays: Likewise, with "size" of each.
        start: (C + 1,) bytes before each of C chunks, and in all of them.

    Raises:
        FileNotFoundError: If it is not there.
        TornError: If it cannot be read, or is not as it was written.
    """

    def __init__(self, path: Path, kind: str) -> None:
        mark_used(path)
        self.path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._fd)
        self.meta, self.arrays = self._tables(kind)
        self.start: Int64 = np.append(0, np.cumsum(self.arrays["size"].astype(np.int64)))

    def _tables(self, kind: str) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        end = os.fstat(self._fd).st_size
        told = int.from_bytes(self._read(max(0, end - 8), min(8, end)), "little")
        if not 0 < told <= end - 8:
            raise TornError(f"{self.path}: a table of {told:,} bytes in a file of {end:,}, wanted it there. {_REMEDY}")
        try:
            found = parse_tables(self._read(end - 8 - told, told), kind, str(self.path), _REMEDY)
        except FormatError as error:
            raise TornError(str(error)) from error
        size, sums = found.arrays.get("size"), found.arrays.get("sum")
        if (
            size is None
            or sums is None
            or len(size) != len(sums)
            or sum(size.tolist()) != end - 8 - told
            or min(size.tolist(), default=0) < 0
        ):
            raise TornError(f"{self.path}: chunks of another size than the file, wanted all of it. {_REMEDY}")
        return found.meta, found.arrays

    def chunk(self, number: int) -> bytes:
        """One chunk.

        Raises:
            TornError: If it cannot be read, or is not as it was written.
        """
        data = self._read(int(self.start[number]), int(self.arrays["size"][number]))
        if xxhash.xxh3_64_intdigest(data) != int(self.arrays["sum"][number]):
            raise TornError(f"{self.path}: chunk {number} torn, wanted it as it was written. {_REMEDY}")
        return data

    def remove(self) -> None:
        """Have it made again by whoever wants it next; one that cannot be removed is an error again then."""
        with contextlib.suppress(OSError):
            self.path.unlink()

    def _read(self, offset: int, size: int) -> bytes:
        try:
            data = os.pread(self._fd, size, offset)
            while len(data) < size:  # the kernel reads at most 2 GiB at a time
                more = os.pread(self._fd, size - len(data), offset + len(data))
                if not more:
                    raise TornError(f"{self.path}: {offset + len(data):,} bytes, wanted {offset + size:,}. {_REMEDY}")
                data += more
        except OSError as error:
            raise TornError(f"{self.path}: {error.strerror}, wanted {size:,} bytes at {offset:,}. {_REMEDY}") from error
        return data


def unless_torn(opened: Callable[[], ChunkedFile], use: Callable[[ChunkedFile], T]) -> T:
    """What `use` makes of a kept file; one that turns out to be torn is removed and made again, once.

    Args:
        opened: Gives it, made if it is not there.
        use: Called with it.

    Raises:
        TornError: If it is torn again.
    """
    file = opened()
    try:
        return use(file)
    except TornError:
        file.remove()
    return use(opened())
