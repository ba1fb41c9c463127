"""Versions and sizes of remote files as this process saw them last, and first bytes of them: each takes a request.

How a file that changes is found out, with so few requests:

- A set is opened anew: what was seen of its files before is forgotten, and each is looked at when it is wanted.
- A look is a request for the version alone, or for the first bytes, whose answer tells the version as well.
- All that is read of a file later names that version, and an answer of another one is refused.
- What is kept of files holds for an opening if they were seen with these versions after it, by whichever process of the
  node (`is_of_this_opening`); else they are looked at again.
"""

import time
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from epistream.errors import EpistreamError
from epistream.file_systems import local_path
from epistream.sharding.files.starts import Wanted, read_starts
from epistream.sharding.files.storage import Options, join
from epistream.sharding.files.versioned_files import version_and_bytes
from epistream.sharding.lerobot_meta.meta_files import at_once

_MISSING = "Download it again, or leave its episodes out (a stream does so with on_bad='skip')."


class Seen(NamedTuple):
    """What was seen of a file, and when, by `time.time_ns`."""

    version: str
    num_bytes: int
    time_ns: int


Parts = tuple[tuple[int, bytes], ...]

# By URL. Plain reads and writes, which no fork leaves half done. What is read of a file afterwards is compared with its
# version, so that what was seen long ago does no harm.
_seen: dict[str, Seen] = {}
_MOST_SEEN = 1 << 14
# First bytes of files by URL, of which version, until somebody takes them.
_brought: dict[str, tuple[str, Parts]] = {}
_MOST_BROUGHT = 1 << 10
# When data sets were opened last, by root. Workers that are forked have it of their parent.
_opened_ns: dict[str, int] = {}


def look(root: str, name: str, options: Options, what: str, *, afresh: bool = True) -> tuple[str, int]:
    """Version and size of a file of a data set; of a remote one as it was seen last, unless `afresh`.

    Raises:
        SourceError, FetchError: As `version_and_bytes`; `what` it should be, for messages.
    """
    url = join(root, name)
    seen = None if afresh else _seen.get(url)
    if seen is None:
        began_ns = time.time_ns()
        seen = Seen(*version_and_bytes(url, options, what, _MISSING), began_ns)
        if local_path(url) is None:
            _remember(url, seen)
    return seen.version, seen.num_bytes


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


def bring_starts(root: str, wanted: Wanted, options: Options) -> None:
    """See remote files that were not seen yet by their first bytes, as far as that goes; `take_parts` has them then.

    Args:
        root: Of the data set.
        wanted: By path in the data set, as for `read_starts`.
        options: For fsspec.
    """
    places = {join(root, name): what for name, what in wanted.items()}
    began_ns = time.time_ns()
    found = read_starts({url: what for url, what in places.items() if url not in _seen}, options)
    if len(_brought) + len(found) > _MOST_BROUGHT:
        _brought.clear()
    for url, start in found.items():
        _remember(url, Seen(start.version, start.num_bytes, began_ns))
        _brought[url] = start.version, start.parts


def take_parts(root: str, name: str, version: str) -> Parts:
    """What was brought of this version of a file beforehand: bytes by where they begin. Once."""
    of, parts = _brought.pop(join(root, name), ("", ()))
    return parts if of == version else ()


def are_brought(root: str, names: Iterable[str]) -> bool:
    """Whether there are parts of some files to take."""
    return all(join(root, name) in _brought for name in names)


def oldest_look_ns(root: str, names: Iterable[str]) -> int:
    """The time since which all of some files have been seen with the versions that they were seen with last."""
    seen = [_seen.get(join(root, name)) for name in names]
    return min((0 if one is None else one.time_ns for one in seen), default=0)


def opening(root: str) -> int | None:
    """Tells the last opening of a data set, by this process or its parent, from others; None if it did not open it."""
    return _opened_ns.get(root)


def is_of_this_opening(root: str, time_ns: int) -> bool:
    """Whether what was seen of a data set's files at some time was seen after this process, or its parent, opened it.

    Clocks of machines that share a home are taken for the same: they differ by less than it takes to replace a file.
    """
    opened_ns = _opened_ns.get(root)
    return opened_ns is not None and opened_ns <= time_ns <= time.time_ns()  # and no clock that was put back


def forget(urls: Iterable[str]) -> None:
    """Look at some files anew when they are wanted next."""
    for url in urls:
        _seen.pop(url, None)
        _brought.pop(url, None)


def forget_set(root: str) -> None:
    """The same for all files of a data set, which is opened now."""
    before, _, after = join(root, "\0").partition("\0")
    forget([url for url in [*_seen, *_brought] if url.startswith(before) and url.endswith(after)])
    if len(_opened_ns) >= _MOST_SEEN:
        _opened_ns.clear()
    _opened_ns[root] = time.time_ns()


def _remember(url: str, seen: Seen) -> None:
    if len(_seen) >= _MOST_SEEN:
        _seen.clear()
    _seen[url] = seen
