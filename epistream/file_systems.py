"""File systems behind URLs: which are local, how remote ones are opened, asked, and asked again when they fail."""

import asyncio
import concurrent.futures
import os
import re
import time
from collections.abc import Callable, Coroutine, Mapping
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from fsspec.core import url_to_fs
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from epistream.access import Access, as_sent, chain_of
from epistream.errors import EpistreamError, OptionError
from epistream.shown_errors import clearly
from epistream.shown_urls import WEB

T = TypeVar("T")

_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "hf": "hf"}
# No small file, listing or property takes so long; a connection that died without a word does.
_REQUEST_S = 60.0
# A transfer that is slower is as good as dead.
_SLOWEST_BYTES_PER_S = 1 << 18
# How long after its own deadline a request may take to be called off.
_GRACE_S = 5.0

# The protocol of a URL, or of the first link of a chained one.
_PROTOCOL = re.compile(r"([A-Za-z][A-Za-z0-9+._-]*)(?:://|::)")
_FILE_PREFIX = re.compile(r"\A(?:file|local):(?://)?")
# What file systems call that which differs between two contents of a URL.
_VERSION_NAMES = (
    *("ETag", "etag", "checksum", "md5", "sha256", "crc32c", "blob_id", "generation"),
    *("mtime", "LastModified", "last_modified", "updated", "created"),
)
# Errors that another try does not change; a file system's own are passing unless their HTTP status says otherwise.
_LASTING = (
    *(FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ImportError, ValueError),
    EpistreamError,
)
# HTTP answers that another try may change: timeout, too early, too many requests, and the server's own faults.
_PASSING_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})

# A forked child shares the kernel's event queue with its parent. fsspec forgets its file systems in the child; their
# connections are closed there when they die, and the parent never hears from its own copies again: its next request
# waits for ever. So none of them may die.
_opened: dict[int, Any] = {}


def protocol_of(url: str) -> str:
    """``s3`` for ``s3://bucket/x``, ``simplecache`` for ``simplecache::s3://bucket/x``, ``file`` for a path."""
    found = _PROTOCOL.match(url)
    return found[1] if found else "file"


def local_path(url: str) -> Path | None:
    """The path behind a path or a file URL, read as fsspec reads them; None for anything else.

    ``/a``, ``a``, ``~/a``, ``file:///a`` and ``file:/a`` (RFC 8089), ``local://...`` likewise. A relative path stays
    one. ``%20`` stands for itself: fsspec decodes nothing, and names of files may hold it. Chained URLs are remote.
    """
    found = _PROTOCOL.match(url)
    if found and ("::" in url or found[1] not in ("file", "local")):
        return None
    return Path(os.path.expanduser(_FILE_PREFIX.sub("", url)))  # noqa: PTH111, an unknown ~name is a name


def version_facts(info: Mapping[str, Any]) -> list[str]:
    """What tells one content of a URL from another, as "name=value", of what a file system tells of it."""
    return [f"{name}={info[name]}" for name in _VERSION_NAMES if info.get(name)]


def is_same_version(found: str | None, wanted: str | None) -> bool:
    """Whether two versions of a file, facts with ";" between, differ in nothing that both tell.

    Servers tell more of a file when they send it than when they are asked about it, or the other way round. A weak tag
    stands for the same bytes where these come as they are stored.
    """
    if found is None or wanted is None or not all("bytes=" in one for one in (found, wanted)):
        return found == wanted  # no facts
    told = dict(fact.partition("=")[::2] for fact in found.replace("=W/", "=").split(";"))
    asked = (fact.partition("=")[::2] for fact in wanted.replace("=W/", "=").split(";"))
    return all(told.get(name, value) == value for name, value in asked)


