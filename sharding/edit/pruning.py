"""Pruning: removing what neither a dataset as it is nor the manifests that are kept of it need."""

import contextlib
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from epistream.errors import SourceError
from epistream.file_systems import ask, local_path, open_file_system
from epistream.sharding.edit.copying_episodes import TEMPORARY
from epistream.sharding.edit.revision import Revision, shards_of
from epistream.sharding.edit.swapping import held
from epistream.sharding.files.hdf5_sources import AnyPath
from epistream.sharding.files.locks import locked
from epistream.sharding.files.storage import Options, join, list_names, read_bytes, remove_quietly
from epistream.sharding.manifest.groups import MADE_BY_EDITS
from epistream.sharding.manifest.manifest_file import (
    FILE_NAME,
    KEPT_NAME,
    MOST_BYTES,
    TABLES_NAME,
    files_named,
    kept_file,
    parse_manifest,
)
from epistream.sharding.pack.workspace import LOCK_FILE as PACK_LOCK

_SHARD = re.compile(r"shard-(?:r\d+-)?\d{6,}\.(?:tar|index)")
# What a process leaves that is killed while it writes; and how old it is when none writes it any more.
_UNFINISHED = re.compile(rf"\.(?:{KEPT_NAME.pattern}|{TABLES_NAME.pattern}|dataset\.json)\.\d+\.tmp")
_ABANDONED_S = 3600.0


@dataclass(frozen=True)
class Pruned:
    """What was removed: earlier manifests, files of all kinds, and their bytes."""

    num_manifests: int
    num_files: int
    num_bytes: int


def prune(url: AnyPath, keep: int, *, storage_options: Options = None) -> Pruned:
    """Remove the manifests of all but the last edits, and the files that none of those which stay needs.

    No edit takes place meanwhile: it could need what is being removed.

    Args:
        url: Of the dataset.
        keep: How many manifests before the current one stay.
        storage_options: For fsspec.

    Raises:
        EditConflictError: If somebody is about to edit it.
        SourceError, FormatError: If the dataset, or a manifest that stays, cannot be read; then nothing is removed.
    """
    found = Revision.read(url, storage_options)
    with held(found.url, found.access) as renew:
        return _Pruning(Revision.read(url, storage_options), keep).run(renew)


class _Pruning:
    """One prune of a dataset that nobody edits meanwhile."""

    def __init__(self, revision: Revision, keep: int) -> None:
        self._url, self._access = revision.url, revision.access
        self._names = list_names(self._url, self._access) or []
        order = dict.fromkeys(edit.fingerprint for edit in reversed(revision.history))
        kept = [kept_file(one) for one in order if one != revision.manifest.fingerprint]
        staying = [name for name in kept if name in self._names][:keep]
        self._needed = {FILE_NAME, kept_file(revision.manifest.fingerprint), *staying}
        self._folders: set[str] = set()
        for name in (FILE_NAME, *staying):
            self._needs(name)
        self._num_files = self._num_bytes = 0

    def run(self, renew: Callable[[], None]) -> Pruned:
        """Remove what is not needed: first the manifests, so that none is left of which something is missing."""
        gone = [name for name in self._names if _is_ours(name) and name not in self._needed]
        gone.sort(key=lambda name: KEPT_NAME.fullmatch(name) is None)
        for name in gone:
            self._remove(join(self._url, name))
            renew()
        for name in self._names:
            if MADE_BY_EDITS.fullmatch(name) and name not in self._folders:
                self._remove_folder(join(self._url, name))
                renew()
        self._remove_abandoned()
        num_manifests = sum(KEPT_NAME.fullmatch(name) is not None for name in gone)
        return Pruned(num_manifests, self._num_files, self._num_bytes)

    def _needs(self, name: str) -> None:
        """Note what a manifest needs."""
        where = join(self._url, name)
        data = read_bytes(where, self._access, MOST_BYTES)
        if data is None:
            raise SourceError(
                f"{where}: gone while it was looked at, wanted it to stay. Nothing was removed; try again."
            )
        self._needed |= files_named(data, where)
        shards = shards_of(parse_manifest(data, self._url, self._access))
        self._needed |= shards.pop("", set())
        self._folders |= shards.keys()

    def _remove(self, url: str) -> None:
        size = 0
        with contextlib.suppress(Exception):  # it is told only
            file_system, path = open_file_system(url, self._access)
            size = int(ask(file_system, "info", path).get("size") or 0)
        remove_quietly(url, self._access)
        self._num_files, self._num_bytes = self._num_files + 1, self._num_bytes + size

    def _remove_folder(self, url: str) -> None:
        """Remove what edits made in a folder of theirs, unless one is still packing into it, or it is elsewhere."""
        path = local_path(url)
        if path is not None and path.is_symlink():  # made by no edit
            return
        with contextlib.ExitStack() as stack:
            if path is not None:
                try:
                    stack.enter_context(locked(path / PACK_LOCK, 0.0))
                except (TimeoutError, OSError):
                    return
            # First what says that it is complete: whoever adds the same again would take it for that.
            names = list_names(url, self._access) or []
            for name in sorted(names, key=lambda name: name != FILE_NAME):
                if name == FILE_NAME or _is_ours(name):
                    self._remove(join(url, name))
        if path is not None:
            with contextlib.suppress(OSError):
                (path / PACK_LOCK).unlink(missing_ok=True)
                path.rmdir()

    def _remove_abandoned(self) -> None:
        folder = local_path(self._url)
        if folder is None:
            return
        for name in self._names:
            path = Path(folder) / name
            with contextlib.suppress(OSError):
                if not (TEMPORARY.fullmatch(name) or _UNFINISHED.fullmatch(name)):
                    continue
                if time.time() - path.stat().st_mtime > _ABANDONED_S:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _is_ours(name: str) -> bool:
    return any(pattern.fullmatch(name) for pattern in (KEPT_NAME, TABLES_NAME, _SHARD))
