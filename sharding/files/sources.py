"""From what a user gives as a source to folders, tars, HDF5 files and LeRobot's sets: brace patterns, globs, lists.

What opens a URL is taken off it here, and never is part of a name.
"""

import itertools
import math
import os
import re
import shlex
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from braceexpand import UnbalancedBracesError, braceexpand  # type: ignore[attr-defined]

from epistream.access import NO_SECRET, Access, Secret, chain_of, placed_link, split_secrets
from epistream.errors import OptionError, SourceError
from epistream.file_systems import local_path
from epistream.plain_files import not_a_plain_file
from epistream.sharding.files.foreign import is_hdf5
from epistream.sharding.files.hdf5_sources import find_sources, matches
from epistream.sharding.files.names import HDF5_SUFFIXES, LEROBOT_INFO, is_tar
from epistream.sharding.files.storage import parent_and_name
from epistream.units import count_text
from epistream.working_folder import absolute

AnySource = str | os.PathLike[str]
_MAX_NAMES = 1_000_000
_RANGE = re.compile(r"\{(-?\d{1,18})\.\.(-?\d{1,18})")
_LABELLED = 3
_MANIFEST = "dataset.json"
# Files of a dataset that are no source by themselves: given for the signature that each URL has of its own.
_BESIDE = (".index", ".tables")


# A dataset as it was before an edit. On a hub ``owner/name@revision`` is another thing.
_AT_FINGERPRINT = re.compile(r"(?P<url>(?!hf://(?:datasets/)?[^/]+/[^/]+$).+[^/@]/?)@(?P<fingerprint>[0-9a-f]{8,32})/?")
_FEW_DIGITS = re.compile("[0-9a-f]{1,7}")

# By far enough of a meta/info.json to find the first key in.
_HEAD_BYTES = 1 << 16


@dataclass(frozen=True)
class Folder:
    """A folder that should hold a ``dataset.json``; a remote one without it may turn out to be a LeRobot data set.

    `fingerprint` is that of the dataset as it was before an edit, or begins it; empty for that of now.
    """

    url: str
    fingerprint: str = ""


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


@dataclass(frozen=True)
class LeRobotSet:
    """The folder of a LeRobot data set, read where it is."""

    url: str


Part = Folder | Tars | Hdf5Files | LeRobotSet


def resolve(source: AnySource | Sequence[AnySource]) -> list[Part]:
    """The parts of a dataset in the order given; neighbouring tars of one folder, or HDF5 files, are one part.

    Raises:
        OptionError, SourceError: As `resolve_access`.
    """
    return resolve_access(source)[0]


def resolve_access(
    source: AnySource | Sequence[AnySource], options: Mapping[str, Any] | None = None
) -> tuple[list[Part], Access]:
    """The parts as `resolve` gives them, and the ``storage_options`` with all that opens these.

    Raises:
        OptionError: If a pattern cannot be read, a glob is given for something remote, or it is not clear for which
            of several protocols the options are.
        SourceError: If a glob matches nothing.
    """
    given = [source] if isinstance(source, str | os.PathLike) else source
    if not isinstance(given, Sequence) or not given or not all(isinstance(one, str | os.PathLike) for one in given):
        raise OptionError(f"source: {source!r:.200}, wanted a path, a URL, a pattern, or a list of these.")
    access = Access.of(options)
    named = [one for each in given for one in _expand(os.fspath(each))]
    urls, secrets = _without_companions([url for url, _ in named]), _secrets_of(named)
    parts = [_part(url) for url in urls]
    neighbours = itertools.groupby(parts, lambda part: (type(part), part.url if isinstance(part, Tars) else ""))
    joined = [one for _, group in neighbours for one in _join(list(group))]
    return joined, access.by_protocol(urls).having(secrets)


def folder_access(url: str, options: Mapping[str, Any] | None) -> tuple[str, Access]:
    """The name of one folder, and the ``storage_options`` with what opens it.

    Raises:
        OptionError: If the options are none.
    """
    plain, secrets = split_secrets(url)
    access = Access.of(options).by_protocol([plain])
    if all(secret == NO_SECRET for secret in secrets):
        return plain, access
    return plain, access.having(
        {link.rstrip("/"): secret for link, secret in zip(chain_of(plain), secrets, strict=True)}
    )


def _without_companions(urls: list[str]) -> list[str]:
    """The sources among some URLs: not the manifest, tables and indexes beside remote tars that are given as well."""
    folders = {parent_and_name(url)[0] for url in urls if is_tar(url) and local_path(url) is None}

    def is_beside(url: str) -> bool:
        folder, name = parent_and_name(url)
        return folder in folders and (name == _MANIFEST or name.endswith(_BESIDE))

    return [url for url in urls if not is_beside(url)] if folders else urls


def _secrets_of(named: Sequence[tuple[str, tuple[Secret, ...]]]) -> dict[str, Secret]:
    """What opens which link: one secret for a folder where all tars have the same, else one for each file."""
    of_files: defaultdict[str, dict[str, Secret]] = defaultdict(dict)
    found: dict[str, Secret] = {}
    if not any(secret != NO_SECRET for _, secrets in named for secret in secrets):
        return found
    for url, secrets in named:
        for link, secret in zip(chain_of(url), secrets, strict=True):
            if placed_link(url)[1] == link and (is_tar(url) or link.endswith(_BESIDE)):
                of_files[link.rpartition("/")[0]][link] = secret
            elif secret != NO_SECRET:
                found[link.rstrip("/")] = secret
    for folder, secret_of in of_files.items():
        if len(set(secret_of.values())) == 1:
            found[f"{folder}/"] = next(iter(secret_of.values()))
        else:
            found |= secret_of
    # One signature for the manifest is that of its folder, unless files have their own.
    for name in (_MANIFEST, LEROBOT_INFO):
        for link in [link for link in found if link.endswith(f"/{name}")]:
            folder = link.removesuffix(f"/{name}")
            if folder not in of_files:
                found[folder] = found.pop(link)
    return {link: secret for link, secret in found.items() if secret != NO_SECRET}


