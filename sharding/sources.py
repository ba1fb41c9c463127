"""From what a user gives as a source to dataset folders and tars: brace patterns, globs, lists."""

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import natsort
from braceexpand import UnbalancedBracesError, braceexpand

from epistream.errors import OptionError, SourceError
from epistream.sharding.storage import local_path, parent_and_name

AnySource = str | os.PathLike[str]
_MAX_NAMES = 1_000_000


@dataclass(frozen=True)
class Folder:
    """A folder that should hold a ``dataset.json``."""

    url: str


@dataclass(frozen=True)
class Tars:
    """Some tars of one folder."""

    url: str
    names: tuple[str, ...]


def resolve(source: AnySource | Sequence[AnySource]) -> list[Folder | Tars]:
    """The parts of a dataset in the order given; neighbouring tars of one folder are one part.

    Raises:
        OptionError: If a pattern cannot be read, or a glob is given for something remote.
        SourceError: If a glob matches nothing.
    """
    given = [source] if isinstance(source, str | os.PathLike) else list(source)
    if not given or not all(isinstance(one, str | os.PathLike) for one in given):
        raise OptionError(f"source: {source!r:.200}, wanted a path, a URL, a pattern, or a list of these.")
    urls = [url for one in given for url in _expand(os.fspath(one))]
    parts: list[Folder | Tars] = []
    for url in urls:
        if not url.partition("::")[0].endswith(".tar"):
            parts.append(Folder(url.removesuffix("/dataset.json") if url.endswith("/dataset.json") else url))
            continue
        folder, name = parent_and_name(url)
        last = parts[-1] if parts else None
        if isinstance(last, Tars) and last.url == folder:
            parts[-1] = Tars(folder, (*last.names, name))
        else:
            parts.append(Tars(folder, (name,)))
    return parts


def _expand(pattern: str) -> list[str]:
    """Braces first, then globs; a path that exists is never a pattern."""
    path = local_path(pattern)
    if not pattern:
        raise OptionError("source: empty, wanted a path, a URL or a pattern.")
    if path is not None and path.exists():
        return [str(path)]
    try:
        names = list(islice(braceexpand(pattern), _MAX_NAMES + 1))
    except (UnbalancedBracesError, ValueError) as error:
        raise OptionError(f"{pattern}: {error}, wanted a pattern such as shard-{{000000..000003}}.tar.") from error
    if len(names) > _MAX_NAMES:
        raise OptionError(f"{pattern}: more than {_MAX_NAMES:,} names, wanted fewer. Give the dataset's folder.")
    return [url for name in names for url in _glob(name)]


def _glob(pattern: str) -> list[str]:
    path = local_path(pattern)
    signs = "*?[" if path is not None else "*["  # a question mark in a URL begins its query
    if not any(sign in pattern for sign in signs):
        return [pattern if path is None else str(path)]
    if path is None:
        # Every rank would list the bucket, and could see another list.
        raise OptionError(
            f"{pattern}: a glob on something remote. Give the folder, or a brace pattern such as "
            "shard-{000000..000003}.tar."
        )
    # pathlib has no glob for an absolute pattern.
    found = natsort.natsorted(glob.glob(str(path)))  # noqa: PTH207
    if not found:
        raise SourceError(f"{pattern}: matches nothing. Check the pattern.")
    return found
