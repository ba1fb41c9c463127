"""Ranged reads of any fsspec URL: with a deadline, retries, and no faith in the server."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

from epistream.access import Access, RetryOptions
from epistream.bodies import WholeBodyError, read_part
from epistream.errors import EpistreamError, FetchError, SourceError
from epistream.file_systems import advice_on, ask, may_pass, open_file_system, retry, version_facts
from epistream.shown_errors import clearly
from epistream.whole_files import WholeFile

__all__ = ["Remote", "RetryOptions", "WholeBodyError"]

T = TypeVar("T")

logger = logging.getLogger(__name__)


class Remote:
    """Reads ranges of URLs. One per process, made after fork: fsspec's event loop does not survive it.

    Args:
        storage_options: As fsspec's users know them, for every URL; or one mapping per protocol
            (``{"s3": {...}, "https": {...}}``).
        options: Retries and deadlines.
    """

    def __init__(self, storage_options: Mapping[str, Any] | None, options: RetryOptions) -> None:
        self.options = options
        self._access = Access.of(storage_options)
        self._mutex = threading.Lock()
        self.num_retries = 0

    def read_range(
        self,
        url: str,
        start: int,
        stop: int,
        deadline: float | None = None,
        *,
        size: int | None = None,
        version: str = "",
    ) -> bytes:
        """Bytes [start, stop) of a URL.

        Args:
            url: Any URL of fsspec's.
            start: First byte.
            stop: One after the last.
            deadline: On ``time.monotonic()``; ``timeout_s`` from now unless given.
            size: Bytes that the file should have, if that is known.
            version: What `version_facts` told of the file, if that is known.

        Raises:
            ChecksumError: The server says that the file has another size.
            SourceChangedError: It says that it is of another version.
            FetchError: Not had within the tries and the deadline; the message has the last reason.
            SourceError: It is not there, or may not be read.
            WholeBodyError: The server does not know ranges; only if less than everything was asked for.
        """
        deadline = time.monotonic() + self.options.timeout_s if deadline is None else deadline
        what = f"{url}: bytes {start}-{stop}"
        return self.retry(lambda: self._read_once(url, (start, stop), deadline, size, version), what, deadline)

    def whole_file(self, url: str, num_bytes: int, version: str) -> WholeFile:
        """A file that is read from a copy, because its server knows no ranges.

        Args:
            url: The file.
            num_bytes: Its size.
            version: What differs between two contents of it.
        """
        return WholeFile(url, self._access, num_bytes, version, self.options)

    def version(self, url: str) -> str:
        """What tells one content of a URL from another: ETag, checksum or modification time, with the size."""
        deadline = time.monotonic() + self.options.timeout_s

        def identify() -> str:
            fs, path = self._file_system(url)
            info = ask(fs, "info", path, limit_s=self.options.request_timeout_s)
            return ";".join([f"size={info.get('size')}", *version_facts(info)])

        return self.retry(identify, f"{url}: its size and version", deadline)

    def open_stream(self, url: str, size: int, deadline: float) -> Any:
        """A file object that reads the URL, of `size` bytes, from its beginning; the caller closes it."""
        fs, path = self._file_system(url)
        if "http" not in fs.protocol:
            return fs.open(path, "rb")
        from aiohttp import ClientTimeout

        limit_s = max(0.01, deadline - time.monotonic())
        silence_s = min(self.options.request_timeout_s, limit_s)
        timeout = ClientTimeout(total=limit_s, sock_connect=silence_s, sock_read=silence_s)
        # HTTP file objects read ranges unless told that there are no blocks, and ask for a size that is not told.
        return fs.open(path, "rb", block_size=0, size=size, timeout=timeout)

    def retry(self, action: Callable[[], T], what: str, deadline: float) -> T:
        """Run `action` until it succeeds, fails for good, or the tries or the time run out.

        Args:
            action: One try.
            what: Names it in messages.
            deadline: On ``time.monotonic()``.

        Raises:
            FetchError: The tries or the time ran out; the message has the last reason.
            SourceError: It failed for good.
        """
        num_tries = 1

        def note(error: BaseException | None, number: int) -> None:
            nonlocal num_tries
            num_tries = number + 1
            with self._mutex:
                self.num_retries += 1
            logger.info("%s: %s; try %d follows.", what, _describe(error), num_tries)

        options = self.options
        pauses_s = options.first_pause_s, options.longest_pause_s
        try:
            shown = partial(clearly, action, self._access)
            return retry(shown, attempts=options.attempts, deadline=deadline, pauses_s=pauses_s, note=note)
        except EpistreamError:
            raise
        except Exception as error:
            if not may_pass(error):
                advice = advice_on(error, what.partition(": ")[0], self._access, "Check the URL and the credentials.")
                raise SourceError(f"{what}: {_describe(error)}, wanted to read it. {advice}") from error
            raise FetchError(
                f"{what}: {_describe(error)} after {num_tries} tries, wanted the bytes. Check the server, or allow "
                "more with fetch_timeout_s."
            ) from error

    def _read_once(self, url: str, part: tuple[int, int], deadline: float, size: int | None, version: str) -> bytes:
        fs, path = self._file_system(url)
        limit_s = max(0.01, min(self.options.request_timeout_s, deadline - time.monotonic()))
        # The hub's files read five MiB ahead unless told not to: each chunk twice, and each block eighty times.
        extra: dict[str, Any] = {"cache_type": "none"} if fs.protocol == "hf" else {}
        return read_part(fs, path, *part, limit_s, size=size, version=version, **extra)

    def _file_system(self, url: str) -> tuple[Any, str]:
        return open_file_system(url, self._access)


def _describe(error: BaseException | None) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
