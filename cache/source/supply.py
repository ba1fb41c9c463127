"""Bytes of a part that are not simply what its URL holds: picked out of it, unpacked, put together."""

from typing import Protocol

from epistream.cache.source.blob import Blob


class SuppliedBlob(Blob, Protocol):
    """A blob that holds files open."""

    def close(self) -> None:
        """Close them. Harmless when called twice."""


class Supply(Protocol):
    """How a reader that knows a format offers bytes of it to the cache, which keeps them like any others.

    The cache opens it where it would have opened the URL: in the process that fills an entry, which copies all of
    the blob, or in one that reads directly. It must be picklable.
    """

    def open(self) -> SuppliedBlob:
        """The bytes, `Part.size` of them; the caller closes them.

        Raises:
            SourceError, SourceChangedError, FetchError: As reading the URL itself.
        """
