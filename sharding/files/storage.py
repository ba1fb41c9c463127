"""Files of a dataset, wherever they are: read whole or in part, written atomically, listed, lent as local paths."""

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from epistream.access import Access, placed_link, without_secrets
from epistream.bodies import copy_all, is_http, persist, read_all, read_head, retries_of
from epistream.errors import EpistreamError, SourceError
from epistream.file_systems import advice_on, ask, limit_of, local_path, may_pass, open_file_system, protocol_of, retry
from epistream.plain_files import not_a_plain_file
from epistream.sharding.files.names import temporary_name
from epistream.whole_files import PartsOfFile

Options = Mapping[str, Any] | None
# What a file is to hold: all of it, or what writes it bit by bit.
Content = bytes | Callable[[BinaryIO], None]

# Here a reader can see a file that is half written. Everything else that fsspec offers publishes an object when its
# upload is complete, and has no rename that is cheaper or safer than that.
_NEEDS_RENAME = frozenset({"sftp", "ssh", "smb", "ftp", "hdfs", "arrow_hdfs", "webhdfs"})
# Tries of one upload, each of which may take as long as one whose server says nothing.
_ATTEMPTS = 3
# Nobody reads more at once who does not say how much he expects.
_MOST_BYTES = 1 << 30
# No file of unknown size that is larger is copied.
_MOST_COPIED = 1 << 40


def join(url: str, name: str) -> str:
    """The URL of `name` in the folder `url`. Of a chained URL (``a://b::c://d``) the first part is the folder.

    A link without a place of its own (``simplecache::s3://bucket/x``) leaves that to the next one.
    """
    before, head, after = placed_link(url)
    return f"{before}{head.rstrip('/')}/{name}{after}"


def parent_and_name(url: str) -> tuple[str, str]:
    """The inverse of `join`."""
    before, head, after = placed_link(url)
    folder, slash, name = head.rpartition("/")
    return f"{before}{folder or slash or '.'}{after}", name


def read_bytes(url: str, options: Options = None, most: int = _MOST_BYTES, size: int | None = None) -> bytes | None:
    """The contents of `url`; None when there is no such file. A remote one has at most `size`, else `most` bytes.

    Remote files are tried as hard as shards: as the options say (see `Access.trying`), by default six times, 60 s each,
    600 s in all; and so in all functions that read.

    Raises:
        OptionError: If the URL's scheme is unknown, or its package is not installed.
        SourceError: If it cannot be read, or is longer.
    """
    path = local_path(url)
    with errors_of(url, "wanted to read it.", options):
        try:
            if path is not None:
                _refuse_what_is_no_file(url, path)
                return path.read_bytes()
            file_system, target = open_file_system(url, options)
            longest = most if size is None else size
            return persist(retries_of(options), partial(read_all, file_system, target, longest), size or 0)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return None


def read_start(url: str, size: int, options: Options = None) -> bytes | None:
    """The first `size` bytes of `url`, or all of it where it is shorter; None when there is no such file.

    Raises:
        OptionError, SourceError: As `read_bytes`.
    """
    path = local_path(url)
    with errors_of(url, f"wanted up to {size:,} bytes of it.", options):
        try:
            if path is not None:
                _refuse_what_is_no_file(url, path)
                with path.open("rb") as file:
                    return file.read(size)
            file_system, target = open_file_system(url, options)
            return persist(retries_of(options), partial(read_head, file_system, target, size), size)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return None


def is_there(url: str, options: Options = None) -> bool:
    """Whether there is a file at `url`, of which no more than a byte is read.

    Raises:
        OptionError, SourceError: As `read_bytes`.
    """
    return read_start(url, 1, options) is not None


def write_atomic(url: str, data: bytes, options: Options = None) -> None:
    """Write `data` so that a reader sees the old file or the whole new one, also after a crash.

    Raises:
        OptionError: As `read_bytes`.
        SourceError: If it cannot be written; nothing is left behind.
    """
    path = local_path(url)
    with errors_of(url, f"wanted to write {len(data):,} bytes.", options, "Check room and permissions."):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_local(path, data, sync=True)
            return
        file_system, target = open_file_system(url, options)
        if protocol_of(url) in _NEEDS_RENAME:
            folder, slash, name = target.rpartition("/")
            temporary = f"{folder}{slash}{temporary_name(name)}"
            ask(file_system, "pipe_file", temporary, data, limit_s=limit_of(len(data)))
            ask(file_system, "mv", temporary, target)
        else:
            _ask(file_system, "pipe_file", target, data, num_bytes=len(data))


def write_local(path: Path, data: Content, *, sync: bool, time_ns: int | None = None) -> None:
    """Put a file in place whole; with `sync`, also for whoever reads it after a power cut; with a time of writing."""
    temporary = path.with_name(temporary_name(path.name))
    try:
        with temporary.open("wb") as file:
            if callable(data):
                data(file)
            else:
                file.write(data)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        if time_ns is not None:
            os.utime(temporary, ns=(time.time_ns(), time_ns))
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if sync:  # the rename itself is only safe once the folder is on disk too
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def list_names(url: str, options: Options = None) -> list[str] | None:
    """File names in the folder `url`, sorted; None when it does not exist or cannot be listed."""
    path = local_path(url)
    try:
        if path is not None:
            return sorted(entry.name for entry in path.iterdir()) if path.is_dir() else None
        file_system, target = open_file_system(url, options)
        file_system.invalidate_cache()  # it may remember the folder as it was before we wrote to it
        listed = ask(file_system, "ls", target, detail=False)
        names = (without_secrets(str(entry)).rstrip("/").rsplit("/", 1)[-1] for entry in listed)
        return sorted(name for name in names if name)
    except Exception:  # only ever used to say more in a message
        return None


