"""The bodies of answers to requests: never more than was asked for, packed or unpacked."""

import errno
import functools
import os
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, TypeVar

from epistream.access import Access, RetryOptions
from epistream.errors import ChecksumError, FetchError, SourceChangedError, SourceError
from epistream.file_systems import ask, limit_of, retry, run, version_facts
from epistream.units import distinct_sizes, size_text

T = TypeVar("T")

_PIECE_BYTES = 1 << 18
# The next step where a copy has no room.
MORE_ROOM = "Let TMPDIR name a folder with more room, or copy the file to a disk."
# RFC 9110, section 14.4: first and last byte, and bytes of the whole.
_CONTENT_RANGE = re.compile(r"bytes\s+(\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")


def retries_of(options: Mapping[str, Any] | None) -> RetryOptions:
    """How hard to try to read what these options open."""
    return Access.of(options).retries or RetryOptions(request_timeout_s=limit_of(0))


def persist(retries: RetryOptions, action: Callable[[float], T], num_bytes: int | None = 0) -> T:
    """Run `action`, given the seconds that it may take, until it succeeds or the tries or the time run out.

    Args:
        retries: How many, and how long.
        action: One try.
        num_bytes: That it transfers; more of them may take longer, and of an unknown number (None) as long as all may.

    Raises:
        Exception: The last error of `action`.
    """
    deadline = time.monotonic() + retries.timeout_s
    one_s = retries.timeout_s if num_bytes is None else retries.request_timeout_s + limit_of(num_bytes) - limit_of(0)
    return retry(
        lambda: action(max(0.01, min(one_s, deadline - time.monotonic()))),
        attempts=retries.attempts,
        deadline=deadline,
        pauses_s=(retries.first_pause_s, retries.longest_pause_s),
    )


class WholeBodyError(FetchError):
    """The server ignored the range, or refused it: it would do so again."""


class TooLongError(SourceError):
    """A body is longer than what was asked for can be: it would be so again."""


class NoSpaceError(SourceError):
    """There is no room for a copy of a file: another try would fill the disk again."""


def is_http(file_system: Any) -> bool:
    """Whether a file system is fsspec's of web servers, which anybody may have written."""
    protocol = getattr(file_system, "protocol", "")
    return "http" in ((protocol,) if isinstance(protocol, str) else protocol) and hasattr(file_system, "set_session")


def read_part(
    file_system: Any,
    path: str,
    start: int,
    stop: int,
    limit_s: float,
    *,
    size: int | None = None,
    version: str = "",
    **options: Any,
) -> bytes:
    """Bytes [start, stop) of a file.

    Args:
        file_system: Of fsspec's.
        path: The file in it.
        start: First byte.
        stop: One after the last.
        limit_s: When it is given up.
        size: Bytes that the file should have; None if nobody said.
        version: What `version_facts` told of it; "" if nobody asked. Web servers and S3 tell the version with the
            bytes, others are asked once these are there.
        options: For the file system.

    Raises:
        ChecksumError: A web server says that the file has another size.
        SourceChangedError: It is of another version.
        FetchError: It says that the file ends before.
        WholeBodyError: The server sends others, or more of them; only if less than everything was asked for.
        OSError: It sends fewer.
        Exception: Whatever the file system raises.
    """
    wanted = stop - start
    if is_http(file_system):
        ask_part = functools.partial(part_of_file, file_system, path, start, stop, size, version)
        data = run(file_system, ask_part, limit_s) if wanted else b""
    elif version and wanted and is_s3(file_system):
        data = run(file_system, functools.partial(part_of_object, file_system, path, start, stop, version), limit_s)
    else:
        data = ask(file_system, "cat_file", path, start=start, end=stop, limit_s=limit_s, **options)
        if version and file_system.protocol != "hf":  # of a commit nothing changes
            _refuse_other(path, version, ask(file_system, "info", path, limit_s=limit_s))
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
        return read_all_told(file_system, path, most, limit_s).data
    size = ask(file_system, "info", path, limit_s=limit_s).get("size")
    if isinstance(size, int) and size > most:
        raise TooLongError(_too_long(path, size, most))
    return bytes(ask(file_system, "cat_file", path, limit_s=limit_s))


