"""Remote file systems, opened in one place: safe where processes fork; `ask` gives up what is not answered."""

import asyncio
import concurrent.futures
from collections.abc import Mapping
from typing import Any

from fsspec.core import url_to_fs

from epistream.errors import OptionError

_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "hf": "hf"}
# No small file, listing or property takes so long; a connection that died without a word does.
_REQUEST_S = 60.0
# A transfer that is slower is as good as dead.
_SLOWEST_BYTES_PER_S = 1 << 18
# How long after its own deadline a request may take to be called off.
_GRACE_S = 5.0

# A forked child shares the kernel's event queue with its parent. fsspec forgets its file systems in the child; their
# connections are closed there when they die, and the parent never hears from its own copies again: its next request
# waits for ever. So none of them may die.
_opened: dict[int, Any] = {}


def protocol_of(url: str) -> str:
    """``s3`` for ``s3://bucket/x``, ``file`` for a path."""
    return url.split("://", 1)[0].split("::", 1)[0] if "://" in url else "file"


def open_file_system(url: str, options: Mapping[str, Any] | None = None) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the URL's path in it.

    Args:
        url: any that fsspec knows.
        options: what fsspec calls ``storage_options``.

    Raises:
        OptionError: its scheme is unknown, its package is not installed, or it does not know an option.
    """
    try:
        file_system, path = url_to_fs(url, **dict(options or {}))
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
    if not getattr(file_system, "async_impl", False) or getattr(file_system, "asynchronous", False):
        return getattr(file_system, question)(*arguments, **options)
    limit_s = limit_of(0) if limit_s is None else limit_s
    # Not through fsspec's own timeout, which forgets the request but may leave it running.
    request = asyncio.wait_for(getattr(file_system, f"_{question}")(*arguments, **options), limit_s)
    try:
        return asyncio.run_coroutine_threadsafe(request, file_system.loop).result(limit_s + _GRACE_S)
    except (asyncio.TimeoutError, concurrent.futures.TimeoutError) as error:  # both are TimeoutError from 3.11 on
        if getattr(error, "errno", None):  # the kernel's own, of a connection that could not be made
            raise
        raise TimeoutError(f"no answer within {limit_s:.3g} s") from error
