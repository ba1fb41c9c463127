"""The bytes of one part of an entry, whatever is behind them; and who supplies bytes that are not a file's own."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from epistream.cache.source.pieces import Pieces
from epistream.cache.source.rows import check_range


class Blob(Protocol):
    """Random access to the bytes of one part. Safe to use from several threads.

    Every kind derives from it, and has the methods with a body unless it knows better. A caller asks what a blob is
    like, never which kind it is. Whoever was given one closes it, once nobody looks at what it gave.

    Attributes:
        size: Bytes of the part.
        url: For messages.
        is_mapped: Whether the bytes lie in memory already, and reading a few costs next to nothing.
        has_ranges: Whether reads are requests over a network, of which `requests` tells many at a time.
    """

    size: int
    url: str
    is_mapped: ClassVar[bool] = False
    has_ranges: ClassVar[bool] = False

    def read(self, offset: int, size: int) -> memoryview:
        """Bytes [offset, offset + size); from a mapping without copying, valid until its entry is closed.

        Raises:
            FormatError: Some of them are not the part's; so for every other read.
        """
        check_range(self.url, self.size, offset, size)
        buffer = memoryview(bytearray(size))
        self.read_into(offset, buffer)
        return buffer

    @abstractmethod
    def read_into(self, offset: int, out: memoryview | NDArray[np.uint8]) -> None:
        """Fill `out` (contiguous bytes) from `offset`."""

    @abstractmethod
    def gather(self, starts: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """Row i of `out` (n, width), C-contiguous, becomes bytes [starts[i], starts[i] + width)."""

    def read_each(self, offsets: Sequence[int], targets: Sequence[memoryview]) -> None:
        """As `read_into` for several places."""
        for offset, target in zip(offsets, targets, strict=True):
            self.read_into(offset, target)

    def read_in_turn(self, offsets: Sequence[int], sizes: Sequence[int]) -> Iterable[memoryview]:
        """As `read` for several places, each only when it is asked for and valid until the next one is."""
        return map(self.read, offsets, sizes)

    def check_unchanged(self) -> None:
        """Look whether the source was changed under what was read, where it can be. Also for other ways to read it.

        Raises:
            SourceChangedError: It was replaced, truncated, written to or removed.
        """
        return

    def check_with(self, block_checksums: NDArray[np.uint64], block_bytes: int) -> None:
        """Check every block that a request brings from now on: an index that was read first has the checksums.

        Args:
            block_checksums: uint64 (blocks,) XXH3-64 of each.
            block_bytes: Bytes of a block.
        """
        return

    def requests(self, starts: NDArray[np.int64], sizes: NDArray[np.int64]) -> Sequence[Callable[[], object]]:
        """Requests for these ranges; made in any threads, at the same time.

        Once all are done, `requests_left` tells those for what other processes of the node were bringing meanwhile.

        Args:
            starts: int64 (n,) first bytes.
            sizes: int64 (n,) bytes of each.
        """
        return ()

    def requests_left(self) -> Sequence[Callable[[], object]]:
        """Requests after which reads of the ranges of `requests` wait no more; likewise."""
        return ()

    def close(self) -> None:
        """Close what it holds open. Harmless when called twice."""
        return


class Supply(Protocol):
    """How a reader that knows a format offers bytes to the cache that are not simply those at a URL.

    They are picked out of it, unpacked, or put together; the cache keeps them like any others. It opens a supply where
    it would have opened the URL: in the process that fills an entry, which copies all of the blob, or in one that
    reads directly. It must be picklable.

    Every kind derives from it, and has the methods with a body unless it knows better.
    """

    @abstractmethod
    def open(self) -> Blob:
        """The bytes, `Part.size` of them; the caller closes them.

        Raises:
            SourceError, SourceChangedError, FetchError: As reading the URL itself.
        """

    def pieces(self) -> Pieces | None:
        """Where the bytes are, if they are nothing but pieces of files as they are; None if they must be made.

        Where `Part.url` is remote, so are the files: the cache then reads and brings the pieces by itself, and each
        once per node, as it does remote files with checksums; `open` is not called.

        Raises:
            EpistreamError: They cannot be told.
        """
        return None

    @property
    def is_costly(self) -> bool:
        """Whether reading in place costs much more than reading a copy: then copies are kept, also of local files."""
        return False

    @abstractmethod
    def local_ranges(self) -> Iterable[tuple[Path, int, int]]:
        """The bytes [first, stop) of files of this machine that they are made of, as far as it knows; may be none.

        Raises:
            EpistreamError: They cannot be told.
        """