def read_all_told(file_system: Any, path: str, most: int, limit_s: float) -> "Told":
    """As `read_all`, of a web server, with what it says of the file in the same answer."""
    return run(file_system, functools.partial(_all, file_system, path, most), limit_s)


def read_head(file_system: Any, path: str, size: int, limit_s: float) -> bytes:
    """The first `size` bytes of a file, or all of it where it is shorter; no more is read of a longer one.

    Raises:
        Exception: Whatever the file system raises.
    """
    if is_http(file_system):
        return run(file_system, functools.partial(_head, file_system, path, size), limit_s)
    return bytes(ask(file_system, "cat_file", path, start=0, end=size, limit_s=limit_s)[:size])


class Told(NamedTuple):
    """Bytes of a file of a web server, and what the same answer says of all of it.

    Attributes:
        data: The bytes.
        info: As the file system's `info` has it: the size, and what tells one version from another.
    """

    data: bytes
    info: dict[str, Any]


def facts_of(answer: Any) -> dict[str, Any]:
    """What an answer of a web server says of the whole file, as fsspec's `info` has it."""
    return {"size": size_of(answer), "ETag": answer.headers.get("ETag")}


@asynccontextmanager
async def answered(file_system: Any, url: str, headers: Mapping[str, str]) -> AsyncIterator[Any]:
    """What a web server answers to a request with these headers; who leaves before the end of it closes the line."""
    given = dict(file_system.kwargs)
    # Sizes, ranges and checksums are those of the file as it is stored.
    given["headers"] = {**given.get("headers", {}), "Accept-Encoding": "identity", **headers}
    session = await file_system.set_session()
    async with session.get(file_system.encode_url(url), **given) as answer:
        yield answer


def is_s3(file_system: Any) -> bool:
    """Whether a file system is s3fs's."""
    protocol = getattr(file_system, "protocol", "")
    return "s3" in ((protocol,) if isinstance(protocol, str) else protocol) and hasattr(file_system, "_call_s3")


async def part_of_object(file_system: Any, path: str, start: int, stop: int, version: str) -> bytes:
    """As s3fs reads a range, which drops what the answer says of the version."""
    return (await start_of_object(file_system, path, start, stop, version)).data


async def start_of_object(file_system: Any, path: str, start: int, stop: int, version: str = "") -> Told:
    """A range of an object of S3, fewer bytes at its end, and what the same answer says of all of it."""
    bucket, key, number = file_system.split_path(path)
    which = {"VersionId": number} if number else {}
    answer = await file_system._call_s3(
        "get_object", Bucket=bucket, Key=key, Range=f"bytes={start}-{stop - 1}", **which
    )
    async with answer["Body"] as body:
        _refuse_other(path, version, {"ETag": answer.get("ETag")})
        data: bytes = await body.read()
    place = _CONTENT_RANGE.fullmatch(answer.get("ContentRange", ""))
    size = int(place[3]) if place and int(place[1]) == start and place[3] != "*" else None
    return Told(data, {"size": size, "ETag": answer.get("ETag"), "LastModified": answer.get("LastModified")})


def _refuse_other(url: str, version: str, told: Mapping[str, Any]) -> None:
    """See that a file still has its version, as far as what is told of it now says anything of that."""
    for fact in version_facts(told):
        name = fact.partition("=")[0]
        # A weak tag stands for the same bytes where these come as they are stored.
        if f"{name}=" in version and fact.replace("=W/", "=") not in version.replace("=W/", "="):
            raise SourceChangedError(
                f"{url}: {fact}, wanted {version}: it was replaced or written to while it was read. Open the dataset "
                "again to read it as it is now."
            )


