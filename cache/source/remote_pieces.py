"""Packed bytes that lie in pieces of remote files, read by ranges of these as `Remote` reads those of one file."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import NamedTuple, Protocol

from epistream.cache.source.entry import Part
from epistream.cache.source.pieces import Pieces, Span
from epistream.cache.source.remote import Remote
from epistream.errors import ChecksumError

# As in `ranged`: spans of a file nearer to each other than this are brought in one request, the gap included; and what
# is brought with gaps in it is no longer than that.
_GAP_BYTES = 128 << 10
_REQUEST_BYTES = 1 << 20
# Requests at a time for one range of packed bytes, of which a caller asks for several at a time.
_PARALLEL = 4


class Copied(Protocol):
    """Bytes that are read from copies, because their server knows no ranges."""

    def read(self, start: int, stop: int) -> bytes:
        """Bytes [start, stop), or fewer where they end before.

        Raises:
            EpistreamError: They cannot be brought.
        """


class Ranges(Protocol):
    """Reads ranges of what a part is, as `Remote` does of any URL."""

    def read_range(
        self, url: str, start: int, stop: int, deadline: float | None = None, *, size: int | None = None
    ) -> bytes:
        """As `Remote.read_range`."""

    def whole_file(self, url: str, num_bytes: int, version: str) -> Copied:
        """As `Remote.whole_file`."""


def ranges_of_part(part: Part, remote: Remote) -> Ranges:
    """What reads a remote part."""
    return remote if part.remote_pieces is None else RemotePieces(remote, part.remote_pieces)


class RemotePieces:
    """Reads the packed bytes of one part, whose files are the ones that are asked for.

    Args:
        remote: Reads ranges of the files.
        pieces: Where the bytes are.
    """

    def __init__(self, remote: Remote, pieces: Pieces) -> None:
        self._remote = remote
        self._pieces = pieces.joined

    def read_range(
        self, url: str, start: int, stop: int, deadline: float | None = None, *, size: int | None = None
    ) -> bytes:
        """Packed bytes [start, stop), several files at a time.

        Args:
            url: Of the part; only the files are asked for.
            start: First byte.
            stop: One after the last.
            deadline: On ``time.monotonic()``; the remote's ``timeout_s`` from now unless given.
            size: Of the part; each file is held to its own.

        Raises:
            EpistreamError: As `Remote.read_range`, for a file.
        """
        if deadline is None:
            deadline = time.monotonic() + self._remote.options.timeout_s
        requests = list(_requests(self._pieces.within(start, stop)))
        if len(requests) == 1 and len(requests[0].spans) == 1:
            return self._read(requests[0], deadline)
        found: dict[int, memoryview] = {}
        for request, data in self._read_all(requests, deadline):
            for first, num_bytes, _, place in request.spans:
                found[first] = memoryview(data)[place - request.start :][:num_bytes]
        return b"".join(found[first] for first in sorted(found))

    def whole_file(self, url: str, num_bytes: int, version: str) -> Copied:
        """The packed bytes out of copies of the files, each brought whole when it is first needed, once a process."""
        return _Copies(self._remote, self._pieces)

    def _read_all(self, requests: "list[_Request]", deadline: float) -> "Iterator[tuple[_Request, bytes]]":
        if len(requests) < 2:
            for request in requests:
                yield request, self._read(request, deadline)
            return
        pool = ThreadPoolExecutor(min(_PARALLEL, len(requests)), thread_name_prefix="epistream-pieces")
        try:
            futures = {pool.submit(self._read, request, deadline): request for request in requests}
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _read(self, request: "_Request", deadline: float) -> bytes:
        file = self._pieces.files[request.file]
        # Pieces have no checksums: nothing but its version tells the file from another that took its place.
        where = file.url, request.start, request.stop, deadline
        return self._remote.read_range(*where, size=file.num_bytes, version=file.version)


class _Request(NamedTuple):
    """Bytes [start, stop) of a file, and the spans within them."""

    file: int
    start: int
    stop: int
    spans: list[Span]


def _requests(spans: Iterator[Span]) -> Iterator[_Request]:
    """As few requests as bring some spans: one for those that lie side by side in a file, or near each other."""
    last: _Request | None = None
    for span in sorted(spans, key=lambda span: (span.file, span.place)):
        stop = span.place + span.size
        if last is not None and last.file == span.file:
            longer = max(last.stop, stop)
            is_next = span.place <= last.stop
            is_near = span.place - last.stop <= _GAP_BYTES and longer - last.start <= _REQUEST_BYTES
            if is_next or is_near:
                last.spans.append(span)
                last = last._replace(stop=longer)
                continue
        if last is not None:
            yield last
        last = _Request(span.file, span.place, stop, [span])
    if last is not None:
        yield last


class _Copies:
    """Packed bytes out of whole files."""

    def __init__(self, remote: Remote, pieces: Pieces) -> None:
        self._pieces = pieces
        self._files = [remote.whole_file(*file) for file in pieces.files]

    def read(self, start: int, stop: int) -> bytes:
        """As `Copied.read`; never fewer.

        Raises:
            ChecksumError: A file is not of its size.
        """
        found = []
        for _, num_bytes, number, place in self._pieces.within(start, stop):
            data = self._files[number].read(place, place + num_bytes)
            if len(data) < num_bytes:
                url, size, _ = self._pieces.files[number]
                raise ChecksumError(
                    f"{url}: ends at byte {place + len(data)}, wanted {size} bytes. Open the dataset again to index it "
                    "as it is now."
                )
            found.append(data)
        return b"".join(found)
