"""What HDF5 reads a file through in place of the file: all of its bytes in memory, or blocks of it."""

import io
import os
from abc import ABC, abstractmethod
from collections import OrderedDict
from pathlib import Path
from typing import Any

# Large enough for all of a small file, small enough for a large one whose headers lie far apart.
_BLOCK_BYTES = 64 << 10
_MAX_BLOCKS = 16


class SourceBytes(ABC):
    """A file object for h5py over the bytes of one file. Not shared between threads.

    HDF5 opens what a link or a virtual dataset names through the same object, and would take this file for that one.
    It begins to read a file at its first byte and never comes back there: a second time is another file, and refused.
    """

    names_others = False  # whether HDF5 came for another file
    _is_open = False

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes
        self._position = 0

    def open(self) -> "SourceBytes":
        """This object before HDF5 opens the file."""
        self._is_open = False
        return self

    def opened(self) -> None:
        """Take note that HDF5 has opened the file."""
        self._is_open = True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As of a file."""
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.num_bytes}[whence]
        return self._position

    def tell(self) -> int:
        """As of a file."""
        return self._position

    def flush(self) -> None:
        """As of a file; nothing is ever written."""
        return

    def readinto(self, buffer: Any) -> int:
        """As of a file.

        Raises:
            OSError: If HDF5 wants to open another file, or this one was cut off.
        """
        self._check(self._position)
        out = memoryview(buffer).cast("B")
        count = max(0, min(len(out), self.num_bytes - self._position))
        self._copy(out[:count], self._position)
        self._position += count
        return count

    def read(self, size: int) -> bytes:
        """As of a file."""
        data = bytearray(size)
        return bytes(data[: self.readinto(data)])

    def _check(self, position: int) -> None:
        """Refuse to open another file."""
        if self._is_open and position == 0:
            self.names_others = True
            raise io.UnsupportedOperation("it is in another file, which this one names")

    @abstractmethod
    def _copy(self, out: memoryview, start: int) -> None:
        """Fill `out` from a byte of the file on."""


class BytesInMemory(SourceBytes):
    """A file that was read whole.

    Args:
        data: Its bytes.
    """

    def __init__(self, data: memoryview) -> None:
        super().__init__(len(data))
        self._data = data

    def piece(self, start: int, num_bytes: int) -> memoryview:
        """Some of them, which are those of this file as long as nobody reads another one into the same memory."""
        return self._data[start : start + num_bytes]

    def _copy(self, out: memoryview, start: int) -> None:
        out[:] = self._data[start : start + len(out)]


class BlocksOfFile(SourceBytes):
    """A local file in blocks of 64 KiB, of which the last 16 stay at hand; larger reads go straight to the file.

    HDF5 reads headers, and rows that are chunks of their own, a few hundred bytes at a time. A context manager.

    Raises:
        OSError: If it cannot be opened, or ends before the size that it had then.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)
        super().__init__(os.fstat(self._file.fileno()).st_size)
        self._blocks: OrderedDict[int, bytes] = OrderedDict()

    def __enter__(self) -> "BlocksOfFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _copy(self, out: memoryview, start: int) -> None:
        if len(out) >= _BLOCK_BYTES:
            self._fill(out, start)
            return
        done = 0
        while done < len(out):
            number, inside = divmod(start + done, _BLOCK_BYTES)
            piece = memoryview(self._block(number))[inside : inside + len(out) - done]
            out[done : done + len(piece)] = piece
            done += len(piece)

    def _block(self, number: int) -> bytes:
        block = self._blocks.pop(number, None)
        if block is None:
            start = number * _BLOCK_BYTES
            data = bytearray(min(_BLOCK_BYTES, self.num_bytes - start))
            self._fill(memoryview(data), start)
            block = bytes(data)
            if len(self._blocks) == _MAX_BLOCKS:
                self._blocks.popitem(last=False)
        self._blocks[number] = block
        return block

    def _fill(self, out: memoryview, start: int) -> None:
        done = 0
        while done < len(out):
            count = os.preadv(self._file.fileno(), [out[done:]], start + done)
            if not count:
                raise OSError(f"ends at byte {start + done:,}, wanted {self.num_bytes:,}: it was cut off")
            done += count
