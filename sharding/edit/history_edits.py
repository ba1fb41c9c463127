"""Looking back: what was done to a dataset, and going back to how it was."""

import time
from dataclasses import replace

from epistream.errors import EditError, OptionError, SourceError
from epistream.sharding.edit.revision import EditReport, Revision
from epistream.sharding.files.hdf5_sources import AnyPath
from epistream.sharding.files.storage import Options, list_names
from epistream.sharding.manifest.history import Edit
from epistream.sharding.manifest.manifest_file import kept_file, read_manifest

_SHOWN = 8


def log(url: AnyPath, *, storage_options: Options = None) -> list[Edit]:
    """What was done to a dataset since it was packed, the packing first.

    Args:
        url: Of the dataset.
        storage_options: For fsspec.

    Raises:
        SourceError, FormatError: If it cannot be read.
    """
    return Revision.read(url, storage_options).history


def kept(url: AnyPath, *, storage_options: Options = None) -> frozenset[str] | None:
    """The fingerprints of its history under which a dataset still opens; None on a server that lists no folders.

    Args:
        url: As for `log`.
        storage_options: For fsspec.

    Raises:
        SourceError, FormatError: If it cannot be read.
    """
    revision = Revision.read(url, storage_options)
    names = list_names(revision.url, revision.access)
    if names is None:
        return None
    known = {edit.fingerprint for edit in revision.history}
    now = revision.manifest.fingerprint
    return frozenset(one for one in known if one == now or kept_file(one) in names)


def undo(url: AnyPath, fingerprint: str | None = None, *, storage_options: Options = None) -> EditReport:
    """Make a dataset what it was before its last edit, or under an earlier fingerprint; that is an edit, too.

    Args:
        url: Of the dataset.
        fingerprint: That it shall have again, or its first digits; that before the last edit if None.
        storage_options: For fsspec.

    Raises:
        EditError: If there is nothing to undo, no such fingerprint, or what it was is no longer kept.
        EditConflictError: If somebody else edited the dataset meanwhile.
        SourceError, FormatError: If it cannot be read or written.
    """
    began = time.monotonic()
    revision = Revision.read(url, storage_options)
    history = revision.history
    position = history[-1].before if fingerprint is None else _position(revision, history, fingerprint)
    if position < 0:
        raise EditError(f"{revision.url}: no edit to undo, it is as it was made.")
    target = history[position]
    try:
        restored = read_manifest(revision.url, revision.access, target.fingerprint)
    except SourceError as error:
        raise EditError(
            f"{revision.url}: what it was under {target.fingerprint[:_SHOWN]} is not kept any more ('compact --prune' "
            "removes it), wanted it. 'epistream edit log' marks what is not."
        ) from error
    undone = (
        f"undone: {_last_done(history)}" if fingerprint is None else f"as it was under {target.fingerprint[:_SHOWN]}"
    )
    command = "undo" if fingerprint is None else f"undo --to {fingerprint}"
    # Undone again, an undo goes on back from where it went; whoever named a fingerprint comes back.
    before = target.before if fingerprint is None else len(history) - 1
    report = revision.commit(restored, Edit("", what=undone, command=command, before=before))
    return replace(report, seconds=time.monotonic() - began)


def _last_done(history: list[Edit]) -> str:
    """What was done to make the dataset what it is: an undo brought back what an earlier edit had made."""
    last = history[-1]
    return next(edit.what for edit in history if (edit.fingerprint, edit.before) == (last.fingerprint, last.before))


def _position(revision: Revision, history: list[Edit], fingerprint: str) -> int:
    """The last entry of the history with a fingerprint that begins so."""
    if not isinstance(fingerprint, str):
        raise OptionError(f"undo: {fingerprint!r:.80}, wanted the first digits of a fingerprint.")
    found = [number for number, edit in enumerate(history) if edit.fingerprint.startswith(fingerprint.lower())]
    if len({history[number].fingerprint for number in found}) != 1 or not fingerprint:
        what = "several fingerprints begin so" if found else "no such fingerprint in its history"
        raise EditError(f"{revision.url}: {fingerprint!r}: {what}, wanted one of those of 'epistream edit log'.")
    return found[-1]