def _part(url: str) -> Part:
    folder = _lerobot_folder(url)
    if folder is not None:
        return LeRobotSet(folder)
    files = _hdf5_files(url)
    if files:
        return Hdf5Files(url, files)
    path = local_path(url)
    if path is not None and not (path / _MANIFEST).exists() and (path / LEROBOT_INFO).exists():
        return LeRobotSet(url)  # torn, or a pointer to it: who opens it says so
    if not is_tar(url):
        return folder_of(url)
    folder, name = parent_and_name(url)
    return Tars(folder, (name,))


def folder_of(url: str) -> Folder:
    """The folder of a dataset that is named by its own name, by its ``dataset.json``, or as it was, with ``@``.

    Raises:
        OptionError: If too few digits of a fingerprint are given.
    """
    folder, path = url.removesuffix(f"/{_MANIFEST}"), local_path(url)
    match = None if path is not None and path.exists() else _AT_FINGERPRINT.fullmatch(folder)
    if match:
        return Folder(match["url"], match["fingerprint"])
    dataset, _, digits = folder.rpartition("@")
    is_short = bool(dataset) and _FEW_DIGITS.fullmatch(digits)
    if is_short and path is not None and not path.exists() and Path(dataset, _MANIFEST).exists():
        raise OptionError(
            f"{folder}: {count_text(len(digits), 'digit')} of a fingerprint, wanted the first 8 or more. See them: "
            f"epistream edit log {shlex.quote(dataset)}"
        )
    return Folder(folder)


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


def _lerobot_folder(url: str) -> str | None:
    """The folder of a LeRobot data set, if that is what a URL names: itself, or by its ``meta/info.json``.

    A local folder is looked at, before it is searched for HDF5 files: there may be 100,000 files in it.
    """
    path = local_path(url)
    if path is None:
        before, link, after = placed_link(url)
        is_info = link.endswith(f"/{LEROBOT_INFO}")
        return f"{before}{link.removesuffix(f'/{LEROBOT_INFO}')}{after}" if is_info else None
    if path.parts[-2:] == ("meta", "info.json") and path.is_file():
        return str(path.parent.parent)
    info = path / LEROBOT_INFO
    if (path / _MANIFEST).exists() or not_a_plain_file(info):
        return None
    try:
        with info.open("rb") as file:
            return url if b'"codebase_version"' in file.read(_HEAD_BYTES) else None
    except OSError:
        return None


def _hdf5_files(url: str) -> tuple[str, ...]:
    """The HDF5 files behind a URL: itself, or those in a local folder that is no dataset of ours."""
    path = local_path(url)
    if path is not None and path.is_dir():
        if (path / _MANIFEST).exists():
            return ()
        try:
            return tuple(map(str, find_sources(path)))
        except SourceError:
            return ()
    if placed_link(url)[1].lower().endswith(HDF5_SUFFIXES):
        return (url,)
    if path is None or path.suffix == ".tar" or not_a_plain_file(path):
        return ()
    return (url,) if is_hdf5(path) else ()


def _expand(pattern: str) -> list[tuple[str, tuple[Secret, ...]]]:
    """Braces first, then globs; a path that exists is never a pattern, and neither is what opens a URL."""
    path = local_path(pattern)
    if not pattern:
        raise OptionError("source: empty, wanted a path, a URL or a pattern.")
    if path is not None:
        absolute(path)  # where that cannot be told, nothing is found either
        if path.exists():
            return [(str(path), (NO_SECRET,))]
    plain, secrets = split_secrets(pattern)
    if plain.count("{") == plain.count("}"):
        return [(url, secrets) for name in _expand_braces(plain) for url in _glob(name)]
    # Names in braces that have a query each.
    return [split_secrets(url) for name in _expand_braces(pattern) for url in _glob(name)]


def _expand_braces(pattern: str) -> list[str]:
    # braceexpand makes every range a list before it gives the first name.
    num_names = math.prod(abs(int(stop) - int(start)) + 1 for start, stop in _RANGE.findall(pattern))
    try:
        names = list(islice(braceexpand(pattern), _MAX_NAMES + 1)) if num_names <= _MAX_NAMES else []
    except (UnbalancedBracesError, ValueError) as error:
        raise OptionError(f"{pattern}: {error}, wanted a pattern such as shard-{{000000..000003}}.tar.") from error
    if max(num_names, len(names)) > _MAX_NAMES:
        raise OptionError(f"{pattern}: more than {_MAX_NAMES:,} names, wanted fewer. Give the dataset's folder.")
    return names


def _glob(pattern: str) -> list[str]:
    path = local_path(pattern)
    signs = "*?[" if path is not None else "*["  # a question mark in a URL begins its query
    if not any(sign in (pattern if path is not None else split_secrets(pattern)[0]) for sign in signs):
        return [pattern if path is None else str(path)]
    if path is None:
        # Every rank would list the bucket, and could see another list.
        raise OptionError(
            f"{pattern}: a glob on something remote. Give the folder, or a brace pattern such as "
            "shard-{000000..000003}.tar."
        )
    return matches(str(path))
