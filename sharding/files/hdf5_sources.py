"""From what a user gives as sources of a packing job to HDF5 files, in order."""

import glob
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from epistream.errors import OptionError, SourceError
from epistream.file_systems import local_path
from epistream.sharding.files.foreign import foreign_folder
from epistream.sharding.files.names import HDF5_SUFFIXES
from epistream.working_folder import absolute

AnyPath = str | os.PathLike[str]


def find_sources(sources: AnyPath | Sequence[AnyPath]) -> list[Path]:
    """The files behind paths, folders (walked) and globs: in the order given, and within each in natural order.

    A path that does not exist is kept: the scan reports it together with all other faults.

    Raises:
        OptionError: If nothing is given, or a file is given twice.
        SourceError: If a folder holds no HDF5 file, or a glob matches nothing.
    """
    given = [sources] if isinstance(sources, str | os.PathLike) else list(sources)
    if not given:
        raise OptionError("sources: none, wanted at least one file, folder or glob.")
    found = [path for one in given for path in _expand(os.fspath(one))]
    twice = given_twice(map(str, found))
    if twice:
        raise OptionError(f"{twice[0]}: given twice (also as {twice[1]}), wanted each file once.")
    return found


def given_twice(urls: Iterable[str]) -> tuple[str, str] | None:
    """The first file that is given again, maybe by another name, and as what it was given before."""
    seen: dict[str, str] = {}
    for url in urls:
        path = local_path(url)
        real = url if path is None else os.path.realpath(absolute(path))
        if real in seen:
            return url, seen[real]
        seen[real] = url
    return None


def names_below_root(paths: Sequence[Path]) -> list[str]:
    """What the dataset calls its sources: their paths below the folder that holds all of them.

    So the same files pack to the same bytes wherever they are.
    """
    # Not resolved: a folder of links names its files, not what they point to.
    named = [Path(os.path.normpath(absolute(path))) for path in paths]
    root = os.path.commonpath([path.parent for path in named])
    return [Path(os.path.relpath(path, root)).as_posix() for path in named]


def _expand(source: str) -> list[Path]:
    path = local_path(source)
    if path is None:
        raise SourceError(f"{source}: a URL{which_is(source)}, wanted files on a disk. Copy them first.")
    absolute(path)  # where that cannot be told, nothing is found either
    if path.is_dir():
        files = [
            Path(folder) / name
            for folder, _, names in os.walk(path)
            for name in names
            if name.lower().endswith(HDF5_SUFFIXES) and not name.startswith(".")
        ]
        if not files:
            suffixes = ", ".join(HDF5_SUFFIXES)
            found = foreign_folder(str(path))
            if found:
                raise SourceError(f"{path}: {found.what}, wanted HDF5 files ({suffixes}). {found.advice}")
            raise SourceError(
                f"{path}: a folder without HDF5 files, wanted at least one ({suffixes}). Check the path, or give files "
                "by a pattern."
            )
        return [Path(name) for name in _in_natural_order(map(str, files))]
    if path.exists() or not any(sign in source for sign in "*?["):
        return [path]
    return [path for path in map(Path, matches(source)) if path.is_file()]


def which_is(url: str) -> str:
    """What a folder is known as that holds no HDF5 files, for a message about it."""
    found = foreign_folder(url)
    return f" (found {found.what})" if found else ""


def matches(pattern: str) -> list[str]:
    """What a local glob matches, in natural order.

    Raises:
        SourceError: If it matches nothing.
    """
    # pathlib has no glob for an absolute pattern.
    found = glob.glob(os.path.expanduser(pattern), recursive=True)  # noqa: PTH111, PTH207, an unknown ~name is a name
    if not found:
        raise SourceError(f"{pattern}: matches nothing, wanted at least one file. Check the pattern.")
    return _in_natural_order(found)


def _in_natural_order(paths: Iterable[str]) -> list[str]:
    # Imported late: it takes 15 ms, a twelfth of what opening a packed dataset in a new process takes.
    from natsort import natsorted, ns

    return list(natsorted(paths, alg=ns.PATH))
