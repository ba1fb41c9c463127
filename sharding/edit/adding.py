"""Adding: the episodes of new source files, packed into shards of their own beside those that are there."""

import json
import os
import shlex
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash

from epistream.access import Access
from epistream.errors import EditError, OptionError, SourceError
from epistream.file_systems import local_path
from epistream.options import changed
from epistream.sharding.edit.as_packed import as_packed
from epistream.sharding.edit.joining import Part, joined
from epistream.sharding.edit.joining_options import Joined, JoiningOptions
from epistream.sharding.edit.revision import EditReport, Revision, edited, missing_of
from epistream.sharding.edit.true_statistics import with_statistics
from epistream.sharding.files.hdf5_sources import AnyPath
from epistream.sharding.files.storage import Options, join
from epistream.sharding.files.versioned_files import version_and_bytes
from epistream.sharding.format.checksums import hash_file
from epistream.sharding.manifest.groups import ShardGroup
from epistream.sharding.manifest.manifest import Manifest
from epistream.sharding.manifest.manifest_file import find_manifest
from epistream.sharding.pack.options import PackOptions
from epistream.sharding.pack.pack import pack
from epistream.sharding.pack.report import Listener
from epistream.sharding.pack.sources import find_files
from epistream.units import count_text


def add(
    url: AnyPath,
    sources: AnyPath | Sequence[AnyPath],
    options: PackOptions | None = None,
    *,
    storage_options: Options = None,
    progress: Listener | None = None,
    **changes: Any,
) -> EditReport:
    """Add the episodes of files that a dataset has none of yet. No shard that is there changes.

    Files are known by their contents: those that were packed before are left out, also where all their episodes were
    removed since, so that the same folder can be given each day. New episodes are packed as the dataset was, and have
    the split that their names say: no episode that is there moves to another.

    Args:
        url: Of the dataset: a folder, or a URL that can be written to.
        sources: As `pack` takes them.
        options: How to pack; as the dataset was packed if None.
        storage_options: For fsspec.
        progress: As `pack` calls it.
        changes: Single options by name.

    Raises:
        EditError: If every file is in the dataset already, or one changed since it was packed.
        FormatError: If the new episodes have other features; the message names the differences.
        EditConflictError: If somebody else edited the dataset meanwhile; packed shards stay for a second try.
        OptionError, SourceError, PackError, WorkerError: As `pack`.
    """
    notes: list[str] = []
    given = [os.fspath(one) for one in ([sources] if isinstance(sources, str | os.PathLike) else sources)]

    def change(revision: Revision) -> tuple[Manifest, str]:
        chosen = _options_of(revision, options, changes)
        new = _new_files(revision, given, chosen, storage_options, notes)
        folder = _folder_of(new, chosen)
        if any(group.url == folder for group in revision.manifest.groups):
            raise EditError(f"{revision.url}: these files were added before, wanted new ones. Nothing was done.")
        base = as_packed(revision.manifest)
        joins = Joined(revision.url, revision.manifest.features, base.renamed, base.dropped)
        part = _packed(revision, new.paths, folder, replace(chosen, joined=joins), progress)
        group = ShardGroup(folder, base.renamed, base.dropped)
        sources = part.sources.with_episodes()  # what could not be packed is no part of it, and may be added later
        called = replace(
            part, features=joins.called(part.features), sources=sources, records=part.records.renamed(group.renamed)
        )
        added = Part(join(revision.url, folder), called, (group,))
        whole = joined([Part(revision.url, revision.manifest, revision.manifest.groups), added])
        columns = part.columns
        what = f"{count_text(columns.num_episodes, 'episode')} of {count_text(len(sources), 'file')} added"
        if len(sources) < len(new.paths):
            notes.append(
                f"{count_text(len(new.paths) - len(sources), 'file')} left out: nothing of them could be packed"
            )
        return with_statistics(revision, whole), what

    return edited(url, storage_options, f"add {' '.join(map(shlex.quote, given))}", change, notes)


class _NewFiles(NamedTuple):
    """Files that a dataset has nothing of, and what tells them from others: name and size of each."""

    paths: list[str]
    facts: list[tuple[str, int]]


