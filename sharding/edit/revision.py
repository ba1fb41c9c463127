"""One edit of a dataset from end to end: read, change, keep what was, and take the manifest's place."""

import os
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timezone

import numpy as np

from epistream._version import __version__
from epistream.access import Access
from epistream.errors import EditConflictError, EditError
from epistream.sharding.edit.swapping import swap
from epistream.sharding.files.hdf5_sources import AnyPath
from epistream.sharding.files.names import index_name
from epistream.sharding.files.sources import folder_access, folder_of
from epistream.sharding.files.storage import Options, join, list_names, read_bytes, write_atomic
from epistream.sharding.manifest.history import Edit, History
from epistream.sharding.manifest.manifest import Manifest
from epistream.sharding.manifest.manifest_file import FILE_NAME, MOST_BYTES, kept_file, parse_manifest, read_manifest
from epistream.sharding.manifest.manifest_writing import manifest_files
from epistream.units import count_text

_PROGRAM = f"epistream {__version__}"


@dataclass(frozen=True)
class EditReport:
    """What an edit did.

    Args:
        url: Of the dataset.
        what: What was done, in a few words.
        fingerprint: Of the dataset now.
        before: Of the dataset before.
        num_episodes: Now.
        num_steps: Now, of all episodes.
        num_shards: Now.
        splits: Episodes by split, now.
        seconds: Wall time.
        notes: What may come unexpected.
    """

    url: str
    what: str
    fingerprint: str
    before: str
    num_episodes: int
    num_steps: int
    num_shards: int
    splits: dict[str, int]
    seconds: float = 0.0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Revision:
    """A dataset as an edit found it.

    Args:
        url: Its folder, without what opens it.
        access: What opens it.
        document: The contents of ``dataset.json``.
        manifest: What they say.
    """

    url: str
    access: Access
    document: bytes
    manifest: Manifest

    @staticmethod
    def read(url: AnyPath, options: Options = None) -> "Revision":
        """The dataset at `url` as it is now.

        Raises:
            EditError: If what is named is how it was before an edit.
            SourceError: If there is none.
            FormatError: If it is torn.
        """
        folder, access, fingerprint = _found(url, options)
        if fingerprint:
            raise EditError(
                f"{url}: the dataset as it was before an edit, wanted it as it is. Go back to it with 'epistream edit "
                f"undo {shlex.quote(folder)} --to {fingerprint}' first."
            )
        document = read_bytes(join(folder, FILE_NAME), access, MOST_BYTES)
        if document is None:
            read_manifest(folder, access)  # which says what is there instead
            raise EditError(f"{folder}: being replaced, wanted a dataset to edit. Try again.")
        return Revision(folder, access, document, parse_manifest(document, folder, access))

    @staticmethod
    def read_any(url: AnyPath, options: Options = None) -> "Revision":
        """As `read`, also as it was before an edit, for whoever only reads.

        Raises:
            SourceError, FormatError: As `read`.
        """
        folder, access, fingerprint = _found(url, options)
        return Revision(folder, access, b"", read_manifest(folder, access, fingerprint))

    @property
    def history(self) -> list[Edit]:
        """What was done so far, the packing first."""
        told = list(self.manifest.history)
        writer = self.manifest.writer
        return told or [Edit(self.manifest.fingerprint, what=f"packed by {writer}", writer=writer)]

    def commit(self, changed: Manifest, edit: Edit) -> EditReport:
        """Publish a changed manifest in place of this one.

        Args:
            changed: The manifest.
            edit: What is said of it; its fingerprint, time and writer are filled in.

        Raises:
            EditError: If nothing would change.
            EditConflictError: If the dataset was edited since it was read.
            SourceError: If a file cannot be written; the dataset is as it was.
        """
        if changed.fingerprint == self.manifest.fingerprint:
            raise EditError(f"{self.url}: {edit.what}: it is so already, wanted a change. Nothing was done.")
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        done = replace(edit, fingerprint=changed.fingerprint, when=now, writer=_PROGRAM)
        changed = replace(changed, history=History.of([*self.history, done]))
        document, tables = manifest_files(changed)
        there = set(list_names(self.url, self.access) or ())
        for name, data in tables.items():
            if name not in there:  # they are called by their contents
                write_atomic(join(self.url, name), data, self.access)
        was = kept_file(self.manifest.fingerprint)
        if was not in there:
            write_atomic(join(self.url, was), self.document, self.access)
        write_atomic(join(self.url, kept_file(changed.fingerprint)), document, self.access)
        needed = {*tables, *(one.file for one in changed.records.files), was}
        swap(self.url, self.document, document, self.access, lambda: self._see_whole(changed, needed))
        columns = changed.columns
        counts = np.bincount(columns.split_of, minlength=len(changed.splits)).tolist()
        return EditReport(
            url=self.url,
            what=edit.what,
            fingerprint=changed.fingerprint,
            before=self.manifest.fingerprint,
            num_episodes=columns.num_episodes,
            num_steps=columns.num_steps,
            num_shards=columns.num_shards,
            splits=dict(zip(changed.splits, counts, strict=True)),
        )

    def _see_whole(self, changed: Manifest, tables: set[str]) -> None:
        """See that nobody has removed what a changed manifest needs, because he knew nothing of it yet."""
        there = list_names(self.url, self.access)
        gone = None if there is None else next(iter(sorted(tables - set(there))), None)
        gone = gone or missing_of(changed, self.url, self.access)
        if gone is not None:
            raise EditConflictError(
                f"{join(self.url, gone)}: removed while it was edited ('compact --prune' does so), wanted it to stay. "
                "Nothing was done; run the edit again."
            )


