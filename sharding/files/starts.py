"""The first bytes of remote files, many at a time, with sizes and versions: nobody has to ask for these before."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from epistream.bodies import (
    Told,
    answered,
    facts_of,
    is_http,
    is_s3,
    part_of_file,
    part_of_object,
    range_of,
    retries_of,
    start_of_object,
    up_to,
)
from epistream.file_systems import open_file_system, run
from epistream.sharding.files.storage import Options
from epistream.sharding.files.versioned_files import told_version

# Requests at a time. They wait for the network nearly always, all in one thread.
_AT_ONCE = 32

# Given the first bytes of a file and the size of it, the half-open range of bytes that is wanted then.
Then = Callable[[bytes, int], tuple[int, int] | None]
# Of each file how many first bytes are wanted, and what then.
Wanted = Mapping[str, tuple[int, Then | None]]


class Start(NamedTuple):
    """What was brought of a file.

    Attributes:
        version: What tells its contents from others', as `versioned_files.version_and_bytes` has it.
        num_bytes: Its size.
        parts: Bytes by where they begin; none where the server sends all of a file or nothing.
    """

    version: str
    num_bytes: int
    parts: tuple[tuple[int, bytes], ...]


def read_starts(wanted: Wanted, options: Options = None) -> dict[str, Start]:
    """The first bytes of files by URL, and what is wanted then: of web servers and S3, each with at most two requests.

    The answer to the first one tells size and version, and the second is refused by any other version, so that all that
    is brought of a file is of one. Each request is made once: what is not had so, for whatever reason, is left out, and
    whoever needs it asks for it by itself, with all tries that the options allow.
    """
    found: dict[str, Start] = {}
    by_system: dict[int, tuple[Any, list[tuple[str, str]]]] = {}
    for url in wanted:
        file_system, target = open_file_system(url, options)
        if is_http(file_system) or is_s3(file_system):  # others do not tell a version with the bytes
            by_system.setdefault(id(file_system), (file_system, []))[1].append((url, target))
    limit_s = retries_of(options).request_timeout_s
    for file_system, places in by_system.values():
        with contextlib.suppress(TimeoutError):
            run(file_system, partial(_read_all, file_system, places, wanted, found), limit_s)
    return dict(found)  # nothing comes of a request that is given up


async def _read_all(file_system: Any, places: list[tuple[str, str]], wanted: Wanted, found: dict[str, Start]) -> None:
    free = asyncio.Semaphore(_AT_ONCE)

    async def read(url: str, target: str) -> None:
        # Each file system has errors of its own.
        with contextlib.suppress(Exception):
            async with free:
                async for start in _read(file_system, target, *wanted[url]):
                    found[url] = start

    await asyncio.gather(*(read(*place) for place in places))


async def _read(file_system: Any, target: str, size: int, then: Then | None) -> AsyncIterator[Start]:
    """What was brought of one file so far, after each request."""
    told = await (_start_on_web if is_http(file_system) else _start_on_s3)(file_system, target, size)
    if told is None:
        return
    version, num_bytes = told_version(told.info)
    if num_bytes is None:
        return
    start = Start(version, num_bytes, ((0, told.data),) if told.data else ())
    yield start
    place = then(told.data, num_bytes) if then is not None and told.data else None
    if place is None:
        return
    if is_http(file_system):
        more = await part_of_file(file_system, target, *place, num_bytes, version)
    else:
        more = await part_of_object(file_system, target, *place, version)
    if len(more) == place[1] - place[0]:
        yield start._replace(parts=(*start.parts, (place[0], more)))


async def _start_on_web(file_system: Any, target: str, size: int) -> Told | None:
    """No bytes where the server knows no ranges; None where it does not tell of what these are a part."""
    async with answered(file_system, target, {"Range": f"bytes=0-{size - 1}"}) as answer:
        file_system._raise_not_found_for_status(answer, target)
        info = facts_of(answer)
        num_bytes = info["size"]
        if num_bytes is None:
            return None
        if answer.status != 206 and num_bytes > size:
            return Told(b"", info)
        stop = min(size, num_bytes)
        if answer.status == 206 and range_of(answer) != (0, stop):
            return None
        data = await up_to(answer, stop)
        return Told(data, info) if data is not None and len(data) == stop else None


async def _start_on_s3(file_system: Any, target: str, size: int) -> Told | None:
    told = await start_of_object(file_system, target, 0, size)
    num_bytes = told.info["size"]
    return told if num_bytes is not None and len(told.data) == min(size, num_bytes) else None
