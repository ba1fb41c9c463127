"""The bodies of answers to requests: never more than was asked for, packed or unpacked."""

import functools
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import IO, Any, TypeVar

from epistream.errors import ChecksumError, FetchError, SourceError
from epistream.file_systems import ask, limit_of, retry, run
from epistream.units import distinct_sizes, size_text

T = TypeVar("T")

_PIECE_BYTES = 1 << 18


@dataclass(frozen=True)
class RetryOptions:
    """How hard to try.

    Args:
        attempts: Tries of one request.
        request_timeout_s: Limit of one request, where the file system can be interrupted.
        timeout_s: Limit of a whole entry, retries and pauses included.
        first_pause_s: Mean scale of the first pause; doubled each time, with full jitter.
        longest_pause_s: Limit of a pause.
    """

    attempts: int = 6
    request_timeout_s: float = 60.0
    timeout_s: float = 600.0
    first_pause_s: float = 0.2
    longest_pause_s: float = 10.0

    def run(self, action: Callable[[float], T], num_bytes: int = 0) -> T:
        """Run `action`, given the seconds that it may take, until it succeeds or the tries or the time run out.

        Args:
            action: One try.
            num_bytes: That it transfers; more of them may take longer.

        Raises:
            Exception: The last error of `action`.
        """
        deadline = time.monotonic() + self.timeout_s
        one_s = self.request_timeout_s + limit_of(num_bytes) - limit_of(0)
        return retry(
            lambda: action(max(0.01, min(one_s, deadline - time.monotonic()))),
            attempts=self.attempts,
            deadline=deadline,
            pauses_s=(self.first_pause_s, self.longest_pause_s),
        )


class WholeBodyError(FetchError):
    """The server ignored the range, or refused it: it would do so again."""


class TooLongError(SourceError):
    """A body is longer than what was asked for can be: it would be so again."""


def is_http(file_system: Any) -> bool:
    """Whether a file system is fsspec's of web servers, which anybody may have written."""
    protocol = getattr(file_system, "protocol", "")
    return "http" in ((protocol,) if isinstance(protocol, str) else protocol) and hasattr(file_system, "set_session")


def read_part(
    file_system: Any, path: str, start: int, stop: int, limit_s: float, *, size: int | None = None, **options: Any
) -> bytes:
    """Bytes [start, stop) of a file.

    Args:
        file_system: Of fsspec's.
        path: The file in it.
        start: First byte.
        stop: One after the last.
        limit_s: When it is given up.
        size: Bytes that the file should have; None if nobody said.
        options: For the file system.

    Raises:
        ChecksumError: A web server says that the file has another size.
        WholeBodyError: The server sends others, or more of them; only if less than everything was asked for.
        OSError: It sends fewer.
        Exception: Whatever the file system raises.
    """
    wanted = stop - start
    if not is_http(file_system):
        data = ask(file_system, "cat_file", path, start=start, end=stop, limit_s=limit_s, **options)
    elif wanted:
        data = run(file_system, functools.partial(_part, file_system, path, start, stop, size), limit_s)
    else:
        data = b""
    if len(data) > wanted:
        raise WholeBodyError(_ignored(path, start, stop))
    if len(data) < wanted:
        raise OSError(f"a body of {len(data)} bytes instead of {wanted}")
    return bytes(data) if not isinstance(data, bytes) else data


def read_all(file_system: Any, path: str, most: int, limit_s: float) -> bytes:
    """A small file, of no more than `most` bytes.

    Raises:
        TooLongError: It is longer.
        Exception: Whatever the file system raises.
    """
    if is_http(file_system):
        data: bytes = run(file_system, functools.partial(_all, file_system, path, most), limit_s)
        return data
    size = ask(file_system, "info", path, limit_s=limit_s).get("size")
    if isinstance(size, int) and size > most:
        raise TooLongError(_too_long(path, size, most))
    return bytes(ask(file_system, "cat_file", path, limit_s=limit_s))


