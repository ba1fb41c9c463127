"""Fetching the parts of an entry into a file that has its size already, and verifying them there."""

import logging
import mmap
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import xxhash

from epistream.cache.source.blob import Supply
from epistream.cache.source.entry import Entry, Part
from epistream.cache.source.local import open_source
from epistream.cache.source.remote import Remote, WholeBodyError
from epistream.cache.source.remote_pieces import Ranges, ranges_of_part
from epistream.cache.source.shared import Shared
from epistream.errors import ChecksumError, SourceChangedError
from epistream.file_systems import local_path

logger = logging.getLogger(__name__)

# Large enough that a request's latency (20 ms or so) is a fraction of it, small enough that eight at a time
# are little memory.
CHUNK_BYTES = 4 << 20
# A chunk of a compressed file may hold many frames.
SUPPLY_BYTES = 16 << 20

# The same where others bring blocks of the entry too: they wait for a chunk that is under way.
_SHARED_CHUNK_BYTES = 1 << 20
# How long a chunk waits for another process that is bringing some of it, and may be stopped.
_PATIENCE_S = 10.0


class Place(NamedTuple):
    """A part, where it begins in the entry, and what tells which of its bytes are there already, if anything does.

    `ranges` reads it if it is remote.
    """

    part: Part
    offset: int
    shared: Shared | None
    ranges: Ranges


@dataclass(frozen=True)
class Fetched:
    """What a fetch did.

    Args:
        num_bytes: Bytes that came from the source; not those that others had brought.
        twice: Parts that had to be fetched twice.
    """

    num_bytes: int
    twice: tuple[Part, ...]


class Fetcher:
    """Brings entries. Memory: `parallel` chunks, never a whole shard.

    Args:
        remote: Reads ranges, with retries.
        parallel: Requests at a time.
        timeout_s: Limit of one entry.
    """

    def __init__(self, remote: Remote, parallel: int, timeout_s: float) -> None:
        self._remote = remote
        self._parallel = parallel
        self._timeout_s = timeout_s
        # Whether a part of an object was ever had; one that then sends everything is read through, later than could be.
        self._knows_ranges = False

    def fetch(self, entry: Entry, fd: int, shares: Sequence[Shared] | None = None) -> Fetched:
        """Write every part of an entry to its offset in `fd`, and verify each.

        Args:
            entry: What to fetch.
            fd: A file of its size.
            shares: The same file as others know it who bring some of it, for each part: what is there stays.

        Raises:
            FetchError: A part could not be had in time.
            ChecksumError: A part was wrong twice.
            SourceError: A part is not there, or may not be read.
        """
        deadline = time.monotonic() + self._timeout_s
        shared: Sequence[Shared | None] = shares if shares is not None else [None] * len(entry.parts)
        ranges = [ranges_of_part(part, self._remote) for part in entry.parts]
        places = [Place(*one) for one in zip(entry.parts, entry.offsets, shared, ranges, strict=True)]
        num_bytes = self._fetch_parts(places, fd, deadline)
        wrong = [place for place in places if mismatch(place.part, place.offset, fd)]
        for part, _, known, _ in wrong:
            logger.warning("%s: not of checksum %s; fetched once more.", part.url, part.checksum)
            if known is not None:
                known.clear()
        num_bytes += self._fetch_parts(wrong, fd, deadline)
        for part, offset, *_ in wrong:
            found = mismatch(part, offset, fd)
            if found:
                raise ChecksumError(
                    f"{part.url}: checksum {found} twice, wanted {part.checksum}. Upload the file again, or re-create "
                    "the index with 'epistream index URL --overwrite' if it was changed on purpose."
                )
        return Fetched(num_bytes, tuple(place.part for place in wrong))

    def _fetch_parts(self, places: Sequence[Place], fd: int, deadline: float) -> int:
        """Bytes that came from their sources."""
        remote: list[Place] = []
        num_bytes = 0
        for place in places:
            part, offset, *_ = place
            path = local_path(part.url)
            if part.remote_pieces is not None or (part.supply is None and path is None):
                remote.append(place)
                continue
            if part.supply is not None:
                _copy_supply(part.supply, part, fd, offset)
            elif path is not None:
                self._remote.retry(partial(_copy_file, path, part, fd, offset), str(path), deadline)
            num_bytes += part.size
        try:
            return num_bytes + self._fetch_ranges(remote, fd, deadline)
        except WholeBodyError:
            for part, offset, _, ranges in remote:
                if part.remote_pieces is None:
                    self._remote.retry(partial(self._stream, part, fd, offset, deadline), part.url, deadline)
                else:
                    _copy_whole_files(ranges, part, fd, offset)
            return num_bytes + sum(place.part.size for place in remote)

    def _fetch_ranges(self, places: Sequence[Place], fd: int, deadline: float) -> int:
        """Several ranges at a time; each is tried again by itself, so a dropped connection costs one chunk."""
        absent = [
            (place, run)
            for place in places
            for run in ([(0, place.part.size)] if place.shared is None else place.shared.absent(0, place.part.size))
        ]
        # Others are about if something is there; else it is most likely a shard that nobody needs yet.
        is_begun = sum(stop - start for _, (start, stop) in absent) < sum(place.part.size for place in places)
        chunk_bytes = _SHARED_CHUNK_BYTES if is_begun else CHUNK_BYTES
        pieces = [
            (place, first + start, first + stop)
            for place, (first, last) in absent
            for start, stop in chunks(last - first, chunk_bytes)
        ]
        bring = _Bringing(fd, deadline)
        num_bytes = 0
        if pieces and not self._knows_ranges:
            # Alone: a server that ignores ranges is found out before it is asked eight times.
            place, start, stop = pieces.pop(0)
            num_bytes += bring(place, start, stop)
            self._knows_ranges = num_bytes > 0 and stop - start < place.part.size
        if not pieces:
            return num_bytes
        pool = ThreadPoolExecutor(min(self._parallel, len(pieces)), thread_name_prefix="epistream-fetch")
        try:
            for future in as_completed([pool.submit(bring, *piece) for piece in pieces]):
                num_bytes += future.result()
        finally:
            pool.shutdown(cancel_futures=True)
        return num_bytes

    def _stream(self, part: Part, fd: int, offset: int, deadline: float) -> None:
        """From the beginning to the end, for servers without ranges."""
        position = 0
        with self._remote.open_stream(part.url, part.size, deadline) as stream:
            while position < part.size:
                data = stream.read(min(CHUNK_BYTES, part.size - position))
                if not data:
                    raise OSError(f"a body of {position} bytes instead of {part.size}")
                write_all(fd, data, offset + position)
                position += len(data)


