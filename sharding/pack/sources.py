"""From what a user gives as sources of a packing job to the files to look into: HDF5, or those of LeRobot data sets."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from epistream.access import Access, split_secrets
from epistream.errors import OptionError, SourceError
from epistream.file_systems import local_path
from epistream.sharding.files.hdf5_sources import AnyPath, given_twice, matches, names_below_root
from epistream.sharding.files.names import LEROBOT_INFO
from epistream.sharding.files.remote_hdf5 import find_remote, names_of_urls
from epistream.sharding.files.sources import Folder, LeRobotSet, resolve_access
from epistream.sharding.files.storage import Options, is_there, join
from epistream.sharding.lerobot_meta.hub import pinned
from epistream.sharding.manifest.manifest_file import FILE_NAME
from epistream.sharding.pack.lerobot_scan import DataFile, data_files, scan_data_file
from epistream.sharding.pack.options import PackOptions
from epistream.sharding.pack.plan import ScannedFile
from epistream.sharding.pack.scan import scan_file
from epistream.sharding.pack.source_reader import find_hdf5
from epistream.sharding.tasks.pulse import Pulse
from epistream.working_folder import absolute


@dataclass(frozen=True)
class Hdf5File:
    """An HDF5 file that is to be looked into, of a path or URL, and what the dataset calls it."""

    path: str
    name: str


@dataclass(frozen=True)
class Sources:
    """The files to look into, in order, and what opens them if they are remote."""

    files: Sequence[Hdf5File | DataFile]
    access: Access

    def are_decoded(self, options: PackOptions) -> bool:
        """Whether the bytes of the result depend on how videos of the sources are decoded."""
        is_encoded = options.codec is not None or options.image_size is not None
        return is_encoded and isinstance(self.files[0], DataFile)


def find_files(
    sources: AnyPath | Sequence[AnyPath], out: str, options: PackOptions, storage_options: Options
) -> Sources:
    """The files behind paths, folders, globs, and the folders or URLs of LeRobot data sets.

    Args:
        sources: As given.
        out: Where the dataset will be, for which `storage_options` can be as well.
        options: Of the job.
        storage_options: For fsspec.

    Raises:
        OptionError: If nothing is given, something is given twice, or an option is not for such sources.
        SourceError: If a folder or pattern gives no files, one is a tar, or HDF5 files are beside LeRobot data sets.
    """
    given = [os.fspath(one) for one in ([sources] if isinstance(sources, str | os.PathLike) else sources)]
    access = Access.of(storage_options)
    remote = [one for one in given if local_path(one) is None]
    if remote:
        access = access.by_protocol([*remote, out])
    roots: list[str] = []
    others: list[str] = []
    for one in given:
        found = _sets_at(one)
        if local_path(one) is None:
            found, opens = _remote_sets(one, access)
            access = access.having(opens.secrets)
        roots += found
        others += [] if found else [one]
    if not roots and any(local_path(one) is None for one in given):
        return _remote_files(given, access)
    if not roots:
        paths = find_hdf5(sources)
        names = names_below_root(paths)
        return Sources([Hdf5File(str(path), name) for path, name in zip(paths, names, strict=True)], access)
    if others:
        raise SourceError(
            f"{others[0]}: beside the LeRobot data set {roots[0]}, wanted sources of one kind. Pack them into a "
            "dataset each: a stream takes a list of both."
        )
    twice = given_twice(roots)
    if twice:
        raise OptionError(f"{twice[0]}: given twice (also as {twice[1]}), wanted each data set once.")
    named = zip(roots, _prefixes(roots), strict=True)
    return Sources([file for root, prefix in named for file in data_files(root, prefix, options, access)], access)


def _remote_files(given: Sequence[str], access: Access) -> Sources:
    """HDF5 files of which some are remote."""
    paths: list[str] = []
    for one in given:
        if local_path(one) is None:
            found, opens = find_remote(one, access)
            access = access.having(opens.secrets)
            paths += found
        else:
            paths += map(str, find_hdf5([one]))
    twice = given_twice(paths)
    if twice:
        raise OptionError(f"{twice[0]}: given twice (also as {twice[1]}), wanted each file once.")
    named = zip(paths, names_of_urls(paths), strict=True)
    return Sources([Hdf5File(path, name) for path, name in named], access)


def look_into(task: tuple[Sequence[Hdf5File | DataFile], PackOptions, Access], pulse: Pulse) -> list[ScannedFile]:
    """Look into some files; faults of their contents are reported, not raised."""
    files, options, access = task
    scans = []
    for file in files:
        if isinstance(file, Hdf5File):
            scans.append(scan_file(file.path, file.name, options, access))
        else:
            scans.append(scan_data_file(file, options, access, pulse))
        pulse.add()
    return scans


def _sets_at(source: str) -> list[str]:
    """The LeRobot data sets that a local path or glob names."""
    path = local_path(source)
    if path is None:
        return []
    absolute(path)  # where that cannot be told, nothing is found either
    if path.exists() or not any(sign in source for sign in "*?["):
        found = [path]
    else:
        found = [Path(name) for name in matches(str(path))]
    sets = [one.parent.parent if one.parts[-2:] == ("meta", "info.json") else one for one in found]
    return [
        os.path.normpath(absolute(one))
        for one in sets
        if (one / LEROBOT_INFO).is_file() and not (one / FILE_NAME).exists()
    ]


def _remote_sets(url: str, access: Access) -> tuple[list[str], Access]:
    """Those that a URL or pattern of URLs names, and what opens them."""
    if any(sign in split_secrets(url)[0] for sign in "*["):
        return [], access  # HDF5 files are found by it
    parts, opens = resolve_access(url, access)
    sets = []
    for part in parts:
        if isinstance(part, LeRobotSet) or (isinstance(part, Folder) and is_there(join(part.url, LEROBOT_INFO), opens)):
            sets.append(pinned(part.url, opens))
    return sets, opens


def _prefixes(roots: Sequence[str]) -> list[str]:
    """What a dataset puts in front of the paths in its data sets: nothing if there is one, else where they differ."""
    if len(roots) == 1:
        return [""]
    pieces = [root.rstrip("/").split("/") for root in roots]
    common = 0
    while all(len(one) > common + 1 and one[common] == pieces[0][common] for one in pieces):
        common += 1
    return ["/".join(one[common:]) + "/" for one in pieces]
