"""The bytes of a part that is read over the network, block by block, before the cache has all of it."""

import contextlib
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
from epistream.cache.source.remote import WholeBodyError
from epistream.cache.source.remote_pieces import Copied, Ranges
from epistream.cache.source.rows import as_bytes, check_range, check_starts, gather_runs
from epistream.cache.source.shared import Shared
from epistream.errors import ChecksumError, FetchError

# Parts up to this size are checked as a whole when they are read as a whole: indexes are.
_WHOLE_BYTES = 64 << 20
# Blocks of a remote part that are kept: the frames of a batch lie near each other.
_KEPT_BLOCKS = 16
# Blocks nearer to each other than this are brought in one request: the gap costs less than another one.
_GAP_BYTES = 128 << 10
# Longest of these requests, so that several bring what is far more.
_REQUEST_BYTES = 1 << 20
# How long to wait for another process that is bringing the same bytes: many times what a request takes.
_PATIENCE_S = 2.0
# The same for one who was waited for in vain.
_IMPATIENCE_S = 0.001


class RangeBlob(Blob):
    """A part that is read over the network, block by block, before the cache has all of it.

    Every block is checked where the index gave its checksum; pieces of files have none, and are taken as they come. A
    few blocks are kept, because the frames of a window lie side by side.

    Args:
        part: What is read.
        remote: Reads ranges of it.
        count: Told the bytes of every request.
        shared: Where others of the node find the blocks that were brought, and leave those that they brought; None
            where everybody reads for himself.
        may_copy: Whether the whole part is brought where the server knows no ranges; else that is an error.
    """

    has_ranges = True

    def __init__(
        self,
        part: Part,
        remote: Ranges,
        count: Callable[[int], None],
        shared: Shared | None = None,
        *,
        may_copy: bool = True,
    ) -> None:
        self._may_copy = may_copy
        self._copy: Copied | None = None
        self.size = part.size
        self.url = part.url
        self._count = count
        self._part = part
        self._remote = remote
        self._shared = shared
        self._patience_s = _PATIENCE_S
        self._mutex = threading.Lock()
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._kept_blocks = _KEPT_BLOCKS
        self._left: set[int] = set()

    def read(self, offset: int, size: int) -> memoryview:
        """A copy of the bytes; checked as a whole if all are asked for and the blocks have no checksums."""
        has_blocks = self._part.block_checksums is not None or self._part.remote_pieces is not None
        if offset == 0 and size == self.size and size <= _WHOLE_BYTES and not has_blocks:
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
        shared = self._shared if self.size and self._part.checksum is not None else None
        if shared is None:
            return self._request_whole()
        with shared.turn(0, self.size, self.size, _PATIENCE_S) as runs:
            if runs != []:
                data = self._request_whole()
                _share(shared, 0, data)  # also what somebody stopped was bringing: nobody is to wait for him again
                return data
        data = shared.read(0, self.size)
        return data if xxhash.xxh3_128_hexdigest(data) == self._part.checksum else self._request_whole()

    def _request_whole(self) -> bytes:
        problem: ChecksumError | None = None
        for _ in range(2):
            try:
                data = self._remote.read_range(self.url, 0, self.size, size=self.size) if self.size else b""
            except ChecksumError as error:
                problem = error
                continue
            self._count(len(data))
            found = xxhash.xxh3_128_hexdigest(data)
            if self._part.checksum is None or found == self._part.checksum:
                return data
            problem = ChecksumError(
                f"{self.url}: checksum {found} twice, wanted {self._part.checksum}. Upload the file again, or "
                "re-create the manifest with 'epistream index URL --overwrite' if it was changed on purpose."
            )
        assert problem is not None
        raise problem

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
        return [partial(self._bring_free, first, last) for first, last in self.runs_of(starts, sizes)]

    def requests_left(self) -> Sequence[Callable[[], object]]:
        """For what other processes of the node were bringing: it waits for that, or brings it after all."""
        with self._mutex:
            left, self._left = self._left, set()

        def bring_left() -> None:
            # All of it comes in meanwhile, whichever is waited for; a thread for each would only look more often.
            for first, last in _runs(sorted(left)):
                self.bring(first, last)

        return [bring_left] if left else []

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
        absent = self._absent_blocks(wanted[0], wanted[-1])
        runs: list[tuple[int, int]] = []
        for block in wanted:
            if absent is not None and block not in absent:
                continue  # there is nothing to wait for
            begin, end = runs[-1] if runs else (block, block)
            is_near = (block - end - 1) * block_bytes <= _GAP_BYTES
            is_gap_absent = absent is None or all(between in absent for between in range(end + 1, block))
            if runs and is_near and is_gap_absent and (block + 1 - begin) * block_bytes <= _REQUEST_BYTES:
                runs[-1] = (begin, block)
            else:
                runs.append((block, block))
        with self._mutex:
            num_blocks = len(wanted) + sum(last - first + 1 for first, last in runs)
            self._kept_blocks = max(_KEPT_BLOCKS, num_blocks)
        return runs

    def bring(self, first: int, last: int) -> Sequence[bytes]:
        """Blocks `first` to `last`, from those kept and in as few requests as the rest needs; from any thread."""
        return list(self._bring(first, last, self._patience_s).values())

    def _bring_free(self, first: int, last: int) -> None:
        """As `bring`, without waiting for other processes; what they are bringing is for `requests_left`."""
        found = self._bring(first, last, 0.0)
        with self._mutex:
            self._left.update(index for index in range(first, last + 1) if index not in found)

    def _bring(self, first: int, last: int, patience_s: float) -> dict[int, bytes]:
        """Blocks by number; all of them if there is any patience, or nobody to share with."""
        with self._mutex:
            found = {index: self._blocks[index] for index in range(first, last + 1) if index in self._blocks}
        for begin, end in _runs([index for index in range(first, last + 1) if index not in found]):
            found.update(self._obtain(begin, end, patience_s))
        with self._mutex:
            for index, block in found.items():
                self._blocks[index] = block
                self._blocks.move_to_end(index)
            while len(self._blocks) > self._kept_blocks:
                self._blocks.popitem(last=False)
        return dict(sorted(found.items()))

    # --- shared with others of the node ------------------------------------------------------------------

    def _obtain(self, first: int, last: int, patience_s: float) -> dict[int, bytes]:
        """Blocks that others brought, and requests for those that nobody brings, which others then find."""
        shared = self._shared
        if shared is None or not self._is_shareable(shared):
            return self._split(first, self._request(first, last))
        found: dict[int, bytes] = {}
        left = [(first, last)]
        while left:
            begin, end = left.pop()
            some = self._bring_some(shared, begin, end, patience_s)
            found.update(some)
            if some:
                left += _runs([index for index in range(begin, end + 1) if index not in found])
        # With patience all of it is there now, or was: a fill that came to a wrong end takes it back.
        absent = () if patience_s else self._absent_blocks(first, last) or ()
        for begin, end in _runs([index for index in range(first, last + 1) if index not in {*found, *absent}]):
            there = self._split(begin, memoryview(shared.read(*self._range(begin, end))))
            for index, block in there.items():
                # A fill is checked at its end, and what it brings may be looked at before.
                is_good = self._is_good(index, block)
                found[index] = block if is_good else bytes(self._request(index, index))
        return found

    def _bring_some(self, shared: Shared, first: int, last: int, patience_s: float) -> dict[int, bytes]:
        """Request blocks that nobody else brings; {} if all are there, or there is no patience."""
        block_bytes = self._part.block_bytes
        found: dict[int, bytes] = {}
        with shared.turn(*self._range(first, last), block_bytes, patience_s) as runs:
            for start, stop in runs or ():
                data = self._request(start // block_bytes, (stop - 1) // block_bytes)
                _share(shared, start, data)
                found.update(self._split(start // block_bytes, data))
        if runs is None and patience_s:
            # Who was waited for in vain once is not waited for again.
            self._patience_s = _IMPATIENCE_S
            for begin, end in _runs(sorted(self._absent_blocks(first, last) or ())):
                data = self._request(begin, end)
                _share(shared, self._range(begin, end)[0], data)
                found.update(self._split(begin, data))
        return found

    def _is_shareable(self, shared: Shared) -> bool:
        """Whether blocks can be told from wrong ones, or cannot be by anybody; and are of whole granules."""
        is_known = self._part.block_checksums is not None or self._part.remote_pieces is not None
        return is_known and self._part.block_bytes % shared.granule_bytes == 0

    def _absent_blocks(self, first: int, last: int) -> set[int] | None:
        """Those of blocks `first` to `last` that nobody brought yet; None if nobody shares them."""
        shared = self._shared
        if shared is None or not self._is_shareable(shared):
            return None
        block_bytes = self._part.block_bytes
        return {
            block
            for start, stop in shared.absent(*self._range(first, last), block_bytes)
            for block in range(start // block_bytes, (stop - 1) // block_bytes + 1)
        }

    # --- over the network --------------------------------------------------------------------------------

    def _request(self, first: int, last: int) -> memoryview:
        """Blocks in one request; once more if a checksum is wrong."""
        start, stop = self._range(first, last)
        for _ in range(2):
            data = memoryview(self._read_range(start, stop))
            bad = [index for index, block in self._split(first, data).items() if not self._is_good(index, block)]
            if not bad:
                return data
        raise ChecksumError(
            f"{self.url}: block {bad[0]} (bytes from {bad[0] * self._part.block_bytes}) has the wrong checksum twice, "
            "wanted the index's. Upload the file again, or re-create its index with "
            "'epistream index URL --overwrite'."
        )

    def _read_range(self, start: int, stop: int) -> bytes:
        if self._copy is None:
            try:
                data = self._remote.read_range(self.url, start, stop, size=self.size)
                self._count(len(data))
                return data
            except WholeBodyError:
                if not self._may_copy:
                    raise
            version = self._part.checksum or self._part.version or ""
            self._copy = self._remote.whole_file(self.url, self.size, version)
        data = self._copy.read(start, stop)
        if len(data) < stop - start:
            raise FetchError(
                f"{self.url}: ends at byte {start + len(data)}, wanted {self.size} bytes. Upload the file again, or "
                "re-create the manifest with 'epistream index URL --overwrite' if it was changed on purpose."
            )
        return data

    def _range(self, first: int, last: int) -> tuple[int, int]:
        """The half-open range of bytes of blocks `first` to `last`."""
        block_bytes = self._part.block_bytes
        return first * block_bytes, min(self.size, (last + 1) * block_bytes)

    def _split(self, first: int, data: memoryview) -> dict[int, bytes]:
        block_bytes = self._part.block_bytes
        return {
            first + number: bytes(data[start : start + block_bytes])
            for number, start in enumerate(range(0, len(data), block_bytes))
        }

    def _is_good(self, index: int, block: bytes) -> bool:
        sums = self._part.block_checksums
        return sums is None or xxhash.xxh3_64_intdigest(block) == int(sums[index])


def _share(shared: Shared, start: int, data: bytes | memoryview) -> None:
    """Leave bytes to others; where there is no room for them, everybody brings them for himself."""
    with contextlib.suppress(OSError):
        shared.write(start, data)


def _runs(blocks: Sequence[int]) -> list[tuple[int, int]]:
    """(first, last) of each run of consecutive numbers.

    >>> _runs([1, 2, 5])
    [(1, 2), (5, 5)]
    """
    runs: list[tuple[int, int]] = []
    for block in blocks:
        if runs and runs[-1][1] == block - 1:
            runs[-1] = (runs[-1][0], block)
        else:
            runs.append((block, block))
    return runs