def _options_of(revision: Revision, options: PackOptions | None, changes: dict[str, Any]) -> JoiningOptions:
    """How to pack what joins a dataset: as that was packed, but for what is given."""
    if options is None:
        said = revision.manifest.provenance.get("options")
        known = {one.name for one in fields(PackOptions)}
        found = {name: value for name, value in said.items() if name in known} if isinstance(said, dict) else {}
        if isinstance(found.get("layout"), dict) and "layout" not in changes:
            raise OptionError(
                f"{revision.url}: packed with a layout file of your own, wanted it again. Give --layout-file (layout=)."
            )
        if isinstance(found.get("image_size"), list):
            found["image_size"] = tuple(found["image_size"])
        found.pop("episodes", None)  # which of the first files were wanted says nothing of others
        return changed(JoiningOptions(**found), changes, "add")
    plain = {one.name: getattr(options, one.name) for one in fields(PackOptions)}
    return changed(JoiningOptions(**plain), changes, "add")


def _new_files(
    revision: Revision, given: Sequence[str], options: PackOptions, storage_options: Options, notes: list[str]
) -> _NewFiles:
    """The files among some sources that the dataset has nothing of."""
    found = find_files(given, revision.url, options, storage_options)
    files, access = found.files, found.access
    table = revision.manifest.sources.table if len(revision.manifest.sources) else None
    by_size: defaultdict[int, set[tuple[str, str]]] = defaultdict(set)
    for source in revision.manifest.sources:
        by_size[source.num_bytes].add((source.checksum, source.path))
    known_names = set() if table is None else set(table.paths)
    paths, facts, num_known, alike_names = [], [], 0, []
    for file in files:
        num_bytes = _size_of(file.path, access)
        alike = by_size.get(num_bytes, set())
        if alike and _is_known(file.path, file.name, alike):
            num_known += 1
            continue
        if file.name in known_names:
            alike_names.append(file.name)
        paths.append(file.path)
        facts.append((file.name, num_bytes))
    if num_known:
        notes.append(f"{count_text(num_known, 'file')} known already: not added again")
    if alike_names:
        _refuse_grown(revision, alike_names, options)
        notes.append(
            f"{count_text(len(alike_names), 'file')} called as files in the dataset, with other contents: taken for "
            "others"
        )
    if not paths:
        raise EditError(
            f"{revision.url}: has all {count_text(len(files), 'file')} already, wanted new ones. Nothing was done."
        )
    return _NewFiles(paths, facts)


def _is_known(path: str, name: str, alike: set[tuple[str, str]]) -> bool:
    """Whether a file is one of those of its size: by contents, or where no checksum is known by name."""
    digests = {digest for digest, _ in alike if digest}
    if local_path(path) is None:  # it is not fetched only for that
        return any(known == name for _, known in alike)
    if digests:
        try:
            return hash_file(Path(path)).checksum in digests
        except OSError as error:
            raise SourceError(f"{path}: cannot be read ({error.strerror}), wanted its checksum.") from error
    return any(not digest and known == name for digest, known in alike)


def _refuse_grown(revision: Revision, names: Sequence[str], options: PackOptions) -> None:
    """See that no file of several episodes has grown since it was packed: those that are in would be twice."""
    sources, chosen = revision.manifest.sources, options.selection is not None
    counts = np.bincount(sources.table.episode_source + 1, minlength=len(sources) + 1)[1:]
    several = {source.path for source, count in zip(sources, counts.tolist(), strict=True) if count > 1}
    grown = next((name for name in names if name in several), None)
    if grown is not None and not chosen:
        raise EditError(
            f"{revision.url}: {grown} was packed before, and has other contents now: its episodes would be in the "
            "dataset twice. Put new episodes into files of their own, or say which ones are new with episodes= "
            "(--episodes)."
        )


def _size_of(path: str, access: Access) -> int:
    if local_path(path) is None:
        return version_and_bytes(path, access)[1]
    try:
        return Path(path).stat().st_size
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror}, wanted to read it.") from error


def _folder_of(new: _NewFiles, options: PackOptions) -> str:
    """A name that the same command finds again after it was interrupted, and no other has."""
    told = json.dumps([sorted(new.facts), sorted(new.paths), options.deciding()], sort_keys=True)
    return f"added-{xxhash.xxh3_64_hexdigest(told.encode())[:12]}"


def _packed(
    revision: Revision, paths: Sequence[str], folder: str, options: PackOptions, progress: Listener | None
) -> Manifest:
    """The manifest of some files, packed into a folder of the dataset; one that is complete is not packed again."""
    where = join(revision.url, folder)
    found = find_manifest(where, revision.access)
    is_torn = found is not None and missing_of(found, where, revision.access) is not None  # pruned while it was made
    if found is None or is_torn:
        job = replace(options, resume=local_path(where) is not None and not is_torn, overwrite=is_torn)
        pack(list(paths), where, job, storage_options=revision.access, progress=progress)
        found = find_manifest(where, revision.access)
    if found is None:
        raise EditError(f"{where}: gone while it was being added, wanted it to stay. Run the edit again.")
    return found