@asynccontextmanager
async def _answer(file_system: Any, url: str, headers: Mapping[str, str]) -> AsyncIterator[Any]:
    given = dict(file_system.kwargs)
    # Sizes, ranges and checksums are those of the file as it is stored.
    given["headers"] = {**given.get("headers", {}), "Accept-Encoding": "identity", **headers}
    session = await file_system.set_session()
    async with session.get(file_system.encode_url(url), **given) as answer:
        yield answer


async def _part(file_system: Any, url: str, start: int, stop: int, size: int | None) -> bytes:
    async with _answer(file_system, url, {"Range": f"bytes={start}-{stop - 1}"}) as answer:
        if answer.status == 416:
            raise WholeBodyError(_ignored(url, start, stop))
        file_system._raise_not_found_for_status(answer, url)
        found = _size_of(answer)
        if size is not None and found is not None and found != size:
            raise ChecksumError(
                f"{url}: {found} bytes, wanted {size}. Upload the file again, or re-create the manifest with "
                "'epistream index URL --overwrite' if it was changed on purpose."
            )
        begins = answer.headers.get("Content-Range", "").removeprefix("bytes").strip().partition("-")[0]
        is_other = begins.isdecimal() and int(begins) != start if answer.status == 206 else start > 0
        if is_other or (answer.content_length or 0) > stop - start:
            raise WholeBodyError(_ignored(url, start, stop))
        data = await _up_to(answer, stop - start)
        if data is None:
            raise WholeBodyError(_ignored(url, start, stop))
        return data


def _size_of(answer: Any) -> int | None:
    """Bytes of the whole file, as a web server tells them."""
    if answer.headers.get("Content-Encoding", "identity") not in ("", "identity"):
        return None
    if answer.status != 206:
        length: int | None = answer.content_length
        return length
    total = answer.headers.get("Content-Range", "").rpartition("/")[2]
    return int(total) if total.isdecimal() else None


async def _all(file_system: Any, url: str, most: int) -> bytes:
    async with _answer(file_system, url, {}) as answer:
        file_system._raise_not_found_for_status(answer, url)
        size = answer.content_length
        if size is not None and size > most:
            raise TooLongError(_too_long(url, size, most))
        data = await _up_to(answer, most)
        if data is None:
            raise TooLongError(_too_long(url, None, most))
        return data


async def _up_to(answer: Any, most: int) -> bytes | None:
    """A body, unpacked if it comes packed; None if it is longer."""
    data = bytearray()
    async for piece in answer.content.iter_chunked(_PIECE_BYTES):
        data += piece
        if len(data) > most:
            return None
    return bytes(data)


def _ignored(url: str, start: int, stop: int) -> str:
    return f"{url}: the server ignores ranges, wanted bytes {start}-{stop} alone. Serve it with ranges, or copy it."


def _too_long(url: str, size: int | None, most: int) -> str:
    if size is None:
        return f"{url}: more than {size_text(most)}, wanted no more. Check what the URL leads to."
    found, wanted = distinct_sizes(size, most)
    return f"{url}: {found}, wanted no more than {wanted}. Check what the URL leads to."


def copy_all(file_system: Any, path: str, file: IO[bytes], most: int, limit_s: float) -> None:
    """Write a file of a web server, of no more than `most` bytes, into another, from its beginning.

    Raises:
        TooLongError: It is longer.
        Exception: Whatever the file system raises.
    """

    async def copy() -> None:
        file.seek(0)
        file.truncate()
        async with _answer(file_system, path, {}) as answer:
            file_system._raise_not_found_for_status(answer, path)
            async for piece in answer.content.iter_chunked(_PIECE_BYTES):
                file.write(piece)
                if file.tell() > most:
                    raise TooLongError(_too_long(path, None, most))
        file.flush()

    run(file_system, copy, limit_s)
