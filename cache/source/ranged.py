"""The bytes of a part that is read over the network, block by block, without the cache."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import xxhash
from numpy.typing import NDArray

from epistream.cache.source.blob import Blob
from epistream.cache.source.entry import Part
from epistream.cache.source.remote import Remote, WholeBodyError
from epistream.cache.source.rows import as_bytes, check_range, check_starts, gather_runs
from epistream.errors import ChecksumError, FetchError

# Parts up to this size are checked as a whole when they are read as a whole: indexes are.
_WHOLE_BYTES = 64 << 20
# Blocks of a remote part that are kept: the frames of a batch lie near each other.
_KEPT_BLOCKS = 16
# Blocks nearer to each other than this are brought in one request: the gap costs less than another one.
_GAP_BYTES = 128 << 10
# Longest of these requests, so that several bring what is far more.
_REQUEST_BYTES = 1 << 20


class RangeBlob(Blob):
    """A part that is read over the network, block by block, without the cache.

    Every block is checked where the index gave its checksum. A few blocks are kept, because the frames of a
    window lie side by side. `count` is told the bytes of every request.
    """

    has_ranges = True

    def __init__(self, part: Part, remote: Remote, count: Callable[[int], None]) -> None:
        self.size = part.size
        self.url = part.url
        self._count = count
        self._part = part
        self._remote = remote
        self._mutex = threading.Lock()
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._kept_blocks = _KEPT_BLOCKS

    def read(self, offset: int, size: int) -> memoryview:
        """A copy of the bytes; checked as a whole if all are asked for and the blocks have no checksums."""
        if offset == 0 and size == self.size and size <= _WHOLE_BYTES and self._part.block_checksums is None:
            return memoryview(self._read_whole())
        return super().read(offset, size)

    def read_into(self, offset: int, out: memoryview | NDArray[np.uint8]) -> None:
        """Fill `out` from `offset`."""
        target = as_bytes(out)
        check_range(self.url, self.size, offset, len(target))
        block_bytes = self._part.block_bytes
        done = 0
        while done < len(target):
            first = (offset + done) // block_bytes
            last = min((offset + len(target) - 1) // block_bytes, first + _KEPT_BLOCKS - 1)
            for index, block in zip(range(first, last + 1), self.bring(first, last), strict=True):
                inside = offset + done - index * block_bytes
                piece = memoryview(block)[inside : inside + len(target) - done]
                target[done : done + len(piece)] = piece
                done += len(piece)

    def _read_whole(self) -> bytes:
        """All bytes, checked against the part's checksum where it has one; for indexes, not for shards.

        Raises:
            ChecksumError: They are wrong twice.
        """
        found = ""
        for _ in range(2):
            data = self._remote.read_range(self.url, 0, self.size) if self.size else b""
            self._count(len(data))
            found = xxhash.xxh3_128_hexdigest(data)
            if self._part.checksum is None or found == self._part.checksum:
                return data
        raise ChecksumError(f"{self.url}: checksum {found} twice, wanted {self._part.checksum}. Upload the file again.")

    def gather(self, starts: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """Row i of `out` becomes bytes [starts[i], starts[i] + width); near rows are read together."""
        if out.size == 0:
            return
        check_starts(self.url, self.size, starts, out.shape[1])
        gather_runs(self.read_into, starts, out)

    def check_with(self, block_checksums: NDArray[np.uint64], block_bytes: int) -> None:
        """Check every block that is brought from now on."""
        part = replace(self._part, block_checksums=block_checksums, block_bytes=block_bytes)
        with self._mutex:
            if block_bytes != self._part.block_bytes:
                self._blocks.clear()
            self._part = part

    def requests(self, starts: NDArray[np.int64], sizes: NDArray[np.int64]) -> Sequence[Callable[[], object]]:
        """One request for each of `runs_of`."""
        return [partial(self.bring, first, last) for first, last in self.runs_of(starts, sizes)]

    def runs_of(self, starts: NDArray[np.int64], sizes: NDArray[np.int64]) -> list[tuple[int, int]]:
        """What to `bring` so that reads of these ranges wait no more, each in one request.

        What is brought stays until the next call, whose blocks take its place; a batch's worth is meant.

        Returns:
            (first block, last block) of each request.
        """
        if len(starts) == 0:
            return []
        check_range(self.url, self.size, int(starts.min()), 0)
        check_range(self.url, self.size, 0, int((starts + sizes).max()))
        block_bytes = self._part.block_bytes
        first, last = starts // block_bytes, (starts + np.maximum(sizes, 1) - 1) // block_bytes
        wanted = sorted({block for low, high in zip(first, last, strict=True) for block in range(low, high + 1)})
        runs: list[tuple[int, int]] = []
        for block in wanted:
            begin, end = runs[-1] if runs else (block, block)
            is_near = (block - end - 1) * block_bytes <= _GAP_BYTES
            if runs and is_near and (block + 1 - begin) * block_bytes <= _REQUEST_BYTES:
                runs[-1] = (begin, block)
            else:
                runs.append((block, block))
        with self._mutex:
            self._kept_blocks = max(_KEPT_BLOCKS, sum(last - first + 1 for first, last in runs))
        return runs

    def bring(self, first: int, last: int) -> Sequence[bytes]:
        """Blocks `first` to `last`, from those kept and in as few requests as the rest needs; from any thread."""
        with self._mutex:
            found = {index: self._blocks[index] for index in range(first, last + 1) if index in self._blocks}
        missing = [index for index in range(first, last + 1) if index not in found]
        while missing:
            length = 1
            while length < len(missing) and missing[length] == missing[0] + length:
                length += 1
            found.update(self._fetch_blocks(missing[0], length))
            missing = missing[length:]
        with self._mutex:
            for index, block in found.items():
                self._blocks[index] = block
                self._blocks.move_to_end(index)
            while len(self._blocks) > self._kept_blocks:
                self._blocks.popitem(last=False)
        return [found[index] for index in range(first, last + 1)]

    def _fetch_blocks(self, first: int, num_blocks: int) -> dict[int, bytes]:
        """Blocks in one request; once more if a checksum is wrong."""
        block_bytes = self._part.block_bytes
        start, stop = first * block_bytes, min(self.size, (first + num_blocks) * block_bytes)
        for _ in range(2):
            try:
                data = memoryview(self._remote.read_range(self.url, start, stop))
            except WholeBodyError:
                raise FetchError(
                    f"{self.url}: the server ignores ranges, wanted bytes {start}-{stop}. Let the cache fetch "
                    "whole shards (cache='auto'), with a budget that holds them."
                ) from None
            self._count(len(data))
            blocks = {first + i: bytes(data[i * block_bytes : (i + 1) * block_bytes]) for i in range(num_blocks)}
            bad = [index for index, block in blocks.items() if not self._is_good(index, block)]
            if not bad:
                return blocks
        raise ChecksumError(
            f"{self.url}: block {bad[0]} (bytes from {bad[0] * block_bytes}) has the wrong checksum twice, wanted the "
            "index's. Upload the file again, or re-create its index."
        )

    def _is_good(self, index: int, block: bytes) -> bool:
        sums = self._part.block_checksums
        return sums is None or xxhash.xxh3_64_intdigest(block) == int(sums[index])
