"""From what a user gives as a source to dataset folders, tars and HDF5 files: brace patterns, globs, lists."""

import itertools
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from braceexpand import UnbalancedBracesError, braceexpand  # type: ignore[attr-defined]

from epistream.errors import OptionError, SourceError
from epistream.file_systems import local_path
from epistream.plain_files import not_a_plain_file
from epistream.sharding.files.foreign import is_hdf5
from epistream.sharding.files.hdf5_sources import find_sources, matches
from epistream.sharding.files.names import HDF5_SUFFIXES, is_tar
from epistream.sharding.files.storage import parent_and_name

AnySource = str | os.PathLike[str]
_MAX_NAMES = 1_000_000
_RANGE = re.compile(r"\{(-?\d{1,18})\.\.(-?\d{1,18})")
_LABELLED = 3


@dataclass(frozen=True)
class Folder:
    """A folder that should hold a ``dataset.json``."""

    url: str


@dataclass(frozen=True)
class Tars:
    """Some tars of one folder."""

    url: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class Hdf5Files:
    """HDF5 files, read where they are. `url` is what was given, for messages."""

    url: str
    files: tuple[str, ...]


Part = Folder | Tars | Hdf5Files


def resolve(source: AnySource | Sequence[AnySource]) -> list[Part]:
    """The parts of a dataset in the order given; neighbouring tars of one folder, or HDF5 files, are one part.

    Raises:
        OptionError: If a pattern cannot be read, or a glob is given for something remote.
        SourceError: If a glob matches nothing.
    """
    given = [source] if isinstance(source, str | os.PathLike) else source
    if not isinstance(given, Sequence) or not given or not all(isinstance(one, str | os.PathLike) for one in given):
        raise OptionError(f"source: {source!r:.200}, wanted a path, a URL, a pattern, or a list of these.")
    parts = [_part(url) for one in given for url in _expand(os.fspath(one))]
    neighbours = itertools.groupby(parts, lambda part: (type(part), part.url if isinstance(part, Tars) else ""))
    return [joined for _, group in neighbours for joined in _join(list(group))]


def _part(url: str) -> Part:
    files = _hdf5_files(url)
    if files:
        return Hdf5Files(url, files)
    if not is_tar(url):
        return Folder(url.removesuffix("/dataset.json"))
    folder, name = parent_and_name(url)
    return Tars(folder, (name,))


def _join(parts: list[Part]) -> list[Part]:
    """Tars of one folder, or HDF5 files, as one part."""
    tars = [name for part in parts if isinstance(part, Tars) for name in part.names]
    if tars:
        return [Tars(parts[0].url, tuple(tars))]
    files = [part for part in parts if isinstance(part, Hdf5Files)]
    if len(files) < 2:
        return parts
    label = ", ".join(part.url for part in files[:_LABELLED]) + (", ..." if len(files) > _LABELLED else "")
    return [Hdf5Files(label, tuple(itertools.chain.from_iterable(part.files for part in files)))]


def _hdf5_files(url: str) -> tuple[str, ...]:
    """The HDF5 files behind a URL: itself, or those in a local folder that is no dataset of ours."""
    path = local_path(url)
    if path is not None and path.is_dir():
        if (path / "dataset.json").exists():
            return ()
        try:
            return tuple(map(str, find_sources(path)))
        except SourceError:
            return ()
    if url.partition("::")[0].partition("?")[0].lower().endswith(HDF5_SUFFIXES):
        return (url,)
    if path is None or path.suffix == ".tar" or not_a_plain_file(path):
        return ()
    return (url,) if is_hdf5(path) else ()


def _expand(pattern: str) -> list[str]:
    """Braces first, then globs; a path that exists is never a pattern."""
    path = local_path(pattern)
    if not pattern:
        raise OptionError("source: empty, wanted a path, a URL or a pattern.")
    if path is not None and path.exists():
        return [str(path)]
    # braceexpand makes every range a list before it gives the first name.
    num_names = math.prod(abs(int(stop) - int(start)) + 1 for start, stop in _RANGE.findall(pattern))
    try:
        names = list(islice(braceexpand(pattern), _MAX_NAMES + 1)) if num_names <= _MAX_NAMES else []
    except (UnbalancedBracesError, ValueError) as error:
        raise OptionError(f"{pattern}: {error}, wanted a pattern such as shard-{{000000..000003}}.tar.") from error
    if max(num_names, len(names)) > _MAX_NAMES:
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
    return matches(str(path))