def remove_quietly(url: str, options: Options = None) -> None:
    """Remove a file that nothing refers to; failing to is harmless."""
    with contextlib.suppress(Exception):
        file_system, target = open_file_system(url, options)
        ask(file_system, "rm_file", target)


def remove_folder(url: str, options: Options = None) -> None:
    """Remove a folder of files that nothing refers to, with those, and no link; failing to is harmless."""
    path = local_path(url)
    if path is not None and path.is_symlink():
        return
    for name in list_names(url, options) or ():
        remove_quietly(join(url, name), options)
    if path is not None:
        with contextlib.suppress(OSError):
            path.rmdir()


def read_range(url: str, start: int, size: int, options: Options = None, version: str = "") -> bytes:
    """`size` bytes of `url` from `start` on.

    Args:
        url: The file.
        start: First byte.
        size: How many.
        options: For fsspec.
        version: Of a remote file, as `versioned_files` tells it: others than of this one are refused.

    Raises:
        OptionError: As `read_bytes`.
        SourceChangedError: If it is of another version.
        SourceError, FetchError: If the file is missing, shorter, or cannot be read.
    """
    path = local_path(url)
    with errors_of(url, f"wanted {size:,} bytes of it.", options):
        if path is not None:
            _refuse_what_is_no_file(url, path)
            with path.open("rb") as file:
                file.seek(start)
                data = file.read(size)
        else:
            data = PartsOfFile(url, options, version=version).read(start, start + size)
    if len(data) != size:
        raise SourceError(f"{url}: {len(data):,} bytes at {start:,}, wanted {size:,}. Run 'epistream verify'.")
    return data


@contextlib.contextmanager
def local_copy(url: str, options: Options = None) -> Iterator[Path]:
    """The path of `url`, or of a temporary copy with the same file name.

    Raises:
        SourceError: If there is no such file, or it cannot be fetched.
        OptionError: As `read_bytes`.
    """
    path = local_path(url)
    if path is not None:
        problem = not_a_plain_file(path)
        if problem:
            wanted = "." if problem == "no such file" else ", wanted a file. Check the path."
            raise SourceError(f"{url}: {problem}{wanted}")
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="epistream-") as folder:
        copy = Path(folder) / parent_and_name(url)[1]
        fetch_into(url, copy, options)
        yield copy


def fetch_into(url: str, copy: Path, options: Options = None) -> None:
    """Copy a remote file into a local one.

    Raises:
        SourceError: If there is no such file, or it cannot be fetched.
        OptionError: As `read_bytes`.
    """
    with errors_of(url, "wanted to fetch it.", options):
        try:
            _fetch(url, copy, options)
        except FileNotFoundError as error:
            raise SourceError(f"{url}: no such file.") from error


def _fetch(url: str, copy: Path, options: Options) -> None:
    """Bring a whole file, however large: a slow network takes longer for more."""
    file_system, source = open_file_system(url, options)
    retries = retries_of(options)
    info = persist(retries, lambda limit_s: ask(file_system, "info", source, limit_s=limit_s))
    size = info.get("size")
    retries = replace(retries, timeout_s=retries.timeout_s + limit_of(size or 0) - limit_of(0))
    if not is_http(file_system):
        persist(retries, lambda limit_s: ask(file_system, "get_file", source, str(copy), limit_s=limit_s), size)
        return
    with copy.open("wb") as file:
        fd, most = file.fileno(), _MOST_COPIED if size is None else size
        persist(retries, lambda limit_s: copy_all(file_system, source, fd, most, limit_s), size)
        if size is not None and os.fstat(fd).st_size < size:
            raise SourceError(f"{url}: ends at byte {os.fstat(fd).st_size}, wanted {size}. Upload the file again.")


def _refuse_what_is_no_file(url: str, path: Path) -> None:
    """Before it is opened: a FIFO would never answer. What opening it says is left to opening it."""
    problem = not_a_plain_file(path)
    if problem and problem not in ("no such file", "a folder"):
        raise SourceError(f"{url}: {problem}, wanted a file. Check the path.")


@contextlib.contextmanager
def errors_of(
    url: str, wanted: str, options: Options, otherwise: str = "Check access and storage_options."
) -> Iterator[None]:
    """Whatever a file system raises, as an error of ours that names the URL."""
    try:
        yield
    except EpistreamError:
        raise
    except Exception as error:  # each file system of fsspec has errors of its own
        if may_pass(error) and Access.of(options).retries is not None:
            otherwise = f"{otherwise} Or allow more time and tries with CacheOptions(fetch_timeout_s, attempts)."
        advice = advice_on(error, url, options, otherwise)
        raise SourceError(f"{url}: {type(error).__name__}: {error}, {wanted} {advice}") from error


def _ask(file_system: Any, question: str, *arguments: Any, num_bytes: int = 0, **options: Any) -> Any:
    """As `ask`, for a transfer of so many bytes, up to three times; what cannot change by waiting is raised at once."""
    limit_s = limit_of(num_bytes)
    return retry(
        lambda: ask(file_system, question, *arguments, limit_s=limit_s, **options),
        attempts=_ATTEMPTS,
        deadline=time.monotonic() + _ATTEMPTS * limit_s,
    )