class _Bringing:
    """Brings pieces of one entry, from several threads."""

    def __init__(self, fd: int, deadline: float) -> None:
        self._fd = fd
        self._deadline = deadline
        self._patience_s = _PATIENCE_S

    def __call__(self, place: Place, start: int, stop: int) -> int:
        """Bring what is absent of a range of a part; the bytes of it."""
        part, offset, shared, ranges = place
        if shared is None:
            write_all(self._fd, ranges.read_range(part.url, start, stop, self._deadline), offset + start)
            return stop - start
        num_bytes = 0
        left = [(start, stop)]
        while left:
            start, stop = left.pop()
            patience_s = min(self._patience_s, self._deadline - time.monotonic())
            with shared.turn(start, stop, shared.granule_bytes, patience_s) as runs:
                if runs is None:
                    # Somebody is stopped; he writes what is right, if he ever does. None is waited for again.
                    self._patience_s = 0.0
                for first, last in shared.absent(start, stop) if runs is None else runs:
                    shared.write(first, ranges.read_range(part.url, first, last, self._deadline))
                    num_bytes += last - first
            if runs:
                # What others were bringing lies between: not all again, which may be told to nobody on a full disk.
                ends = [start, *(last for _, last in runs)]
                begins = [*(first for first, _ in runs), stop]
                left += [gap for gap in zip(ends, begins, strict=True) if gap[0] < gap[1]]
        return num_bytes


def chunks(size: int, chunk_bytes: int = CHUNK_BYTES) -> Iterator[tuple[int, int]]:
    """Half-open ranges that cover [0, size).

    >>> list(chunks(10, 4))
    [(0, 4), (4, 8), (8, 10)]
    """
    for start in range(0, size, chunk_bytes):
        yield start, min(size, start + chunk_bytes)


def mismatch(part: Part, offset: int, fd: int) -> str:
    """The checksum of what lies in a file, if another one was promised; else ""."""
    found = "" if part.checksum is None else _checksum_of(fd, offset, part.size)
    return "" if found == part.checksum else found


def _checksum_of(fd: int, offset: int, size: int) -> str:
    """XXH3-128 of a part of a file, as 32 hex digits, read through a mapping: no copy in Python's memory."""
    if size == 0:
        return xxhash.xxh3_128_hexdigest(b"")
    # Mappings begin at pages.
    before = offset % mmap.ALLOCATIONGRANULARITY
    with (
        mmap.mmap(fd, size + before, prot=mmap.PROT_READ, offset=offset - before) as mapping,
        memoryview(mapping) as whole,
        whole[before:] as view,
    ):
        return xxhash.xxh3_128_hexdigest(view)


def write_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Write at an offset, however many calls it takes."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view = view[written:]
        offset += written


def _copy_supply(supply: Supply, part: Part, fd: int, offset: int) -> None:
    """Copy what is supplied, in pieces that spare whoever unpacks it from doing so many times over."""
    blob = supply.open()
    try:
        for start, stop in chunks(part.size, SUPPLY_BYTES):
            write_all(fd, blob.read(start, stop - start), offset + start)
    finally:
        blob.close()


def _copy_whole_files(ranges: Ranges, part: Part, fd: int, offset: int) -> None:
    """Copy pieces out of whole files, which are kept for a while: those of other entries lie in them too."""
    copy = ranges.whole_file(part.url, part.size, part.version or "")
    for start, stop in chunks(part.size):
        write_all(fd, copy.read(start, stop), offset + start)


def _copy_file(path: Path, part: Part, fd: int, offset: int) -> None:
    """Copy a local file (a network mount, mostly) in chunks."""
    source, _ = open_source(path, part.size)
    try:
        buffer = memoryview(bytearray(min(CHUNK_BYTES, max(1, part.size))))
        position = 0
        while position < part.size:
            got = os.preadv(source, [buffer[: part.size - position]], position)
            if got == 0:
                raise SourceChangedError(f"{path}: ends at byte {position}, wanted {part.size}. It was truncated.")
            write_all(fd, buffer[:got], offset + position)
            position += got
    finally:
        os.close(source)
