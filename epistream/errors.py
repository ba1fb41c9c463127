"""Every error that epistream raises on purpose: one base class, each also a builtin, all of them picklable.

A leaf, so that every room may use it. Messages read ``where: found, wanted. Next step that works.``
"""

from epistream.shown_urls import shown


class EpistreamError(Exception):
    """Base of all errors below: catch it to catch whatever epistream reports.

    URLs in its message have neither query, user nor password, whoever wrote it: see `epistream.shown_urls`.
    """

    def __init__(self, *arguments: object) -> None:
        super().__init__(*(shown(argument) if isinstance(argument, str) else argument for argument in arguments))


class OptionError(EpistreamError, ValueError):
    """An argument, option or configuration value that cannot work; raised before any data is touched."""


class SourceError(EpistreamError, OSError):
    """A source file or URL that is missing, unreadable or not what it claims to be."""


class LayoutError(EpistreamError, ValueError):
    """An HDF5 file whose contents fit no known layout, or break the layout they announce."""


class FormatError(EpistreamError, ValueError):
    """A shard, index or manifest that is torn, hostile, or does not agree with its neighbours."""


class VersionError(FormatError):
    """A shard, index or manifest of a format version that this release cannot read."""


class DatasetExistsError(EpistreamError, FileExistsError):
    """The target of a packing job already holds a dataset, and neither resume nor overwrite was asked for."""


class PackError(EpistreamError, RuntimeError):
    """A packing job that could not finish; nothing was published."""


class EditError(EpistreamError, ValueError):
    """An edit that cannot be made of a dataset; it is as it was."""


class EditConflictError(EditError):
    """An edit of a dataset that somebody else edited meanwhile; it is as they left it."""


class FetchError(EpistreamError, OSError):
    """Bytes that could not be fetched from a URL within the retries and the deadline."""


class ChecksumError(FetchError):
    """Bytes that were fetched but do not have the promised checksum, twice."""


class SourceChangedError(EpistreamError, OSError):
    """A file that was replaced, truncated or modified while it was in use."""


class CacheError(EpistreamError, OSError):
    """The node cache cannot be used as asked: ownership, permissions, or no room."""


class DeadlineError(EpistreamError, TimeoutError):
    """A wait that reached its deadline; the message names what was waited for."""


class StateError(EpistreamError, ValueError):
    """A saved state that belongs to another dataset, window, seed or plan."""


class WorkerError(EpistreamError, RuntimeError):
    """A worker that died or failed; the message says how and where."""