def open_file_system(url: str, options: Mapping[str, Any] | None = None) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the URL's path in it.

    Args:
        url: any that fsspec knows.
        options: what fsspec calls ``storage_options``, flat or by protocol, and what was taken out of the URL.

    Raises:
        OptionError: its scheme is unknown, its package is not installed, or it does not know an option.
    """
    access = Access.of(options)
    try:
        file_system, path = clearly(lambda: _open(access.opened(url), access.options_for(url)), access)
    except ImportError as error:
        protocol = protocol_of(url)
        extra = _EXTRAS.get(protocol)
        remedy = f"Run: pip install 'epistream[{extra}]'." if extra else f"{error}."
        raise OptionError(f"{url}: the package for {protocol}:// is not installed. {remedy}") from error
    except (ValueError, TypeError) as error:
        raise OptionError(f"{url}: {error}. Check the URL and storage_options.") from error
    if getattr(file_system, "async_impl", False):  # others have no connections in that queue
        _opened[id(file_system)] = file_system
    return file_system, path


def _open(url: str, options: dict[str, Any]) -> tuple[Any, str]:
    protocol = protocol_of(url)
    if protocol not in WEB or len(chain_of(url)) > 1:
        found: tuple[Any, str] = url_to_fs(url, **options)
        return found
    if "?" in url:
        # aiohttp writes queries anew, and a signature is of one way to write it.
        options.setdefault("encoded", True)
    # What looks like a chain to fsspec may be a query or an address.
    return fsspec.filesystem(protocol, **options), _as_sent(url) if options.get("encoded") else url


def _as_sent(url: str) -> str:
    """A URL whose query is sent as it stands; its path and what may never be sent are quoted, as everywhere."""
    import yarl

    plain, mark, query = url.partition("?")
    return str(yarl.URL(plain)) + mark + as_sent(query)


def refusal_in(error: BaseException | None) -> BaseException | None:
    """The answer of a server that lets nobody in, among what an error came of: fsspec may call such files missing."""
    while error is not None:
        status = getattr(error, "status", None)
        if isinstance(status, int) or isinstance(error, PermissionError):
            return error if status in (None, 400, 401, 403) else None
        error = error.__cause__
    return None


def advice_on(error: Exception, url: str, options: Mapping[str, Any] | None, otherwise: str) -> str:
    """What to do about an error of a server: what it says of signatures, if it is about these, or else `otherwise`."""
    access, refused = Access.of(options), refusal_in(error)
    if refused is None:
        return otherwise
    if access.is_signed(url):
        return (
            "Its signature (what follows ? in the URL) has expired, or is that of another file: sign the URL again. "
            "What was read before and states that were saved stay good."
        )
    return advice_on_unsigned(url, access) or otherwise


def advice_on_unsigned(url: str, access: Access) -> str | None:
    """What to do about a file that a server does not show, if it has no signature where others have one each."""
    if access.is_signed(url) or not any(secret.query for secret in access.secrets.values()):
        return None
    return (
        "It has no signature, and those given are of other files: sign the folder, or put the signed URLs of all "
        "its files into the list: dataset.json, dataset-*.tables, shard-*.index and shard-*.tar."
    )


def limit_of(num_bytes: int) -> float:
    """Seconds after which a transfer of so many bytes is given up."""
    return _REQUEST_S + num_bytes / _SLOWEST_BYTES_PER_S


def ask(file_system: Any, question: str, *arguments: Any, limit_s: float | None = None, **options: Any) -> Any:
    """Call a method of a file system, and give it up where the file system can be interrupted.

    Args:
        file_system: Of fsspec's.
        question: The name of the method.
        arguments: For it.
        limit_s: When it is given up; that of a small file unless given.
        options: For it.

    Raises:
        TimeoutError: no answer in time.
        Exception: whatever the file system raises.
    """
    return clearly(
        lambda: _ask(file_system, question, *arguments, limit_s=limit_s, **options),
        getattr(file_system, "storage_options", None),
        *(argument for argument in arguments if isinstance(argument, str)),
    )


def _ask(file_system: Any, question: str, *arguments: Any, limit_s: float | None, **options: Any) -> Any:
    if not getattr(file_system, "async_impl", False) or getattr(file_system, "asynchronous", False):
        return getattr(file_system, question)(*arguments, **options)
    limit_s = limit_of(0) if limit_s is None else limit_s
    return _run(file_system, lambda: getattr(file_system, f"_{question}")(*arguments, **options), limit_s)


def run(file_system: Any, request_of: Callable[[], Coroutine[Any, Any, T]], limit_s: float) -> T:
    """What a coroutine gives that runs among those of an asynchronous file system; errors as those of `ask`."""
    return clearly(lambda: _run(file_system, request_of, limit_s), getattr(file_system, "storage_options", None))


def _run(file_system: Any, request_of: Callable[[], Coroutine[Any, Any, T]], limit_s: float) -> T:
    # Not through fsspec's own timeout, which forgets the request but may leave it running.
    request = asyncio.run_coroutine_threadsafe(asyncio.wait_for(request_of(), limit_s), file_system.loop)
    try:
        return request.result(limit_s + _GRACE_S)
    except (asyncio.TimeoutError, concurrent.futures.TimeoutError) as error:  # both are TimeoutError from 3.11 on
        if getattr(error, "errno", None):  # the kernel's own, of a connection that could not be made
            raise
        raise TimeoutError(f"no answer within {limit_s:.3g} s") from error
    finally:
        request.cancel()  # of one that was answered, nothing; of one that nobody waits for any more, as after Ctrl-C


def may_pass(error: BaseException | None) -> bool:
    """Whether another try may do better."""
    if isinstance(error, _LASTING) or not isinstance(error, Exception):
        return False
    status = getattr(error, "status", None)
    if status is None:  # errors of a hub's client have the answer instead
        status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 0 and getattr(error, "history", ()):  # redirects that go round in circles: no answer came of them
        return False
    return not (isinstance(status, int) and status >= 300 and status not in _PASSING_STATUS)


def retry(
    action: Callable[[], T],
    *,
    attempts: int,
    deadline: float,
    pauses_s: tuple[float, float] = (0.2, 2.0),
    note: Callable[[BaseException | None, int], None] | None = None,
) -> T:
    """Run `action` until it succeeds, fails for good, or the tries or the time run out; raises its last error then.

    A server that says how long it wants to be left alone is left alone; if that is beyond the deadline, it is over.

    Args:
        action: One try.
        attempts: Most of them.
        deadline: On ``time.monotonic()``: no try begins after it.
        pauses_s: Mean scale of the first pause, doubled each time, with full jitter; and the longest.
        note: Told the error of each try that another one follows, and how many there were.
    """

    def error_of(state: RetryCallState) -> BaseException | None:
        return state.outcome.exception() if state.outcome else None

    backoff = wait_random_exponential(pauses_s[0], max=pauses_s[1])
    tries = Retrying(
        stop=lambda state: stop_after_attempt(attempts)(state) or time.monotonic() + state.upcoming_sleep >= deadline,
        # Never earlier than the server asks, and still not all at once.
        wait=lambda state: _asked_pause_s(error_of(state)) + backoff(state),
        retry=retry_if_exception(may_pass),
        before_sleep=lambda state: note(error_of(state), state.attempt_number) if note else None,
        reraise=True,
    )
    return tries(action)


def _asked_pause_s(error: BaseException | None) -> float:
    """Seconds that a server which is busy asks to be left alone for: its ``Retry-After``, a number or a date; else 0.

    Source: RFC 9110, section 10.2.3.
    """
    headers = getattr(error, "headers", None)
    asked = headers.get("Retry-After") if isinstance(headers, Mapping) else None
    if asked is None or getattr(error, "status", None) not in (429, 503):
        return 0.0
    if asked.strip().isdecimal():
        return float(asked)
    try:
        return max(0.0, parsedate_to_datetime(asked).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return 0.0