def shards_of(manifest: Manifest) -> dict[str, set[str]]:
    """The shards and indexes of a manifest that lie in the dataset's own folder, ``""``, and in folders of that."""
    columns, groups = manifest.columns, manifest.groups
    found: dict[str, set[str]] = {}
    for name, number in zip(columns.names, columns.group_of.tolist(), strict=True):
        if groups[number].is_inside:
            found.setdefault(groups[number].url, set()).update((name, index_name(name)))
    return found


def missing_of(manifest: Manifest, url: str, access: Access) -> str | None:
    """A shard of a dataset's own that is not there, by its name in the folder; None if all are, or none can tell."""
    for folder, wanted in shards_of(manifest).items():
        there = list_names(join(url, folder) if folder else url, access)
        gone = sorted(wanted - set(there)) if there is not None else []
        if gone:
            return f"{folder}/{gone[0]}" if folder else gone[0]
    return None


def _found(url: AnyPath, options: Options) -> tuple[str, Access, str]:
    """The folder of a dataset, what opens it, and the fingerprint that is named with it, if any."""
    plain, access = folder_access(os.fspath(url), options)
    found = folder_of(plain.rstrip("/"))
    return found.url.rstrip("/"), access, found.fingerprint


def edited(
    url: AnyPath, options: Options, command: str, change: Callable[[Revision], tuple[Manifest, str]], notes: list[str]
) -> EditReport:
    """Read a dataset, change it, and publish what came of it.

    Args:
        url: Of the dataset.
        options: For fsspec.
        command: What the history calls it.
        change: Gives the changed manifest, and what was done in a few words.
        notes: That `change` fills.

    Raises:
        EpistreamError: As `change`, `Revision.read` and `Revision.commit`.
    """
    began = time.monotonic()
    revision = Revision.read(url, options)
    changed, what = change(revision)
    edit = Edit("", what=what, command=command, before=len(revision.history) - 1)
    report = revision.commit(changed, edit)
    return replace(report, seconds=time.monotonic() - began, notes=tuple(notes))


def counted(num_episodes: int, of: int) -> str:
    """``3 of 120 episodes``."""
    return f"{num_episodes:,} of {count_text(of, 'episode')}"
