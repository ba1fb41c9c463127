"""Fetching the parts of an entry into a file that has its size already, and verifying them there."""

import logging
import mmap
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path

import xxhash

from epistream.cache.source.blob import Supply
from epistream.cache.source.entry import Entry, Part
from epistream.cache.source.local import open_source
from epistream.cache.source.remote import Remote, WholeBodyError
from epistream.errors import ChecksumError, SourceChangedError
from epistream.file_systems import local_path

logger = logging.getLogger(__name__)

# Large enough that a request's latency (20 ms or so) is a fraction of it, small enough that eight at a time
# are little memory.
CHUNK_BYTES = 4 << 20
# A chunk of a compressed file may hold many frames.
SUPPLY_BYTES = 16 << 20

# A part, and where it begins in the entry.
Place = tuple[Part, int]


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

    def fetch(self, entry: Entry, fd: int) -> list[Part]:
        """Write every part of an entry to its offset in `fd`, and verify each.

        Returns:
            The parts that had to be fetched twice.

        Raises:
            FetchError: A part could not be had in time.
            ChecksumError: A part was wrong twice.
            SourceError: A part is not there, or may not be read.
        """
        deadline = time.monotonic() + self._timeout_s
        places = list(zip(entry.parts, entry.offsets, strict=True))
        self._fetch_parts(places, fd, deadline)
        wrong = [place for place in places if mismatch(*place, fd)]
        for part, _ in wrong:
            logger.warning("%s: not of checksum %s; fetched once more.", part.url, part.checksum)
        self._fetch_parts(wrong, fd, deadline)
        for part, offset in wrong:
            found = mismatch(part, offset, fd)
            if found:
                raise ChecksumError(
                    f"{part.url}: checksum {found} twice, wanted {part.checksum}. Upload the file again, or re-create "
                    "the index with 'epistream index URL' if it was changed on purpose."
                )
        return [part for part, _ in wrong]

    def _fetch_parts(self, places: Sequence[Place], fd: int, deadline: float) -> None:
        remote: list[Place] = []
        for part, offset in places:
            path = local_path(part.url)
            if part.supply is not None:
                _copy_supply(part.supply, part, fd, offset)
            elif path is not None:
                self._remote.retry(partial(_copy_file, path, part, fd, offset), str(path), deadline)
            else:
                remote.append((part, offset))
        try:
            self._fetch_ranges(remote, fd, deadline)
        except WholeBodyError:
            for part, offset in remote:
                self._remote.retry(partial(self._stream, part, fd, offset, deadline), part.url, deadline)

    def _fetch_ranges(self, places: Sequence[Place], fd: int, deadline: float) -> None:
        """Several ranges at a time; each is tried again by itself, so a dropped connection costs one chunk."""

        def bring(part: Part, offset: int, start: int, stop: int) -> None:
            write_all(fd, self._remote.read_range(part.url, start, stop, deadline), offset + start)

        pieces = [(part, offset, *piece) for part, offset in places for piece in chunks(part.size)]
        if pieces and not self._knows_ranges:
            # Alone: a server that ignores ranges is found out before it is asked eight times.
            first = pieces.pop(0)
            bring(*first)
            self._knows_ranges = first[0].size > CHUNK_BYTES
        if not pieces:
            return
        pool = ThreadPoolExecutor(min(self._parallel, len(pieces)), thread_name_prefix="epistream-fetch")
        try:
            for future in as_completed([pool.submit(bring, *piece) for piece in pieces]):
                future.result()
        finally:
            pool.shutdown(cancel_futures=True)

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
