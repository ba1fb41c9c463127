"""Entries that are read where they lie, and what tells versions of their sources apart."""

import contextlib

from epistream.cache.open_entry import OpenEntry
from epistream.cache.source.blob import Blob
from epistream.cache.source.entry import Entry, Part
from epistream.cache.source.local import FileBlob
from epistream.cache.source.ranged import RangeBlob
from epistream.cache.source.remote import Remote
from epistream.cache.source.remote_pieces import ranges_of_part
from epistream.cache.source.shared import Shared
from epistream.cache.stats import Counters
from epistream.cache.store.partial import Partial
from epistream.file_systems import local_path


class Direct:
    """Reads sources without the cache.

    Attributes:
        advises: Whether the kernel is told of a local file that it is wanted soon; unless somebody reads it ahead.
    """

    def __init__(self, remote: Remote, counters: Counters) -> None:
        self._remote = remote
        self._counters = counters
        self._versions: dict[str, str] = {}
        self.advises = True

    def open(self, entry: Entry, partial: Partial | None = None, *, may_copy: bool = True) -> OpenEntry:
        """The entry's parts, each by what it takes to read it.

        Args:
            entry: What to open.
            partial: It, where others of the node bring blocks of it too; closed with what is opened, or at once where
                that fails.
            may_copy: Whether whole parts are brought where a server knows no ranges: the cache does so otherwise.

        Raises:
            SourceError, SourceChangedError, FetchError: A part cannot be opened; none stays open then.
        """
        blobs: list[Blob] = []
        shares = [None] * len(entry.parts) if partial is None else partial.parts
        with contextlib.ExitStack() as undo:
            if partial is not None:
                undo.callback(partial.close)
            for part, shared in zip(entry.parts, shares, strict=True):
                blobs.append(self._open_part(part, shared, may_copy=may_copy))
                undo.callback(blobs[-1].close)
            undo.pop_all()
        return OpenEntry(tuple(blobs), "direct", partial)

    def _open_part(self, part: Part, shared: Shared | None, *, may_copy: bool) -> Blob:
        path = local_path(part.url)
        if part.supply is not None and part.remote_pieces is None:
            return part.supply.open()
        if path is not None:
            return FileBlob(path, part.size, None if self.advises else (0, 0))
        ranges = ranges_of_part(part, self._remote)
        return RangeBlob(part, ranges, lambda size: self._counters.add(bytes_ranged=size), shared, may_copy=may_copy)

    def identified(self, entry: Entry) -> Entry:
        """The entry under the key that it is kept by: with a version where the manifest tells no checksum.

        The source is asked for it once, which may take a request.
        """
        if entry.is_identified:
            return entry
        for part in entry.parts:
            if part.url not in self._versions:
                self._versions[part.url] = self._remote.version(part.url)
        return entry.with_versions([self._versions[part.url] for part in entry.parts])