async def part_of_file(file_system: Any, url: str, start: int, stop: int, size: int | None, version: str) -> bytes:
    """As `read_part`, of a web server, among its requests."""
    async with answered(file_system, url, {"Range": f"bytes={start}-{stop - 1}"}) as answer:
        if answer.status == 416:
            raise WholeBodyError(_ignored(url, start, stop))
        file_system._raise_not_found_for_status(answer, url)
        _refuse_other(url, version, {"ETag": answer.headers.get("ETag")})
        found = size_of(answer)
        if size is not None and found is not None and found != size:
            raise ChecksumError(
                f"{url}: {found} bytes, wanted {size}. Upload the file again, or re-create the manifest with "
                "'epistream index URL --overwrite' if it was changed on purpose."
            )
        if found is not None and found < stop:
            raise FetchError(f"{url}: ends at byte {found}, wanted bytes {start}-{stop}. Upload the file again.")
        # An answer that does not say which bytes it has may have any.
        is_other = range_of(answer) != (start, stop) if answer.status == 206 else start > 0
        if is_other or (answer.content_length or 0) > stop - start:
            raise WholeBodyError(_ignored(url, start, stop))
        data = await up_to(answer, stop - start)
        if data is None:
            raise WholeBodyError(_ignored(url, start, stop))
        return data


def range_of(answer: Any) -> tuple[int, int] | None:
    """The half-open range of bytes that a server says it sends."""
    found = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", "").strip())
    return None if found is None else (int(found[1]), int(found[2]) + 1)


def size_of(answer: Any) -> int | None:
    """Bytes of the whole file, as a web server tells them."""
    if answer.headers.get("Content-Encoding", "identity") not in ("", "identity"):
        return None
    if answer.status != 206:
        length: int | None = answer.content_length
        return length
    found = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", "").strip())
    return int(found[3]) if found and found[3] != "*" else None


async def _head(file_system: Any, url: str, size: int) -> bytes:
    # Without a range where a server cannot do with one, or sends less, or where there is no first byte.
    for headers in ({"Range": f"bytes=0-{size - 1}"}, {}):
        async with answered(file_system, url, headers) as answer:
            if headers and answer.status == 416:
                continue
            file_system._raise_not_found_for_status(answer, url)
            if answer.status == 206 and range_of(answer) not in ((0, size), (0, size_of(answer))):
                continue
            data = bytearray()
            while len(data) < size and (piece := await answer.content.read(size - len(data))):
                data += piece
            return bytes(data)
    raise WholeBodyError(_ignored(url, 0, size))


async def _all(file_system: Any, url: str, most: int) -> "Told":
    async with answered(file_system, url, {}) as answer:
        file_system._raise_not_found_for_status(answer, url)
        size = answer.content_length
        if size is not None and size > most:
            raise TooLongError(_too_long(url, size, most))
        data = await up_to(answer, most)
        if data is None:
            raise TooLongError(_too_long(url, None, most))
        return Told(data, facts_of(answer))


async def up_to(answer: Any, most: int) -> bytes | None:
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


def copy_all(file_system: Any, path: str, fd: int, most: int, limit_s: float, version: str = "") -> None:
    """Write a file, of no more than `most` bytes, into another that is open, in place of what that holds.

    Raises:
        SourceChangedError: A web server says that it is of another version than was given.
        TooLongError: It is longer.
        NoSpaceError: There is no room for it.
        Exception: Whatever the file system raises.
    """
    os.ftruncate(fd, 0)
    if not is_http(file_system):
        _write(fd, read_all(file_system, path, most, limit_s), 0, path)
        return

    # A descriptor of its own: who is interrupted closes `fd`, whose number may be another file's a moment later.
    own = os.fdopen(os.dup(fd), "wb", buffering=0)

    async def copy() -> None:
        position = 0
        with own:
            async with answered(file_system, path, {}) as answer:
                file_system._raise_not_found_for_status(answer, path)
                _refuse_other(path, version, {"ETag": answer.headers.get("ETag")})
                if (answer.content_length or 0) > most:
                    raise TooLongError(_too_long(path, answer.content_length, most))
                async for piece in answer.content.iter_chunked(_PIECE_BYTES):
                    if position + len(piece) > most:
                        raise TooLongError(_too_long(path, None, most))
                    _write(own.fileno(), piece, position, path)
                    position += len(piece)

    run(file_system, copy, limit_s)


def _write(fd: int, data: bytes, position: int, url: str) -> None:
    view = memoryview(data)
    try:
        while view:
            written = os.pwrite(fd, view, position)
            view, position = view[written:], position + written
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise NoSpaceError(
            f"{url}: {error.strerror} after {size_text(position)} of it, wanted room for a copy. {MORE_ROOM}"
        ) from error
