"""Merging: a new dataset of several, whose shards are named where they are, or copied."""

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from epistream._version import __version__
from epistream.access import Access
from epistream.errors import DatasetExistsError, OptionError
from epistream.file_systems import local_path
from epistream.sharding.edit.joining import Part, joined
from epistream.sharding.edit.revision import EditReport, Revision
from epistream.sharding.edit.true_statistics import with_statistics
from epistream.sharding.files.hdf5_sources import AnyPath
from epistream.sharding.files.names import index_name
from epistream.sharding.files.sources import folder_access
from epistream.sharding.files.storage import Options, is_there, join, local_copy, write_local
from epistream.sharding.manifest.groups import ShardGroup
from epistream.sharding.manifest.history import Edit, History
from epistream.sharding.manifest.manifest_file import FILE_NAME
from epistream.sharding.manifest.manifest_writing import write_manifest
from epistream.sharding.tar.shard_store import upload
from epistream.units import count_text
from epistream.working_folder import absolute

Advance = Callable[[int, int], None]


def merge(
    sources: Sequence[AnyPath],
    out: AnyPath,
    *,
    copy: bool = False,
    storage_options: Options = None,
    progress: Advance = lambda num_done, num_total: None,
) -> EditReport:
    """Make one dataset of several.

    Without `copy` no shard is touched: the new manifest names the folders and URLs of the old ones, which must stay.

    Args:
        sources: Folders or URLs of datasets of shards, at least two; with ``@`` and a fingerprint as they were.
        out: Folder or URL of the new one.
        copy: Copy the shards, so that the new dataset stands by itself.
        storage_options: For fsspec.
        progress: Called with the shards copied so far, and their number.

    Raises:
        OptionError: If fewer than two are given, or a dataset on a store would name shards of this machine.
        FormatError: If their features differ; the message names the differences.
        DatasetExistsError: If there is a dataset at `out`.
        SourceError: If one cannot be read, or `out` cannot be written.
    """
    began = time.monotonic()
    if isinstance(sources, str | os.PathLike) or len(sources) < 2:
        raise OptionError(f"merge: {sources!r:.120}, wanted two datasets or more.")
    folder, access = folder_access(os.fspath(out), storage_options)
    folder = folder.rstrip("/")
    if is_there(join(folder, FILE_NAME), access):
        raise DatasetExistsError(
            f"{folder}: holds a dataset already, wanted a new folder to merge into. Choose another."
        )
    parts = [Revision.read_any(source, storage_options) for source in sources]
    twice = next((one.url for number, one in enumerate(parts) if one.url in [two.url for two in parts[:number]]), None)
    if twice is not None:
        raise OptionError(f"merge: {twice} given twice, wanted each dataset once.")
    groups = _copied(parts, folder, access, progress) if copy else [_named(part, folder) for part in parts]
    whole = joined([Part(one.url, one.manifest, its) for one, its in zip(parts, groups, strict=True)])
    about = [{"url": one.url, "fingerprint": one.manifest.fingerprint} for one in parts]
    whole = replace(whole, provenance={**parts[0].manifest.provenance, "merged": about}, history=History.of(()))
    made = Revision(folder, access, b"", whole)
    whole = with_statistics(made, whole)
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    what = f"merged of {count_text(len(parts), 'dataset')}"
    writer = f"epistream {__version__}"
    edit = Edit(whole.fingerprint, now, what, f"merge {' '.join(one.url for one in parts)} {folder}", writer)
    write_manifest(replace(whole, history=History.of([edit]), writer=writer), folder, access)
    columns = whole.columns
    counts = np.bincount(columns.split_of, minlength=len(whole.splits)).tolist()
    return EditReport(
        url=folder,
        what=what,
        fingerprint=whole.fingerprint,
        before="",
        num_episodes=columns.num_episodes,
        num_steps=columns.num_steps,
        num_shards=columns.num_shards,
        splits=dict(zip(whole.splits, counts, strict=True)),
        seconds=time.monotonic() - began,
        notes=() if copy else (f"names shards in {', '.join(one.url for one in parts)}: these must stay as they are",),
    )


def _named(part: Revision, out: str) -> tuple[ShardGroup, ...]:
    """The groups of a dataset as another names them, by whole paths and URLs."""
    folders = [_whole(group.folder(part.url)) for group in part.manifest.groups]
    if local_path(out) is None:
        near = next((one for one in folders if local_path(one) is not None), None)
        if near is not None:
            raise OptionError(f"{out}: would name the shards in {near} on this machine, wanted copies. Add --copy.")
    return tuple(replace(group, url=folder) for group, folder in zip(part.manifest.groups, folders, strict=True))


def _whole(folder: str) -> str:
    path = local_path(folder)
    return folder if path is None else str(absolute(path))


def _copied(parts: Sequence[Revision], out: str, access: Access, progress: Advance) -> list[tuple[ShardGroup, ...]]:
    """Copy the shards of datasets, each group into a folder of its own; the groups as they are there."""
    total = sum(part.manifest.columns.num_shards for part in parts)
    found, num_done = [], 0
    for number, part in enumerate(parts):
        columns, groups = part.manifest.columns, []
        for position, group in enumerate(part.manifest.groups):
            name = f"part-{number:03d}-{position:03d}"
            groups.append(replace(group, url=name))
            for shard in np.flatnonzero(columns.group_of == position).tolist():
                tar = columns.names[shard]
                for file in (index_name(tar), tar):
                    _copy(join(group.folder(part.url), file), join(join(out, name), file), part.access, access)
                num_done += 1
                progress(num_done, total)
        found.append(tuple(groups))
    return found


def _copy(source: str, target: str, opens: Access, access: Access) -> None:
    """Copy a file; one that is there is the same, of a merge that did not end, if it is as large."""
    with local_copy(source, opens) as path:
        there = local_path(target)
        if there is None:
            upload(path, target.rpartition("/")[0], access)
            return
        there.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError):
            if there.stat().st_size == path.stat().st_size:
                return
        _copy_local(path, there)


def _copy_local(path: Path, there: Path) -> None:
    import shutil

    with path.open("rb") as file:
        write_local(there, lambda out: shutil.copyfileobj(file, out, 1 << 20), sync=True)
