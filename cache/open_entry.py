"""What `NodeCache.open` gives: the blobs of an entry, and the lease that keeps them."""

from epistream.cache.source.blob import Blob
from epistream.cache.store.lease import Lease
from epistream.cache.store.partial import Partial


class OpenEntry:
    """An entry that may be read until `close`.

    Its lease keeps the entry in the cache, and other entries out of it: a reader may hold it between
    batches, and closes it before it waits for anything. Views that were read from it are given up first; one
    that is still alive stays readable, but its memory is then no longer counted.

    Args:
        blobs: One per part.
        tier: "shm", "disk" or "direct".
        lease: Of the cache; for direct reads the partial entry that they share with others, or None.
    """

    def __init__(self, blobs: tuple[Blob, ...], tier: str, lease: Lease | Partial | None) -> None:
        self.blobs = blobs
        self.tier = tier
        self._lease = lease

    def write(self, offset: int, data: bytes | memoryview) -> bool:
        """Change bytes of a kept entry in place, see `Lease.write`."""
        return isinstance(self._lease, Lease) and self._lease.write(offset, data)

    def try_lock(self, offset: int) -> bool:
        """Lock a byte of a kept entry against others who have it open, see `Lease.try_lock`."""
        return not isinstance(self._lease, Lease) or self._lease.try_lock(offset)

    def unlock(self, offset: int) -> None:
        """Give back what `try_lock` took."""
        if isinstance(self._lease, Lease):
            self._lease.unlock(offset)

    def open_again(self) -> int:
        """Another description of a kept entry's file, see `Lease.open_again`."""
        if not isinstance(self._lease, Lease):
            raise FileNotFoundError("an entry that is read where it lies: no file of the cache, wanted one")
        return self._lease.open_again()

    def rest(self) -> None:
        """Let a kept entry be evicted, but keep it mapped, see `Lease`."""
        if isinstance(self._lease, Lease):
            self._lease.rest()

    def renew(self, *, used: bool) -> bool:
        """Whether a kept entry is still there, see `Lease.renew`."""
        return isinstance(self._lease, Lease) and self._lease.renew(used=used)

    def close(self) -> None:
        """End the lease, or close the files. Harmless when called twice."""
        blobs, self.blobs = self.blobs, ()
        for blob in blobs:
            blob.close()
        del blobs
        if self._lease is not None:
            self._lease.close()
            self._lease = None

    def __enter__(self) -> "OpenEntry":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
