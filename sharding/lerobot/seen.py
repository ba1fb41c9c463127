"""Versions and sizes of remote files as this process saw them last: each look takes a request."""

from collections.abc import Iterable, Mapping

from epistream.errors import EpistreamError
from epistream.file_systems import local_path
from epistream.sharding.files.storage import Options, join
from epistream.sharding.files.versioned_files import version_and_bytes
from epistream.sharding.lerobot_meta.meta_files import at_once

_MISSING = "Download it again, or leave its episodes out (a stream does so with on_bad='skip')."
# By URL. Plain reads and writes, which no fork leaves half done. What is read of a file afterwards is compared with its
# version, so that what was seen long ago does no harm.
_seen: dict[str, tuple[str, int]] = {}
_MOST_SEEN = 1 << 14


def look(root: str, name: str, options: Options, what: str, *, afresh: bool = True) -> tuple[str, int]:
    """Version and size of a file of a data set; of a remote one as it was seen last, unless `afresh`.

    Raises:
        SourceError, FetchError: As `version_and_bytes`; `what` it should be, for messages.
    """
    url = join(root, name)
    seen = None if afresh else _seen.get(url)
    if seen is None:
        seen = version_and_bytes(url, options, what, _MISSING)
        if local_path(url) is None:
            if len(_seen) >= _MOST_SEEN:
                _seen.clear()
            _seen[url] = seen
    return seen


def look_at_all(root: str, names: Mapping[str, str], options: Options) -> dict[str, EpistreamError]:
    """See remote files that were not seen yet, many at the same time.

    Args:
        root: Of the data set.
        names: What each file should be, by its path in the data set.
        options: For fsspec.

    Returns:
        What went wrong, by path.
    """
    failed: dict[str, EpistreamError] = {}

    def see(name: str) -> None:
        try:
            look(root, name, options, names[name], afresh=False)
        except EpistreamError as error:
            failed[name] = error

    at_once(see, [name for name in names if join(root, name) not in _seen])
    return failed


def forget(urls: Iterable[str]) -> None:
    """Look at some files anew when they are wanted next."""
    for url in urls:
        _seen.pop(url, None)


def forget_set(root: str) -> None:
    """The same for all files of a data set."""
    before, _, after = join(root, "\0").partition("\0")
    forget([url for url in list(_seen) if url.startswith(before) and url.endswith(after)])
